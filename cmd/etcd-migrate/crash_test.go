//go:build amd64

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestKilled kills etcd-migrate right before each of its system calls that changes a file, starts an etcd or stops one; of
// many changes to one file in a row, before the first three. In every fifth case it kills the run that follows, too, and now
// and then the one after that. At every one of these points there must be a whole backup or nothing has been changed yet, and
// no etcd is left over; and the run that is not killed ends as if none had been: the same content, version.txt, backups, and
// not a file more.
//
// Of a migration each step is tried by itself, beginning with what the step before it has left. So the run after a kill need
// not go the whole way: it is stopped before its next step, and what there is then must be what the undisturbed run had there
// (see rest). That is enough, by induction from the last step, whose reruns go to the end: what the rerun of one step leaves is
// what the kills of the next step begin with. What is compared is all that a run goes by when it begins: the names of all
// files, version.txt, the journal, the backups, which must be whole, and what is found out about the data, of which the plan is
// a function; and the records of both stores, read from the files. What an etcd itself adds at each start is left out:
// positions in the log, and what of it is in a raft snapshot. For the sake of that, and of what nobody has thought of, the
// reruns of the first and the last step, those after several kills, and one in ten of the others go to the end, where a real
// etcd must serve everything.
//
// A few points are tried here; ETCD_MIGRATE_CRASH=all, which `make crash` sets, tries all of them. Besides, it kills at random
// moments of time, which finds an etcd at its work, too: ETCD_MIGRATE_KILLS says how often.
func TestKilled(t *testing.T) {
	for _, sc := range scenarios(t) {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			sc.open(t)
			sc.row = row{scenario: sc.name}
			for stage := range sc.stages {
				sc.killEverywhere(t, stage)
			}
			sc.account()
			if !sc.brief {
				sc.row = row{scenario: sc.name + ", at random moments"}
				sc.killAtRandom(t)
				sc.account()
			}
		})
	}
}

// restoreIfRefused gives the restore again if a migration is still refused, which it may be only if nothing is restored.
func (sc *scenario) restoreIfRefused(t *testing.T, where string) {
	t.Helper()
	cmd, said := sc.command(t, sc.again)
	if err := cmd.Run(); err == nil {
		return
	}
	version, _ := os.ReadFile(filepath.Join(sc.dir, "version.txt"))
	if cmd.ProcessState.ExitCode() != exitRefused || !strings.Contains(said(), "keys are gone") || string(version) != sc.first {
		t.Fatalf("%s: version.txt says %q, after %q\n%s", where, version, sc.first, said())
	}
	sc.run(t, sc.args, where)
}

// killEverywhere begins with a stage and kills before each change up to the next stage.
func (sc *scenario) killEverywhere(t *testing.T, stage int) {
	t.Helper()
	if everything {
		for n, more := 1, true; more; n++ {
			more = sc.killAt(t, stage, n)
		}
		return
	}
	// A run that begins at a later stage writes its journal again.
	const journal = 7
	points := 1
	if len(sc.stages) == 1 {
		points = 3
	}
	for range points {
		sc.killAt(t, stage, 1+sc.random().IntN(sc.stages[stage].changes+journal))
	}
}

// killAt kills before the n-th change, and in every fifth case again in the next runs. It reports whether the run got to
// that change before its next stage.
func (sc *scenario) killAt(t *testing.T, stage, n int) bool {
	t.Helper()
	sc.begin(t, sc.stages[stage])
	where, more := sc.kill(t, sc.args, n, true, stage > 1)
	where = fmt.Sprintf("begun at step %d, killed before change %d: %s", stage+1, n, where)
	sc.check(t, where)
	kills := 1
	for again := n%5 == 1; again; again = sc.random().IntN(3) == 0 {
		at, _ := sc.kill(t, sc.redo(), 1+sc.random().IntN(sc.stages[stage].changes+4), false, false)
		where += ", and then before " + at
		sc.check(t, where)
		kills++
	}
	sc.goOnOrFinish(t, where, stage, kills > 1)
	return more
}

// points tells the calls before which it is worth to kill from those that are much the same: what goes on with one file, its
// third change and all that follow.
type points struct {
	path string
	row  int // of changes to the path
}

func (p *points) one(c *call) bool {
	if !c.changes() {
		return false
	}
	if c.path != p.path {
		p.path, p.row = c.path, 0
	}
	p.row++
	return p.row <= 3 || c.op == "rename" || c.op == "remove"
}

