package migrate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// RemovedSetting is a flag or an environment variable that an etcd no longer knows. Of a flag it dies; a variable it
// ignores with a warning, so that what it was to set is silently lost.
type RemovedSetting struct {
	// Name is as it was given: "--debug" or "ETCD_DEBUG".
	Name string
	// Removed is the first minor without it.
	Removed versionfile.Minor
	// Instead is what to give in its place, with the value if that is fixed; empty if there is nothing like it any more.
	Instead string
	// Note says more where the new setting alone does not; empty otherwise.
	Note string
}

func (s RemovedSetting) String() string {
	text := fmt.Sprintf("%s was removed in etcd %s: ", s.Name, s.Removed)
	if s.Instead == "" {
		text += "remove it"
	} else {
		text += "use " + s.Instead
	}
	if s.Note != "" {
		text += " (" + s.Note + ")"
	}
	return text
}

type removed struct {
	minor   versionfile.Minor
	flag    string
	instead string // a flag name with an optional value, "" for none
	note    string
}

// removedFlags was made from the flags that each minor's newest release defines and the one after it does not
// (server/embed/config.go, etcdmain/config.go), and is checked against the binaries in targetflags_test.go.
var removedFlags = slices.Concat(
	since(0,
		"addr", "advertise-client-urls", "bind-addr", "listen-client-urls", "peer-addr", "initial-advertise-peer-urls",
		"peer-bind-addr", "listen-peer-urls", "peers", "initial-cluster", "peers-file", "initial-cluster",
		"experimental-v3demo", "", "experimental-auto-compaction-retention", "auto-compaction-retention", "experimental-gRPC-addr", ""),
	since(4, "ca-file", "trusted-ca-file", "peer-ca-file", "peer-trusted-ca-file"),
	since(5,
		"debug", "log-level=debug", "log-output", "log-outputs", "log-package-levels", "log-level",
		"experimental-backend-bbolt-freelist-type", "backend-bbolt-freelist-type", "next-cluster-version-compatible", ""),
	since(6,
		"enable-v2", "", "experimental-enable-v2v3", "", "proxy", "", "proxy-dial-timeout", "", "proxy-failure-wait", "",
		"proxy-read-timeout", "", "proxy-refresh-interval", "", "proxy-write-timeout", ""),
	since(7,
		"discovery", "discovery-token", "discovery-proxy", "",
		"experimental-initial-corrupt-check", "feature-gates=InitialCorruptCheck=true",
		"experimental-compact-hash-check-enabled", "feature-gates=CompactHashCheck=true",
		"experimental-enable-lease-checkpoint", "feature-gates=LeaseCheckpoint=true",
		"experimental-enable-lease-checkpoint-persist", "feature-gates=LeaseCheckpointPersist=true",
		"experimental-stop-grpc-service-on-defrag", "feature-gates=StopGRPCServiceOnDefrag=true",
		"experimental-txn-mode-write-with-shared-buffer", "feature-gates=TxnModeWriteWithSharedBuffer=true"),
	renamed(7, "experimental-",
		"bootstrap-defrag-threshold-megabytes", "compact-hash-check-time", "compaction-batch-limit", "compaction-sleep-interval",
		"corrupt-check-time", "distributed-tracing-address", "distributed-tracing-instance-id", "distributed-tracing-sampling-rate",
		"distributed-tracing-service-name", "downgrade-check-time", "enable-distributed-tracing", "memory-mlock",
		"peer-skip-client-san-verification", "snapshot-catchup-entries", "warning-apply-duration",
		"warning-unary-request-duration", "watch-progress-notify-interval"),
)

// notes say what a person has to know beside the new name.
var notes = map[string]string{
	"enable-v2":          "the v2 API is gone: its clients must use the v3 API",
	"proxy":              "`etcd grpc-proxy` and `etcd gateway` take its place",
	"log-package-levels": "levels by package are gone",
	"discovery":          "discovery with the v2 API is gone; discovery-endpoints and discovery-token use the v3 API",
}

// since makes entries for a minor of 3.x of pairs: a flag and what takes its place.
func since(minor int, pairs ...string) (all []removed) {
	for p := range slices.Chunk(pairs, 2) {
		all = append(all, removed{versionfile.Minor{Major: 3, Minor: minor}, p[0], p[1], notes[p[0]]})
	}
	return all
}

func renamed(minor int, prefix string, names ...string) (all []removed) {
	for _, n := range names {
		all = append(all, removed{versionfile.Minor{Major: 3, Minor: minor}, prefix + n, n, ""})
	}
	return all
}

// RemovedSettings finds in an etcd's own arguments (without the program's name) and environment what an etcd of that minor
// no longer knows, in the order in which it was given. It reads no file: see RemovedFromFile.
func RemovedSettings(m versionfile.Minor, args, environ []string) (found []RemovedSetting) {
	for _, arg := range args {
		if arg == "--" {
			break
		}
		name, _, _ := strings.Cut(arg, "=")
		flag := strings.TrimPrefix(strings.TrimPrefix(name, "-"), "-")
		if r, ok := removedFlag(m, flag); ok && flag != name {
			found = append(found, RemovedSetting{name, r.minor, prefixed("--", r.instead), r.note})
		}
	}
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		for _, r := range removedFlags {
			if name == variable(r.flag) && !m.Less(r.minor) {
				instead, value, hasValue := strings.Cut(r.instead, "=")
				if instead != "" {
					instead = variable(instead)
				}
				if hasValue {
					instead += "=" + value
				}
				found = append(found, RemovedSetting{name, r.minor, instead, r.note})
			}
		}
	}
	return found
}

// RemovedFromFile finds the same among the names in an etcd's --config-file. There etcd ignores what it does not know, and does
// not even warn.
func RemovedFromFile(m versionfile.Minor, names []string) (found []RemovedSetting) {
	for _, name := range names {
		if r, ok := removedFlag(m, name); ok {
			found = append(found, RemovedSetting{name, r.minor, r.instead, r.note})
		}
	}
	return found
}

func removedFlag(m versionfile.Minor, flag string) (removed, bool) {
	i := slices.IndexFunc(removedFlags, func(r removed) bool { return r.flag == flag && !m.Less(r.minor) })
	if i < 0 {
		return removed{}, false
	}
	return removedFlags[i], true
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// variable is the environment variable for a flag, as etcd forms it (pkg/flags.FlagToEnv).
func variable(flag string) string {
	return "ETCD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}
