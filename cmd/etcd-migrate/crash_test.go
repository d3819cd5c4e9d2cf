//go:build amd64

package main

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// TestKilled kills etcd-migrate right before each of its system calls that changes a file, starts an etcd or stops one; of
// many changes to one file in a row, before the first three. Then it kills the run that follows, too, and the one after that.
// At every one of these points there must be a whole backup or nothing has been changed yet, and no etcd is left over; and
// the run that is not killed ends as if none had been: the same content, version.txt, backups, and not a file more.
//
// Of a migration each step is tried by itself, beginning with what the step before it has left. Some points are tried here,
// others each time; ETCD_MIGRATE_CRASH=all, which `make crash` sets, tries all of them. Besides, it kills at random moments
// of time, which finds an etcd at its work, too: ETCD_MIGRATE_KILLS says how often.
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

// everything is whether all is to be tried that can be.
var everything = os.Getenv("ETCD_MIGRATE_CRASH") == "all"

// scenario is something that is done to a data dir.
type scenario struct {
	name string
	// args is the command; before is one that is given beforehand, and again is the one that is given after a kill, if that is
	// not the same.
	before, args, again []string
	// from is the data dir to begin with, "" for none.
	from string
	// end is the minor whose etcd must find the content in the end, in the v2 store if v2 is set or it has no other.
	end string
	v2  bool
	// elsewhere makes the WAL dir one of its own, and puts the backups on another file system.
	elsewhere bool
	// failed gives the data dir the journal of a migration whose proof has failed, after which only a restore is allowed.
	failed bool
	// brief says that it takes too little time to be met by a kill at random.
	brief bool

	*material
	at    string // where it is made, if not just anywhere
	dir   string
	roots []string // the directories that all is in
	first string   // what version.txt says to begin with

	stages  []string // copies of the roots, one for each step to begin with
	changes []int    // how many changes each step makes
	calls   []event  // all that was done
	want    outcome
	took    time.Duration
	row     row
}

// layOut makes what the scenario begins with.
func (sc *scenario) layOut(t *testing.T) {
	t.Helper()
	if sc.at == "" {
		sc.at = workshop.dir(t, quick())
	}
	root := filepath.Join(resolved(t, sc.at), "root")
	sc.dir, sc.roots = filepath.Join(root, "etcd"), []string{root}
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if sc.from != "" {
		copyDir(t, sc.from, sc.dir)
	}
	if sc.elsewhere {
		other := inMemory
		if quick() == inMemory {
			other = ""
		}
		sc.roots = append(sc.roots, resolved(t, workshop.dir(t, other)))
		if err := os.Rename(filepath.Join(sc.dir, "member/wal"), sc.walDir()); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(sc.dir, "etcd-migrate")); err != nil {
			t.Fatal(err)
		}
	}
	if sc.failed {
		sc.writeFailure(t)
	}
	if sc.before != nil {
		sc.run(t, sc.before, "what comes before")
	}
	version, _ := os.ReadFile(filepath.Join(sc.dir, "version.txt"))
	sc.first = string(version)
}

const inMemory = "/dev/shm"

// quick is a place where a sync costs nothing, if there is one with room, else any. What a power cut would leave is for
// TestWriteOrder to find; a kill leaves the same everywhere.
func quick() string {
	const room = 3 << 30 // of preallocated log segments, mostly
	if free, err := datadir.FreeSpace(inMemory); err != nil || free < room {
		return ""
	}
	return inMemory
}

