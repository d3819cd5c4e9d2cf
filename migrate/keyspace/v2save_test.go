package keyspace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2error"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

func v2Saved(t testing.TB, tree *Tree) []byte {
	t.Helper()
	var first, second bytes.Buffer
	for _, b := range []*bytes.Buffer{&first, &second} {
		if err := tree.Save(b); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Fatal("two calls of Save wrote different bytes")
	}
	return first.Bytes()
}

// compareSaved holds what the tree saves against what etcd saves, and lets both go on from it.
func (p *v2Pair) compareSaved(t *testing.T) {
	t.Helper()
	etcds, err := p.store.Save()
	if err != nil {
		t.Fatal(err)
	}
	ours := v2Saved(t, p.tree)
	decode := func(saved []byte) map[string]any {
		var all map[string]any
		d := json.NewDecoder(bytes.NewReader(saved))
		d.UseNumber()
		if err := d.Decode(&all); err != nil {
			t.Fatal(err)
		}
		delete(all, "Stats")
		delete(all, "WatcherHub")
		return all
	}
	if diff := cmp.Diff(decode(etcds), decode(ours)); diff != "" {
		t.Fatalf("the JSON differs (-etcd +tree)\n%s", diff)
	}
	p.store = v2store.New("/0", "/1")
	if err := p.store.Recovery(ours); err != nil {
		t.Fatal(err)
	}
	if p.tree, err = LoadTree(ours); err != nil {
		t.Fatal(err)
	}
	p.compare(t, "a reload")
}

func TestSaveAgainstV2Store(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 4))
			p, s := newV2Pair(), &v2Script{next: rnd.IntN}
			p.as36(t)
			for i := range 3000 {
				p.apply(t, s.request(p))
				if i%300 == 299 {
					p.compareSaved(t)
				}
			}
		})
	}
}

func FuzzSaveString(f *testing.F) {
	for _, v := range append(v2Values, "\u2028\u2029 & < >", "\xed\xa0\x80", "\\\"\n\t\x7f\x1f\x00", "�") {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		p := newV2Pair()
		p.apply(t, &etcdserverpb.Request{Method: "PUT", Path: "/1/k", Val: v})
		p.compareSaved(t)
	})
}

// TestSavedHistory watches from an index of before: it must not wait for what has already happened.
func TestSavedHistory(t *testing.T) {
	tree := NewTree()
	for range 20 {
		if err := tree.ApplyV2(&etcdserverpb.Request{Method: "PUT", Path: "/1/a", Val: "v"}); err != nil {
			t.Fatal(err)
		}
	}
	store := v2store.New("/0", "/1")
	if err := store.Recovery(v2Saved(t, tree)); err != nil {
		t.Fatal(err)
	}
	for index, cleared := range map[uint64]bool{1: true, 19: true, 20: true, 21: false, 30: false, 0: false} {
		_, err := store.Watch("/1/a", false, false, index)
		var verr *v2error.Error
		if got := errors.As(err, &verr) && verr.ErrorCode == v2error.EcodeEventIndexCleared; got != cleared {
			t.Errorf("a watch from index %d: %v", index, err)
		}
	}
	w, err := store.Watch("/1/a", false, false, 21)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Set("/1/a", false, "new", v2store.TTLOptionSet{}); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-w.EventChan():
		if e.Index() != 21 {
			t.Errorf("the watch got index %d", e.Index())
		}
	default:
		t.Error("the watch from the next index got nothing")
	}
	if w, err = store.Watch("/1/a", false, false, 21); err != nil { // now from the history
		t.Fatal(err)
	}
	select {
	case <-w.EventChan():
	default:
		t.Error("the history does not have the first event after it was saved")
	}
}

