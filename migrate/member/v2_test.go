package member

import (
	"encoding/json"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.uber.org/zap"
)

var nastyNames = []string{
	"plain", "two words", " lead", "100%", "%2F", "%zz", "ünïcode", "日本", "#fragment", "?query", "a?b#c", "a+b", "a&b=c",
	"semi;colon", `"quotes"`, "back\\slash", "tab\tnew\nline", "...", "..a", "_hidden", "__", "~", "*", "v2", "keys",
	strings.Repeat("long", 200),
}

// putV2 puts a key with the v2 API of a private etcd.
func putV2(t *testing.T, e *Etcd, path string) {
	t.Helper()
	u := e.url() + (&url.URL{Path: "/v2/keys" + path}).EscapedPath()
	if body, _ := request(t, e.client, http.MethodPut, u, "value=x"); !strings.Contains(body, `"set"`) {
		t.Fatal(body)
	}
}

// v2Children gives the names below a path of the v2 store in the newest snapshot of a stopped member, hidden ones too.
func v2Children(t *testing.T, dataDir string, index uint64, path ...string) (names []string) {
	t.Helper()
	e := &Etcd{cfg: Config{DataDir: dataDir}}
	file, _, err := e.newSnapshot(nil, index)
	if err != nil || file == "" {
		t.Fatal(file, err)
	}
	s, err := snap.Read(zap.NewNop(), file)
	if err != nil {
		t.Fatal(err)
	}
	type node struct{ Children map[string]*node }
	var store struct{ Root *node }
	if err := json.Unmarshal(s.Data, &store); err != nil {
		t.Fatal(err)
	}
	n := store.Root
	for _, name := range path {
		if n = n.Children[name]; n == nil {
			t.Fatalf("there is no %s in the snapshot", path)
		}
	}
	for name := range n.Children {
		names = append(names, name)
	}
	return names
}

func TestEmptyV2(t *testing.T) {
	each(t, "", "3.5", func(t *testing.T, r string) {
		t.Parallel()
		dir := filepath.Join(t.TempDir(), "data")
		cfg := Config{DataDir: dir, SnapshotCount: 3, V2: true}
		e := startReady(t, r, cfg)
		for i, name := range nastyNames {
			switch i % 3 {
			case 0:
				putV2(t, e, "/"+name) // a leaf
			case 1:
				putV2(t, e, "/"+name+"/"+name+"/"+name)
			case 2:
				putV2(t, e, "/"+name+"/_hidden/leaf")
			}
		}
		index := forceSnapshot(t, e)
		if got := v2Children(t, dir, index, "1"); len(got) != len(nastyNames) {
			t.Fatalf("the store has %q", got)
		}

		err := e.EmptyV2(soon(t), nastyNames[1:])
		if err == nil || !strings.Contains(err.Error(), "1 names are left") || strings.Contains(err.Error(), "plain") {
			t.Errorf("got %v, want that one is left, and not its name", err)
		}
		if err := e.EmptyV2(soon(t), append(nastyNames, "not there")); err != nil {
			t.Error(err)
		}
		if err := e.EmptyV2(soon(t), nil); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"", ".", ".."} {
			if err := e.EmptyV2(soon(t), []string{name}); err == nil {
				t.Errorf("%q was taken for a name", name)
			}
		}
		index = forceSnapshot(t, e)
		stop(t, e)
		if got := v2Children(t, dir, index, "1"); len(got) > 0 {
			t.Errorf("the snapshot still has %q", got)
		}
	})
}

// TestEmptyV2LetsNewerEtcdsIn shows what it is for: 3.6 refuses to start on data with keys in the v2 store.
func TestEmptyV2LetsNewerEtcdsIn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	fill(t, "3.5.35", dir)
	cfg := plainMember
	cfg.DataDir, cfg.SnapshotCount, cfg.V2 = dir, 3, true
	e := startReady(t, "3.5.35", cfg)
	forceSnapshot(t, e)
	stop(t, e)
	dies(t, "3.6.16", Config{DataDir: dir}, "v2 store still holds keys")

	e = startReady(t, "3.5.35", cfg)
	if err := e.EmptyV2(soon(t), []string{"dir", "_hidden"}); err != nil {
		t.Fatal(err)
	}
	forceSnapshot(t, e)
	stop(t, e)
	e = startReady(t, "3.6.16", Config{DataDir: dir, SnapshotCount: 3})
	forceSnapshot(t, e)
	stop(t, e)
}

func TestEmptyV2NeedsTheAPI(t *testing.T) {
	for _, r := range []string{"3.4.31", "3.5.35", "3.6.16"} {
		t.Run(r, func(t *testing.T) {
			e := startReady(t, r, Config{})
			if err := e.EmptyV2(soon(t), []string{"a"}); err == nil || !strings.Contains(err.Error(), "without its v2 API") {
				t.Errorf("got %v", err)
			}
			stop(t, e)
		})
	}
}
