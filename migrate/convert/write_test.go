package convert

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// checkBolt lets bbolt check its own pages and its free list.
func checkBolt(t *testing.T, path string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	must(t, err)
	defer db.Close()
	must(t, db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		return nil
	}))
}

// TestSharedIndex uses a snapshot in which three keys have one modifiedIndex, and one that is beyond the index.
func TestSharedIndex(t *testing.T) {
	node := func(path string, modified int) string {
		return fmt.Sprintf(`{"Path":%q,"CreatedIndex":2,"ModifiedIndex":%d,"ExpireTime":"0001-01-01T00:00:00Z",`+
			`"Value":"v","Children":null}`, path, modified)
	}
	dir := func(path, children string) string {
		return fmt.Sprintf(`{"Path":%q,"CreatedIndex":0,"ModifiedIndex":0,"ExpireTime":"0001-01-01T00:00:00Z",`+
			`"Value":"","Children":{%s}}`, path, children)
	}
	snapshot := func(keys ...string) []byte {
		return fmt.Appendf(nil, `{"Root":%s,"CurrentIndex":7,"CurrentVersion":2}`,
			dir("/", `"1":`+dir("/1", strings.Join(keys, ","))))
	}
	tree, err := keyspace.LoadTree(snapshot(`"c":`+node("/1/c", 5), `"a":`+node("/1/a", 5), `"b":`+node("/1/b", 5),
		`"d":`+node("/1/d", 9)))
	must(t, err)
	p := params(t, tree)
	report, err := ToV3(t.Context(), p)
	must(t, err)
	records, info, _ := readDB(t, p.DB)
	var got string
	for _, r := range records {
		got += fmt.Sprintf("%s %d %d, ", r.Key, r.Created, r.Modified)
	}
	if want := "/d 2 9, /c 2 5, /b 2 5, /a 2 5, "; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if report.Index != 7 || report.Revision != 9 || info.Compacted != 9 {
		t.Errorf("report %+v, compacted %d", report, info.Compacted)
	}

	tree, err = keyspace.LoadTree(snapshot(`"a":` + node("/1/a", 0)))
	must(t, err)
	if _, err := ToV3(t.Context(), params(t, tree)); err == nil || !strings.Contains(err.Error(), "modifiedIndex 0") || strings.Contains(err.Error(), `"/a"`) {
		t.Errorf("modifiedIndex 0: got error %v, want one that names no key", err)
	}
}

func TestSameFile(t *testing.T) {
	a, b := params(t, tree(t, 30_000, 300, 3)), params(t, tree(t, 30_000, 300, 3))
	for _, p := range []Params{a, b} {
		_, err := ToV3(t.Context(), p)
		must(t, err)
	}
	checkBolt(t, a.DB)
	first := readFile(t, a.DB)
	if first != readFile(t, b.DB) {
		t.Error("the same records made different files")
	}
	_, err := ToV3(t.Context(), a) // over its own result
	must(t, err)
	if first != readFile(t, a.DB) {
		t.Error("a second conversion made a different file")
	}
}

// TestCarriedOver has an old db with a member that was removed, and with all that a conversion must keep.
func TestCarriedOver(t *testing.T) {
	p := params(t, tree(t, 10, 10, 0))
	for _, set := range [][2]string{ // etcd knows a member before it hears of its name
		{"/0/members/a/raftAttributes", `{"peerURLs":["http://a:2380"]}`},
		{"/0/members/a/attributes", `{"name":"m","clientURLs":["http://a:2379"]}`},
		{"/0/removed_members/bad", ""},
		{"/0/version", "3.5.0"},
	} {
		r := put("", set[1])
		r.Path = set[0]
		must(t, p.Tree.ApplyV2(r))
	}
	makeDB(t, p.DB, map[string]map[string]string{
		"lease":   {"12345678": "\x08\x01\x10\x64"},
		"meta":    {"consistent_index": string(uint64Bytes(499)), "term": string(uint64Bytes(1)), "confState": `{"voters":[10]}`},
		"cluster": {"clusterVersion": "3.4.0", "downgrade": `{"target-version":"","enabled":false}`},
		"members": {
			"a": `{"id":10,"peerURLs":["http://old"]}`, "bad": `{"id":2989,"peerURLs":["http://zombie"]}`,
		},
		"alarm": {"\x08\x0a\x10\x01": ""}, "auth": {"authEnabled": "\x01", "authRevision": string(uint64Bytes(3))},
		"authUsers": {"root": "u"}, "authRoles": {"root": "r"}, "test": {"k": "v"},
	})
	_, err := ToV3(t.Context(), p)
	must(t, err)
	_, info, leases := readDB(t, p.DB)
	want := keyspace.V3Info{
		Revision: 14, Compacted: 14, ScheduledCompaction: 14, ConsistentIndex: 500, Term: 2, ClusterVersion: "3.5.0",
		ConfState: &keyspace.V3ConfState{Voters: []uint64{10}},
		Members: []keyspace.V3Member{
			{ID: 10, Name: "m", PeerURLs: []string{"http://a:2380"}, ClientURLs: []string{"http://a:2379"}},
		},
		RemovedMembers: []uint64{0xbad}, Alarms: []keyspace.V3Alarm{{Member: 10, Type: "NOSPACE"}}, AuthEnabled: true,
		Users: []string{"root"}, Roles: []string{"root"},
		SizeBytes: info.SizeBytes, BackendBytes: info.BackendBytes,
	}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Error(diff)
	}
	if len(leases) != 0 {
		t.Errorf("leases %v", leases)
	}
}

