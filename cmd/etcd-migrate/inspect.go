package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

type inspectCmd struct {
	dataFlags
	Output string `group:"output" short:"o" env:"OUTPUT_FORMAT" enum:"table,json" default:"table" help:"table or json, on standard output."`
}

func (c *inspectCmd) Run(ctx context.Context, names namePrinter) error {
	l, err := migrate.OpenLayout(c.DataDir, c.WALDir)
	if err != nil {
		return err
	}
	if err := l.LiveEtcd(); err != nil {
		return &migrate.Error{Kind: migrate.InUse, Op: "inspect", Err: err, Hint: "stop it first: what its files hold changes all the time"}
	}
	st, err := migrate.Inspect(ctx, l, time.Now())
	if err != nil {
		return err
	}
	if c.Output == "json" {
		err = writeJSON(st)
	} else {
		err = printState(st)
	}
	for _, p := range st.Problems {
		names.print(p.Names)
	}
	return err
}

func printState(st migrate.State) error {
	if st.Presence == migrate.Fresh {
		fmt.Printf("%s holds no member's data.\n", st.DataDir)
	} else if err := printMember(st); err != nil {
		return err
	}
	printProblems(st)
	return nil
}

func printProblems(st migrate.State) {
	for _, p := range st.Problems {
		kind := "note"
		if p.Blocking {
			kind = "problem"
		}
		fmt.Printf("\n%s %s: %s\n  what to do: %s\n", kind, p.Code, p.Text, p.Hint)
	}
}

func printMember(st migrate.State) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	line("data dir", "%s", st.DataDir)
	if st.WALDir != st.DataDir+"/member/wal" {
		line("WAL dir", "%s", st.WALDir)
	}
	line("version", "%s", st.Version)
	for _, e := range st.Evidence {
		line("", "%s says %s", e.Source, e.Says)
	}
	line("member", "%s, name %q, cluster %s", st.Member.ID, st.Member.Name, st.Log.ClusterID)
	for _, m := range st.Members {
		line("", "%s %s %q, peers at %s, clients at %s", role(m), m.ID, m.Name, list(m.PeerURLs), list(m.ClientURLs))
	}
	line("raft log", "index %d, term %d, newest snapshot at %d", st.Log.Index, st.Log.Term, st.Log.SnapshotIndex)
	if len(st.Log.Entries) > 0 {
		line("", "entries after it: %s", counts(st.Log.Entries))
	}
	if len(st.Log.V2Entries) > 0 {
		line("", "in the format of the v2 API: %s; etcd 3.7 panics on them, and 3.6 on %d of them", counts(st.Log.V2Entries), st.Log.Foreign)
	}
	if n := st.Log.Unapplied(); n > 0 {
		line("", "%d entries wait to be applied: etcd was not stopped cleanly", n)
	}
	line("v2 store", "%s (%s), %d with a TTL, %d hidden, %d expired, %d empty directories, index %d",
		plural(st.V2.Keys, "key"), humanize.IBytes(uint64(st.V2.Bytes)), st.V2.TTLs, st.V2.Hidden, st.V2.Expired, st.V2.EmptyDirs, st.V2.Index)
	if v := st.V2.Values; st.V2.Keys > 0 {
		line("", "values: %d JSON, %d protobuf, %d other", v.JSON, v.Protobuf, v.Other)
	}
	if n := st.V2.Unconverted; n > 0 && st.V3.Present {
		line("", "%d keys are not in the v3 store with the same value and revision", n)
	}
	if st.V2.Auth > 0 || st.V2.AuthEnabled {
		line("", "%d users and roles, authentication enabled: %v", st.V2.Auth, st.V2.AuthEnabled)
	}
	if st.V3.Present {
		line("v3 store", "%s, revision %d, compacted at %d, %s, %s of which %s are free",
			plural(st.V3.Keys, "key"), st.V3.Revision, st.V3.CompactRevision, plural(st.V3.Leases, "lease"), humanize.IBytes(uint64(st.V3.SizeBytes)), humanize.IBytes(uint64(st.V3.FreeBytes)))
		v := st.V3.Values
		line("", "values: %d JSON, %d protobuf, %d other", v.JSON, v.Protobuf, v.Other)
		for _, m := range st.V3.Members {
			line("", "the db knows %s %s %q", role(m), m.ID, m.Name)
		}
		line("", "alarms: %s; %d users and roles, authentication enabled: %v", list(st.V3.Alarms), st.V3.Auth, st.V3.AuthEnabled)
		if st.V3.Downgrade != "" {
			line("", "a downgrade to etcd %s is enabled", st.V3.Downgrade)
		}
	} else {
		line("v3 store", "none")
	}
	return w.Flush()
}

func role(m migrate.Member) string {
	if m.Learner {
		return "learner"
	}
	return "member"
}

// counts gives "3 PUT, 1 SYNC" in alphabetical order.
func counts(of map[string]int) string {
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(of)) {
		parts = append(parts, fmt.Sprintf("%d %s", of[what], what))
	}
	return list(parts)
}

func list(items []string) string {
	if len(items) == 0 {
		return "none"
	}
	return strings.Join(items, ", ")
}
