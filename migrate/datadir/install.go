package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// UnfinishedError says that a restore has been begun, and what kept it from being completed: the member may be half the old
// and half the new one, and no etcd must be started on it until ResumeRestore or another Restore has completed it.
type UnfinishedError struct{ Err error }

func (e *UnfinishedError) Error() string { return e.Err.Error() }
func (e *UnfinishedError) Unwrap() error { return e.Err }

// ResumeRestore completes a restore that was interrupted after the point of no return, and removes what one left that
// was interrupted before. Whoever is about to use a data dir calls it first: with an interrupted restore the member
// can be half the old and half the new one. It says which backup was restored and returns what Restore would have;
// the id is empty if there was nothing to complete.
func (l Layout) ResumeRestore() (id string, replaced []string, err error) {
	j, err := l.readJournal()
	if err != nil {
		return "", nil, err
	}
	if j == nil {
		if err := l.removePrepared(); err != nil {
			return "", nil, fmt.Errorf("clear up after an interrupted restore: %w", err)
		}
		return "", nil, nil
	}
	fail := func(err error) (string, []string, error) {
		return "", nil, fmt.Errorf("complete the interrupted restore of backup %s: %w", j.Backup, err)
	}
	if j.SeparateWAL != l.SeparateWAL() {
		return fail(errors.New("it was begun with another setting of --wal-dir"))
	}
	if err := l.LiveEtcd(); err != nil {
		return fail(err)
	}
	if replaced, err = l.complete(j); err != nil {
		return fail(&UnfinishedError{err})
	}
	return j.ID, replaced, nil
}

// install writes the journal and puts what is prepared in place.
func (l Layout) install(j *restoreJournal) ([]string, error) {
	err := WriteJSON(l.journalFile(), j)
	if err == nil {
		err = l.installMember(j)
	}
	if err == nil {
		replaced, err := l.complete(j)
		if err != nil {
			return nil, &UnfinishedError{err}
		}
		return replaced, nil
	}
	if touched, doubt := l.memberTouched(j); touched || doubt != nil {
		return nil, &UnfinishedError{err}
	}
	// Nothing is replaced, so the restore can still be called off.
	return nil, errors.Join(err, l.removeJournal(), l.removePrepared())
}

// complete does what is left to do of a restore. Every part of it can be repeated.
func (l Layout) complete(j *restoreJournal) (replaced []string, err error) {
	aside := filepath.Join(l.WorkDir(), j.Replaced)
	walAside := filepath.Join(workIn(l.WALDir), j.Replaced)
	if !j.Installed {
		// The member goes before the WAL. A member directory with a newer log beside it makes etcd go forward again
		// or refuse; a db that is ahead of its log would make it skip what is written next.
		if err := l.installMember(j); err != nil {
			return nil, err
		}
		if l.SeparateWAL() {
			if err := l.installWAL(j, walAside); err != nil {
				return nil, err
			}
		}
		if err := l.installVersion(j, aside); err != nil {
			return nil, err
		}
		j.Installed = true
		if err := WriteJSON(l.journalFile(), j); err != nil {
			return nil, err
		}
	}
	if old := filepath.Join(prepared(l.DataDir), memberName); exists(old) {
		if err := MkdirAll(aside); err != nil {
			return nil, err
		}
		if err := Rename(old, filepath.Join(aside, memberName)); err != nil {
			return nil, err
		}
	}
	if err := unmarkMember(l.MemberDir()); err != nil {
		return nil, err
	}
	if err := l.removePrepared(); err != nil {
		return nil, err
	}
	for _, root := range l.roots() {
		if dir := filepath.Join(workIn(root), j.Replaced); exists(dir) {
			replaced = append(replaced, dir)
		}
	}
	if err := l.RemoveUnwritten(); err != nil {
		return nil, err
	}
	// The migration that was under way is over with that, and so is what it has found to be wrong with the data.
	if migration := filepath.Join(l.WorkDir(), MigrationJournal); exists(migration) {
		if err := errors.Join(remove(migration), SyncDir(l.WorkDir())); err != nil {
			return nil, err
		}
	}
	return replaced, l.removeJournal()
}