func (sc *scenario) writeFailure(t *testing.T) {
	t.Helper()
	all, err := datadir.ListBackups(sc.backupDir())
	if err != nil || len(all) == 0 {
		t.Fatalf("there are the backups %v, %v", all, err)
	}
	newest := all[len(all)-1]
	if err := datadir.WriteJSON(filepath.Join(sc.dir, "etcd-migrate/migration.json"), map[string]any{
		"format": 1, "began": newest.Manifest.Created, "from": newest.Manifest.Version, "target": newest.Manifest.Version,
		"backup": newest.Path, "permanent": "", "revision": 0, "failed": "keys are gone",
	}); err != nil {
		t.Fatal(err)
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

func (sc *scenario) walDir() string { return filepath.Join(sc.roots[0], "wal") }

func (sc *scenario) backupDir() string {
	if sc.elsewhere {
		return filepath.Join(sc.roots[1], "backups")
	}
	return filepath.Join(sc.dir, "etcd-migrate/backups")
}

// open runs the command once undisturbed, and keeps what there is after each version.txt that it writes.
func (sc *scenario) open(t *testing.T) {
	t.Helper()
	if sc.stages != nil {
		return // by an earlier test
	}
	sc.layOut(t)
	base := workshop.dir(t, quick())
	stage := func() {
		dir := filepath.Join(base, fmt.Sprintf("stage%d", len(sc.stages)))
		for i, root := range sc.roots {
			copyDir(t, root, filepath.Join(dir, strconv.Itoa(i)))
		}
		sc.stages, sc.changes = append(sc.stages, dir), append(sc.changes, 0)
	}
	stage()
	var seen points
	tr := tracer{
		roots: sc.roots,
		enter: func(c *call) action {
			sc.calls = append(sc.calls, event{call: c})
			if seen.one(c) {
				sc.changes[len(sc.changes)-1]++
			}
			return goOn
		},
		exit: func(c *call, ret int64) {
			sc.calls = append(sc.calls, event{c, true, ret})
			if sc.stepDone(c) && ret == 0 {
				stage()
			}
		},
	}
	sc.trace(t, &tr, sc.args, "the undisturbed run")
	if sc.again != nil {
		sc.run(t, sc.again, "the undisturbed run")
	}
	// What is after the last version.txt belongs to its step.
	sc.changes[max(0, len(sc.changes)-2)] += sc.changes[len(sc.changes)-1]
	sc.stages = sc.stages[:max(1, len(sc.stages)-1)]
	sc.want = sc.outcome(t, "undisturbed")

	sc.begin(t, 0)
	began := time.Now()
	sc.run(t, sc.args, "the undisturbed run")
	sc.took = time.Since(began)
	sc.run(t, sc.redo(), "the command, given twice")
	sc.compare(t, "undisturbed")
}

// etcds gives which of the processes that are started are etcds that make a step: those that are stopped again.
func (sc *scenario) etcds() (numbers []int) {
	starts := 0
	for _, e := range sc.calls {
		switch {
		case e.ended:
		case e.op == "start":
			starts++
		case e.op == "signal":
			numbers = append(numbers, starts)
		}
	}
	return numbers
}

// account puts what was done into the table.
func (sc *scenario) account() {
	if sc.from != "" {
		sc.row.records = len(sc.content.Keys)
	}
	table.add(sc.row)
}

// stepDone reports whether a call ends a step.
func (sc *scenario) stepDone(c *call) bool {
	return c.op == "rename" && c.to == filepath.Join(sc.dir, "version.txt") && sc.args[0] != "backup"
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
		sc.killAt(t, stage, 1+rand.IntN(sc.changes[stage]+journal))
	}
}

// killAt kills before the n-th change, and in every second case again in the next runs. It reports whether the run got to
// that change before its next stage.
func (sc *scenario) killAt(t *testing.T, stage, n int) bool {
	t.Helper()
	sc.begin(t, stage)
	where, more := sc.kill(t, sc.args, n, true)
	where = fmt.Sprintf("begun at step %d, killed before change %d: %s", stage+1, n, where)
	sc.check(t, where)
	for redo := n; redo%2 == 1; redo = rand.IntN(3) {
		at, _ := sc.kill(t, sc.redo(), 1+rand.IntN(sc.changes[stage]+4), false)
		where += ", and then before " + at
		sc.check(t, where)
	}
	sc.finish(t, where)
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

// kill runs the command until its n-th change, or if it is to end there, until it has got to its next step. It gives the
// call before which it was killed, and whether that was the n-th change.
func (sc *scenario) kill(t *testing.T, args []string, n int, within bool) (where string, reached bool) {
	t.Helper()
	changes, done := 0, false
	var seen points
	where = "its end"
	tr := tracer{
		roots: sc.roots,
		enter: func(c *call) action {
			if !seen.one(c) {
				return goOn
			}
			changes++
			// Of what follows version.txt only the journal and the backups belong to the same step.
			next := within && done && (c.op == "start" || c.op == "create" && !strings.HasPrefix(c.path, filepath.Join(sc.dir, "etcd-migrate")))
			if changes < n && !next {
				return goOn
			}
			where, reached = c.String(), !next
			return kill
		},
		exit: func(c *call, ret int64) { done = done || sc.stepDone(c) && ret == 0 },
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
		sc.begin(t, 0)
		if i%2 == 1 && most > 0 {
			where := "killed before " + sc.killInEtcd(t, 1+rand.IntN(most))
			sc.check(t, where)
			sc.finish(t, where)
			continue
		}
		where := "killed"
		for again := true; again; again = rand.IntN(3) == 0 {
			after := time.Duration(rand.Int64N(int64(sc.took)))
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

// begin makes the data dir what it was at the beginning of a stage.
func (sc *scenario) begin(t *testing.T, stage int) {
	t.Helper()
	for i, root := range sc.roots {
		copyDir(t, filepath.Join(sc.stages[stage], strconv.Itoa(i)), root)
	}
}

func (sc *scenario) redo() []string {
	if sc.again != nil {
		return sc.again
	}
	return sc.args
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

// backups gives the versions of all backups, which must be whole.
func (sc *scenario) backups(t *testing.T, where string) (versions []string) {
	t.Helper()
	all, err := datadir.ListBackups(sc.backupDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if err := b.Verify(t.Context(), nil); err != nil {
			sc.row.backupsLost++
			t.Errorf("%s: %v", where, err)
		}
		versions = append(versions, b.Manifest.Version.String())
	}
	return versions
}

// finish gives the command again, and wants the end to be what it would have been.
func (sc *scenario) finish(t *testing.T, where string) {
	t.Helper()
	if sc.failed {
		sc.restoreIfRefused(t, where)
	}
	sc.run(t, sc.redo(), where)
	sc.row.reruns++
	got := sc.outcome(t, where)
	if diff := cmp.Diff(sc.want, got); diff != "" {
		sc.row.backupsLost += max(0, len(sc.want.Backups)-len(got.Backups))
		t.Errorf("%s: the end is not that of an undisturbed run: %s", where, diff)
	}
	sc.compare(t, where)
	if t.Failed() {
		t.FailNow() // one account of it is enough
	}
}

// compare reads everything through the etcd that the data is for now.
func (sc *scenario) compare(t *testing.T, where string) {
	t.Helper()
	var flags []string
	if sc.elsewhere {
		flags = []string{"--wal-dir", sc.walDir()}
	}
	content := sc.content
	if sc.from == "" {
		content = pathtest.Content{Read: time.Now()}
	}
	diffs := pathtest.Compare(content, serve(t, sc.bin(t, sc.end), sc.dir, sc.v2, flags...))
	for _, d := range diffs {
		t.Errorf("%s: %s", where, d)
	}
	sc.row.lost += len(diffs)
}

// outcome is what must be the same after any number of kills.
type outcome struct {
	Version string
	Backups []string // their versions
	Files   []string // the names of all files but those of backups, without what is a number or a time in them
}

var (
	number = regexp.MustCompile(`[0-9a-f]{16}`)
	moment = regexp.MustCompile(`[0-9]{8}T[0-9]{6}Z`)
	// etcds is what an etcd leaves that was killed: a log segment that it has made ahead of need, which the next one takes
	// over, and half a raft snapshot, which the next one gives that name for somebody to look at.
	etcds = regexp.MustCompile(`/wal/[01]\.tmp$|/snap/N-N\.snap\.broken$`)
)

func (sc *scenario) outcome(t *testing.T, where string) (o outcome) {
	t.Helper()
	version, err := os.ReadFile(filepath.Join(sc.dir, "version.txt"))
	if err != nil {
		t.Errorf("%s: %v", where, err)
	}
	o.Version, o.Backups = string(version), sc.backups(t, where)
	for _, root := range sc.roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name := moment.ReplaceAllString(number.ReplaceAllString(strings.TrimPrefix(path, root), "N"), "T")
			if !etcds.MatchString(name) && !slices.Contains(o.Files, name) {
				o.Files = append(o.Files, name)
			}
			backup := filepath.Dir(path) == sc.backupDir() && !strings.HasPrefix(d.Name(), ".")
			if d.IsDir() && (backup || strings.HasPrefix(d.Name(), "replaced-")) {
				return filepath.SkipDir
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(o.Files)
	if sc.again != nil {
		// It depends on how far the first command got what backups there are to be, and what was replaced.
		o.Backups = nil
		o.Files = slices.DeleteFunc(o.Files, func(name string) bool {
			return strings.Contains(name, "/backups/T-") || strings.Contains(name, "/replaced-T")
		})
	}
	return o
}

// run runs a command to its end.
func (sc *scenario) run(t *testing.T, args []string, where string) {
	t.Helper()
	cmd, said := sc.command(t, args)
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %v\n%s", where, args, err, said())
	}
}

// trace runs a command under a tracer. If there is a word for where that is, it must come to its end.
func (sc *scenario) trace(t *testing.T, tr *tracer, args []string, where string) syscall.WaitStatus {
	t.Helper()
	cmd, said := sc.command(t, args)
	end := tr.run(t, cmd)
	if where != "" && (!end.Exited() || end.ExitStatus() != 0) {
		t.Fatalf("%s: %v ends with %v\n%s", where, args, end, said())
	}
	return end
}

// command is a command with the data dir's flags, and what gives its output.
func (sc *scenario) command(t *testing.T, args []string) (*exec.Cmd, func() string) {
	t.Helper()
	args = append(slices.Clone(args), "--data-dir", sc.dir)
	if sc.elsewhere {
		args = append(args, "--wal-dir", sc.walDir(), "--backup-dir", sc.backupDir())
	}
	if args[0] == "migrate" || args[0] == "rollback" {
		args = append(args, "--bin-dir", sc.set.Dir, "--log-format", "text")
	}
	said, err := os.CreateTemp(t.TempDir(), "output")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sc.program, args...)
	cmd.Stdout, cmd.Stderr = said, said
	return cmd, func() string {
		text, err := os.ReadFile(said.Name())
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
}

func resolved(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
