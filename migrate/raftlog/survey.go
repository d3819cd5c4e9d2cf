package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// survey is what one reading of the WAL tells about it, for a member that starts from the snapshot at start.
type survey struct {
	segs     []segment
	start    uint64
	member   etcdserverpb.Metadata
	state    raftpb.HardState
	last     uint64    // the last entry, or start
	rewrites []rewrite // both fields grow from one to the next
	gap      error     // the first entry that does not follow the one before it
	torn     string
}

// rewrite is an entry that a new leader wrote in the place of older ones: it, the at-th entry after the snapshot, made
// every entry before it void that has its index or a higher one. A rewrite that a later one with the same or a lower
// index follows is not kept, it would say nothing more.
type rewrite struct {
	at    int
	index uint64
}

// errNoRecord is a snapshot that etcd would not start from although it is readable.
var errNoRecord = errors.New("not a snapshot that this log continues")

// startingAt surveys the log for a member that starts from the snapshot with this index and term; 0, 0 is the empty
// state. Every etcd records that too in a new log, but only 2.x insists on it.
func startingAt(segs []segment, index, term uint64) (*survey, error) {
	segs = from(segs, index)
	if len(segs) == 0 {
		return nil, fmt.Errorf("%w: the oldest wal file begins after entry %d", errNoRecord, index)
	}
	if err := checkSequence(segs); err != nil {
		return nil, err
	}
	sv := &survey{segs: segs, start: index, last: index}
	recorded, err := sv.read(index, term)
	switch {
	case err != nil:
		return nil, err
	case !recorded:
		return nil, fmt.Errorf("%w: the wal has no record of index %d, term %d in or after %s",
			errNoRecord, index, term, segs[0].path)
	case index > sv.state.Commit:
		return nil, fmt.Errorf("%w: its index %d is beyond the committed %d", errNoRecord, index, sv.state.Commit)
	}
	return sv, nil
}

// read reports whether the log has a record of the snapshot.
func (sv *survey) read(index, term uint64) (recorded bool, err error) {
	var metadata []byte
	var entry raftpb.Entry
	var entries int
	var otherTerm bool
	recorded = index == 0
	end, err := readRecords(sv.segs, func(rec *walpb.Record) error {
		switch rec.Type {
		case wal.MetadataType:
			if metadata != nil && !bytes.Equal(metadata, rec.Data) {
				return errors.New("the file belongs to another member: conflicting metadata")
			}
			metadata = append([]byte{}, rec.Data...)
			return unmarshal("metadata", &sv.member, metadata)
		case wal.StateType:
			sv.state.Reset()
			return unmarshal("a state", &sv.state, rec.Data)
		case wal.SnapshotType:
			var s walpb.Snapshot
			if err := unmarshal("a snapshot record", &s, rec.Data); err != nil {
				return err
			}
			recorded = recorded || s.Index == index && s.Term == term
			otherTerm = otherTerm || s.Index == index && s.Term != term
			return nil
		case wal.EntryType:
			if err := unmarshalEntry(&entry, rec.Data); err != nil {
				return err
			}
			if entry.Index > sv.start {
				entries++
				sv.add(entries, entry.Index)
			}
			return nil
		}
		return fmt.Errorf("unknown record type %d", rec.Type)
	})
	if err != nil {
		return false, err
	}
	switch {
	case !recorded:
		return false, nil
	case otherTerm:
		return false, fmt.Errorf("the wal from %s on has snapshots of index %d with different terms",
			sv.segs[0].path, index)
	case metadata == nil:
		return false, fmt.Errorf("%s holds no metadata", sv.segs[0].path)
	}
	return true, sv.noteEnd(end)
}

func (sv *survey) add(at int, index uint64) {
	if index > sv.last && index-sv.last > 1 && sv.gap == nil {
		sv.gap = fmt.Errorf("entry %d of the wal follows entry %d", index, sv.last)
	}
	if index <= sv.last {
		n := len(sv.rewrites)
		for n > 0 && sv.rewrites[n-1].index >= index {
			n--
		}
		sv.rewrites = append(sv.rewrites[:n], rewrite{at, index})
	}
	sv.last = index
}

func (sv *survey) noteEnd(end walEnd) error {
	if end.torn != nil {
		sv.torn = fmt.Sprintf("%s at offset %d: %v", end.path, end.offset, end.torn)
		return sv.lostMiddle(end) // else etcd goes on from there, too
	}
	at, err := end.leftover()
	if err != nil {
		return fmt.Errorf("read the end of the wal: %w", err)
	}
	if at >= 0 {
		sv.torn = fmt.Sprintf("%s at offset %d: the log ends, but written bytes follow at offset %d",
			end.path, end.offset, at)
		return sv.lostMiddle(end)
	}
	return nil
}

// complete refuses a log that lacks entries it must have. Raft panics on such a log.
func (sv *survey) complete() error {
	if sv.gap != nil {
		return fmt.Errorf("entries are missing in %s: %w", filepath.Dir(sv.segs[0].path), sv.gap)
	}
	if sv.state.Commit > sv.last {
		return fmt.Errorf("entries are missing in %s: %d are committed, but the wal ends with entry %d%s",
			filepath.Dir(sv.segs[0].path), sv.state.Commit, sv.last, tornNote(sv.torn))
	}
	return nil
}

func tornNote(torn string) string {
	if torn == "" {
		return ""
	}
	return " (torn: " + torn + ")"
}

// unmarshalEntry fills e anew and reuses the memory of its data.
func unmarshalEntry(e *raftpb.Entry, data []byte) error {
	*e = raftpb.Entry{Data: e.Data[:0]}
	return unmarshal("an entry", e, data)
}

func unmarshal(what string, to interface{ Unmarshal([]byte) error }, data []byte) error {
	if err := to.Unmarshal(data); err != nil {
		return fmt.Errorf("decode %s: %w", what, err)
	}
	return nil
}