// installMember puts the prepared member directory in place, and the live one where that was.
func (l Layout) installMember(j *restoreJournal) error {
	fresh := filepath.Join(prepared(l.DataDir), memberName)
	done, err := j.marked(l.MemberDir())
	if err != nil || done && !exists(fresh+".old") {
		return err
	}
	ready, err := j.marked(fresh)
	if err != nil {
		return err
	}
	if !done && !ready {
		return errNotPrepared
	}
	return Swap(fresh, l.MemberDir())
}

// memberTouched reports whether installMember has replaced the member or is in the middle of it.
func (l Layout) memberTouched(j *restoreJournal) (bool, error) {
	done, err := j.marked(l.MemberDir())
	return done || exists(filepath.Join(prepared(l.DataDir), memberName+".old")), err
}

func (l Layout) installWAL(j *restoreJournal, aside string) error {
	entries, err := os.ReadDir(l.WALDir)
	if err != nil {
		return err
	}
	var present []string
	for _, e := range entries {
		if e.Name() != lostFound && e.Name() != workName {
			present = append(present, e.Name())
		}
	}
	return replaceEntries(prepared(l.WALDir), l.WALDir, aside, j.WAL, present)
}

func (l Layout) installVersion(j *restoreJournal, aside string) error {
	var names []string
	if j.Version {
		names = []string{versionName}
	}
	return replaceEntries(prepared(l.DataDir), l.DataDir, aside, names, []string{versionName})
}

// replaceEntries replaces the present entries of the directory live with names, which are in the directory fresh, and
// keeps the old ones in aside. It takes the place of one exchange where live may be a mount point. Each name is
// replaced in one step, and the old ones that have no successor go last, so that live is never empty in between: an
// etcd that finds no WAL at all would start a new cluster. Repeating it after a crash completes it: what is still in
// fresh is not done.
func replaceEntries(fresh, live, aside string, names, present []string) error {
	var old []string
	for _, name := range present {
		waiting := !slices.Contains(names, name) || exists(filepath.Join(fresh, name))
		if waiting && exists(filepath.Join(live, name)) {
			old = append(old, name)
		}
	}
	if len(old) > 0 {
		if err := MkdirAll(aside); err != nil {
			return err
		}
		for _, name := range old {
			if err := keep(filepath.Join(live, name), filepath.Join(aside, name)); err != nil {
				return err
			}
		}
		if err := SyncDir(aside); err != nil {
			return err
		}
	}
	for _, name := range names {
		if exists(filepath.Join(fresh, name)) {
			if err := rename(filepath.Join(fresh, name), filepath.Join(live, name)); err != nil {
				return err
			}
		}
	}
	if err := syncBoth(live, fresh); err != nil {
		return err
	}
	for _, name := range old {
		if slices.Contains(names, name) || !exists(filepath.Join(live, name)) {
			continue
		}
		if err := remove(filepath.Join(live, name)); err != nil {
			return err
		}
	}
	return SyncDir(live)
}

// keep makes aside a second name of live, or moves live there if it is a directory or the file system has no hard
// links.
func keep(live, aside string) error {
	a, err := os.Lstat(live)
	if err != nil {
		return err
	}
	if b, err := os.Lstat(aside); err == nil {
		if os.SameFile(a, b) {
			return nil
		}
		return fmt.Errorf("%s and %s are both there: something has written to the member during its restore", live, aside)
	}
	if a.Mode().IsRegular() && link(live, aside) == nil {
		return nil
	}
	return rename(live, aside)
}

func (l Layout) removeJournal() error {
	if err := remove(l.journalFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return SyncDir(l.WorkDir())
}

// abandonRestore gives up a restore that cannot be completed, because somebody has taken away what was prepared. What
// is left in its place may be the replaced member, so it is kept.
func (l Layout) abandonRestore() error {
	if left := prepared(l.DataDir); exists(left) {
		aside := filepath.Join(l.WorkDir(), l.newReplaced())
		if err := MkdirAll(aside); err != nil {
			return err
		}
		if err := Rename(left, filepath.Join(aside, filepath.Base(left))); err != nil {
			return err
		}
	}
	return l.removeJournal()
}
