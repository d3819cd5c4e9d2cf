package raftlog

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
)

func TestDecode(t *testing.T) {
	put := &etcdserverpb.InternalRaftRequest{Put: &etcdserverpb.PutRequest{Key: []byte("k")}}
	bare := &etcdserverpb.Request{ID: 5, Method: "PUT", Path: "/1/a"}
	wrapped := &etcdserverpb.InternalRaftRequest{V2: bare}
	add := &raftpb.ConfChange{Type: raftpb.ConfChangeAddNode, NodeID: 9}
	tests := map[string]struct {
		in   raftpb.Entry
		want Entry
	}{
		"empty":   {raftpb.Entry{}, Entry{Kind: Empty}},
		"v3":      {raftpb.Entry{Data: marshal(put)}, Entry{Kind: V3, V3: put}},
		"wrapped": {raftpb.Entry{Data: marshal(wrapped)}, Entry{Kind: V2, V2: bare}},
		"change":  {raftpb.Entry{Type: raftpb.EntryConfChange, Data: marshal(add)}, Entry{Kind: ConfChange, ConfChange: add}},
		// Field 2000 is one that a newer etcd might add.
		"newer": {raftpb.Entry{Data: []byte{0x80, 0x7d, 1}}, Entry{Kind: V3, V3: &etcdserverpb.InternalRaftRequest{}}},
	}
	for _, method := range []string{"GET", "QGET", "HEAD", "POST", "PUT", "DELETE", "SYNC"} {
		r := &etcdserverpb.Request{ID: 1, Method: method, Path: "/1/a", Val: "v", Time: 5}
		tests[method] = struct {
			in   raftpb.Entry
			want Entry
		}{raftpb.Entry{Data: marshal(r)}, Entry{Kind: V2, V2: r}}
	}
	for name, test := range tests {
		test.in.Index, test.in.Term = 3, 2
		test.want.Index, test.want.Term = 3, 2
		got, err := decode(&test.in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(test.want, got, cmp.FilterPath(func(p cmp.Path) bool {
			return p.Last().String() == ".XXX_unrecognized"
		}, cmp.Ignore())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for name, in := range map[string]raftpb.Entry{
		"garbage":           {Data: []byte{0xff}},
		"change of members": {Type: raftpb.EntryConfChange, Data: []byte{0xff}},
		"ConfChangeV2":      {Type: raftpb.EntryConfChangeV2},
		"unknown type":      {Type: 7},
	} {
		if got, err := decode(&in); err == nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func TestKindString(t *testing.T) {
	for k, want := range map[Kind]string{
		Empty: "Empty", ConfChange: "ConfChange", V2: "V2", V3: "V3", 9: "Kind(9)", -1: "Kind(-1)",
	} {
		if k.String() != want {
			t.Errorf("%d is %q", int(k), k.String())
		}
	}
}
