package datadir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Restore makes the member what the backup holds: member/, the separate WAL dir and version.txt, with the owners,
// modes and times from the manifest. It returns the directories that hold what was replaced, one in the work dir and
// one in a separate WAL dir; there are none if there was no member. Nothing in them is needed any more.
//
// First everything is copied into etcd-migrate/restore.tmp (and the same in a separate WAL dir), checked against the
// manifest on the way, made durable and read back. Until then nothing is changed, and any error leaves the member as
// it was. Then restore.json is written, and only renames are left. From there on the restore cannot be undone but
// only be completed, by ResumeRestore or another Restore, whatever interrupts it. The backup is never written to, so
// there is a whole copy of the data at every instant.
//
// An error after the first change is an *UnfinishedError; after any other the member is what it was.
//
// A running etcd is an error (*HeldError), and so are a damaged backup, too little space (*SpaceError), and a layout
// that has a separate WAL dir where the backup has none or the reverse.
func (b Backup) Restore(ctx context.Context, l Layout, progress Progress) (replaced []string, err error) {
	replaced, err = b.restore(ctx, l, progress)
	if err != nil {
		return nil, fmt.Errorf("restore %s from backup %s: %w", l.DataDir, b.Path, err)
	}
	return replaced, nil
}

func (b Backup) restore(ctx context.Context, l Layout, progress Progress) ([]string, error) {
	if err := b.checkRestore(l); err != nil {
		return nil, err
	}
	// An interrupted restore, of this or another backup, has to be completed before the next one reuses its places.
	_, earlier, err := l.ResumeRestore()
	if errors.Is(err, errNotPrepared) {
		err = l.abandonRestore()
	}
	if err != nil {
		return nil, err
	}
	j := b.journal(l)
	if err := b.prepare(ctx, l, j, progress); err != nil {
		return nil, errors.Join(err, l.removePrepared())
	}
	replaced, err := l.install(j)
	return append(earlier, replaced...), err
}

// checkRestore refuses what could not be completed, before anything is done.
func (b Backup) checkRestore(l Layout) error {
	if b.Err != nil {
		return b.Err
	}
	if m := b.Manifest; m.SeparateWAL && !l.SeparateWAL() {
		return fmt.Errorf("the backup has a separate WAL dir, which was %s: name the one to restore to", m.WALDir)
	} else if !m.SeparateWAL && l.SeparateWAL() {
		return fmt.Errorf("the backup has its WAL in member/wal, but the member has a separate WAL dir, %s", l.WALDir)
	}
	for _, dir := range l.roots() {
		if info, err := os.Stat(dir); err != nil {
			return err
		} else if !info.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
	}
	if _, err := anyFile(l.MemberDir()); err != nil {
		return err
	}
	if point, err := mountIn(l.MemberDir()); err != nil {
		return err
	} else if point != "" {
		return fmt.Errorf("%s is a mount point, which a restore cannot replace: unmount it, or if it holds the WAL, "+
			"have etcd use it with --wal-dir", point)
	}
	if err := l.LiveEtcd(); err != nil {
		return err
	}
	problems, err := b.compare()
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("the backup is damaged: %w", errors.Join(problems...))
	}
	return err
}

// roots are the directories inside of which a restore replaces entries. Each may be a mount point.
func (l Layout) roots() []string {
	if l.SeparateWAL() {
		return []string{l.DataDir, l.WALDir}
	}
	return []string{l.DataDir}
}

// workIn is the work dir in a root.
func workIn(root string) string { return filepath.Join(root, workName) }

// prepared is where a restore builds what will be in root.
func prepared(root string) string { return filepath.Join(workIn(root), "restore.tmp") }

// prepare copies the backup to where renames can put it in place.
func (b Backup) prepare(ctx context.Context, l Layout, j *restoreJournal, progress Progress) error {
	if err := l.removePrepared(); err != nil {
		return err
	}
	for _, root := range l.roots() {
		if err := MkdirAll(prepared(root)); err != nil {
			return err
		}
	}
	data, wal, err := b.copies(l)
	if err != nil {
		return err
	}
	var done int64
	for _, entries := range [][]entry{data, wal} { // which may go to different file systems
		base := done
		opts := CopyOptions{Hash: true, Progress: func(n, _ int64) {
			if done = base + n; progress != nil {
				progress(done, b.Manifest.Bytes)
			}
		}}
		if err := copyAll(ctx, entries, opts); err != nil {
			return err
		}
	}
	for _, root := range l.roots() {
		if err := SyncDir(prepared(root)); err != nil {
			return err
		}
	}
	return j.mark(filepath.Join(prepared(l.DataDir), memberName))
}

// copies says what has to be copied where, with the attributes that the manifest knows.
func (b Backup) copies(l Layout) (data, wal []entry, err error) {
	there, err := scan(b.Path, "", manifestName)
	if err != nil {
		return nil, nil, err
	}
	found := map[string]entry{}
	for _, e := range there {
		found[e.Path] = e
	}
	for _, f := range b.Manifest.Files {
		e := found[f.Path]
		if e.Size != f.Size {
			return nil, nil, sizeError(e.src, e.Size, f.Size)
		}
		e.File = f
		top, below, _ := strings.Cut(f.Path, "/")
		if top != walName {
			e.dst = filepath.Join(prepared(l.DataDir), filepath.FromSlash(f.Path))
			data = append(data, e)
		} else if below != "" { // the WAL dir itself stays as it is
			e.dst = filepath.Join(prepared(l.WALDir), filepath.FromSlash(below))
			wal = append(wal, e)
		}
	}
	return data, wal, nil
}

// removePrepared removes what a restore has prepared. It is not called while there is a journal that needs it.
func (l Layout) removePrepared() error {
	for _, root := range l.roots() {
		dir := prepared(root)
		if !exists(dir) {
			continue
		}
		if err := removeAll(dir); err != nil {
			return err
		}
		if err := SyncDir(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	if exists(l.WorkDir()) {
		if err := removeLeftovers(l.journalFile()); err != nil {
			return err
		}
	}
	if l.SeparateWAL() && exists(workIn(l.WALDir)) {
		// etcd warns of each unknown entry of its WAL dir, so ours goes with the last thing in it.
		if err := remove(workIn(l.WALDir)); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		return SyncDir(l.WALDir)
	}
	return nil
}
