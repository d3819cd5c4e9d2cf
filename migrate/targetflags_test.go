package migrate

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

func TestRemovedSettings(t *testing.T) {
	args := []string{"--name=a", "--debug", "-experimental-initial-corrupt-check=true", "--experimental-watch-progress-notify-interval", "5s",
		"--data-dir", "/d", "--", "--proxy=on"}
	env := []string{"PATH=/bin", "ETCD_ENABLE_V2=true", "ETCD_EXPERIMENTAL_COMPACTION_BATCH_LIMIT=5", "ETCD_DEBUG=1", "ETCD_NAME=a"}
	for minor, want := range map[string][]string{
		"3.4": nil,
		"3.5": {
			"--debug was removed in etcd 3.5: use --log-level=debug",
			"ETCD_DEBUG was removed in etcd 3.5: use ETCD_LOG_LEVEL=debug",
		},
		"3.7": {
			"--debug was removed in etcd 3.5: use --log-level=debug",
			"-experimental-initial-corrupt-check was removed in etcd 3.7: use --feature-gates=InitialCorruptCheck=true",
			"--experimental-watch-progress-notify-interval was removed in etcd 3.7: use --watch-progress-notify-interval",
			"ETCD_ENABLE_V2 was removed in etcd 3.6: remove it (the v2 API is gone: its clients must use the v3 API)",
			"ETCD_EXPERIMENTAL_COMPACTION_BATCH_LIMIT was removed in etcd 3.7: use ETCD_COMPACTION_BATCH_LIMIT",
			"ETCD_DEBUG was removed in etcd 3.5: use ETCD_LOG_LEVEL=debug",
		},
	} {
		m, err := versionfile.ParseMinor(minor)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range RemovedSettings(m, args, env) {
			got = append(got, s.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", minor, diff)
		}
	}
}

// TestRemovedFlagsOfRealEtcds asks the binaries: the minor before knows each flag and what takes its place is known to the
// minor that has removed it.
func TestRemovedFlagsOfRealEtcds(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries("")
	if err != nil {
		t.Fatal(err)
	}
	flags := map[versionfile.Minor]map[string]bool{} // those to ask for, and whether they must be known
	want := func(m versionfile.Minor, flag string, known bool) {
		if flags[m] == nil {
			flags[m] = map[string]bool{}
		}
		name, _, _ := strings.Cut(flag, "=")
		flags[m][name] = known
	}
	for _, r := range removedFlags {
		want(before(r.minor), r.flag, true)
		want(r.minor, r.flag, false)
		if r.instead != "" {
			want(r.minor, r.instead, true)
		}
	}
	for m, all := range flags {
		bin, ok := set.Newest(m)
		if !ok {
			t.Fatalf("no etcd %s; run `make binaries`", m)
		}
		for flag, known := range all {
			if got := knows(t, bin, flag); got != known {
				t.Errorf("etcd %s knows --%s: %v, want %v", bin.Release, flag, got, known)
			}
		}
	}
}

func before(m versionfile.Minor) versionfile.Minor {
	minors := versionfile.Minors()
	for i := range minors {
		if minors[i] == m {
			return minors[i-1]
		}
	}
	return m
}

// knows asks with a second flag that no etcd knows, so that none is ever started: etcd names the first that it does not.
func knows(t *testing.T, bin binaries.Binary, flag string) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin.Path, "--"+flag+"=1", "--no-etcd-knows-this")
	cmd.Dir = t.TempDir()
	cmd.Env = []string{}
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("etcd %s started with --no-etcd-knows-this", bin.Release)
	}
	return !strings.Contains(string(out), "not defined: -"+flag+"\n") || strings.Contains(string(out), "invalid value")
}
