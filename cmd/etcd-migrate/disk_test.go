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
	// all says that each call is to be tried: of many to one file in a row, the first three.
	all bool
}

var failures = []failure{
	{"full", unix.ENOSPC, []string{"create", "write", "truncate", "mkdir", "link"}, true, true},
	{"full for a moment", unix.ENOSPC, []string{"create", "write", "truncate", "mkdir", "link", "rename"}, false, false},
	{"read-only", unix.EROFS, []string{"create", "write", "truncate", "mkdir", "link", "rename", "remove", "attributes"}, true, false},
	{"failing to write", unix.EIO, []string{"create", "write", "truncate", "mkdir", "link", "rename", "remove", "sync", "clone"}, false, false},
	{"failing to read", unix.EIO, []string{"open", "read"}, false, false},
}

// TestFailingDisk makes the disk fail at each call that can: full, broken or read-only, for one call or from there on. There
// must be an error that says so, what it says of the data must be true, and with the disk in order again the same command
// must end as if nothing had happened.
//
// As in TestKilled, a few calls are tried here. With ETCD_MIGRATE_CRASH=all it is every one of a disk that is full, every fifth
// in a step that repeats another one's, and for the other failures eight of each scenario, others each time.
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
	calls := sc.failAt(t, f, stage, 0) // which counts them
	step := calls
	if everything {
		if step = sc.stride(stage); !f.all { // eight for all stages
			step = 1 + calls*len(sc.stages)/8
		}
	}
	for n := 1 + sc.random().IntN(step); n <= calls; n += step {
		sc.failAt(t, f, stage, n)
	}
}

// failAt makes the disk fail at the n-th call, and gives how many there were.
func (sc *scenario) failAt(t *testing.T, f failure, stage, n int) (calls int) {
	t.Helper()
	sc.begin(t, stage)
	member := contentOf(t, filepath.Join(sc.dir, "member"))
	version, _ := os.ReadFile(filepath.Join(sc.dir, "version.txt"))
	met, steps := "", 0
	var seen points
	tr := tracer{
		roots: sc.roots,
		reads: slices.Contains(f.hits, "read"),
		enter: func(c *call) action {
			if !slices.Contains(f.hits, c.op) || steps > 0 && n == 0 {
				return goOn
			}
			if f.all && !seen.one(c) && met == "" {
				return goOn
			}
			if calls++; calls == n {
				met = c.String()
			} else if met == "" || !f.lasts {
				return goOn
			}
			return action(f.errno)
		},
		exit: func(c *call, ret int64) {
			if sc.stepDone(c) && ret == 0 {
				steps++
			}
		},
	}
	cmd, said := sc.command(t, sc.args)
	end := tr.run(t, cmd)
	if n == 0 || met == "" {
		return calls
	}
	sc.row.faults++
	where := fmt.Sprintf("begun at step %d, %v at call %d, %s", stage+1, f.errno, n, met)
	sc.check(t, where)
	text := said()
	switch code := end.ExitStatus(); {
	case !end.Exited():
		t.Fatalf("%s: ends with %v\n%s", where, end, text)
	case code == exitOK: // it was only about what can be done without
	case !strings.Contains(text, f.errno.Error()) && !strings.Contains(text, "read-only"):
		t.Errorf("%s: the message does not say what happened:\n%s", where, text)
	case code == exitRefused:
		now, _ := os.ReadFile(filepath.Join(sc.dir, "version.txt"))
		if diff := cmp.Diff(member, contentOf(t, filepath.Join(sc.dir, "member"))); diff != "" || string(now) != string(version) {
			t.Errorf("%s: is said to have changed nothing, but version.txt says %q after %q, and the member has changed: %s\n%s", where, now, version, diff, text)
		}
	case code == exitFailed:
		now, _ := os.ReadFile(filepath.Join(sc.dir, "version.txt"))
		if sc.args[0] != "backup" && !strings.Contains(text, "the data is at "+string(now)) {
			t.Errorf("%s: version.txt says %q, but the message something else:\n%s", where, now, text)
		}
	default:
		t.Errorf("%s: ends with %d\n%s", where, code, text)
	}
	sc.finish(t, where)
	return calls
}

// contentOf gives the content of all files below a directory.
func contentOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		all[path] = string(content)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return all
}
