package keyspace

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// v2Replay reads a stopped member's directory: its newest snapshot and the committed entries after it.
func v2Replay(t *testing.T, dir string) (tree *Tree, snapshots, entries int) {
	t.Helper()
	lg := zap.NewNop()
	tree, at := NewTree(), walpb.Snapshot{}
	found, err := snap.New(lg, filepath.Join(dir, "member", "snap")).Load()
	switch {
	case err == nil:
		if tree, err = LoadTree(found.Data); err != nil {
			t.Fatal(err)
		}
		at.Index, at.Term = found.Metadata.Index, found.Metadata.Term
		snapshots = 1
	case !errors.Is(err, snap.ErrNoSnapshot):
		t.Fatal(err)
	}
	w, err := wal.OpenForRead(lg, filepath.Join(dir, "member", "wal"), at)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, state, ents, err := w.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, ent := range ents {
		if ent.Index > state.Commit {
			break
		}
		entries++
		if err := v2ApplyEntry(tree, ent); err != nil {
			t.Fatalf("entry %d: %v", ent.Index, err)
		}
	}
	return tree, snapshots, entries
}

func v2ApplyEntry(tree *Tree, ent raftpb.Entry) error {
	if ent.Type == raftpb.EntryConfChange {
		var cc raftpb.ConfChange
		if err := cc.Unmarshal(ent.Data); err != nil {
			return err
		}
		return tree.ApplyConfChange(&cc)
	}
	if len(ent.Data) == 0 {
		return nil
	}
	var r etcdserverpb.InternalRaftRequest
	if r.Unmarshal(ent.Data) == nil {
		return tree.ApplyV3(&r)
	}
	var v2 etcdserverpb.Request
	if err := v2.Unmarshal(ent.Data); err != nil {
		return err
	}
	return tree.ApplyV2(&v2)
}

// v2Valid makes of a key or value what a JSON answer shows of it.
func v2Valid(s string) string {
	raw, _ := json.Marshal(s)
	json.Unmarshal(raw, &s)
	return s
}

// compareDir holds what the stopped member's directory says against what the member said last.
func (e *v2Etcd) compareDir(live map[string]v2Node, index uint64) *Tree {
	e.t.Helper()
	tree, snapshots, entries := v2Replay(e.t, e.dir)
	e.t.Logf("%d live nodes, %d snapshot, %d entries, index %d", len(live), snapshots, entries, index)
	if tree.Index() != index {
		e.t.Errorf("index %d, etcd had %d", tree.Index(), index)
	}

	got := map[string]v2Node{}
	for path, n := range v2Nodes(tree) {
		key, user := strings.CutPrefix(path, "/1/")
		if !user {
			continue
		}
		key, n.Value = v2Valid("/"+key), v2Valid(n.Value)
		if _, shown := live[key]; !shown && n.Dir && strings.Contains(key, "/_") {
			continue
		}
		got[key] = n
	}
	if diff := cmp.Diff(live, got); diff != "" {
		e.t.Errorf("nodes differ (-etcd +tree)\n%.5000s", diff)
	}

	records, last := map[string]v2Node{}, ""
	err := tree.Each(time.Now(), func(r Record) error {
		if string(r.Key) <= last {
			e.t.Errorf("key %q comes after %q", r.Key, last)
		}
		last = string(r.Key)
		records[v2Valid(last)] = v2Node{
			Value: v2Valid(string(r.Value)), Created: uint64(r.Created), Modified: uint64(r.Modified), Expiry: r.Expiry,
		}
		return nil
	})
	if err != nil {
		e.t.Fatal(err)
	}
	want := map[string]v2Node{}
	for key, n := range live {
		if n.Dir {
			continue
		}
		for dir := filepath.Dir(key); dir != "/"; dir = filepath.Dir(dir) {
			if x := live[dir].Expiry; !x.IsZero() && (n.Expiry.IsZero() || x.Before(n.Expiry)) {
				n.Expiry = x
			}
		}
		want[key] = n
	}
	if diff := cmp.Diff(want, records); diff != "" {
		e.t.Errorf("records differ (-etcd +tree)\n%.5000s", diff)
	}
	return tree
}
