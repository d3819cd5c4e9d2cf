package datadir

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	// Hold the lock of a data dir until stdin ends.
	children["lock"] = func(args []string) error {
		l, err := NewLayout(args[0], "")
		if err != nil {
			return err
		}
		if _, err := l.Lock(); err != nil {
			return err
		}
		fmt.Println("locked")
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	}
	// Say what LiveEtcd says.
	children["live"] = func(args []string) error {
		return Layout{DataDir: args[0], WALDir: args[1]}.LiveEtcd()
	}
}

func TestLockAgainstAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(dir, link))
	other := child(t, "lock", dir)
	stdin, err := other.StdinPipe()
	must(t, err)
	defer stdin.Close()
	stdout, err := other.StdoutPipe()
	must(t, err)
	must(t, other.Start())
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "locked\n" {
		t.Fatalf("the other process says %q", line)
	}

	l, err := NewLayout(link, "") // both spellings are one data dir
	must(t, err)
	_, err = l.Lock()
	heldErr := (*HeldError)(nil)
	if !errors.As(err, &heldErr) {
		t.Fatalf("locking twice gives %v, want a HeldError", err)
	}
	if name := filepath.Base(os.Args[0]); heldErr.PID != other.Process.Pid || !strings.HasPrefix(name, heldErr.Command) {
		t.Errorf("the holder is %s (pid %d), want %s (pid %d)", heldErr.Command, heldErr.PID, name, other.Process.Pid)
	}
	checkError(t, err, fmt.Sprintf("lock data dir: %s is locked by %s (pid %d)", l.DataDir, heldErr.Command, heldErr.PID))

	must(t, other.Process.Kill())
	other.Wait()
	unlock, err := l.Lock()
	if err != nil {
		t.Fatalf("the lock survived its holder: %v", err)
	}
	if _, err := l.Lock(); !errors.As(err, &heldErr) || heldErr.PID != os.Getpid() {
		t.Errorf("locking twice in one process gives %v", err)
	}
	must(t, unlock())
	unlock, err = l.Lock()
	must(t, err)
	must(t, unlock())
}

// A program that this one starts, or becomes, does not inherit the lock.
func TestLockIsNotInherited(t *testing.T) {
	l := Layout{DataDir: t.TempDir()}
	unlock, err := l.Lock()
	must(t, err)
	defer unlock()
	sleep := exec.Command("sleep", "60")
	must(t, sleep.Start())
	defer sleep.Wait()
	defer sleep.Process.Kill()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", sleep.Process.Pid))
	must(t, err)
	for _, fd := range fds {
		if target, _ := os.Readlink(fd); target == l.DataDir {
			t.Errorf("the child has the lock's descriptor")
		}
	}
}

func TestLockOfNoDirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	_, err := Layout{DataDir: file}.Lock()
	checkError(t, err, "not a directory")
	_, err = Layout{DataDir: filepath.Join(dir, "missing")}.Lock()
	checkError(t, err, "no such file")
	if exists(filepath.Join(dir, "missing")) {
		t.Error("locking made the data dir")
	}
}

// The kinds of locks that etcds take, without an etcd. TestRealEtcds has the real ones.
func TestLiveEtcdKindsOfLocks(t *testing.T) {
	flock := func(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX) }
	ofd := func(f *os.File) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	shared := func(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_SH) }
	for name, test := range map[string]struct {
		file func(l Layout) string
		lock func(*os.File) error
		held bool
	}{
		"flock on the db":       {Layout.DB, flock, true},
		"flock on a WAL file":   {func(l Layout) string { return l.WALDir + "/0000000000000000-0000000000000000.wal" }, flock, true},
		"OFD on the last WAL":   {func(l Layout) string { return l.WALDir + "/0000000000000001-0000000000000010.wal" }, ofd, true},
		"a reader of the db":    {Layout.DB, shared, false},
		"flock on something":    {func(l Layout) string { return l.SnapDir() + "/empty.snap" }, flock, false},
		"our lock on the dir":   {func(l Layout) string { return l.DataDir }, flock, false},
		"nobody, but it's open": {Layout.DB, func(*os.File) error { return nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, separate := range []bool{false, true} {
				l := makeMember(t, t.TempDir(), separate)
				path := test.file(l)
				flags := os.O_RDWR
				if path == l.DataDir {
					flags = os.O_RDONLY
				}
				f, err := os.OpenFile(path, flags, 0)
				must(t, err)
				defer f.Close()
				must(t, test.lock(f))
				err = l.LiveEtcd()
				heldErr := (*HeldError)(nil)
				if errors.As(err, &heldErr) != test.held {
					t.Fatalf("LiveEtcd gives %v", err)
				}
				if test.held && (heldErr.Path != path || heldErr.PID != os.Getpid()) {
					t.Errorf("LiveEtcd gives %v, want pid %d at %s", err, os.Getpid(), path)
				}
			}
		})
	}
}

func TestLiveEtcdCannotSee(t *testing.T) {
	e := &HeldError{Path: "/d/member/snap/db"}
	checkError(t, e, "cannot be seen from here")
	// A file that nobody locks stands for one whose holder /proc does not show.
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, nil, 0o600))
	if e := held(path); e.PID != 0 || e.Command != "" {
		t.Errorf("it found %v", e)
	}
}

// TestLockOfTheDead: a process that has been killed holds its locks a moment longer than it can be seen. An open file that is on its
// way through a socket stands for it here: it is nobody's, and what is locked through it stays locked.
func TestLockOfTheDead(t *testing.T) {
	for name, ends := range map[string]bool{"it ends": true, "it does not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := makeMember(t, t.TempDir(), false)
			f, err := os.OpenFile(l.DB(), os.O_RDWR, 0)
			must(t, err)
			must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			must(t, unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(int(f.Fd())), nil, 0))
			must(t, f.Close())
			end := func() {
				unix.Close(pair[0])
				unix.Close(pair[1])
			}
			if ends {
				time.AfterFunc(100*time.Millisecond, end)
			} else {
				defer end()
			}
			err = l.LiveEtcd()
			if held := (*HeldError)(nil); errors.As(err, &held) == ends || held != nil && held.PID != 0 {
				t.Errorf("LiveEtcd gives %v", err)
			}
		})
	}
}

// nobody makes cmd run as an ordinary user, which needs root.
func nobody(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}
