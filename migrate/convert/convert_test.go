package convert

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

func TestEmptyStore(t *testing.T) {
	p := params(t, keyspace.NewTree())
	report, err := ToV3(t.Context(), p)
	must(t, err)
	records, info, _ := readDB(t, p.DB)
	if len(records) != 0 || info.Revision != 1 || report.Records != 0 {
		t.Errorf("records %v, info %+v, report %+v", records, info, report)
	}
}
