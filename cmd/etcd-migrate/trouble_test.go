//go:build amd64

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// unreadable are failures of the disk that a run meets after a kill: it cannot read what tells it how far the one before it got.
var unreadable = []failure{
	{name: "the journal", errno: unix.EIO, hits: []string{"open", "read"}, lasts: true, files: []string{"migration.json"}},
	{name: "version.txt", errno: unix.EIO, hits: []string{"open", "read"}, lasts: true, files: []string{"version.txt"}},
	{name: "the backup's manifest", errno: unix.EIO, hits: []string{"open", "read"}, lasts: true, files: []string{"manifest.json"}},
}

// TestTroubleAfterKill kills a migration as TestKilled does, and then something else goes wrong, too: the journal, version.txt
// or the backup's manifest cannot be read, from one of the calls on that read it; the volume with the backups is not mounted;
// the data dir has another path. What cannot be read must end in an error that says so, with no more changed than it says, and
// without the backup there must be a refusal that names it, with nothing changed. The run after it must be right, with the
// backup that there was.
//
// With ETCD_MIGRATE_CRASH=all all of that is done after a kill at one of the last changes of each step, which one is left to
// chance, and so is whether it is the first, third and so on of the calls, or the others; else after one kill of each scenario,
// with one of the files that cannot be read.
func TestTroubleAfterKill(t *testing.T) {
	for _, sc := range scenarios(t) {
		if sc.args[0] == "backup" || sc.from == "" || sc.prunes {
			continue
		}
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			sc.open(t)
			sc.row = row{scenario: sc.name + ", and trouble after a kill"}
			only := sc.random().IntN(len(sc.stages))
			for i := range sc.stages {
				if everything || i == only {
					sc.trouble(t, i)
				}
			}
			sc.account()
		})
	}
}

// trouble is all that goes wrong after a kill in one stage.
func (sc *scenario) trouble(t *testing.T, i int) {
	t.Helper()
	killed, at := sc.killHalfWay(t, i)
	at = fmt.Sprintf("begun at step %d, killed before %s, ", i+1, at)
	ids := sc.backupIDs(t)
	goOn := func(where string) {
		t.Helper()
		sc.goOnOrFinish(t, at+where, i, false)
		if diff := cmp.Diff(ids, sc.backupIDs(t)); diff != "" {
			t.Fatalf("%s: there are other backups afterwards: %s", at+where, diff)
		}
	}
	some := unreadable
	if !everything {
		some = unreadable[sc.random().IntN(len(unreadable)):][:1]
	}
	for _, f := range some {
		calls := sc.callsTo(t, f, killed)
		step := calls
		if everything {
			step = 2
		}
		for n := 1 + sc.random().IntN(min(2, max(1, calls))); n <= calls; n += step {
			goOn(sc.failAt(t, f, killed, n))
		}
	}
	sc.begin(t, killed)
	if sc.elsewhere {
		sc.takeBackupsAway(t, killed, at)
		goOn("with the backups away for a while")
		sc.begin(t, killed)
	}
	sc.move(t, goOn)
}

// killHalfWay kills at one of the last changes of a stage at which there is a backup that the journal knows, and something left
// to be done for which there must be one. It gives what there is then.
func (sc *scenario) killHalfWay(t *testing.T, i int) (killed stage, at string) {
	t.Helper()
	const last = 12 // changes, before which a first step backs up
	for {
		sc.begin(t, sc.stages[i])
		changes := sc.stages[i].changes
		at, _ = sc.kill(t, sc.args, changes-sc.random().IntN(min(changes, last)), true, i > 1)
		sc.check(t, at)
		if backup, ok := sc.readJournal(t)["backup"]; ok && backup != "" && sc.needsBackup(t) {
			return sc.keep(t, "killed"), at
		}
	}
}

// needsBackup reports whether the next run will do more than to write version.txt.
func (sc *scenario) needsBackup(t *testing.T) bool {
	t.Helper()
	target, err := versionfile.Parse(sc.want.Version)
	if err != nil {
		t.Fatal(err)
	}
	r := migrate.Request{DataDir: sc.dir, BackupDir: sc.backupDir(), Target: target, Binaries: sc.set,
		AllowRollback: true, AcceptLoss: []convert.Loss{convert.LossNotJSON}}
	if sc.elsewhere {
		r.WALDir = sc.walDir()
	}
	_, plan, err := migrate.New(r).Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(plan.Steps, func(s migrate.Step) bool { return s.Kind != migrate.StepRecord })
}

func (sc *scenario) backupIDs(t *testing.T) (ids []string) {
	t.Helper()
	all, err := datadir.ListBackups(sc.backupDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		ids = append(ids, b.ID)
	}
	return slices.Sorted(slices.Values(ids))
}

// takeBackupsAway wants a refusal that names the backup when its directory is not there, or is an empty mount point, and
// brings it back.
func (sc *scenario) takeBackupsAway(t *testing.T, killed stage, where string) {
	t.Helper()
	away, backup := sc.backupDir()+".away", sc.readJournal(t)["backup"].(string)
	if err := os.Rename(sc.backupDir(), away); err != nil {
		t.Fatal(err)
	}
	before := contentOf(t, killed.root(0))
	for _, empty := range []bool{false, true} {
		if empty {
			if err := os.Mkdir(sc.backupDir(), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		cmd, said := sc.command(t, sc.args)
		_ = cmd.Run()
		sc.row.reruns++
		if code := cmd.ProcessState.ExitCode(); code != exitRefused || !strings.Contains(said(), backup) {
			t.Fatalf("%s without its backup %s: exits with %d:\n%s", where, backup, code, said())
		}
		if diff := cmp.Diff(before, contentOf(t, sc.roots[0])); diff != "" {
			t.Fatalf("%s without its backup: is refused, and has changed something: %s", where, diff)
		}
	}
	if err := os.Remove(sc.backupDir()); err != nil { // also if something has been put there
		t.Fatal(err)
	}
	if err := os.Rename(away, sc.backupDir()); err != nil {
		t.Fatal(err)
	}
}

// move gives the data dir another path for as long as it goes on.
func (sc *scenario) move(t *testing.T, goOn func(where string)) {
	t.Helper()
	dir, root := sc.dir, sc.roots[0]
	defer func() { sc.dir, sc.roots[0] = dir, root }()
	sc.roots[0] = filepath.Join(filepath.Dir(root), "moved")
	sc.dir = filepath.Join(sc.roots[0], "etcd")
	if err := os.Rename(root, sc.roots[0]); err != nil {
		t.Fatal(err)
	}
	goOn("with the data dir moved")
	if err := os.RemoveAll(sc.roots[0]); err != nil {
		t.Fatal(err)
	}
}
