package datadir

import (
	"os"

	"golang.org/x/sys/unix"
)

// before is called ahead of every call that changes the disk, with the call's name and the file it is about. Tests
// set it to make the n-th call fail or to end the process there. Some calls come from several goroutines at once.
var before = func(op, path string) error { return nil }

func guard(op, path string, call func() error) error {
	if err := before(op, path); err != nil {
		return &os.PathError{Op: op, Path: path, Err: err}
	}
	return call()
}

func mkdir(path string) error {
	return guard("mkdir", path, func() error { return os.Mkdir(path, 0o700) })
}

// create makes a new file; an existing one is an error.
func create(path string) (f *os.File, err error) {
	err = guard("create", path, func() error {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	})
	return f, err
}

func writeAt(f *os.File, b []byte, off int64) error {
	return guard("write", f.Name(), func() error { _, err := f.WriteAt(b, off); return err })
}

func fsync(f *os.File) error {
	return guard("sync", f.Name(), f.Sync)
}

func rename(from, to string) error {
	return guard("rename", to, func() error { return os.Rename(from, to) })
}

func exchange(a, b string) error {
	return guard("exchange", b, func() error {
		err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
		if err != nil {
			return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
		}
		return nil
	})
}

func link(from, to string) error {
	return guard("link", to, func() error { return os.Link(from, to) })
}

func remove(path string) error {
	return guard("remove", path, func() error { return os.Remove(path) })
}

func removeAll(path string) error {
	return guard("remove", path, func() error { return os.RemoveAll(path) })
}
