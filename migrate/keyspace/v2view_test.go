package keyspace

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTreeViews(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	after := func(seconds int) time.Time { return now.Add(time.Duration(seconds) * time.Second) }
	tree := NewTree()
	for _, n := range []struct {
		path   string
		dir    bool
		expiry time.Time
	}{
		{"/1/a/x", false, time.Time{}},
		{"/1/a-b", false, after(5)},
		{"/1/a0", false, time.Time{}},
		{"/1/_top/k", false, time.Time{}},
		{"/1/b/_h", false, after(9)},
		{"/1/dir", true, after(20)},
		{"/1/dir/earlier", false, after(10)},
		{"/1/dir/later", false, after(30)},
		{"/1/dir/none", false, time.Time{}},
		{"/1/dir/sub", true, after(15)},
		{"/1/dir/sub/k", false, time.Time{}},
		{"/1/empty", true, time.Time{}},
		{"/1/gone", false, now},
		{"/1/full/of/gone", false, after(-1)},
		{"/1/over", true, after(-1)},
		{"/1/over/k", false, after(100)},
		{"/1/over/dir/k", false, time.Time{}},
		{"/2/users/bob", false, time.Time{}},
	} {
		tree.create(n.path, n.dir, "v", false, true, n.expiry)
	}

	var got []string
	err := tree.Each(now, func(r Record) error {
		line := string(r.Key)
		if !r.Expiry.IsZero() {
			line += r.Expiry.Sub(now).String()
		}
		got = append(got, line)
		return nil
	})
	want := []string{
		"/_top/k", "/a-b" + "5s", "/a/x", "/a0", "/b/_h" + "9s",
		"/dir/earlier" + "10s", "/dir/later" + "20s", "/dir/none" + "20s", "/dir/sub/k" + "15s",
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("Each: %v\n%s", err, diff)
	}

	wantStats := V2Stats{
		Keys: 9, Bytes: int64(len("/_top/k/a-b/a/x/a0/b/_h/dir/earlier/dir/later/dir/none/dir/sub/k") + 9),
		TTLs: 6, Hidden: 2, Expired: 4,
		Dirs:      8, // _top a b dir dir/sub empty full full/of
		EmptyDirs: 2, // empty full/of
	}
	if diff := cmp.Diff(wantStats, tree.Stats(now)); diff != "" {
		t.Errorf("Stats\n%s", diff)
	}
	wantTop := []string{"_top", "a", "a-b", "a0", "b", "dir", "empty", "full", "gone", "over"}
	if diff := cmp.Diff(wantTop, tree.TopLevel()); diff != "" {
		t.Errorf("TopLevel\n%s", diff)
	}
	if diff := cmp.Diff(V2Auth{Users: []string{"bob"}}, tree.Auth()); diff != "" {
		t.Errorf("Auth\n%s", diff)
	}
}

func TestTreeEachStops(t *testing.T) {
	tree, stop, calls := NewTree(), errors.New("stop"), 0
	for _, path := range []string{"/1/a", "/1/b/c"} {
		tree.create(path, false, "", false, true, time.Time{})
	}
	if err := tree.Each(time.Now(), func(Record) error { calls++; return stop }); err != stop || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

func TestNewTree(t *testing.T) {
	tree := NewTree()
	if got, err := tree.Members(); got != nil || err != nil {
		t.Errorf("members %v, %v", got, err)
	}
	if got, err := tree.RemovedMembers(); got != nil || err != nil {
		t.Errorf("removed members %v, %v", got, err)
	}
	if tree.ClusterVersion() != "" || tree.Index() != 0 || len(tree.TopLevel()) != 0 || tree.Stats(time.Now()) != (V2Stats{}) {
		t.Error("a new tree is not empty")
	}
}
