package raftlog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// ErrUnsettled says that a log cannot be replaced because it does not end where its commits end, as a crash leaves it: see
// the package comment. To settle it, start and stop the etcd that wrote it.
var ErrUnsettled = errors.New("the log was not closed cleanly")

// Replacement is a new end of a stopped sole voter's log that makes all of the log before it void: a raft snapshot of
// everything that was committed, and a WAL file that continues behind it and has no entries yet. It is for a log whose
// entries or whose framing an older etcd cannot read. The member, its cluster, the term, the vote and the index stay.
//
// It is added to the log as etcd itself adds to it, and then what is before it is removed as etcd itself removes it. So
// nothing has to be exchanged at one blow, and it makes no difference whether the WAL is on another volume, or whether
// its directory is a mount point. Install has the order.
type Replacement struct {
	snap, wal placement
	voidWAL   []string // oldest first
	voidSnaps []string
	store     []byte
}

// placement is a finished file that waits to be renamed.
type placement struct{ temp, path string }

// PrepareReplacement writes and checks the files of a Replacement, under names that no etcd looks at. The summary is that
// of the log, read to its end with Each; store writes the v2 store's new JSON, the same at each of several calls. The
// error is ErrUnsettled if the log has a torn end or entries that nobody has committed.
//
// What an earlier call has left that was killed, in whatever state, is taken over or replaced.
func PrepareReplacement(
	l *Log, sum Summary, snapDir string, f Framing, store func(io.Writer) error,
) (r *Replacement, err error) {
	commit := sum.HardState.Commit
	switch {
	case sum.Torn != "":
		return nil, fmt.Errorf("replace the log: %w: %s", ErrUnsettled, sum.Torn)
	case sum.Uncommitted > 0:
		return nil, fmt.Errorf("replace the log: %w: %d entries lie beyond the commit", ErrUnsettled, sum.Uncommitted)
	case commit == 0:
		return nil, errors.New("replace the log: nothing was ever committed")
	}
	last := l.survey.segs[len(l.survey.segs)-1]
	r = &Replacement{}
	walDir := filepath.Dir(last.path)
	if err := errors.Join(removeTemps(walDir), removeTemps(snapDir), r.listVoid(snapDir, walDir)); err != nil {
		return nil, fmt.Errorf("replace the log: %w", err)
	}
	meta := raftpb.SnapshotMetadata{
		ConfState: raftpb.ConfState{Voters: []uint64{l.NodeID()}}, Index: commit, Term: sum.LastTerm,
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("replace the log: %w", err), r.Discard())
			r = nil
		}
	}()
	if err := r.prepareWAL(l, last, sum.HardState, meta, f); err != nil {
		return r, err
	}
	r.snap.path = filepath.Join(snapDir, fmt.Sprintf("%016x-%016x%s", meta.Term, meta.Index, snapSuffix))
	r.snap.temp, err = createBeside(r.snap.path, func(w io.Writer) error { return writeSnapshot(w, meta, store) })
	if err != nil {
		return r, err
	}
	r.store, err = readBack(r.snap.temp, meta)
	return r, err
}

// listVoid notes the files that the replacement will make void.
func (r *Replacement) listVoid(snapDir, walDir string) error {
	segs, err := listSegments(walDir)
	if err != nil {
		return err
	}
	for _, s := range segs {
		r.voidWAL = append(r.voidWAL, s.path)
	}
	names, err := listSnapshots(snapDir)
	for _, name := range names {
		r.voidSnaps = append(r.voidSnaps, filepath.Join(snapDir, name))
	}
	return err
}

// prepareWAL writes the file that follows last. Its name says that it begins at the snapshot's own index, not at the next
// one as etcd would: so every etcd that starts from the snapshot begins to read with this file and no earlier one.
func (r *Replacement) prepareWAL(
	l *Log, last segment, state raftpb.HardState, meta raftpb.SnapshotMetadata, f Framing,
) error {
	crc, end, err := readSegment(last, 0, func(*walpb.Record) error { return nil })
	if err == nil {
		err = end.torn
	}
	if err != nil {
		return fmt.Errorf("read wal file %s at offset %d: %w", end.path, end.offset, err)
	}
	content, err := encodeSegment(f, crc, &l.survey.member, state, meta)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%016x-%016x.wal", last.seq+1, meta.Index)
	r.wal.path = filepath.Join(filepath.Dir(last.path), name)
	if r.wal.temp, err = createBeside(r.wal.path, write(content)); err != nil {
		return err
	}
	back, err := startingAt([]segment{{r.wal.temp, last.seq + 1, meta.Index}}, meta.Index, meta.Term)
	if err == nil {
		err = back.complete()
	}
	switch {
	case err != nil:
		return fmt.Errorf("read back: %w", err)
	case back.member.NodeID != l.NodeID() || back.member.ClusterID != l.ClusterID(), back.state != state, back.torn != "":
		return fmt.Errorf("read back %s: it is not as it was written", r.wal.temp)
	}
	return nil
}

// Store is the v2 store's JSON as it was read back.
func (r *Replacement) Store() []byte { return r.store }

// Install puts the files into place and removes the void ones. If it is killed at any instant, the log is one of these,
// and Install of a new Replacement of the log as it then is leads to the same end:
//
//  1. the old log
//  2. the old log with one more file, which has nothing in it that an etcd looks at that starts from the old snapshot
//  3. the new log, with files before it that no etcd looks at that starts from the new snapshot
//  4. the new log
//
// The snapshot is what counts: with its rename the log is the new one.
func (r *Replacement) Install() error {
	for _, p := range []placement{r.wal, r.snap} {
		if err := datadir.Rename(p.temp, p.path); err != nil {
			return fmt.Errorf("install the new log: %w", err)
		}
	}
	// Oldest first, so that what is left has no gap.
	for _, path := range append(r.voidWAL, r.voidSnaps...) {
		if path == r.snap.path {
			continue // the old one of the same index, whose place the new one has taken
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove the old log: %w", err)
		}
	}
	for _, p := range []placement{r.wal, r.snap} {
		if err := datadir.SyncDir(filepath.Dir(p.path)); err != nil {
			return fmt.Errorf("remove the old log: %w", err)
		}
	}
	return nil
}

// Discard removes what PrepareReplacement has written, if it is not to be installed.
func (r *Replacement) Discard() error {
	var errs []error
	for _, p := range []placement{r.wal, r.snap} {
		if p.temp != "" {
			errs = append(errs, os.Remove(p.temp))
		}
	}
	return errors.Join(errs...)
}
