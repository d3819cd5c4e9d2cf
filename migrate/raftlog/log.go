package raftlog

import (
	"errors"
	"fmt"
	"io/fs"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// ErrNoLog is returned by Open if the WAL directory does not exist or holds no *.wal, and there is no raft snapshot
// either: no member ever ran here. A db file alone does not contradict that, etcd makes it before the WAL.
var ErrNoLog = errors.New("there is no wal and no raft snapshot")

// ErrLostLog is returned by Open if there is a raft snapshot and no *.wal.
var ErrLostLog = errors.New("the wal is lost or elsewhere (--wal-dir)")

// Log is a stopped member's snapshot and WAL. It holds no files open.
type Log struct {
	snapshot Snapshot
	survey   *survey
}

// Summary is what Each saw.
type Summary struct {
	// HardState is the log's last state record. Its Commit is the index of the last committed entry: the last one that
	// was handed out, or the snapshot's if no entry follows it.
	HardState raftpb.HardState
	// LastTerm is the term of the entry with the index HardState.Commit.
	LastTerm uint64
	// Uncommitted counts the entries after HardState.Commit. See the package comment for what they mean.
	Uncommitted int
	// Torn says where and why the log was cut, "file at offset n: reason". It is empty if the log is whole.
	Torn string
	// Kinds counts the entries handed out by kind, V2Methods those of kind V2 by method (PUT, SYNC, QGET, …).
	Kinds     map[Kind]int
	V2Methods map[string]int
}

// Open finds the snapshot that etcd itself would start from, and reads through the WAL from there on. It checks
// everything that can be checked without decoding the entries: checksums, missing files, missing entries.
//
// The error is ErrNoLog if no member ever ran here, or ErrLostLog. Any other error names the file that is at fault.
func Open(snapDir, walDir string) (*Log, error) {
	segs, err := listSegments(walDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(segs) == 0 {
		return nil, noLog(snapDir, walDir)
	}
	s, sv, err := choose(snapDir, segs)
	if err != nil {
		return nil, err
	}
	return &Log{snapshot: s, survey: sv}, nil
}

// noLog tells a member that never ran from one whose log is lost.
func noLog(snapDir, walDir string) error {
	names, err := listSnapshots(snapDir)
	switch {
	case err != nil:
		return err
	case len(names) > 0:
		return fmt.Errorf("%s holds no wal, but %s holds snapshots: %w", walDir, snapDir, ErrLostLog)
	case hasLeftovers(walDir):
		return fmt.Errorf("%s holds no wal, only remains of one", walDir)
	}
	return fmt.Errorf("%s: %w", walDir, ErrNoLog)
}

// NodeID is the member's ID in its cluster.
func (l *Log) NodeID() uint64 { return l.survey.member.NodeID }

// ClusterID is the ID of the member's cluster.
func (l *Log) ClusterID() uint64 { return l.survey.member.ClusterID }

// Snapshot is what the entries of the log come after.
func (l *Log) Snapshot() Snapshot { return l.snapshot }

// Each calls fn with the committed entries after the snapshot, in order of their index and each exactly once. An entry
// that was rewritten by a later leader comes as it was last written. An error of fn ends it and is returned as it is.
func (l *Log) Each(fn func(Entry) error) (Summary, error) {
	sv := l.survey
	sum := Summary{
		HardState: sv.state, LastTerm: l.snapshot.Term, Uncommitted: int(sv.last - sv.state.Commit), Torn: sv.torn,
		Kinds: map[Kind]int{}, V2Methods: map[string]int{},
	}
	err := l.stream(sv.start, sv.state.Commit, func(e Entry) error {
		sum.LastTerm = e.Term
		sum.Kinds[e.Kind]++
		if e.Kind == V2 {
			sum.V2Methods[e.V2.Method]++
		}
		return fn(e)
	})
	return sum, err
}

// EachUncommitted calls fn with the entries after the commit, as Each does with those before.
func (l *Log) EachUncommitted(fn func(Entry) error) error {
	return l.stream(l.survey.state.Commit, l.survey.last, fn)
}

// stream hands out the entries with an index above after, up to and including to.
func (l *Log) stream(after, to uint64, fn func(Entry) error) error {
	if to <= after {
		return nil
	}
	var entry raftpb.Entry
	var entries int
	var fnErr error
	rewrites, next := l.survey.rewrites, after+1
	_, err := readRecords(l.survey.segs, func(rec *walpb.Record) error {
		if rec.Type != wal.EntryType {
			return nil
		}
		if err := unmarshalEntry(&entry, rec.Data); err != nil {
			return err
		}
		if entry.Index <= l.survey.start {
			return nil
		}
		entries++
		for len(rewrites) > 0 && rewrites[0].at <= entries {
			rewrites = rewrites[1:]
		}
		if len(rewrites) > 0 && entry.Index >= rewrites[0].index || entry.Index <= after {
			return nil
		}
		if entry.Index != next {
			return fmt.Errorf("entry %d instead of %d: the log has changed since it was opened", entry.Index, next)
		}
		e, err := decode(&entry)
		if err != nil {
			return err
		}
		if fnErr = fn(e); fnErr != nil || entry.Index == to {
			return errStop
		}
		next++
		return nil
	})
	switch {
	case err != nil:
		return err
	case fnErr != nil:
		return fnErr
	case next != to:
		return fmt.Errorf("the wal ends before entry %d: it has changed since it was opened", next)
	}
	return nil
}
