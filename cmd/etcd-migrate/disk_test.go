//go:build amd64

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// failure is a way in which a disk fails. From the n-th call that it can hit on, calls give its errno without having been
// made: all of them, or only that one.
type failure struct {
	name  string
	errno syscall.Errno
	hits  []string // operations
	lasts bool
	// files are the names of those that it is about, nil for all.
	files []string
	// all says that each call is to be tried: of many to one file in a row, the first three.
	all bool
}

var failures = []failure{
	{name: "full", errno: unix.ENOSPC, hits: []string{"create", "write", "truncate", "mkdir", "link"}, lasts: true, all: true},
	{name: "full for a moment", errno: unix.ENOSPC, hits: []string{"create", "write", "truncate", "mkdir", "link", "rename"}},
	{name: "read-only", errno: unix.EROFS, hits: []string{"create", "write", "truncate", "mkdir", "link", "rename", "remove", "attributes"}, lasts: true},
	{name: "failing to write", errno: unix.EIO, hits: []string{"create", "write", "truncate", "mkdir", "link", "rename", "remove", "sync", "clone"}},
	{name: "failing to sync the data dir", errno: unix.EIO, hits: []string{"sync"}, files: []string{"etcd"}, all: true},
	{name: "failing to read", errno: unix.EIO, hits: []string{"open", "read"}},
}

// TestFailingDisk makes the disk fail at each call that can: full, broken or read-only, for one call or from there on. There
// must be an error that says so, what it says of the data must be true, and with the disk in order again the same command
// must end as if nothing had happened.
//
// As in TestKilled, a few calls are tried here, and the run after it mostly ends at the next step. With ETCD_MIGRATE_CRASH=all
// it is every call of a disk that is full, of many to one file in a row the first three, and every second one in the steps between
// the first and the last; and for the other failures eight of each scenario. Where it is not all, it is others each time.
func TestFailingDisk(t *testing.T) {
	for _, sc := range scenarios(t) {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			sc.open(t)
			sc.row = row{scenario: sc.name + ", on a failing disk"}
			some := failures
			if !everything {
				some = []failure{failures[sc.random().IntN(len(failures))]}
			}
			for _, f := range some {
				for stage := range sc.stages {
					sc.failEverywhere(t, f, stage)
				}
			}
			sc.account()
		})
	}
}

// failEverywhere makes the disk fail at each call that a stage makes, or at some.
func (sc *scenario) failEverywhere(t *testing.T, f failure, stage int) {
	t.Helper()
	if !everything && sc.random().IntN(len(sc.stages)) > 0 {
		return // of a migration of many steps, one is enough
	}
	calls := sc.callsTo(t, f, sc.stages[stage])
	step := calls
	if everything {
		switch {
		case !f.all: // eight for all stages
			step = 1 + calls*len(sc.stages)/8
		case stage > 0 && stage < len(sc.stages)-1:
			step = 2
		default:
			step = 1
		}
	}
	for n := 1 + sc.random().IntN(step); n <= calls; n += step {
		where := fmt.Sprintf("begun at step %d, ", stage+1) + sc.failAt(t, f, sc.stages[stage], n)
		sc.goOnOrFinish(t, where, stage, false)
	}
}

// hitsCall reports whether it is a call that counts.
func (f failure) hitsCall(c *call) bool {
	return slices.Contains(f.hits, c.op) && (f.files == nil || slices.Contains(f.files, filepath.Base(c.path)))
}

// callsTo counts the calls up to the next stage that a failure can hit.
func (sc *scenario) callsTo(t *testing.T, f failure, from stage) (calls int) {
	t.Helper()
	sc.begin(t, from)
	var seen points
	stepDone := false
	sc.trace(t, &tracer{
		roots: sc.roots,
		reads: slices.Contains(f.hits, "read"),
		enter: func(c *call) action {
			switch {
			case stepDone && sc.isNextStep(c):
				return kill
			case f.hitsCall(c) && (!f.all || !c.changes() || seen.one(c)):
				calls++
			}
			return goOn
		},
		exit: func(c *call, ret int64) { stepDone = stepDone || sc.endsStep(c, ret) },
	}, sc.args, "")
	return calls
}

// failAt makes the disk fail at the n-th call of a run that begins at a stage. It gives where that was.
func (sc *scenario) failAt(t *testing.T, f failure, from stage, n int) (where string) {
	t.Helper()
	sc.begin(t, from)
	version := sc.version()
	met, calls := "", 0
	var seen points
	tr := tracer{
		roots: sc.roots,
		reads: slices.Contains(f.hits, "read"),
		enter: func(c *call) action {
			if !f.hitsCall(c) || f.all && c.changes() && !seen.one(c) && met == "" {
				return goOn
			}
			if calls++; calls == n {
				met = c.String()
			} else if met == "" || !f.lasts {
				return goOn
			}
			return action(f.errno)
		},
	}
	cmd, said := sc.command(t, sc.args)
	end := tr.run(t, cmd)
	if met == "" {
		return "a run without that call" // they vary by a few
	}
	sc.row.faults++
	where = fmt.Sprintf("%v at call %d, %s", f.errno, n, met)
	sc.check(t, where)
	text := said()
	switch code := end.ExitStatus(); {
	case !end.Exited():
		t.Fatalf("%s: ends with %v\n%s", where, end, text)
	case code == exitOK && f.files == nil: // it was only about what can be done without
		if slices.Contains(sc.args, "--keep-backups") {
			sc.run(t, []string{"backup", "prune", "--keep", "1"}, where) // what could not be removed then is removed the next time
		}
	case !strings.Contains(text, f.errno.Error()) && !strings.Contains(text, "read-only"):
		t.Errorf("%s: the message does not say what happened:\n%s", where, text)
	case code == exitRefused:
		before := contentOf(t, filepath.Join(from.root(0), "etcd/member"))
		if diff := cmp.Diff(before, contentOf(t, filepath.Join(sc.dir, "member"))); diff != "" || sc.version() != version {
			t.Errorf("%s: is said to have changed nothing, but version.txt says %q after %q, and the member has changed: %s\n%s", where, sc.version(), version, diff, text)
		}
	case code == exitFailed:
		if sc.args[0] != "backup" && !strings.Contains(text, "the data is at "+sc.version()) && !strings.Contains(text, "by now, and version.txt says "+sc.version()) {
			t.Errorf("%s: version.txt says %q, but the message something else:\n%s", where, sc.version(), text)
		}
	default:
		t.Errorf("%s: ends with %d\n%s", where, code, text)
	}
	return where
}

// contentOf gives the content of all files below a directory, by their paths in it.
func contentOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, dir)] = string(content)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return all
}
