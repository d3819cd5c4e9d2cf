package raftlog

import (
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
)

// Kind says what an entry asks for.
type Kind int

// The kinds of entries.
const (
	Empty      Kind = iota // nothing: a new leader's first entry
	ConfChange             // a change of the cluster's members
	V2                     // a request to the v2 store
	V3                     // a request to the v3 store, or one of etcd to itself
)

// String gives the constant's name.
func (k Kind) String() string {
	if k < Empty || k > V3 {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return [...]string{"Empty", "ConfChange", "V2", "V3"}[k]
}

// Entry is one entry of the log. Of the pointers only the one that Kind names is set, for Empty none. Whoever gets an
// Entry may keep it.
type Entry struct {
	Index, Term uint64
	Kind        Kind
	V2          *etcdserverpb.Request
	V3          *etcdserverpb.InternalRaftRequest
	ConfChange  *raftpb.ConfChange
}

// decode reads an entry's data as etcd's applyEntryNormal does. A request to the v2 store is written bare by every etcd
// from 2.2 to 3.5, and may be wrapped in an InternalRaftRequest; the two cannot be mistaken for one another because no
// method name ("PUT", "SYNC", …) is a valid Request.
func decode(e *raftpb.Entry) (Entry, error) {
	out := Entry{Index: e.Index, Term: e.Term}
	switch {
	case e.Type == raftpb.EntryConfChange:
		out.Kind, out.ConfChange = ConfChange, new(raftpb.ConfChange)
		if err := out.ConfChange.Unmarshal(e.Data); err != nil {
			return Entry{}, fmt.Errorf("decode entry %d as a change of members: %w", e.Index, err)
		}
		return out, nil
	case e.Type != raftpb.EntryNormal:
		// Raft has EntryConfChangeV2 too. No etcd writes it, and all of them panic when they find it.
		return Entry{}, fmt.Errorf("decode entry %d: no etcd knows entries of type %v", e.Index, e.Type)
	case len(e.Data) == 0:
		out.Kind = Empty
		return out, nil
	}
	var v3 etcdserverpb.InternalRaftRequest
	if err := v3.Unmarshal(e.Data); err == nil && v3.V2 == nil {
		out.Kind, out.V3 = V3, &v3
		return out, nil
	} else if err == nil {
		out.Kind, out.V2 = V2, v3.V2
		return out, nil
	}
	out.Kind, out.V2 = V2, new(etcdserverpb.Request)
	if err := out.V2.Unmarshal(e.Data); err != nil {
		return Entry{}, fmt.Errorf("decode entry %d as a request: %w", e.Index, err)
	}
	return out, nil
}
