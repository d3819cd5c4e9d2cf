package keyspace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func v3Must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// v3Make makes a bbolt file with these buckets and gives its path.
func v3Make(t testing.TB, pageSize int, buckets map[string][][2]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{PageSize: pageSize})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bolt.Tx) error {
		for name, elements := range buckets {
			b, err := tx.CreateBucket([]byte(name))
			if err != nil {
				return err
			}
			for _, e := range elements {
				if err := b.Put([]byte(e[0]), []byte(e[1])); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return path
}

// v3KV is one element of bucket key.
func v3KV(main, sub int64, deleted bool, kv mvccpb.KeyValue) [2]string {
	k := fmt.Sprintf("%s_%s", v3Uint64(uint64(main)), v3Uint64(uint64(sub)))
	if deleted {
		k += "t"
	}
	v, _ := kv.Marshal()
	return [2]string{k, string(v)}
}

func v3Uint64(n uint64) string { return string(binary.BigEndian.AppendUint64(nil, n)) }

func TestInfoOfWhatIsRare(t *testing.T) {
	path := v3Make(t, 4096, map[string][][2]string{
		"meta": {
			{"finishedCompactRev", v3Uint64(5) + "_" + v3Uint64(0)},
			{"scheduledCompactRev", v3Uint64(9) + "_" + v3Uint64(0)},
			{"term", v3Uint64(3)},
			{"storageVersion", "3.6.0"},
			{"confState", `{"voters":[1,2],"learners":[3],"auto_leave":false}`},
		},
		"cluster":         {{"clusterVersion", "3.7.0"}, {"downgrade", `{"target-version":"3.6.0","enabled":true}`}},
		"members":         {{"a", `{"id":10,"peerURLs":["http://a"],"isLearner":true}`}},
		"members_removed": {{"ffffffffffffffff", "removed"}},
		"alarm":           {{"\x08\x0a\x10\x01", ""}},
		"auth":            {{"authEnabled", "\x01"}, {"authRevision", v3Uint64(4)}},
	})
	d, err := OpenDB(path)
	v3Must(t, err)
	defer d.Close()
	got, err := d.Info()
	v3Must(t, err)
	want := V3Info{
		Revision: 9, Compacted: 5, ScheduledCompaction: 9, Term: 3, StorageVersion: "3.6.0", ClusterVersion: "3.7.0",
		Downgrade: "3.6.0", ConfState: &V3ConfState{Voters: []uint64{1, 2}, Learners: []uint64{3}},
		Members:        []V3Member{{ID: 10, PeerURLs: []string{"http://a"}, IsLearner: true}},
		RemovedMembers: []uint64{1<<64 - 1}, Alarms: []V3Alarm{{Member: 10, Type: "NOSPACE"}}, AuthEnabled: true,
		SizeBytes: got.SizeBytes, BackendBytes: got.BackendBytes,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestEndWith: whatever reads a db ends with its context, and says why.
func TestEndWith(t *testing.T) {
	d, err := OpenDB(v3Make(t, 4096, map[string][][2]string{"lease": {{"12345678", "\x08\x07\x10\x64"}}, "key": {{"a", "b"}}}))
	v3Must(t, err)
	defer d.Close()
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	d.EndWith(ctx)
	if _, err := d.InUse(); err != nil {
		t.Error(err)
	}
	cancel(enough)
	_, infoErr := d.Info()
	_, useErr := d.InUse()
	_, printErr := FingerprintDB(d)
	for _, err := range []error{infoErr, useErr, printErr} {
		if !errors.Is(err, enough) {
			t.Errorf("got %v", err)
		}
	}
}

func TestDBErrors(t *testing.T) {
	good := v3Make(t, 4096, nil)
	d, err := OpenDB(good)
	v3Must(t, err)
	info, err := d.Info()
	v3Must(t, err)
	if info.Revision != 1 || info.Compacted != 0 {
		t.Errorf("an empty db: got %+v", info)
	}
	v3Must(t, d.Each(func(Record) error { return errors.New("a record") }))
	v3Must(t, d.Close())

	if _, err := OpenDB(good + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got error %v", err)
	}
	if _, err := OpenDB(filepath.Dir(good)); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a directory: got error %v", err)
	}
	for name, buckets := range map[string]map[string][][2]string{
		"is no revision":     {"key": {{"short", ""}}},
		"decode revision 1:": {"key": {{v3Uint64(1) + "_" + v3Uint64(0), "\xff"}}},
		"decode lease":       {"lease": {{"12345678", "\xff"}}},
		"bucket meta of db":  {"meta": {{"term", "1"}}},
		"bucket cluster of":  {"cluster": {{"downgrade", "1"}}},
		"bucket members of":  {"members": {{"8e9e05c52164694d", "1"}}},
		"has no member ID":   {"members_removed": {{"xyz", ""}}},
		"decode element 1":   {"alarm": {{"\xff", ""}}},
	} {
		path := v3Make(t, 4096, buckets)
		d, err := OpenDB(path)
		v3Must(t, err)
		err = v3ReadAll(d)
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), path) {
			t.Errorf("want an error with %q and the path, got %v", name, err)
		}
		d.Close()
	}
}

func v3ReadAll(d *DB) error {
	_, err := FingerprintDB(d)
	_, err2 := d.Leases()
	_, err3 := d.Info()
	_, err4 := d.InUse()
	return errors.Join(err, err2, err3, err4)
}

func TestEachEndsEarly(t *testing.T) {
	path := v3Make(t, 4096, map[string][][2]string{"key": {
		v3KV(2, 0, false, mvccpb.KeyValue{Key: []byte("a"), ModRevision: 2}), v3KV(3, 0, false, mvccpb.KeyValue{Key: []byte("b"), ModRevision: 3}),
	}})
	d, err := OpenDB(path)
	v3Must(t, err)
	defer d.Close()
	calls, enough := 0, errors.New("enough")
	if err := d.Each(func(Record) error { calls++; return enough }); err != enough || calls != 1 {
		t.Errorf("got error %v after %d calls", err, calls)
	}
}
