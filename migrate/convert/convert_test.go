package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

var now = time.Unix(1_700_000_000, 300_000_000)

// tree makes a v2 store of so many keys with values of so many bytes, of which every ttlth has a TTL.
func tree(t testing.TB, keys, bytes, ttl int) *keyspace.Tree {
	t.Helper()
	tree, err := buildTree(keys, bytes, ttl)
	must(t, err)
	return tree
}

func buildTree(keys, bytes, ttl int) (*keyspace.Tree, error) {
	tree := keyspace.NewTree()
	value := strings.Repeat("v", bytes)
	for i := range keys {
		r := put(fmt.Sprintf("/registry/%03d/%06d", i*7919%1000, i), value)
		if ttl > 0 && i%ttl == 0 {
			r.Expiration = now.Add(time.Duration(i%3600)*time.Second+time.Duration(i)).UnixNano() + 1
		}
		if err := tree.ApplyV2(r); err != nil {
			return nil, err
		}
	}
	return tree, nil
}

func put(path, value string) *etcdserverpb.Request {
	return &etcdserverpb.Request{Method: "PUT", Path: "/1" + path, Val: value}
}

// params are those of a conversion into a directory of its own.
func params(t testing.TB, tree *keyspace.Tree) Params {
	t.Helper()
	return Params{Tree: tree, RaftIndex: 500, RaftTerm: 2, Now: now, DB: filepath.Join(t.TempDir(), "db")}
}

// makeDB makes a db as an etcd leaves it, with these elements beside the empty buckets.
func makeDB(t testing.TB, path string, elements map[string]map[string]string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	must(t, err)
	defer db.Close()
	must(t, db.Update(func(tx *bolt.Tx) error {
		for _, name := range []string{
			"alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta",
		} {
			b, err := tx.CreateBucketIfNotExists([]byte(name))
			must(t, err)
			for k, v := range elements[name] {
				must(t, b.Put([]byte(k), []byte(v)))
			}
		}
		return nil
	}))
}

func v3Key(main int64, key string, lease int64) map[string]string {
	kv := mvccpb.KeyValue{Key: []byte(key), CreateRevision: main, ModRevision: main, Version: 1, Lease: lease}
	v, _ := kv.Marshal()
	return map[string]string{string(revision(main, 0)): string(v)}
}

