package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// sameContent reports whether b is the file a, or another one that holds the same. If b is not there it is not; if a is
// not, that is an error.
func sameContent(a, b string) (bool, error) {
	fa, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer fb.Close()
	ia, err := fa.Stat()
	if err != nil {
		return false, err
	}
	ib, err := fb.Stat()
	if err != nil {
		return false, err
	}
	switch {
	case os.SameFile(ia, ib):
		return true, nil
	case !ib.Mode().IsRegular():
		return false, fmt.Errorf("%s is no file", b)
	}
	if ia.Size() != ib.Size() || ia.Mode().Perm() != ib.Mode().Perm() {
		return false, nil
	}
	return equal(fa, fb)
}

func equal(a, b io.Reader) (bool, error) {
	const size = 1 << 20
	pa, pb := make([]byte, size), make([]byte, size)
	for {
		na, errA := io.ReadFull(a, pa)
		nb, errB := io.ReadFull(b, pb)
		if !bytes.Equal(pa[:na], pb[:nb]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			ended := func(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
			if ended(errA) && ended(errB) {
				return true, nil
			}
			return false, errors.Join(errA, errB)
		}
	}
}

// writableDir gives an error if no file can be put into a directory.
func writableDir(dir string) error {
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return fmt.Errorf("write to %s: %w", dir, err)
	}
	return nil
}

// replaceFile copies a file, with its mode, to where it is there whole or not at all. A link in that place is replaced,
// not followed.
func replaceFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := renameio.NewPendingFile(to, renameio.WithStaticPermissions(info.Mode().Perm()), renameio.WithTempDir(filepath.Dir(to)))
	if err != nil {
		return err
	}
	defer dst.Cleanup() //nolint:errcheck // of what is in place by then, or of no use
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if err := dst.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return datadir.SyncDir(filepath.Dir(to))
}