func TestOwnerAndMode(t *testing.T) {
	p := params(t, tree(t, 10, 10, 0))
	if os.Geteuid() == 0 {
		must(t, os.Chown(filepath.Dir(p.DB), 4321, 4322))
	}
	check := func(mode os.FileMode, uid, gid uint32) {
		t.Helper()
		_, err := ToV3(t.Context(), p)
		must(t, err)
		info, err := os.Stat(p.DB)
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		if info.Mode() != mode || os.Geteuid() == 0 && (st.Uid != uid || st.Gid != gid) {
			t.Errorf("mode %v, owner %d:%d, want %v, %d:%d", info.Mode(), st.Uid, st.Gid, mode, uid, gid)
		}
	}
	check(0o600, 4321, 4322)
	must(t, os.Chmod(p.DB, 0o640))
	if os.Geteuid() == 0 {
		must(t, os.Chown(p.DB, 77, 78))
	}
	check(0o640, 77, 78)
}

// TestProofFails changes a finished db in all ways that the proof must see.
func TestProofFails(t *testing.T) {
	set := func(bucket, k, v string) func(*bolt.Tx) error {
		return func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(k), []byte(v)) }
	}
	unset := func(bucket, k string) func(*bolt.Tx) error {
		return func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucket)).Delete([]byte(k)) }
	}
	first := v3Key(1, "/registry/000/000000", 1_700_000_001)[string(revision(1, 0))] // but with another value
	for _, tt := range []struct {
		want   string
		change func(*bolt.Tx) error
	}{
		{"", func(*bolt.Tx) error { return nil }},
		{"leases changed: 1", set("key", string(revision(1, 0)), first)},
		{"1 before, 0 after", unset("key", string(revision(2, 0)))},
		{"1 before, 2 after", set("key", string(revision(4, 0)), v3Key(4, "new", 0)[string(revision(4, 0))])},
		{"right leases", unset("lease", string(uint64Bytes(1_700_000_001)))},
		{"right leases", set("lease", string(uint64Bytes(1_700_000_001)), "\x08\x81\xe2\xcf\xaa\x06\x10\x09")},
		{"bucket meta", set("meta", "term", "12345678")},
		{"bucket alarm", set("alarm", "\x08\x01", "")},
		{"bucket cluster", unset("cluster", "clusterVersion")},
	} {
		p := params(t, tree(t, 2, 10, 2))
		must(t, p.Tree.ApplyV2(&etcdserverpb.Request{Method: "PUT", Path: "/0/version", Val: "3.0.0"}))
		c, err := prepare(p)
		must(t, err)
		small, err := c.smallBuckets()
		must(t, err)
		must(t, c.write(t.Context(), p.DB, small))
		db, err := bolt.Open(p.DB, 0o600, nil)
		must(t, err)
		must(t, db.Update(tt.change))
		must(t, db.Close())
		_, _, err = c.prove(t.Context(), p.DB, small)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("got error %v, want %q", err, tt.want)
		}
	}
}

// TestSize compares the estimate with what bbolt makes of it.
func TestSize(t *testing.T) {
	for _, tt := range []struct{ keys, bytes int }{
		{0, 0}, {10, 10}, {50_000, 0}, {20_000, 400}, {5000, 1500}, {3000, 3000}, {2000, 5000}, {100, 100_000},
	} {
		p := params(t, tree(t, tt.keys, tt.bytes, 5))
		c, err := prepare(p)
		must(t, err)
		report, err := ToV3(t.Context(), p)
		must(t, err)
		if ratio := float64(report.DBBytes) / float64(c.size()); ratio > 1 || ratio < 0.9 && c.size() > 1<<20 {
			t.Errorf("%d keys of %d bytes: %d bytes, estimate %d", tt.keys, tt.bytes, report.DBBytes, c.size())
		}
	}
}
