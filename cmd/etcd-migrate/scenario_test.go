//go:build amd64

package main

import (
	"hash/fnv"
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

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

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
	// prunes says that it removes old backups.
	prunes bool
	// brief says that it takes too little time to be met by a kill at random.
	brief bool

	*material
	at    string // where it is made, if not just anywhere
	dir   string
	roots []string // the directories that all is in
	first string   // what version.txt says to begin with

	stages []stage
	kept   string  // where they are
	calls  []event // all that was done
	want   outcome
	took   time.Duration
	row    row
	dice   *rand.Rand
}

// random gives the scenario's random numbers. They are the same ones each time unless everything is tried, because a test that
// is given with a change should fail for that change.
func (sc *scenario) random() *rand.Rand {
	if sc.dice == nil {
		seed := fnv.New64a()
		if everything {
			seed.Write(strconv.AppendInt(nil, time.Now().UnixNano(), 10))
		}
		seed.Write([]byte(sc.name))
		sc.dice = rand.New(rand.NewPCG(seed.Sum64(), 0))
	}
	return sc.dice
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

func (sc *scenario) walDir() string { return filepath.Join(sc.roots[0], "wal") }

func (sc *scenario) backupDir() string {
	if sc.elsewhere {
		return filepath.Join(sc.roots[1], "backups")
	}
	return filepath.Join(sc.dir, "etcd-migrate/backups")
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

func (sc *scenario) redo() []string {
	if sc.again != nil {
		return sc.again
	}
	return sc.args
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
	sc.report(t, where, pathtest.Compare(content, serve(t, sc.bin(t, sc.end), sc.dir, sc.v2, flags...)))
}

// report puts differences from what there was in the beginning into the table.
func (sc *scenario) report(t *testing.T, where string, diffs []string) {
	t.Helper()
	for _, d := range diffs {
		t.Errorf("%s: %s", where, d)
	}
	sc.row.lost += len(diffs)
	if t.Failed() {
		t.FailNow() // one account of it is enough
	}
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
	// over, half a raft snapshot, which the next one gives that name for somebody to look at, and the file with which it tries
	// whether it may write.
	etcds = regexp.MustCompile(`/wal/[01]\.tmp$|/snap/N-N\.snap\.broken$|/\.touch$`)
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
