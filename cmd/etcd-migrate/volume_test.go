//go:build amd64

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// volume is a small file system in memory.
type volume struct{ path string }

func newVolume(t *testing.T, path string, megabytes int) volume {
	t.Helper()
	if err := errors.Join(os.MkdirAll(path, 0o700), unix.Mount("tmpfs", path, "tmpfs", 0, size(megabytes))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return volume{path}
}

func size(megabytes int) string { return fmt.Sprintf("size=%dm", megabytes) }

func (v volume) remount(t *testing.T, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount("", v.path, "", unix.MS_REMOUNT|flags, options); err != nil {
		t.Fatal(err)
	}
}

func (v volume) filler() string { return filepath.Join(v.path, "filler") }

// fill leaves that many bytes.
func (v volume) fill(t *testing.T, left int64) {
	t.Helper()
	var st unix.Statfs_t
	f, err := os.Create(v.filler())
	if err == nil {
		defer func() { _ = f.Close() }()
		err = unix.Statfs(v.path, &st)
	}
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, max(0, int64(st.Bavail)*st.Bsize-left))
	}
	if err != nil {
		t.Error(err)
	}
}

// TestVolume has a volume of its own for the data dir, which others fill up or make read-only.
func TestVolume(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	if !inMountNamespace(t) {
		return
	}
	t.Run("full", fullVolume)
	t.Run("read-only", readOnlyVolume)
}

// fullVolume lets the volume fill up right before one of the etcds on the way starts, so that the etcd itself meets the end,
// or what comes after it. The message must say so, and when the volume has grown the same command must end as if nothing had
// happened.
func fullVolume(t *testing.T) {
	up := rand.IntN(2)
	for i, sc := range scenarios(t)[:2] { // up and down
		if !everything && i != up {
			continue
		}
		t.Run(sc.name, func(t *testing.T) {
			v := newVolume(t, workshop.dir(t, ""), 1024)
			sc.at = v.path
			sc.open(t)
			sc.row = row{}
			etcds := sc.etcds()
			try := etcds
			if !everything {
				try = etcds[rand.IntN(len(etcds)):][:1]
			}
			for i, start := range try {
				v.remount(t, 0, size(1024))
				_ = os.Remove(v.filler())
				sc.begin(t, sc.stages[0])
				const left = 64 << 10
				starts := 0
				tr := tracer{roots: sc.roots, enter: func(c *call) action {
					if c.op == "start" {
						if starts++; starts == start {
							v.fill(t, left)
						}
					}
					return goOn
				}}
				cmd, said := sc.command(t, sc.args)
				end := tr.run(t, cmd)
				where := fmt.Sprintf("full at the start of etcd %d of %d", i+1, len(etcds))
				sc.check(t, where)
				switch text := said(); {
				case !end.Exited():
					t.Fatalf("%s: ends with %v\n%s", where, end, text)
				case end.ExitStatus() == exitOK: // it was room enough
				case end.ExitStatus() != exitFailed || !strings.Contains(text, "no space left on device"):
					t.Errorf("%s: exits with %d and does not say what happened:\n%s", where, end.ExitStatus(), text)
				default:
					t.Logf("%s:\n%s", where, text)
				}
				v.remount(t, 0, size(2048)) // it grows
				// The undisturbed run can have started an etcd once more, which had missed its own election.
				if err := os.Remove(v.filler()); err != nil && starts >= start {
					t.Fatal(err)
				}
				sc.finish(t, where)
			}
		})
	}
}

// readOnlyVolume: whoever only looks can do so, all else says what is wrong, and changes nothing.
func readOnlyVolume(t *testing.T) {
	for _, sc := range known {
		sc.stages = nil // which were on a volume that is gone
	}
	for i, sc := range scenarios(t) {
		if sc.from == "" || sc.elsewhere || !everything && i%2 == 1 {
			continue
		}
		t.Run(sc.name, func(t *testing.T) {
			v := newVolume(t, workshop.dir(t, ""), 512)
			sc.at = v.path
			sc.layOut(t)
			v.remount(t, unix.MS_RDONLY, size(512))
			cmd, said := sc.command(t, sc.args)
			_ = cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != exitRefused && code != exitFailed || !strings.Contains(said(), "read-only") {
				t.Errorf("%v exits with %d:\n%s", sc.args, code, said())
			}
			sc.run(t, []string{"inspect"}, "on a read-only volume")
			v.remount(t, 0, size(512))
			sc.run(t, sc.args, "on the same volume, writable")
			if sc.again != nil {
				sc.run(t, sc.again, "on the same volume, writable")
			}
			sc.compare(t, "after having been read-only")
		})
	}
}
