package keyspace

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// v3Small makes a db of 1 KiB pages that has a branch page, an overflow page, an inline bucket and a lease, and gives
// its content.
func v3Small(t testing.TB) []byte {
	t.Helper()
	var keys [][2]string
	for i := range int64(60) {
		kv := mvccpb.KeyValue{Key: fmt.Appendf(nil, "/k%d", i%40), Value: []byte("value"), ModRevision: i + 1, Version: 1}
		keys = append(keys, v3KV(i+1, i%2, i%7 == 0, kv))
	}
	keys = append(keys, v3KV(100, 0, false, mvccpb.KeyValue{Key: []byte("big"), Value: make([]byte, 2500), ModRevision: 100, Lease: 7}))
	path := v3Make(t, 1024, map[string][][2]string{
		"key": keys, "lease": {{v3Uint64(7), "\x08\x07\x10\x64"}}, "alarm": nil,
		"meta":    {{"consistent_index", v3Uint64(50)}, {"finishedCompactRev", v3Uint64(5) + "_" + v3Uint64(0)}},
		"members": {{"a", `{"id":10,"peerURLs":["http://a"]}`}},
	})
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := openV3Pages(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return b[:p.used*p.pageSize] // bbolt makes the file larger than it needs
}

// v3Load opens the content of a db file that is not on disk.
func v3Load(content []byte) (*DB, error) {
	d := &DB{path: "/in/memory/db"}
	return d, d.load(bytes.NewReader(content), int64(len(content)))
}

func TestSmallDBIsGood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	v3Must(t, os.WriteFile(path, v3Small(t), 0o600))
	d, err := OpenDB(path)
	v3Must(t, err)
	defer d.Close()
	v3Must(t, v3ReadAll(d))
	v3CompareBolt(t, d, path)
	f, err := FingerprintDB(d)
	v3Must(t, err)
	if f.Records != 35 { // 40 keys, of which 6 are deleted, and the big one
		t.Errorf("%d records", f.Records)
	}
}

// TestDamagedDB changes one bit of every byte of a db, and cuts it at every place. What it asks for is that nothing but errors comes of
// it, and that they come where the structure of the file is hit.
func TestDamagedDB(t *testing.T) {
	good := v3Small(t)
	errs := 0
	read := func(content []byte) {
		if d, err := v3Load(content); err != nil || v3ReadAll(d) != nil {
			errs++
		}
	}
	for at := range good {
		flip := byte(1) << (at % 8)
		good[at] ^= flip
		read(good)
		good[at] ^= flip
	}
	if errs < 500 {
		t.Errorf("only %d changes were noticed", errs)
	}
	errs = 0
	for size := 0; size < len(good); size += 128 {
		read(good[:size])
	}
	if want := (len(good) + 127) / 128; errs != want {
		t.Errorf("%d of %d cuts were noticed", errs, want)
	}
}

// TestLostElements takes an element from the end of each page, and adds one: nothing but the count says how many there are.
func TestLostElements(t *testing.T) {
	good := v3Small(t)
	d, err := v3Load(good)
	v3Must(t, err)
	pages := map[uint64]bool{}
	for _, b := range d.buckets {
		w := v3Walk{p: d.pages, seen: make([]uint64, d.pages.used/64+1), fn: func(_, _ []byte) error { return nil }}
		if b.inline == nil {
			v3Must(t, w.page(b.root, 0))
		}
		for id := range d.pages.used {
			pages[id] = pages[id] || w.seen[id/64]&(1<<(id%64)) != 0
		}
	}
	tried := 0
	for id, used := range pages {
		at := id*1024 + 10
		count := v3Order.Uint16(good[at:])
		for _, n := range []uint16{0, count - 1, count + 1} {
			if !used || n == count || count == 0 {
				continue
			}
			tried++
			bad := bytes.Clone(good)
			v3Order.PutUint16(bad[at:], n)
			d, err := v3Load(bad)
			if err == nil {
				err = v3ReadAll(d)
			}
			if err == nil {
				t.Errorf("page %d of %d elements is taken to have %d", id, count, n)
			}
		}
	}
	if tried < 10 {
		t.Errorf("only %d changes", tried)
	}
}

// TestPageLoops leads each branch page to itself, which makes bbolt take memory until it is killed.
func TestPageLoops(t *testing.T) {
	good := v3Small(t)
	loops := 0
	for page := 0; page < len(good); page += 1024 {
		if v3Order.Uint16(good[page+8:]) != v3BranchPage {
			continue
		}
		bad := bytes.Clone(good)
		v3Order.PutUint64(bad[page+v3PageHeader+8:], uint64(page/1024))
		d, err := v3Load(bad)
		v3Must(t, err)
		if err := v3ReadAll(d); err == nil || !strings.Contains(err.Error(), "is used twice") {
			t.Errorf("page %d leads to itself: got error %v", page/1024, err)
		}
		loops++
	}
	if loops == 0 {
		t.Error("the db has no branch page")
	}
}

// TestTornMeta destroys one meta page after the other: bbolt writes them in turn, and a crash can tear the newer one.
func TestTornMeta(t *testing.T) {
	path := v3Make(t, 4096, map[string][][2]string{"meta": {{"consistent_index", v3Uint64(1)}}})
	db, err := bolt.Open(path, 0o600, nil)
	v3Must(t, err)
	for i := range 2 {
		v3Must(t, db.Update(func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("meta")).Put([]byte("consistent_index"), []byte(v3Uint64(uint64(i+2))))
		}))
	}
	v3Must(t, db.Close())
	good, err := os.ReadFile(path)
	v3Must(t, err)
	var got []uint64
	for page := range 2 {
		bad := bytes.Clone(good)
		bad[page*4096+v3PageHeader+20] ^= 1
		d, err := v3Load(bad)
		v3Must(t, err)
		info, err := d.Info()
		v3Must(t, err)
		got = append(got, info.ConsistentIndex)
	}
	if min(got[0], got[1]) != 2 || max(got[0], got[1]) != 3 {
		t.Errorf("consistent index %v, want the newest transaction and the one before", got)
	}
}

func FuzzDB(f *testing.F) {
	good := v3Small(f)
	f.Add(good)
	f.Add(good[:4096])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, content []byte) {
		d, err := v3Load(content)
		if err != nil {
			return
		}
		err = d.Each(func(r Record) error {
			if len(r.Key)+len(r.Value) > len(content) {
				t.Error("a record is larger than the file")
			}
			return nil
		})
		for _, err := range []error{err, v3ReadAll(d)} {
			if err != nil && !strings.Contains(err.Error(), d.path) {
				t.Errorf("the error does not name the file: %v", err)
			}
		}
	})
}
