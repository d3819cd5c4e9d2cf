package datadir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// idTime is the time in a backup's id. It sorts as text, and is good in a file name everywhere.
const idTime = "20060102T150405Z"

// now is the clock.
var now = time.Now

// Backup is a copy of a member's files in a directory of its own. If its manifest cannot be read or is not valid, Err
// says why and Manifest is empty.
type Backup struct {
	ID       string
	Path     string
	Manifest Manifest
	Err      error
}

// Meta is what a new backup's manifest says besides what CreateBackup sees for itself.
type Meta struct {
	Version versionfile.Version // of the data, or zero if it is not known
	Member  string              // see Manifest.Member
	Reason  string
	Tool    string
}

// CreateBackup copies the member to a new directory below dir, which it makes if need be: member/, a separate WAL dir
// as wal/, and version.txt. Not the work dir. The id of a new backup is its time and version, for example
// 20260102T150405Z-2.2.1-etcd2. Should the newest backup in dir be from the same second or a later time, because the
// clock was wrong, the id gets the second after that one: ids sort in the order in which backups were made.
//
// Every file is hashed on the way, made durable, and read back and compared (see CopyOptions.Hash); the manifest is
// written last, and then the backup gets its name. So a backup that can be seen is whole. An error or a crash leaves
// the source as it was, and at most a directory .<id>.tmp, which the next CreateBackup in dir removes.
//
// A running etcd is an error (*HeldError), and so are a data dir without a member, an interrupted restore, and too
// little space (*SpaceError).
func CreateBackup(ctx context.Context, l Layout, dir string, meta Meta, progress Progress) (Backup, error) {
	b, err := createBackup(ctx, l, dir, meta, progress)
	if err != nil {
		return Backup{}, fmt.Errorf("back up %s: %w", l.DataDir, err)
	}
	return b, nil
}

func createBackup(ctx context.Context, l Layout, dir string, meta Meta, progress Progress) (b Backup, err error) {
	if dir, err = resolve(dir); err != nil {
		return b, err
	}
	if err := l.checkBackup(dir); err != nil {
		return b, err
	}
	entries, err := l.scan()
	if err != nil {
		return b, err
	}
	if err := MkdirAll(dir); err != nil {
		return b, err
	}
	if err := RemoveUnfinished(dir); err != nil {
		return b, err
	}
	m := Manifest{
		Format: manifestFormat, Version: meta.Version, Member: meta.Member, Reason: meta.Reason, Tool: meta.Tool,
		Created: now().UTC(), DataDir: l.DataDir, WALDir: l.WALDir, SeparateWAL: l.SeparateWAL(),
	}
	lock, err := reserve(dir, &m)
	if err != nil {
		return b, err
	}
	tmp, final := lock.Path(), filepath.Join(dir, m.ID)
	defer func() {
		if err != nil {
			err = errors.Join(err, discard(final, tmp))
		}
		err = errors.Join(err, lock.Close())
	}()

	for i := range entries {
		entries[i].dst = filepath.Join(tmp, filepath.FromSlash(entries[i].Path))
		m.Bytes += entries[i].Size
	}
	if err := copyAll(ctx, entries, CopyOptions{Hash: true, Progress: progress}); err != nil {
		return b, err
	}
	m.Files = files(entries)
	text, err := m.encode()
	if err != nil {
		return b, err
	}
	if err := WriteFile(filepath.Join(tmp, manifestName), text, 0o600); err != nil {
		return b, err
	}
	if err := Rename(tmp, final); err != nil {
		return b, err
	}
	b = OpenBackup(final)
	return b, b.Err
}

// UnchangedSince gives the newest good backup of this member in dir, if that is of exactly the files that it has now, by their
// names, sizes, owners, modes and times: nothing has touched the member since.
func (l Layout) UnchangedSince(dir string) (b Backup, found bool, err error) {
	all, err := ListBackups(dir)
	if err != nil {
		return b, false, err
	}
	entries, err := l.scan()
	if err != nil {
		return b, false, fmt.Errorf("compare with the backups in %s: %w", dir, err)
	}
	now := files(entries)
	same := func(a, b File) bool {
		a.SHA256, b.SHA256 = "", ""
		return a == b
	}
	for _, b := range slices.Backward(all) {
		if b.Err == nil && l.Owns(b) {
			return b, slices.EqualFunc(now, b.Manifest.Files, same), nil
		}
	}
	return b, false, nil
}

// Owns reports whether a backup is of this data dir: it lies in its own work dir, or was made of the data dir at this path.
func (l Layout) Owns(b Backup) bool {
	return filepath.Dir(b.Path) == l.BackupsDir("") || b.Manifest.DataDir == l.DataDir
}

// checkBackup refuses to back up what would not be a whole member at rest.
func (l Layout) checkBackup(dir string) error {
	if within(dir, l.MemberDir()) || l.SeparateWAL() && within(dir, l.WALDir) {
		return fmt.Errorf("backups cannot be kept in %s, which is inside of what is backed up", dir)
	}
	presence, err := l.Presence()
	if err != nil {
		return err
	}
	if presence != Present {
		return fmt.Errorf("there is no member: the data dir is %s", presence)
	}
	if other, err := l.InterruptedRestore(); err != nil {
		return err
	} else if other != "" {
		return fmt.Errorf("a restore of backup %s was interrupted, which has to be completed first", other)
	}
	wals, err := walFiles(l.WALDir)
	if err != nil {
		return err
	}
	if len(wals) == 0 {
		return fmt.Errorf("%s has no *.wal file: if etcd runs with --wal-dir, that directory has to be named", l.WALDir)
	}
	return l.LiveEtcd()
}

