package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// journalFormat is the format of restore.json that this program writes, and the only one that it reads.
const journalFormat = 1

// restoreJournal is restore.json: it exists from the moment at which everything is prepared until the restore is done.
type restoreJournal struct {
	Format  int    `json:"format"`
	Backup  string `json:"backup"`  // the directory
	ID      string `json:"id"`      // of the backup
	Version bool   `json:"version"` // the backup has a version.txt
	// WAL is what a separate WAL dir will hold.
	SeparateWAL bool     `json:"separateWAL"`
	WAL         []string `json:"wal"`
	// Replaced is the name of the directory, in each work dir, that takes what is replaced.
	Replaced string `json:"replaced"`
	// Installed is set when everything is in place and only clearing up is left.
	Installed bool `json:"installed"`
}

var replacedName = regexp.MustCompile(`^replaced-[0-9]{8}T[0-9]{6}Z$`)

// errNotPrepared means that neither the member directory nor the prepared one is the restored one.
var errNotPrepared = errors.New("what it had prepared is gone: restore a backup again")

func (l Layout) journalFile() string { return filepath.Join(l.WorkDir(), "restore.json") }

// readJournal gives nil if no restore is under way.
func (l Layout) readJournal() (*restoreJournal, error) {
	data, err := readSmall(l.journalFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	j, err := parseJournal(data)
	if err != nil {
		return nil, fmt.Errorf("read journal %s: %w", l.journalFile(), err)
	}
	return j, nil
}

func parseJournal(data []byte) (*restoreJournal, error) {
	j := &restoreJournal{}
	if err := decodeJSON(data, j); err != nil {
		return nil, err
	}
	if j.Format != journalFormat {
		return nil, fmt.Errorf("its format is %d, and this program knows format %d only", j.Format, journalFormat)
	}
	if !replacedName.MatchString(j.Replaced) {
		return nil, fmt.Errorf("%q is not a place for what is replaced", j.Replaced)
	}
	for _, name := range j.WAL {
		if name == "." || !fs.ValidPath(name) || strings.Contains(name, "/") {
			return nil, fmt.Errorf("%q is not the name of a WAL file", name)
		}
	}
	return j, nil
}

// InterruptedRestore names the directory of the backup whose restore ResumeRestore would complete, or gives "". It changes
// nothing.
func (l Layout) InterruptedRestore() (backup string, err error) {
	j, err := l.readJournal()
	if j == nil || err != nil {
		return "", err
	}
	return j.Backup, nil
}

// ResumeRestore completes a restore that was interrupted after the point of no return, and removes what one left that was
// interrupted before. Whoever is about to use a data dir calls it first: with an interrupted restore the member can be
// half the old and half the new one. It says which backup was restored and returns what Restore would have; the id is
// empty if there was nothing to complete.
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
		return fail(err)
	}
	return j.ID, replaced, nil
}

// install writes the journal and puts what b.prepare has made in place.
func (l Layout) install(b Backup) ([]string, error) {
	j := &restoreJournal{
		Format: journalFormat, Backup: b.Path, ID: b.ID, SeparateWAL: l.SeparateWAL(), Replaced: l.newReplaced(),
	}
	for _, f := range b.Manifest.Files {
		if name, found := strings.CutPrefix(f.Path, walName+"/"); found && !strings.Contains(name, "/") {
			j.WAL = append(j.WAL, name)
		}
		j.Version = j.Version || f.Path == versionName
	}
	err := WriteJSON(l.journalFile(), j)
	if err == nil {
		err = l.installMember()
	}
	if err != nil && !l.memberTouched() {
		// Nothing is replaced, so the restore can still be called off.
		return nil, errors.Join(err, l.removeJournal(), l.removePrepared())
	}
	if err != nil {
		return nil, err
	}
	return l.complete(j)
}

// newReplaced finds a name that is not in use.
func (l Layout) newReplaced() string {
	for when := now().UTC(); ; when = when.Add(time.Second) {
		name := "replaced-" + when.Format(idTime)
		taken := slices.ContainsFunc(l.roots(), func(root string) bool { return exists(filepath.Join(workIn(root), name)) })
		if !taken {
			return name
		}
	}
}

// complete does what is left to do of a restore. Every part of it can be repeated.
func (l Layout) complete(j *restoreJournal) (replaced []string, err error) {
	aside := filepath.Join(l.WorkDir(), j.Replaced)
	walAside := filepath.Join(workIn(l.WALDir), j.Replaced)
	if !j.Installed {
		// The member goes before the WAL. A member directory with a newer log beside it makes etcd go forward again or
		// refuse; a db that is ahead of its log would make it skip what is written next.
		if err := l.installMember(); err != nil {
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
	return replaced, l.removeJournal()
}

// installMember puts the prepared member directory in place, and the live one where that was.
func (l Layout) installMember() error {
	fresh := filepath.Join(prepared(l.DataDir), memberName)
	if isMarked(l.MemberDir()) && !exists(fresh+".old") {
		return nil // done before
	}
	if !isMarked(l.MemberDir()) && !isMarked(fresh) {
		return errNotPrepared
	}
	return Swap(fresh, l.MemberDir())
}

func isMarked(dir string) bool { return exists(filepath.Join(dir, marker)) }

// memberTouched reports whether installMember has replaced the member or is in the middle of it.
func (l Layout) memberTouched() bool {
	return isMarked(l.MemberDir()) || exists(filepath.Join(prepared(l.DataDir), memberName+".old"))
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

// replaceEntries replaces the present entries of the directory live with names, which are in the directory fresh, and keeps
// the old ones in aside. It takes the place of one exchange where live may be a mount point. Each name is replaced in one
// step, and the old ones that have no successor go last, so that live is never empty in between: an etcd that finds no
// WAL at all would start a new cluster. Repeating it after a crash completes it: what is still in fresh is not done.
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

// keep makes aside a second name of live, or moves live there if it is a directory or the file system has no hard links.
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

// abandonRestore gives up a restore that cannot be completed, because somebody has taken away what was prepared. What is
// left in its place may be the replaced member, so it is kept.
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
