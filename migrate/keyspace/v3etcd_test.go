package keyspace

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// v3Bin gives an etcd that `make binaries` has built.
func v3Bin(t *testing.T, version string) binaries.Binary {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real etcds")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	v3Must(t, err)
	release, err := versionfile.ParseRelease(version)
	v3Must(t, err)
	bin, ok := set.Get(release)
	if !ok {
		t.Fatalf("etcd-%s is missing: run make binaries", version)
	}
	return bin
}

// v3Etcd starts an etcd on a data dir and gives a client for it and a function that stops it.
func v3Etcd(t *testing.T, version, dir string, args ...string) (*clientv3.Client, func()) {
	t.Helper()
	s := pathtest.Serve(t, v3Bin(t, version), dir, args...)
	client, err := s.V3()
	v3Must(t, err)
	return client, func() { v3Must(t, s.Stop()) }
}

// TestDB writes all that a v3 store can hold with every etcd and reads it back from the stopped member.
func TestDB(t *testing.T) {
	for _, version := range []string{
		"3.0.17", "3.1.20", "3.2.32", "3.3.27", "3.4.31", "3.5.35", "3.6.16", "3.7.3",
	} {
		t.Run(version, func(t *testing.T) {
			v3Bin(t, version)
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "m")
			client, stop := v3Etcd(t, version, dir, "--snapshot-count", "100")
			live := v3Fill(t, client)
			live.info.ClusterVersion = version[:4] + "0"
			if version > "3.5" {
				live.info.Term = 2
				live.info.ConfState = &V3ConfState{Voters: []uint64{live.info.Members[0].ID}}
			}
			path := filepath.Join(dir, "member", "snap", "db")
			if _, err := OpenDB(path); !errors.Is(err, ErrInUse) {
				t.Fatalf("the db of a running etcd: got error %v", err)
			}
			stop()

			d, err := OpenDB(path)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			v3CompareLive(t, d, live)
			v3CompareBolt(t, d, path)
		})
	}
}

// v3Live is what a running etcd says about itself.
type v3Live struct {
	records map[string]Record
	leases  map[int64]int64
	info    V3Info
}

func v3Fill(t *testing.T, c *clientv3.Client) v3Live {
	t.Helper()
	ctx := t.Context()
	put := func(key, value string, opts ...clientv3.OpOption) int64 {
		t.Helper()
		r, err := c.Put(ctx, key, value, opts...)
		v3Must(t, err)
		return r.Header.Revision
	}
	live := v3Live{records: map[string]Record{}, leases: map[int64]int64{}}
	for _, ttl := range []int64{100, 1000} {
		l, err := c.Grant(ctx, ttl)
		v3Must(t, err)
		live.leases[int64(l.ID)] = ttl
		put(fmt.Sprint("leased", ttl), "v", clientv3.WithLease(l.ID))
		put(fmt.Sprint("was leased", ttl), "v", clientv3.WithLease(l.ID))
		put(fmt.Sprint("was leased", ttl), "v2")
	}
	for i := range 600 {
		put(fmt.Sprintf("/registry/%04d", i), strings.Repeat("x", i))
	}
	put("\x00\xff\n", "\x00\x01\xff")
	put("empty", "")
	put("big", strings.Repeat("big", 100_000))
	for _, key := range []string{"deleted", "came back", "/registry/0007"} {
		put(key, "old")
		_, err := c.Delete(ctx, key)
		v3Must(t, err)
	}
	put("came back", "new")
	ops := []clientv3.Op{clientv3.OpDelete("/registry/01", clientv3.WithPrefix())}
	for i := range 50 {
		ops = append(ops, clientv3.OpPut(fmt.Sprint("txn", i), "in one revision"))
	}
	_, err := c.Txn(ctx).Then(ops...).Commit()
	v3Must(t, err)
	live.info.Compacted = put("overwritten", "1")
	_, err = c.Compact(ctx, live.info.Compacted, clientv3.WithCompactPhysical())
	v3Must(t, err)
	put("overwritten", "2")

	_, err = c.UserAdd(ctx, "root", "secret")
	v3Must(t, err)
	_, err = c.RoleAdd(ctx, "root")
	v3Must(t, err)
	_, err = c.UserGrantRole(ctx, "root", "root")
	v3Must(t, err)
	live.info.Users, live.info.Roles = []string{"root"}, []string{"root"}

	members, err := c.MemberList(ctx)
	v3Must(t, err)
	for _, m := range members.Members {
		live.info.Members = append(live.info.Members,
			V3Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs})
	}
	all, err := c.Get(ctx, "\x00", clientv3.WithFromKey())
	v3Must(t, err)
	live.info.Revision = all.Header.Revision
	live.info.Leases = int64(len(live.leases))
	for _, kv := range all.Kvs {
		live.records[string(kv.Key)] = Record{
			Key: kv.Key, Value: kv.Value, Created: kv.CreateRevision, Modified: kv.ModRevision, Version: kv.Version,
			Lease: kv.Lease,
		}
	}
	return live
}

