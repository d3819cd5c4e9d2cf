package raftlog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
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
	snapFirst bool
}

// placement is a finished file that waits to be renamed.
type placement struct{ temp, path string }

// Point is where the log of one of several members is cut off: an entry that is committed, and that all members cut theirs
// off at. What lies beyond it is dropped.
type Point struct {
	Index, Term uint64
	ConfState   raftpb.ConfState
	// ClusterID is the cluster that the member belongs to from then on, 0 for the one that it is in. Members of different
	// clusters do not talk to each other, so what lies beyond the entry cannot come back from a member that still has it.
	ClusterID uint64
}

// PrepareReplacement writes and checks the files of a Replacement, under names that no etcd looks at. The summary is that
// of the log, read to its end with Each; store writes the v2 store's new JSON, the same at each of several calls. The
// error is ErrUnsettled if the log has a torn end or entries that nobody has committed.
//
// What an earlier call has left that was killed, in whatever state, is taken over or replaced.
func PrepareReplacement(
	l *Log, sum Summary, snapDir string, f Framing, store func(io.Writer) error,
) (*Replacement, error) {
	if sum.Uncommitted > 0 && sum.Torn == "" {
		return nil, fmt.Errorf("replace the log: %w: %d entries lie beyond the commit", ErrUnsettled, sum.Uncommitted)
	}
	return PrepareReplacementAt(l, sum, snapDir, f, Point{
		Index: sum.HardState.Commit, Term: sum.LastTerm, ConfState: raftpb.ConfState{Voters: []uint64{l.NodeID()}},
	}, store)
}

// PrepareReplacementAt is PrepareReplacement for one of several members, whose log may go on behind the point.
func PrepareReplacementAt(
	l *Log, sum Summary, snapDir string, f Framing, at Point, store func(io.Writer) error,
) (r *Replacement, err error) {
	switch {
	case sum.Torn != "":
		return nil, fmt.Errorf("replace the log: %w: %s", ErrUnsettled, sum.Torn)
	case at.Index == 0:
		return nil, errors.New("replace the log: nothing was ever committed")
	case at.Index > sum.HardState.Commit || at.Index < l.snapshot.Index:
		return nil, fmt.Errorf("replace the log: entry %d is not among the committed ones, %d to %d", at.Index, l.snapshot.Index, sum.HardState.Commit)
	}
	last := l.survey.segs[len(l.survey.segs)-1]
	r = &Replacement{snapFirst: at.ClusterID != 0}
	walDir := filepath.Dir(last.path)
	if err := errors.Join(removeTemps(walDir), removeTemps(snapDir), r.listVoid(snapDir, walDir)); err != nil {
		return nil, fmt.Errorf("replace the log: %w", err)
	}
	meta := raftpb.SnapshotMetadata{ConfState: at.ConfState, Index: at.Index, Term: at.Term}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("replace the log: %w", err), r.Discard())
			r = nil
		}
	}()
	state := sum.HardState
	state.Commit = at.Index
	owner := l.survey.member
	if at.ClusterID != 0 {
		owner.ClusterID = at.ClusterID
	}
	if err := r.prepareWAL(owner, last, state, meta, f); err != nil {
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
	owner etcdserverpb.Metadata, last segment, state raftpb.HardState, meta raftpb.SnapshotMetadata, f Framing,
) error {
	crc, end, err := readSegment(last, 0, func(*walpb.Record) error { return nil })
	if err == nil {
		err = end.torn
	}
	if err != nil {
		return fmt.Errorf("read wal file %s at offset %d: %w", end.path, end.offset, err)
	}
	content, err := encodeSegment(f, crc, &owner, state, meta)
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
	case back.member.NodeID != owner.NodeID || back.member.ClusterID != owner.ClusterID, back.state != state, back.torn != "":
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
// The snapshot is what counts: with its rename the log is the new one. If the cluster ID changes, it comes first: no etcd
// looks at a snapshot that the log does not name, but two files of different clusters in one log are an error to all. Then
// the rename of the file is what counts.
func (r *Replacement) Install() error {
	files := []placement{r.wal, r.snap}
	if r.snapFirst {
		files = []placement{r.snap, r.wal}
	}
	for _, p := range files {
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
