package datadir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/sethvargo/go-retry"
	"golang.org/x/sys/unix"
)

// HeldError says that another process holds a lock on a member's files.
type HeldError struct {
	Path    string // the locked file or directory
	PID     int    // of the holder, or 0 if it cannot be seen from here
	Command string // of the holder, as the kernel keeps it: up to 15 bytes
}

func (e *HeldError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is locked by a process that cannot be seen from here: it runs in another container, on "+
			"another host or as another user", e.Path)
	}
	return fmt.Sprintf("%s is locked by %s (pid %d)", e.Path, e.Command, e.PID)
}

// ending looks again for a second if a lock is held and nobody is seen to hold it: the kernel drops the locks of a process that has
// been killed a moment after it has disappeared from /proc/PID/fd.
func ending(look func() error) error {
	return retry.Do(context.Background(), retry.WithMaxDuration(time.Second, retry.NewConstant(20*time.Millisecond)), func(context.Context) error {
		err := look()
		var held *HeldError
		if errors.As(err, &held) && held.PID == 0 {
			return retry.RetryableError(err)
		}
		return err
	})
}

// Lock takes the data dir for this process, so that no second one changes it. It does not wait: if another process
// holds the lock, the error is a *HeldError, at once or, if that process cannot be seen, after a second. The lock is a
// flock(2) on the directory itself: nothing is created, the kernel drops it when this process ends in any way, and neither
// child processes nor a program started with exec inherit it. etcd does not look at it; see LiveEtcd for etcd's own locks.
//
// A file system that cannot lock directories (NFS) is an error.
func (l Layout) Lock() (unlock func() error, err error) {
	var lock *flock.Flock
	err = ending(func() (err error) {
		lock, err = lockDir(l.DataDir)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lock data dir: %w", err)
	}
	return lock.Unlock, nil
}

// lockDir takes an exclusive lock on a directory, or fails with a *HeldError at once.
func lockDir(path string) (*flock.Flock, error) {
	// With O_CREATE left out, gofrs/flock opens a directory as well as a file.
	lock := flock.New(path, flock.SetFlag(os.O_RDONLY|unix.O_DIRECTORY))
	ok, err := lock.TryLock()
	if errors.Is(err, unix.EISDIR) { // gofrs/flock has tried to open it for writing, which is what NFS needs for a lock
		return nil, fmt.Errorf("the file system of %s cannot lock directories: %w", path, err)
	}
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, held(path)
	}
	return lock, nil
}

// LiveEtcd returns a *HeldError if a running etcd holds the member's files, and nil if none does or there are no
// files. It asks for the locks that every etcd takes on its *.wal files (2.x with flock, 3.0 and later with open file
// description locks, see client/pkg/fileutil/lock_linux.go in etcd) and bbolt on the db (flock). It needs only to
// read them and changes nothing: where flock has no query, a shared lock is taken and dropped at once.
func (l Layout) LiveEtcd() error { return ending(l.liveEtcd) }

func (l Layout) liveEtcd() error {
	dirs := []string{filepath.Join(l.MemberDir(), "wal")}
	if l.SeparateWAL() {
		dirs = append(dirs, l.WALDir)
	}
	files := []string{l.DB()}
	for _, dir := range dirs {
		names, err := walFiles(dir)
		if err != nil {
			return fmt.Errorf("look for a running etcd: %w", err)
		}
		files = append(files, names...)
	}
	for _, name := range files {
		isHeld, err := fileHeld(name)
		if err != nil {
			return fmt.Errorf("look for a running etcd: %w", err)
		}
		if isHeld {
			return held(name)
		}
	}
	return nil
}

// KeepEtcdsOut takes the locks on the *.wal files that every etcd takes when it starts, so that none does on data that is half
// way. The error is a *HeldError if one has them. They are given back with release, right before an etcd of our own is
// started, and when this process ends in any way. A file that is replaced meanwhile is not locked any more.
func (l Layout) KeepEtcdsOut() (release func(), err error) {
	err = ending(func() (err error) {
		release, err = l.keepEtcdsOut()
		return err
	})
	return release, err
}

func (l Layout) keepEtcdsOut() (release func(), err error) {
	names, err := walFiles(l.WALDir)
	if err != nil {
		return nil, fmt.Errorf("keep etcds out: %w", err)
	}
	var files []*os.File
	release = func() {
		for _, f := range files {
			// Closing alone would leave them to a child that is being forked at this moment.
			_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
			_ = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
			_ = f.Close()
		}
	}
	for _, name := range names {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err == nil {
			files = append(files, f)
			err = lockAsEtcd(f)
		}
		if err != nil {
			release()
			if errors.Is(err, unix.EWOULDBLOCK) { // the same as EAGAIN
				err = held(name)
			}
			return nil, fmt.Errorf("keep etcds out: %w", err)
		}
	}
	return release, nil
}

// lockAsEtcd takes the lock of 2.x and that of 3.0 and later.
func lockAsEtcd(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if errors.Is(err, unix.EINVAL) { // a kernel before 3.15, on which every etcd uses flock
		return nil
	}
	return err
}

// fileHeld reports whether any process, this one included, has locked the file. No file, no lock.
func fileHeld(name string) (bool, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	// A query for a write lock meets every lock of other descriptors, and is allowed on a file opened for reading.
	query := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &query)
	if err == nil && query.Type != unix.F_UNLCK {
		return true, nil
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a kernel before 3.15, on which every etcd uses flock
		return false, fmt.Errorf("query lock of %s: %w", name, err)
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
	case err == nil:
		return false, nil // closing the descriptor drops it
	case errors.Is(err, unix.EWOULDBLOCK):
		return true, nil
	default:
		return false, fmt.Errorf("query flock of %s: %w", name, err)
	}
}

// held makes a HeldError that names the holder, if /proc tells.
func held(path string) *HeldError {
	e := &HeldError{Path: path}
	info, err := os.Stat(path)
	if err != nil {
		return e
	}
	st := info.Sys().(*syscall.Stat_t)
	infos, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	for _, name := range infos {
		data, err := os.ReadFile(name)
		if err != nil || !locksFile(string(data), name, path, st) {
			continue
		}
		proc := filepath.Dir(filepath.Dir(name))
		command, err := os.ReadFile(filepath.Join(proc, "comm"))
		if err != nil {
			continue
		}
		e.PID, _ = strconv.Atoi(filepath.Base(proc))
		e.Command = strings.TrimSpace(string(command))
		break
	}
	return e
}

// locksFile reports whether an fdinfo text has a lock on the file. Its lines look like
//
//	lock:	1: FLOCK  ADVISORY  WRITE 359 fe:00:11691 0 EOF
//
// with the device and inode number of the file: proc_pid_fdinfo(5). The device is not the one that stat tells on
// btrfs, so the file's name decides there.
func locksFile(fdinfo, name, path string, st *syscall.Stat_t) bool {
	device := fmt.Sprintf("%02x:%02x", unix.Major(st.Dev), unix.Minor(st.Dev))
	inode := strconv.FormatUint(st.Ino, 10)
	for line := range strings.Lines(fdinfo) {
		fields := strings.Fields(line)
		if len(fields) < 7 || fields[0] != "lock:" {
			continue
		}
		i := strings.LastIndexByte(fields[6], ':')
		if i < 0 || fields[6][i+1:] != inode {
			continue
		}
		target, _ := os.Readlink(strings.Replace(name, "/fdinfo/", "/fd/", 1))
		if fields[6][:i] == device || filepath.Base(target) == filepath.Base(path) {
			return true
		}
	}
	return false
}
