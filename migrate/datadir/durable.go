package datadir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// SyncDir makes the entries of a directory durable: what was created, renamed or removed in it survives a power cut.
// A file system that cannot sync directories at all (some network ones) is taken at its word.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := fsync(dir); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// MkdirAll makes path and what is missing above it, each with mode 0700 and durable. When running as root a new
// directory gets the owner of the directory that it is made in.
func MkdirAll(path string) error {
	switch info, err := os.Stat(path); {
	case err == nil && !info.IsDir():
		return fmt.Errorf("make directory: %s is not a directory", path)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("make directory: %w", err)
	}
	if err := MkdirAll(filepath.Dir(path)); err != nil {
		return err
	}
	if err := mkdir(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := ownAs(path, filepath.Dir(path)); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

// ownAs gives path the owner of model, if this process is root and may.
func ownAs(path, model string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(model)
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	return os.Chown(path, int(st.Uid), int(st.Gid))
}

// WriteFile replaces the content of path as one step that survives a power cut: readers and crashes see the old file
// or the new one, whole. The mode is set as given. When running as root the file keeps its owner; a new file gets the
// owner of its directory. What a killed earlier call left behind is removed, so only one process may write path at a
// time: the one that holds the lock.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	if err := writeFile(path, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func writeFile(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	if err := removeLeftovers(path); err != nil {
		return err
	}
	// The directory is named because renameio would otherwise try $TMPDIR first.
	t, err := renameio.NewPendingFile(path, renameio.WithTempDir(dir), renameio.WithStaticPermissions(mode))
	if err != nil {
		return err
	}
	defer func() { _ = t.Cleanup() }() // a leftover is removed next time
	model := path
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		model = dir
	}
	if err := ownAs(t.Name(), model); err != nil {
		return err
	}
	if err := writeAt(t.File, data, 0); err != nil {
		return err
	}
	if err := fsync(t.File); err != nil {
		return err
	}
	if err := guard("rename", path, t.CloseAtomicallyReplace); err != nil {
		return err
	}
	return SyncDir(dir)
}

// RemoveUnwritten removes what killed processes have left of the files that are written anew again and again: version.txt and
// the journal of a migration. The next write of each would do so, too, but there may be none.
func (l Layout) RemoveUnwritten() error {
	for _, path := range []string{l.VersionFile(), filepath.Join(l.WorkDir(), MigrationJournal)} {
		if err := removeLeftovers(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// removeLeftovers removes the temporary files that renameio left for path when it was killed: a dot, the file's name
// and a random number.
func removeLeftovers(path string) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	for _, e := range entries {
		number, found := strings.CutPrefix(e.Name(), "."+filepath.Base(path))
		if !found || number == "" || strings.Trim(number, "0123456789") != "" {
			continue
		}
		if err := remove(filepath.Join(filepath.Dir(path), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// WriteJSON writes v with WriteFile and mode 0600.
func WriteJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return WriteFile(path, append(data, '\n'), 0o600)
}

// maxJSON is more than any of this program's files needs: a manifest line takes some 250 bytes and a member has a few
// hundred files at most.
const maxJSON = 16 << 20

// ReadJSON reads a file that WriteJSON wrote into v. An unknown field is an error: it was written by a newer program,
// which means more by it than this one understands.
func ReadJSON(path string, v any) error {
	data, err := readSmall(path)
	if err != nil {
		return err
	}
	if err := decodeJSON(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxJSON+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxJSON {
		return nil, fmt.Errorf("read %s: it is larger than %d bytes", path, maxJSON)
	}
	return data, nil
}

func decodeJSON(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something after the JSON value")
	}
	return nil
}

// Rename renames from to to and makes that durable in both directories. A file at to is replaced in the same instant;
// a directory at to has to be empty, see Swap for one that is not.
func Rename(from, to string) error {
	if err := rename(from, to); err != nil {
		return err
	}
	return syncParents(from, to)
}

func syncParents(from, to string) error { return syncBoth(filepath.Dir(to), filepath.Dir(from)) }

// syncBoth syncs two directories, or one that is named twice. The order matters: what has arrived is durable first.
func syncBoth(to, from string) error {
	if err := SyncDir(to); err != nil || from == to {
		return err
	}
	return SyncDir(from)
}

// Swap exchanges two files or directories of one file system durably: afterwards live is what fresh was, and fresh is
// what live was. If there is nothing at live, fresh is renamed to it.
//
// Where the file system can (ext4, xfs, btrfs, tmpfs) the kernel does it in one step, and a crash leaves the state
// before or after. Elsewhere it takes three renames, and a crash can leave
//
//  1. nothing done
//  2. fresh, no live, and the old live at fresh + ".old"
//  3. no fresh, the new live, and the old live at fresh + ".old"
//  4. all done
//
// A Swap of the same names after a crash completes 2 and 3 and does nothing else. Before and after (1 and 4) look
// alike to Swap, so a caller that may run again marks what it swaps, as the restore does.
func Swap(fresh, live string) error {
	if err := swap(fresh, live); err != nil {
		return fmt.Errorf("swap %s and %s: %w", fresh, live, err)
	}
	return nil
}

func swap(fresh, live string) error {
	old := fresh + ".old"
	if !exists(old) {
		if !exists(live) {
			return Rename(fresh, live)
		}
		err := exchange(fresh, live)
		if err == nil {
			return syncParents(fresh, live)
		}
		if !cannotExchange(err) {
			return err
		}
		if err := Rename(live, old); err != nil {
			return err
		}
	}
	if !exists(live) {
		if err := Rename(fresh, live); err != nil {
			// There has to be a live one in any case: etcd starts an empty cluster where it finds none.
			return errors.Join(err, Rename(old, live))
		}
	}
	return Rename(old, fresh)
}

// cannotExchange reports whether an error means that the file system or kernel has no RENAME_EXCHANGE: EINVAL comes
// from the file system, ENOSYS from kernels before 3.15, and the other two from sandboxes.
func cannotExchange(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTSUP) ||
		errors.Is(err, unix.EPERM)
}

// exists reports whether there is anything at path, a dangling link included.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