func TestPut(t *testing.T) {
	expiry := time.Date(2040, 1, 1, 0, 0, 0, 7, time.UTC)
	records := []Record{
		{Key: []byte("/a/b/c"), Value: []byte("1"), Created: 7, Modified: 9, Version: 1, Expiry: expiry},
		{Key: []byte("/a/b"), Value: []byte("in the way"), Created: 3, Modified: 3, Version: 1, Expiry: expiry},
		{Key: []byte("/a/b/d"), Value: []byte("2"), Created: 5, Modified: 6, Version: 1},
		{Key: []byte("/e"), Created: 8, Modified: 8, Version: 1},
	}
	want := map[string]v2Node{
		"/": {Dir: true}, "/0": {Dir: true}, "/1": {Dir: true},
		"/1/a":     {Dir: true, Created: 3, Modified: 3},
		"/1/a/b":   {Dir: true, Created: 5, Modified: 5},
		"/1/a/b/c": {Value: "1", Created: 7, Modified: 9, Expiry: expiry},
		"/1/a/b/d": {Value: "2", Created: 5, Modified: 6},
		"/1/e":     {Created: 8, Modified: 8},
	}
	for _, order := range [][]int{{0, 1, 2, 3}, {1, 0, 2, 3}, {3, 2, 1, 0}, {1, 2, 0, 3}} {
		tree := NewTree()
		var displaced []string
		for _, i := range order {
			if key := tree.Put(records[i]); key != nil {
				displaced = append(displaced, string(key))
			}
		}
		if diff := cmp.Diff([]string{"/a/b"}, displaced); diff != "" {
			t.Errorf("%v: %s", order, diff)
		}
		if diff := cmp.Diff(want, v2Nodes(tree)); diff != "" {
			t.Errorf("%v: %s", order, diff)
		}
		if len(tree.ttls) != 1 {
			t.Errorf("%v: %d keys expire", order, len(tree.ttls))
		}
		tree.Clear()
		if s := tree.Stats(time.Time{}); s.Keys+s.Dirs+len(tree.ttls) != 0 {
			t.Errorf("%v: Clear leaves %+v", order, s)
		}
	}
}

func TestFitsV2(t *testing.T) {
	for key, want := range map[string]bool{
		"/a": true, "/a/b": true, "/_hidden/é 键": true, "/a b\x00": true, "/...": true, "/1": true, "/0/members": true,
		"": false, "/": false, "a": false, "a/b": false, "/a/": false, "//a": false, "/a//b": false, "/a/./b": false,
		"/a/../b": false, "/..": false, "/.": false, "/\xff": false,
		"/a/0/members/1f/attributes/x": false, "/0/members/8e9e05c52164694d/attributes": false,
		"/0/members/8e9e05c52164694d/raftAttributes": true,
	} {
		if got := FitsV2([]byte(key)); got != want {
			t.Errorf("%q: %v", key, got)
		}
	}
}

func TestSetClusterVersion(t *testing.T) {
	tree := NewTree()
	for i, m := range []versionfile.Minor{{Major: 3, Minor: 5}, {Major: 2, Minor: 3}} {
		tree.SetClusterVersion(m)
		if got, want := tree.ClusterVersion(), m.String()+".0"; got != want || tree.Index() != 1 {
			t.Errorf("%d: %q at index %d", i, got, tree.Index())
		}
	}
	tree.RaiseIndex(7)
	tree.RaiseIndex(3)
	if tree.Index() != 7 {
		t.Errorf("the index is %d", tree.Index())
	}
}

type v2FailingWriter int

func (w *v2FailingWriter) Write(b []byte) (int, error) {
	if *w -= v2FailingWriter(len(b)); *w < 0 {
		return 0, errors.New("disk full")
	}
	return len(b), nil
}

func TestSaveFails(t *testing.T) {
	tree := NewTree()
	tree.Put(Record{Key: []byte("/a"), Value: bytes.Repeat([]byte("v"), 200_000)})
	for _, room := range []v2FailingWriter{0, 100_000, 200_000} {
		if err := tree.Save(&room); err == nil {
			t.Error("a write that failed went unnoticed")
		}
	}
}