// discard removes a backup in a way that never leaves half of one under its final name.
func discard(final, tmp string) error {
	if exists(final) {
		if err := Rename(final, tmp); err != nil {
			return err
		}
	}
	return errors.Join(removeAll(tmp), SyncDir(filepath.Dir(tmp)))
}

// reserve gives m its id, and makes and locks the directory that the backup is built in.
func reserve(dir string, m *Manifest) (*flock.Flock, error) {
	version := "unknown"
	if !m.Version.IsZero() {
		version = strings.ReplaceAll(m.Version.String(), "/", "-")
	}
	all, err := ListBackups(dir)
	if err != nil {
		return nil, err
	}
	when := m.Created.Truncate(time.Second)
	if len(all) > 0 {
		newest, err := time.Parse(idTime, all[len(all)-1].ID[:len(idTime)])
		if err == nil && !when.After(newest) {
			when = newest.Add(time.Second)
		}
	}
	for ; ; when = when.Add(time.Second) {
		m.ID = when.Format(idTime) + "-" + version
		lock, err := lockUnfinished(unfinished(dir, m.ID))
		if err != nil {
			return nil, err
		}
		if lock == nil {
			continue // another member's backup is being made
		}
		if !exists(filepath.Join(dir, m.ID)) {
			return lock, nil
		}
		// It was made since ListBackups.
		if err := errors.Join(remove(lock.Path()), lock.Close()); err != nil {
			return nil, err
		}
	}
}

// unfinished is the directory that a backup is built in, and removed in.
func unfinished(dir, id string) string { return filepath.Join(dir, "."+id+".tmp") }

// lockUnfinished makes and locks the directory. Without an error, nil means that another process was there at the
// same time.
func lockUnfinished(path string) (*flock.Flock, error) {
	if err := mkdir(path); errors.Is(err, fs.ErrExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := ownAs(path, filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, remove(path))
	}
	lock, err := lockDir(path)
	if heldErr := (*HeldError)(nil); errors.As(err, &heldErr) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errors.Join(err, remove(path))
	}
	locked, err := lock.Stat()
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	// Between mkdir and lock, RemoveUnfinished of another process may have removed it.
	if info, err := os.Stat(path); err != nil || !os.SameFile(info, locked) {
		return nil, lock.Close()
	}
	return lock, nil
}

// RemoveUnfinished removes what killed runs left in dir. A backup directory may serve several members, so a backup
// that another process is still working on, which shows by its lock, is left alone.
func RemoveUnfinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, found := strings.CutSuffix(strings.TrimPrefix(e.Name(), "."), ".tmp")
		if !found || !backupID.MatchString(id) || unfinished(dir, id) != filepath.Join(dir, e.Name()) {
			continue
		}
		lock, err := lockDir(unfinished(dir, id))
		if heldErr := (*HeldError)(nil); errors.As(err, &heldErr) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(removeAll(lock.Path()), lock.Close()); err != nil {
			return err
		}
	}
	return nil
}

// OpenBackup reads the manifest of the backup in the directory path. It does not look at the files, see Verify.
func OpenBackup(path string) Backup {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	b := Backup{ID: filepath.Base(path), Path: path}
	data, err := readSmall(filepath.Join(path, manifestName))
	if err == nil {
		b.Manifest, err = parseManifest(data)
	}
	if err != nil {
		b.Err = fmt.Errorf("read manifest of backup %s: %w", path, err)
	}
	return b
}

// ListBackups gives the backups in dir, oldest first, and none if dir does not exist. Broken ones are there too, with
// their Err set.
func ListBackups(dir string) ([]Backup, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list backups: %w", err)
	}
	var all []Backup
	for _, e := range entries {
		if e.IsDir() && backupID.MatchString(e.Name()) {
			all = append(all, OpenBackup(filepath.Join(dir, e.Name())))
		}
	}
	return all, nil
}

// Prune removes the oldest backups of this data dir from dir, so that keep are left of each member, and says which ids it
// removed. What a killed run was removing goes, too. keep is at least 1: the newest backup always stays. Backups of other data
// dirs are left alone. A backup with a broken manifest is left too, does not count, and is named in the error.
func (l Layout) Prune(dir string, keep int) (removed []string, err error) {
	if keep < 1 {
		return nil, fmt.Errorf("prune backups in %s: at least one has to be kept", dir)
	}
	if err := RemoveUnfinished(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	all, err := ListBackups(dir)
	if err != nil {
		return nil, err
	}
	kept := map[string]int{} // by member
	var old []Backup         // newest first
	var broken []error
	for _, b := range slices.Backward(all) {
		switch {
		case b.Err != nil:
			broken = append(broken, fmt.Errorf("leave a broken backup alone: %w", b.Err))
		case !l.Owns(b):
		case kept[b.Manifest.Member] < keep:
			kept[b.Manifest.Member]++
		default:
			old = append(old, b)
		}
	}
	for _, b := range slices.Backward(old) {
		if err := discard(b.Path, unfinished(dir, b.ID)); err != nil {
			return removed, errors.Join(append(broken, fmt.Errorf("remove backup %s: %w", b.Path, err))...)
		}
		removed = append(removed, b.ID)
	}
	return removed, errors.Join(broken...)
}
