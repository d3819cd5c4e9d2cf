package versionfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"unicode/utf8"

	"github.com/google/renameio/v2"
)

// Name is the file's name in the data directory, as the Kubernetes images chose it.
const Name = "version.txt"

// sizeLimit is how many bytes are read of a version.txt: longer content is not a version anyway.
const sizeLimit = 128

// InvalidError says that a version.txt exists and does not hold a version.
type InvalidError struct {
	Path    string
	Content string // at most a few dozen bytes of it, quoted when printed
	Err     error
}

func (e *InvalidError) Error() string {
	if e.Content == "" {
		return fmt.Sprintf("%s is empty (a full disk can leave it so); find out which etcd last ran on this data, "+
			"for example with `etcd-migrate inspect`, and write its version there, such as %s, or remove the file to have the data looked at",
			e.Path, Default)
	}
	return fmt.Sprintf("%s holds %q: %v; it must hold a version and a storage such as %s; "+
		"correct it, or remove the file to have the data looked at", e.Path, e.Content, e.Err, Default)
}

func (e *InvalidError) Unwrap() error { return e.Err }

// Read gives the version that dataDir's version.txt holds. A missing file is an error that is fs.ErrNotExist, anything
// but a version in it an *InvalidError.
func Read(dataDir string) (Version, error) {
	path := filepath.Join(dataDir, Name)
	// Whoever may write to the data dir must not make root read another file, nor wait for ever at a named pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return Version{}, &InvalidError{Path: path, Content: "a symbolic link", Err: errors.New("it must be a file")}
	}
	if err != nil {
		return Version{}, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return Version{}, &InvalidError{Path: path, Content: "something that is no file", Err: errors.Join(err, errors.New("it must be a file"))}
	}
	b, err := io.ReadAll(io.LimitReader(f, sizeLimit))
	if err != nil {
		return Version{}, fmt.Errorf("read %s: %w", path, err)
	}
	v, err := Parse(string(b))
	if err != nil {
		return Version{}, &InvalidError{Path: path, Content: excerpt(b), Err: err}
	}
	return v, nil
}

func excerpt(b []byte) string {
	const limit = 40
	if len(b) <= limit {
		return string(b)
	}
	n := limit
	for n > 0 && !utf8.RuneStart(b[n]) {
		n--
	}
	return string(b[:n]) + "…"
}

// Write makes v the content of dataDir's version.txt. When it returns without an error the new content is on disk for
// good; killed at any moment it leaves either the old file or the new one. The file belongs to the owner of dataDir,
// its mode is that of the file it replaces, else 0600. The caller must be the only one that writes to dataDir.
func Write(dataDir string, v Version) error {
	path := filepath.Join(dataDir, Name)
	if err := write(dataDir, path, v); err != nil {
		return fmt.Errorf("write %s to %s: %w", v, path, err)
	}
	return nil
}

func write(dataDir, path string, v Version) error {
	dir, err := os.Open(dataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// What an earlier process was killed over. The caller holds the data directory's lock, so nobody else is writing.
	stale, _ := filepath.Glob(filepath.Join(dataDir, "."+Name+"*"))
	for _, old := range stale {
		if err := os.Remove(old); err != nil {
			return err
		}
	}
	// The temporary file lies in the data directory itself: a rename must not cross file systems, and there may be no /tmp.
	t, err := renameio.NewPendingFile(path, renameio.WithTempDir(dataDir),
		renameio.WithPermissions(0o600), renameio.WithExistingPermissions())
	if err != nil {
		return err
	}
	defer func() { _ = t.Cleanup() }() // there is nothing to clean up once it has its name
	// No newline: that is how the Kubernetes tools write it.
	if _, err := t.WriteString(v.String()); err != nil {
		return err
	}
	if info, err := dir.Stat(); err == nil && os.Geteuid() == 0 {
		owner := info.Sys().(*syscall.Stat_t)
		if err := t.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	if err := t.CloseAtomicallyReplace(); err != nil {
		return err
	}
	// The new name is on disk only once the directory is.
	if err := dir.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}