func readDB(t testing.TB, path string) (records []keyspace.Record, info keyspace.V3Info, leases map[int64]int64) {
	t.Helper()
	db, err := keyspace.OpenDB(path)
	must(t, err)
	defer db.Close()
	must(t, db.Each(func(r keyspace.Record) error {
		r.Key, r.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
		records = append(records, r)
		return nil
	}))
	info, err = db.Info()
	must(t, err)
	leases, err = db.Leases()
	must(t, err)
	return records, info, leases
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

// onlyDB fails the test if a file other than db lies in the directory.
func onlyDB(t testing.TB, p Params) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(p.DB))
	must(t, err)
	for _, e := range entries {
		if e.Name() != "db" {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

func TestToV3(t *testing.T) {
	p := params(t, tree(t, 1000, 50, 10))
	must(t, p.Tree.ApplyV2(put("/_hidden/a", "x")))
	must(t, p.Tree.ApplyV2(&etcdserverpb.Request{Method: "PUT", Path: "/1/dir", Dir: true}))
	gone := put("/gone", "x")
	gone.Expiration = now.UnixNano()
	must(t, p.Tree.ApplyV2(gone))
	var calls []int64
	p.Progress = func(done, total int64) {
		if total != 2002 {
			t.Errorf("total %d", total)
		}
		calls = append(calls, done)
	}
	report, err := ToV3(t.Context(), p)
	must(t, err)
	onlyDB(t, p)

	records, info, leases := readDB(t, p.DB)
	want := Report{
		Records: 1001, Bytes: 1000*(20+50) + 11, TTLs: 100, Leases: 100, Hidden: 1, Expired: 1, EmptyDirs: 1,
		Index: 1003, Revision: 1003, FingerprintBefore: report.FingerprintBefore,
		FingerprintAfter: report.FingerprintBefore, DBBytes: info.BackendBytes, Seconds: report.Seconds,
	}
	if diff := cmp.Diff(want, report); diff != "" {
		t.Error(diff)
	}
	if len(records) != 1001 || len(leases) != 100 || info.ConsistentIndex != 500 || info.Revision != 1003 ||
		info.Compacted != 1003 || info.ScheduledCompaction != 1003 || info.Term != 0 {
		t.Errorf("%d records, %d leases, info %+v", len(records), len(leases), info)
	}
	if first := records[len(records)-1]; string(first.Key) != "/registry/000/000000" || first.Modified != 1 ||
		first.Created != 1 || first.Version != 1 || first.Lease != 1_700_000_001 || first.Expiry != (time.Time{}) {
		t.Errorf("the first record: %+v", first)
	}
	checkBolt(t, p.DB)
	if n := len(calls); n < 2 || calls[n-1] != 2002 {
		t.Errorf("progress: %v", calls)
	}
	for i := range len(calls) - 1 {
		if calls[i+1] < calls[i] {
			t.Errorf("progress: %v", calls)
		}
	}
}

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

// TestLeases holds the rounding to what it promises: never early, at most a second late, and no zero.
func TestLeases(t *testing.T) {
	at := func(s int64, ns int64) time.Time { return time.Unix(1_700_000_000+s, ns) }
	for _, tt := range []struct {
		now, expiry time.Time
		id, ttl     int64
	}{
		{at(0, 0), at(1, 0), 1_700_000_001, 1},
		{at(0, 0), at(0, 1), 1_700_000_001, 1},
		{at(0, 1), at(1, 0), 1_700_000_001, 1},
		{at(0, 999_999_999), at(1, 0), 1_700_000_001, 1},
		{at(0, 500), at(0, 501), 1_700_000_001, 1},
		{at(0, 500), at(60, 400), 1_700_000_061, 61},
		{at(0, 0), at(60, 0), 1_700_000_060, 60},
		{at(5, 0), at(1, 0), 1_700_000_001, 1},
		{at(0, 0), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), 253370764800, 9_000_000_000},
	} {
		c := conversion{Params: Params{Now: tt.now}, leases: map[int64]int64{}}
		if id := c.lease(tt.expiry); id != tt.id || c.leases[id] != tt.ttl {
			t.Errorf("now %s, expiry %s: got lease %d of %d seconds", tt.now, tt.expiry, id, c.leases[id])
		}
	}
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
	if _, err := ToV3(t.Context(), params(t, tree)); err == nil || !strings.Contains(err.Error(), `key "/a"`) {
		t.Errorf("modifiedIndex 0: got error %v", err)
	}
}

func TestEmptyStore(t *testing.T) {
	p := params(t, keyspace.NewTree())
	report, err := ToV3(t.Context(), p)
	must(t, err)
	records, info, _ := readDB(t, p.DB)
	if len(records) != 0 || info.Revision != 1 || report.Records != 0 {
		t.Errorf("records %v, info %+v, report %+v", records, info, report)
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

func TestLosses(t *testing.T) {
	auth := func(t *testing.T) *keyspace.Tree {
		tree := tree(t, 10, 10, 0)
		must(t, tree.ApplyV2(&etcdserverpb.Request{Method: "PUT", Path: "/2/users/root", Val: "{}"}))
		must(t, tree.ApplyV2(&etcdserverpb.Request{Method: "PUT", Path: "/2/roles/guest", Val: "{}"}))
		must(t, tree.ApplyV2(&etcdserverpb.Request{Method: "PUT", Path: "/2/enabled", Val: "true"}))
		return tree
	}
	tests := map[string]struct {
		tree  func(*testing.T) *keyspace.Tree
		old   map[string]map[string]string
		quota int64
		want  Problem
		text  string
	}{
		"v3-keys": {
			old:  map[string]map[string]string{"key": v3Key(3, "theirs", 0)},
			want: Problem{Loss: LossV3Keys, Count: 1}, text: "already holds 1 keys",
		},
		"v2-auth": {
			tree: auth, want: Problem{Loss: LossV2Auth, Count: 2}, text: "1 users and 1 roles, and its authentication is enabled",
		},
		"over-quota": {
			tree:  func(t *testing.T) *keyspace.Tree { return tree(t, 1000, 1000, 0) },
			quota: 1 << 20, want: Problem{Loss: LossOverQuota, Count: -1}, text: "would take 1.4 MiB and its quota is 1.0 MiB",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.tree == nil {
				tt.tree = func(t *testing.T) *keyspace.Tree { return tree(t, 10, 10, 0) }
			}
			p := params(t, tt.tree(t))
			p.QuotaBytes = tt.quota
			makeDB(t, p.DB, tt.old)
			before := readFile(t, p.DB)

			problems, err := Check(p)
			must(t, err)
			if len(problems) != 1 || !strings.Contains(problems[0].Text, tt.text) {
				t.Fatalf("problems %+v, want %q", problems, tt.text)
			}
			tt.want.Text = problems[0].Text
			if tt.want.Count < 0 {
				c, err := prepare(p)
				must(t, err)
				tt.want.Count = c.size() - tt.quota
				c.close()
			}
			if diff := cmp.Diff(tt.want, problems[0]); diff != "" {
				t.Error(diff)
			}
			var refused *RefusedError
			_, err = ToV3(t.Context(), p)
			if !errors.As(err, &refused) || !cmp.Equal(refused.Problems, problems) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got error %v", err)
			}
			if readFile(t, p.DB) != before {
				t.Error("the db was changed")
			}
			onlyDB(t, p)

			p.AcceptLoss = []Loss{Loss(name)}
			report, err := ToV3(t.Context(), p)
			must(t, err)
			records, _, _ := readDB(t, p.DB)
			if int64(len(records)) != report.Records || !cmp.Equal(report.Lost, problems) {
				t.Errorf("%d records, report %+v", len(records), report)
			}
		})
	}
}

// TestRerun converts again over the result of a conversion, as after a crash before version.txt was written.
func TestRerun(t *testing.T) {
	p := params(t, tree(t, 100, 10, 10))
	_, err := ToV3(t.Context(), p)
	must(t, err)

	p.Now = now.Add(35 * time.Second) // 4 leases have ended since
	report, err := ToV3(t.Context(), p)
	must(t, err)
	if report.Records != 96 || report.Expired != 4 || len(report.Lost) != 0 {
		t.Errorf("report: %+v", report)
	}

	db, err := bolt.Open(p.DB, 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		for k, v := range v3Key(200, "theirs", 0) {
			must(t, tx.Bucket([]byte("key")).Put([]byte(k), []byte(v)))
		}
		return nil
	}))
	must(t, db.Close())
	var refused *RefusedError
	if _, err = ToV3(t.Context(), p); !errors.As(err, &refused) || refused.Problems[0].Count != 97 {
		t.Errorf("got error %v", err)
	}
	p.AcceptLoss = []Loss{LossV3Keys}
	report, err = ToV3(t.Context(), p)
	must(t, err)
	if report.Revision != 200 || report.Index != 100 { // no client may see revision 101 to 200 a second time
		t.Errorf("report: %+v", report)
	}
}

