package raftlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// reading is all that a log gives, by us or by etcd itself.
type reading struct {
	NodeID, ClusterID      uint64
	SnapIndex, SnapTerm    uint64
	SnapData               string
	State                  raftpb.HardState
	Committed, Uncommitted []raw
}

// ours is what this package adds.
type ours struct {
	reading
	snapshot            Snapshot
	summary             Summary
	entries, afterwards []Entry
}

// raw is an entry with its data as it is in the WAL.
type raw struct {
	Index, Term uint64
	Data        string
}

// etcdReads reads as etcd 3.6 does when it starts. It repairs and renames as etcd does: give it a copy.
func etcdReads(snapDir, walDir string, readAll readAll) (r reading, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("etcd panics: %v", p)
		}
	}()
	nop := zap.NewNop()
	records, err := wal.ValidSnapshotEntries(nop, walDir)
	if err != nil {
		return r, err
	}
	var start walpb.Snapshot
	if s, err := snap.New(nop, snapDir).LoadNewestAvailable(records); err == nil {
		start.Index, start.Term = s.Metadata.Index, s.Metadata.Term
		r.SnapIndex, r.SnapTerm, r.SnapData = start.Index, start.Term, string(s.Data)
	} else if !errors.Is(err, snap.ErrNoSnapshot) && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	metadata, state, entries, err := readAll(walDir, start)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		if !wal.Repair(nop, walDir) {
			return r, errors.New("etcd cannot repair the log")
		}
		metadata, state, entries, err = readAll(walDir, start)
	}
	if err != nil {
		return r, err
	}
	var m etcdserverpb.Metadata
	if err := m.Unmarshal(metadata); err != nil {
		return r, err
	}
	if metadata == nil {
		return r, errors.New("etcd runs as member 0")
	}
	r.NodeID, r.ClusterID, r.State = m.NodeID, m.ClusterID, state
	if state.Commit > start.Index+uint64(len(entries)) {
		return r, errors.New("raft panics: tocommit is out of range")
	}
	for _, e := range entries {
		out, err := normal(e)
		if err != nil {
			return r, err
		}
		if e.Index <= state.Commit {
			r.Committed = append(r.Committed, out)
		} else {
			r.Uncommitted = append(r.Uncommitted, out)
		}
	}
	return r, nil
}

type readAll func(walDir string, start walpb.Snapshot) ([]byte, raftpb.HardState, []raftpb.Entry, error)

// forWriting opens the log as etcd does when it starts.
func forWriting(walDir string, start walpb.Snapshot) ([]byte, raftpb.HardState, []raftpb.Entry, error) {
	w, err := wal.Open(zap.NewNop(), walDir, start)
	if err != nil {
		return nil, raftpb.HardState{}, nil, err
	}
	w.SetUnsafeNoFsync()
	defer w.Close()
	return w.ReadAll()
}

// forReading opens the log as etcd's tools do. It is quicker, but takes a tear in any file for the end of the log.
func forReading(walDir string, start walpb.Snapshot) ([]byte, raftpb.HardState, []raftpb.Entry, error) {
	w, err := wal.OpenForRead(zap.NewNop(), walDir, start)
	if err != nil {
		return nil, raftpb.HardState{}, nil, err
	}
	metadata, state, entries, err := w.ReadAll() // closes what it has read
	if errors.Is(err, wal.ErrSnapshotNotFound) && start.Index == 0 {
		err = nil // when it writes, etcd since 3.0 overlooks that the record of the empty state is missing
	}
	return metadata, state, entries, err
}

// normal is the entry with the change of members written as etcd did before 3.7, which leaves zeros out.
func normal(e raftpb.Entry) (raw, error) {
	if e.Type == raftpb.EntryConfChange {
		var cc raftpb.ConfChange
		if err := cc.Unmarshal(e.Data); err != nil {
			return raw{}, err
		}
		e.Data, _ = cc.Marshal()
	}
	return raw{e.Index, e.Term, string(e.Data)}, nil
}

// weRead reads with this package and makes sure that it changes nothing on disk.
func weRead(t testing.TB, snapDir, walDir string) (ours, error) {
	t.Helper()
	before := listing(t, snapDir) + listing(t, walDir)
	r, err := read(snapDir, walDir)
	if diff := cmp.Diff(before, listing(t, snapDir)+listing(t, walDir)); diff != "" {
		t.Fatalf("reading has changed the files (-before +after):\n%s", diff)
	}
	return r, err
}

func read(snapDir, walDir string) (r ours, err error) {
	l, err := Open(snapDir, walDir)
	if err != nil {
		return r, err
	}
	r.NodeID, r.ClusterID, r.snapshot = l.NodeID(), l.ClusterID(), l.Snapshot()
	r.SnapIndex, r.SnapTerm, r.SnapData = r.snapshot.Index, r.snapshot.Term, string(r.snapshot.Data)
	r.summary, err = l.Each(func(e Entry) error {
		r.entries = append(r.entries, e)
		r.Committed = append(r.Committed, encode(e))
		return nil
	})
	r.State = r.summary.HardState
	if err != nil {
		return r, err
	}
	return r, l.EachUncommitted(func(e Entry) error {
		r.afterwards = append(r.afterwards, e)
		r.Uncommitted = append(r.Uncommitted, encode(e))
		return nil
	})
}

// encode is the reverse of decode for all that real etcds write: bare requests to the v2 store.
func encode(e Entry) raw {
	var m interface{ Marshal() ([]byte, error) }
	switch {
	case e.Kind == V2 && e.V2 != nil:
		m = e.V2
	case e.Kind == V3 && e.V3 != nil:
		m = e.V3
	case e.Kind == ConfChange && e.ConfChange != nil:
		m = e.ConfChange
	default:
		return raw{Index: e.Index, Term: e.Term}
	}
	data, err := m.Marshal()
	if err != nil {
		panic(err)
	}
	return raw{e.Index, e.Term, string(data)}
}

func listing(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		info, err := d.Info()
		fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// compare reads with this package and then with etcd, which must find the same or must refuse too.
func compare(t testing.TB, snapDir, walDir string) (ours, error) {
	t.Helper()
	return compareWith(t, snapDir, walDir, forWriting)
}

func compareWith(t testing.TB, snapDir, walDir string, readAll readAll) (ours, error) {
	t.Helper()
	we, ourErr := weRead(t, snapDir, walDir)
	theirs, theirErr := etcdReads(snapDir, walDir, readAll)
	if errors.Is(ourErr, errLost) && theirErr == nil {
		return we, ourErr // etcd goes on without them
	}
	if (ourErr == nil) != (theirErr == nil) {
		t.Fatalf("we say: %v\netcd says: %v", ourErr, theirErr)
	}
	if ourErr != nil {
		return we, ourErr
	}
	if diff := cmp.Diff(theirs, we.reading); diff != "" {
		t.Fatalf("not what etcd reads (-etcd +ours):\n%s", diff)
	}
	var counted int
	for _, n := range we.summary.Kinds {
		counted += n
	}
	if counted != len(we.Committed) || we.summary.Uncommitted != len(we.Uncommitted) {
		t.Fatalf("the summary is wrong: %+v, %d and %d entries", we.summary, len(we.Committed), len(we.Uncommitted))
	}
	return we, nil
}