func v3CompareLive(t *testing.T, d *DB, live v3Live) {
	t.Helper()
	records := map[string]Record{}
	var f Fingerprint
	v3Must(t, d.Each(func(r Record) error {
		r.Key, r.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
		if _, twice := records[string(r.Key)]; twice {
			t.Errorf("key %q came twice", r.Key)
		}
		records[string(r.Key)] = r
		f.Add(live.records[string(r.Key)])
		return nil
	}))
	if diff := cmp.Diff(live.records, records, cmp.Comparer(bytes.Equal)); diff != "" {
		t.Errorf("the records differ:\n%.2000s", diff)
	}
	got, err := FingerprintDB(d)
	v3Must(t, err)
	if diff := Compare(&f, got); !diff.Equal() || got.Records != int64(len(live.records)) {
		t.Errorf("the fingerprint differs: %s", diff)
	}
	leases, err := d.Leases()
	v3Must(t, err)
	if diff := cmp.Diff(live.leases, leases); diff != "" {
		t.Error(diff)
	}

	info, err := d.Info()
	v3Must(t, err)
	inUse, err := d.InUse()
	v3Must(t, err)
	if inUse < 400_000 || inUse > info.BackendBytes || info.BackendBytes > info.SizeBytes {
		t.Errorf("in use %d, backend %d, file %d bytes", inUse, info.BackendBytes, info.SizeBytes)
	}
	if info.ConsistentIndex < uint64(len(live.records)) {
		t.Errorf("consistent index %d", info.ConsistentIndex)
	}
	live.info.ScheduledCompaction = live.info.Compacted
	live.info.SizeBytes, live.info.BackendBytes = info.SizeBytes, info.BackendBytes
	live.info.ConsistentIndex = info.ConsistentIndex
	if info.StorageVersion == live.info.ClusterVersion { // 3.6 and newer note it some seconds after the first snapshot
		live.info.StorageVersion = info.StorageVersion
	}
	if diff := cmp.Diff(live.info, info); diff != "" {
		t.Error(diff)
	}
}

// v3CompareBolt compares what EachIn gives with what bbolt reads from the same file.
func v3CompareBolt(t *testing.T, d *DB, path string) {
	t.Helper()
	b, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	v3Must(t, err)
	defer b.Close()
	v3Must(t, b.View(func(tx *bolt.Tx) error {
		var names []string
		err := tx.ForEach(func(name []byte, bucket *bolt.Bucket) error {
			names = append(names, string(name))
			var want, got [][]byte
			v3Must(t, bucket.ForEach(func(k, v []byte) error {
				want = append(want, k, v)
				return nil
			}))
			v3Must(t, d.EachIn(string(name), func(k, v []byte) error {
				got = append(got, bytes.Clone(k), bytes.Clone(v))
				return nil
			}))
			if !slices.EqualFunc(want, got, bytes.Equal) {
				t.Errorf("bucket %s: bbolt has %d elements, EachIn %d", name, len(want)/2, len(got)/2)
			}
			return nil
		})
		if !slices.Equal(names, d.Buckets()) {
			t.Errorf("buckets %q, want %q", d.Buckets(), names)
		}
		return err
	}))
}