// TestCarriedOver has an old db with a member that was removed, and with all that a conversion must keep.
func TestCarriedOver(t *testing.T) {
	p := params(t, tree(t, 10, 10, 0))
	for path, value := range map[string]string{
		"/0/members/a/raftAttributes": `{"peerURLs":["http://a:2380"]}`,
		"/0/members/a/attributes":     `{"name":"m","clientURLs":["http://a:2379"]}`,
		"/0/removed_members/bad":      "",
		"/0/version":                  "3.5.0",
	} {
		r := put("", value)
		r.Path = path
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

func TestRefusesDamage(t *testing.T) {
	p := params(t, tree(t, 10, 10, 0))
	check := func(want string) {
		t.Helper()
		before := readFile(t, p.DB)
		_, err := ToV3(t.Context(), p)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), p.DB) {
			t.Errorf("got error %v, want %q", err, want)
		}
		if _, err := Check(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check gave error %v, want %q", err, want)
		}
		if readFile(t, p.DB) != before {
			t.Error("the db was changed")
		}
		onlyDB(t, p)
	}
	makeDB(t, p.DB, map[string]map[string]string{"meta": {"consistent_index": string(uint64Bytes(501))}})
	check("contains raft entry 501, but the raft log ends at 500")

	db, err := bolt.Open(p.DB, 0o600, nil)
	must(t, err)
	check("held by a running etcd")
	must(t, db.Close())

	must(t, os.Truncate(p.DB, 4096*3))
	check("cut short")
	must(t, os.Truncate(p.DB, 0))
	check("meta page")
}