// kill runs the command until its n-th change, or if it is to end there, until it has got to its next step. What comes before
// the journal is written again is not counted if that is known from other steps. It gives the call before which it was
// killed, and whether that was the n-th change.
func (sc *scenario) kill(t *testing.T, args []string, n int, within, known bool) (where string, reached bool) {
	t.Helper()
	changes, done := 0, false
	var seen points
	where = "its end"
	tr := tracer{
		roots: sc.roots,
		enter: func(c *call) action {
			if known = known && c.to != sc.journal(); known || !seen.one(c) {
				return goOn
			}
			changes++
			next := within && done && sc.isNextStep(c)
			if changes < n && !next {
				return goOn
			}
			where, reached = c.String(), !next
			return kill
		},
		exit: func(c *call, ret int64) { done = done || sc.endsStep(c, ret) },
	}
	sc.trace(t, &tr, args, "")
	sc.row.kills++
	return where, reached
}

// killAtRandom kills at random moments of the whole, and now and then again; and before random changes that an etcd on the way
// makes to a file.
func (sc *scenario) killAtRandom(t *testing.T) {
	t.Helper()
	kills, err := strconv.Atoi(os.Getenv("ETCD_MIGRATE_KILLS"))
	if err != nil {
		kills = 2
	}
	const changes = 40 // that an etcd makes to files in a step, about
	most := changes * len(sc.etcds())
	for i := range kills {
		sc.begin(t, sc.stages[0])
		if i%2 == 1 && most > 0 {
			where := "killed before " + sc.killInEtcd(t, 1+sc.random().IntN(most))
			sc.check(t, where)
			sc.finish(t, where)
			continue
		}
		where := "killed"
		for again := true; again; again = sc.random().IntN(3) == 0 {
			after := time.Duration(sc.random().Int64N(int64(sc.took)))
			sc.killAfter(t, after)
			where += fmt.Sprintf(" after %s", after)
			sc.check(t, where)
		}
		sc.finish(t, where)
	}
}

// killInEtcd kills before the n-th change that an etcd makes, if it comes to that.
func (sc *scenario) killInEtcd(t *testing.T, n int) (where string) {
	t.Helper()
	where = "its end"
	count := 0
	tr := tracer{roots: sc.roots, followed: true, enter: func(c *call) action {
		if !c.child || !c.changes() {
			return goOn
		}
		if count++; count != n {
			return goOn
		}
		where = c.String()
		sc.row.kills++
		return kill
	}}
	sc.trace(t, &tr, sc.args, "")
	return where
}

func (sc *scenario) killAfter(t *testing.T, after time.Duration) {
	t.Helper()
	cmd, _ := sc.command(t, sc.args)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(after)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	sc.row.kills++
}

// check is what must hold right after a kill.
func (sc *scenario) check(t *testing.T, where string) {
	t.Helper()
	if orphans := orphansOn(sc.dir); orphans != "" {
		t.Fatalf("%s: left running: %s", where, orphans)
	}
	version, _ := os.ReadFile(filepath.Join(sc.dir, "version.txt"))
	untouched := string(version) == sc.first && sc.args[0] != "backup" || sc.from == ""
	if len(sc.backups(t, where)) == 0 && !untouched {
		sc.row.backupsLost++
		t.Errorf("%s: there is no backup, and version.txt says %q", where, version)
	}
}

// goOnOrFinish gives the command again, up to the next stage, or to its end if there may be more to see there.
func (sc *scenario) goOnOrFinish(t *testing.T, where string, stage int, toTheEnd bool) {
	t.Helper()
	const wholeWays = 10 // one in so many goes to the end in any case
	if toTheEnd || stage == 0 || stage == len(sc.stages)-1 || sc.random().IntN(wholeWays) == 0 {
		sc.finish(t, where)
	} else {
		sc.goOn(t, where)
	}
}

// finish gives the command again, and wants the end to be what it would have been.
func (sc *scenario) finish(t *testing.T, where string) {
	t.Helper()
	if sc.failed {
		sc.restoreIfRefused(t, where)
	}
	sc.run(t, sc.redo(), where)
	sc.row.reruns++
	sc.compareEnd(t, where)
}

// compareEnd wants the end to be that of the undisturbed run, and an etcd to serve all there was.
func (sc *scenario) compareEnd(t *testing.T, where string) {
	t.Helper()
	got := sc.outcome(t, where)
	if diff := cmp.Diff(sc.want, got); diff != "" {
		sc.row.backupsLost += max(0, len(sc.want.Backups)-len(got.Backups))
		t.Errorf("%s: the end is not that of an undisturbed run: %s", where, diff)
	}
	sc.compare(t, where)
}
