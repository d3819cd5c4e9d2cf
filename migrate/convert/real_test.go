package convert

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// nasty fills a v2 store with all that it can hold. The directory /soon and the key "/soon b" expire first.
func nasty(e *etcd) {
	for i := range 40 {
		e.v2("PUT", fmt.Sprintf("/registry/pods/default/%03d", i), "value="+strings.Repeat("p", i*i))
	}
	for i := 0; i < 40; i += 3 {
		e.v2("PUT", fmt.Sprintf("/registry/pods/default/%03d", i), "value=changed")
	}
	e.v2("PUT", "/deleted", "value=x")
	e.v2("DELETE", "/deleted")
	e.v2("PUT", "/again", "value=old")
	e.v2("DELETE", "/again")
	e.v2("PUT", "/again", "value=new")
	e.v2("PUT", "/empty value", "value=")
	e.v2("PUT", "/ünï/\x01 \"quoted\" \\ %20", "value=line\nbreak\x00 ☃")
	e.v2("PUT", "/_hidden/key", "value=h")
	e.v2("PUT", "/seen/_hidden", "value=h")
	e.v2("PUT", "/empty dir", "dir=true")
	e.v2("PUT", "/big", "value="+strings.Repeat("b", 300_000))
	for range 3 {
		e.v2("POST", "/queue", "value=job")
	}
	e.v2("PUT", "/ttl/hour", "value=1", "ttl=3600")
	e.v2("PUT", "/ttl/hour 2", "value=2", "ttl=3600")
	e.v2("PUT", "/ttl/year", "value=3", "ttl=31536000")
	e.v2("PUT", "/ttl/taken back", "value=4", "ttl=100")
	e.v2("PUT", "/ttl/taken back", "value=5")
	e.v2("PUT", "/ttl dir", "dir=true", "ttl=7200")
	e.v2("PUT", "/ttl dir/deep/a", "value=6")
	e.v2("PUT", "/ttl dir/deep/b", "value=7", "ttl=30000")
	e.v2("PUT", "/ttl dir/_events", "value=8", "ttl=600")
	e.v2("PUT", "/soon", "dir=true", "ttl=60")
	e.v2("PUT", "/soon/a", "value=9")
	e.v2("PUT", "/soon b", "value=10", "ttl=60")
}

// wantKV is how a record must look to a client of the v3 API.
func wantKV(r keyspace.Record) keyspace.Record {
	w := keyspace.Record{
		Key: bytes.Clone(r.Key), Value: bytes.Clone(r.Value), Created: r.Created, Modified: r.Modified, Version: 1,
	}
	if !r.Expiry.IsZero() {
		w.Lease = r.Expiry.Add(time.Second - 1).Unix()
	}
	return w
}

// TestEveryEtcd converts a member that 2.3.8 filled and 3.0.17 has taken over, and lets every etcd 3.x say what it makes
// of the result.
func TestEveryEtcd(t *testing.T) {
	program(t, "etcd-2.3.8")
	dir := filepath.Join(t.TempDir(), "m")
	e := start(t, "2.3.8", dir, "--snapshot-count", "25")
	nasty(e)
	e.stop()
	e = start(t, "3.0.17", dir, "--snapshot-count", "10")
	e.v2("PUT", "/by 3.0", "value=x", "ttl=1000")
	for i := range 12 { // a snapshot with a cluster version that 3.5 accepts
		e.v2("PUT", "/counter", fmt.Sprint("value=", i))
	}
	e.stop()

	p := load(t, dir)
	p.Now = soonest(t, p).Add(-15 * time.Second) // so the test need not wait for long
	problems, err := Check(p)
	must(t, err)
	if len(problems) > 0 {
		t.Fatalf("problems: %+v", problems)
	}
	report, err := ToV3(t.Context(), p)
	must(t, err)
	want := map[string]keyspace.Record{}
	must(t, p.Tree.Each(p.Now, func(r keyspace.Record) error {
		want[string(r.Key)] = wantKV(r)
		return nil
	}))
	if report.Records != int64(len(want)) || report.Revision != int64(p.Tree.Index()) || report.TTLs != 9 ||
		report.Hidden != 3 || report.EmptyDirs != 1 || report.FingerprintBefore != report.FingerprintAfter {
		t.Errorf("report: %+v", report)
	}

	var etcds []*etcd
	for _, version := range []string{"3.0.17", "3.1.20", "3.2.32", "3.3.27", "3.4.31", "3.5.35", "3.6.16", "3.7.3"} {
		dir := copyDir(t, dir)
		if version > "3.6" { // which refuse what is left in the v2 store; the db alone is what matters here
			dir = restore(t, version, dir)
		}
		e := start(t, version, dir)
		etcds = append(etcds, e)
		compareKeys(t, e, p, want)
		if version > "3.1" { // which has LeaseTimeToLive
			compareLeases(t, e, p, want)
		}
		useStore(t, e, int64(p.Tree.Index()))
		if version > "3.3" { // which has HashKV
			_, err := e.v3.HashKV(t.Context(), e.url, 0)
			must(t, err)
		}
		if t.Failed() {
			t.Fatalf("that was etcd %s", version)
		}
	}
	for _, e := range etcds {
		for end := time.Now().Add(40 * time.Second); countKeys(t, e, "/soon") > 0; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("a key has not expired")
			}
		}
		if n := countKeys(t, e, "/ttl"); n != 7 {
			t.Errorf("of 7 keys with a longer TTL %d are left", n)
		}
	}
}