func TestCancelled(t *testing.T) {
	for _, when := range []int64{0, 6000, 30_000} { // before, while writing, while proving
		p := params(t, tree(t, 20_000, 1000, 0))
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := errors.New("told to stop")
		p.Progress = func(done, total int64) {
			if done > when {
				cancel(stop)
			}
		}
		if when == 0 {
			cancel(stop)
		}
		if _, err := ToV3(ctx, p); !errors.Is(err, stop) {
			t.Errorf("at %d: got error %v", when, err)
		}
		if entries, _ := os.ReadDir(filepath.Dir(p.DB)); len(entries) != 0 {
			t.Errorf("at %d: files are left: %v", when, entries)
		}
		cancel(nil)
	}
}

// TestProofFails changes a finished db in all ways that the proof must see.
func TestProofFails(t *testing.T) {
	set := func(bucket, k, v string) func(*bolt.Tx) error {
		return func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(k), []byte(v)) }
	}
	unset := func(bucket, k string) func(*bolt.Tx) error {
		return func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucket)).Delete([]byte(k)) }
	}
	other := v3Key(1, "/registry/000/000000", 1_700_000_001)[string(revision(1, 0))]
	for name, change := range map[string]func(*bolt.Tx) error{
		"":                    func(*bolt.Tx) error { return nil },
		"leases changed: 1":   set("key", string(revision(1, 0)), other),
		"1 before, 0 after":   unset("key", string(revision(2, 0))),
		"right leases":        unset("lease", string(uint64Bytes(1_700_000_001))),
		"bucket meta":         set("meta", "term", "12345678"),
		"bucket alarm":        set("alarm", "\x08\x01", ""),
		"bucket cluster":      unset("cluster", "clusterVersion"),
		"out of order":        nil,
		"its revision is 400": nil,
	} {
		p := params(t, tree(t, 2, 10, 2))
		must(t, p.Tree.ApplyV2(&etcdserverpb.Request{Method: "PUT", Path: "/0/version", Val: "3.0.0"}))
		c, err := prepare(p)
		must(t, err)
		small, err := c.smallBuckets()
		must(t, err)
		must(t, c.write(t.Context(), p.DB, small))
		switch name {
		case "out of order":
			raw := []byte(readFile(t, p.DB))
			at := bytes.LastIndex(raw, revision(2, 0))
			raw[at+7] = 0
			must(t, os.WriteFile(p.DB, raw, 0o600))
		case "its revision is 400":
			c.revision, small = 0, nil
			name = "its revision is 3 and not 0"
		default:
			db, err := bolt.Open(p.DB, 0o600, nil)
			must(t, err)
			must(t, db.Update(change))
			must(t, db.Close())
		}
		_, _, err = c.prove(t.Context(), p.DB, small)
		if name == "" && err != nil || name != "" && (err == nil || !strings.Contains(err.Error(), name)) {
			t.Errorf("got error %v, want %q", err, name)
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