func countKeys(t *testing.T, e *etcd, prefix string) int64 {
	t.Helper()
	r, err := e.v3.Get(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	must(t, err)
	return r.Count
}

// restore makes a new data dir from a db.
func restore(t *testing.T, version, dir string) string {
	t.Helper()
	restored := filepath.Join(t.TempDir(), "m")
	out, err := exec.Command(program(t, "etcdutl-"+version), "snapshot", "restore", "--skip-hash-check",
		filepath.Join(dir, "member", "snap", "db"), "--data-dir", restored, "--name", "m",
		"--initial-cluster", "m=http://127.0.0.1:2380",
		"--initial-advertise-peer-urls", "http://127.0.0.1:2380").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return restored
}

// soonest gives the earliest expiry of all.
func soonest(t *testing.T, p Params) (first time.Time) {
	t.Helper()
	must(t, p.Tree.Each(p.Now, func(r keyspace.Record) error {
		if first.IsZero() || !r.Expiry.IsZero() && r.Expiry.Before(first) {
			first = r.Expiry
		}
		return nil
	}))
	return first
}

// compareKeys compares the keys that a client sees with those that it must see.
func compareKeys(t *testing.T, e *etcd, p Params, want map[string]keyspace.Record) {
	t.Helper()
	all, err := e.v3.Get(t.Context(), "\x00", clientv3.WithFromKey())
	must(t, err)
	if all.Header.Revision != int64(p.Tree.Index()) {
		t.Errorf("revision %d, want %d", all.Header.Revision, p.Tree.Index())
	}
	got := map[string]keyspace.Record{}
	for _, kv := range all.Kvs {
		got[string(kv.Key)] = keyspace.Record{
			Key: kv.Key, Value: kv.Value, Created: kv.CreateRevision, Modified: kv.ModRevision, Version: kv.Version,
			Lease: kv.Lease,
		}
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(bytes.Equal)); diff != "" {
		t.Errorf("the keys differ:\n%.3000s", diff)
	}
}

// compareLeases compares the keys and the remaining time of each lease with what they must be.
func compareLeases(t *testing.T, e *etcd, p Params, want map[string]keyspace.Record) {
	t.Helper()
	keys := map[int64]int{}
	for _, r := range want {
		keys[r.Lease]++
	}
	delete(keys, 0)
	for id, n := range keys {
		l, err := e.v3.TimeToLive(t.Context(), clientv3.LeaseID(id), clientv3.WithAttachedKeys())
		must(t, err)
		remaining := id - p.Now.Unix()
		if l.GrantedTTL != remaining || l.TTL > remaining || l.TTL < remaining-30 || len(l.Keys) != n {
			t.Errorf("lease %d has %d of %d seconds left and %d keys, want %d seconds and %d keys",
				id, l.TTL, l.GrantedTTL, len(l.Keys), remaining, n)
		}
	}
}

// useStore does with the store what clients do, index being its revision.
func useStore(t *testing.T, e *etcd, index int64) {
	t.Helper()
	ctx := t.Context()
	for _, old := range []int64{1, index - 1} {
		if _, err := e.v3.Get(ctx, "/again", clientv3.WithRev(old)); !errors.Is(err, rpctypes.ErrCompacted) {
			t.Errorf("a read at revision %d: got %v", old, err)
		}
		w := <-e.v3.Watch(ctx, "/", clientv3.WithPrefix(), clientv3.WithRev(old))
		if !errors.Is(w.Err(), rpctypes.ErrCompacted) || w.CompactRevision != index {
			t.Errorf("a watch from revision %d: got %v, compacted %d", old, w.Err(), w.CompactRevision)
		}
	}
	if _, err := e.v3.Get(ctx, "/again", clientv3.WithRev(index)); err != nil {
		t.Errorf("a read at the index: %v", err)
	}
	watch := e.v3.Watch(ctx, "/", clientv3.WithPrefix(), clientv3.WithRev(index+1))
	put, err := e.v3.Put(ctx, "/again", "v3", clientv3.WithPrevKV())
	must(t, err)
	if put.Header.Revision != index+1 || string(put.PrevKv.Value) != "new" {
		t.Errorf("put: %+v", put)
	}
	if w := <-watch; len(w.Events) != 1 || w.Events[0].Kv.ModRevision != index+1 || w.Events[0].Kv.Version != 2 {
		t.Errorf("watch: %+v", w)
	}
	del, err := e.v3.Delete(ctx, "/registry/pods/", clientv3.WithPrefix())
	must(t, err)
	if del.Deleted != 40 {
		t.Errorf("deleted %d", del.Deleted)
	}
	if w := <-watch; len(w.Events) != 40 {
		t.Errorf("watch: %+v", w)
	}
	_, err = e.v3.Compact(ctx, index+2, clientv3.WithCompactPhysical())
	must(t, err)
}

// TestLaterMinors converts where the etcd that ran on v2 keys is newer than 3.0, and has left more in its db.
func TestLaterMinors(t *testing.T) {
	for _, version := range []string{"3.2.32", "3.4.31", "3.5.35"} {
		t.Run(version, func(t *testing.T) {
			program(t, "etcd-"+version)
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "m")
			e := start(t, version, dir, "--enable-v2", "--snapshot-count", "5")
			e.v2("PUT", "/a", "value=1")
			e.v2("PUT", "/b", "value=2", "ttl=1000")
			for range 10 {
				e.v2("PUT", "/c", "value=3")
			}
			lease, err := e.v3.Grant(t.Context(), 1000) // a lease without a key is no loss
			must(t, err)
			_, err = e.v3.UserAdd(t.Context(), "somebody", "secret")
			must(t, err)
			members, err := e.v3.MemberList(t.Context())
			must(t, err)
			e.stop()

			p := load(t, dir)
			_, err = ToV3(t.Context(), p)
			must(t, err)
			db, err := keyspace.OpenDB(p.DB)
			must(t, err)
			info, err := db.Info()
			must(t, err)
			must(t, db.Close())
			wantTerm := p.RaftTerm
			if version < "3.5" {
				wantTerm = 0
			}
			if info.ConsistentIndex != p.RaftIndex || info.Term != wantTerm || len(info.Users) != 1 || info.Leases != 1 ||
				len(info.Members) != 1 || info.Members[0].ID != members.Members[0].ID {
				t.Errorf("info: %+v", info)
			}

			e = start(t, version, dir)
			all, err := e.v3.Get(t.Context(), "/", clientv3.WithPrefix())
			must(t, err)
			if len(all.Kvs) != 3 || all.Header.Revision != int64(p.Tree.Index()) {
				t.Errorf("got %+v", all)
			}
			if l, err := e.v3.TimeToLive(t.Context(), lease.ID); err == nil && l.TTL > 0 {
				t.Errorf("the old lease lives: %+v", l)
			}
			if users, err := e.v3.UserList(t.Context()); err != nil || len(users.Users) != 1 {
				t.Errorf("users: %v, %v", users, err)
			}
		})
	}
}

// TestWithoutDB converts what no etcd 3.x has ever touched, with keys and without.
func TestWithoutDB(t *testing.T) {
	for _, from := range []string{"2.2.5", "2.3.8"} {
		for _, keys := range []int64{0, 30} {
			dir := filepath.Join(t.TempDir(), "m")
			e := start(t, from, dir, "--snapshot-count", "10")
			for i := range keys {
				e.v2("PUT", fmt.Sprint("/", i), "value=v")
			}
			e.stop()
			p := load(t, dir)
			_, err := ToV3(t.Context(), p)
			must(t, err)
			e = start(t, "3.0.17", dir)
			put, err := e.v3.Put(t.Context(), "new", "v")
			must(t, err)
			if n := countKeys(t, e, ""); n != keys+1 || put.Header.Revision != int64(p.Tree.Index())+1 {
				t.Errorf("%s with %d keys at index %d: %d keys, put at revision %d",
					from, keys, p.Tree.Index(), n, put.Header.Revision)
			}
			e.stop()
		}
	}
}
