package convert

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/lease/leasepb"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// element is a key and its value in a bucket.
type element struct{ k, v []byte }

// bucket is one of the buckets other than key, with what it will hold in ascending order.
type bucket struct {
	name     string
	elements []element
}

// smallBuckets gives every bucket of the new db but bucket key, sorted. See keyspace.BucketMeta for where the format is
// specified; what the buckets hold is the same for all minors.
func (c *conversion) smallBuckets() ([]bucket, error) {
	content := map[string][]element{
		keyspace.BucketAlarm: nil, keyspace.BucketCluster: nil, keyspace.BucketAuth: nil, keyspace.BucketAuthUsers: nil,
		keyspace.BucketAuthRoles: nil, keyspace.BucketMeta: nil,
	}
	if c.old != nil {
		for _, name := range c.old.Buckets() {
			switch name {
			case keyspace.BucketKey, keyspace.BucketLease, keyspace.BucketMembers, keyspace.BucketMembersRemoved:
				continue
			}
			content[name] = nil // an empty bucket stays, too
			err := c.old.EachIn(name, func(k, v []byte) error {
				content[name] = append(content[name], element{bytes.Clone(k), bytes.Clone(v)})
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
	}
	set := func(name, k string, v []byte) {
		content[name] = slices.DeleteFunc(content[name], func(e element) bool { return string(e.k) == k })
		content[name] = append(content[name], element{[]byte(k), v})
	}
	if v := c.Tree.ClusterVersion(); v != "" {
		set(keyspace.BucketCluster, keyspace.ClusterVersionKey, []byte(v))
	}
	set(keyspace.BucketMeta, keyspace.MetaConsistentIndex, uint64Bytes(c.RaftIndex))
	if c.oldInfo.Term > 0 { // the db is of 3.5 or newer, which note the term; older ones must not meet it
		set(keyspace.BucketMeta, keyspace.MetaTerm, uint64Bytes(c.RaftTerm))
	}
	set(keyspace.BucketMeta, keyspace.MetaScheduledCompact, revision(c.revision, 0))
	set(keyspace.BucketMeta, keyspace.MetaFinishedCompact, revision(c.revision, 0))
	var err error
	if content[keyspace.BucketMembers], content[keyspace.BucketMembersRemoved], err = c.members(); err != nil {
		return nil, err
	}
	if content[keyspace.BucketLease], err = c.leaseElements(); err != nil {
		return nil, err
	}

	var buckets []bucket
	for _, name := range slices.Sorted(maps.Keys(content)) {
		slices.SortFunc(content[name], func(a, b element) int { return bytes.Compare(a.k, b.k) })
		buckets = append(buckets, bucket{name, content[name]})
	}
	return buckets, nil
}

// members gives the members as the v2 store has them. One that only the db knew would come back to life at 3.6.
func (c *conversion) members() (members, removed []element, err error) {
	ms, err := c.Tree.Members()
	if err != nil {
		return nil, nil, err
	}
	for _, m := range ms {
		v, err := json.Marshal(keyspace.V3Member(m))
		if err != nil {
			return nil, nil, err
		}
		members = append(members, element{memberKey(m.ID), v})
	}
	ids, err := c.Tree.RemovedMembers()
	for _, id := range ids {
		removed = append(removed, element{memberKey(id), []byte("removed")})
	}
	return members, removed, err
}

func memberKey(id uint64) []byte { return strconv.AppendUint(nil, id, 16) }

func (c *conversion) leaseElements() ([]element, error) {
	var es []element
	for id, ttl := range c.leases {
		v, err := (&leasepb.Lease{ID: id, TTL: ttl}).Marshal()
		if err != nil {
			return nil, err
		}
		es = append(es, element{uint64Bytes(uint64(id)), v})
	}
	return es, nil
}

func uint64Bytes(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

const revisionLen = 8 + 1 + 8

// revision encodes a revision: server/v3/storage/mvcc/revision.go.
func revision(main, sub int64) []byte {
	b := append(binary.BigEndian.AppendUint64(make([]byte, 0, revisionLen), uint64(main)), '_')
	return binary.BigEndian.AppendUint64(b, uint64(sub))
}

// batchBytes is how much is written in one transaction. The pages for it are in memory until it is committed.
const batchBytes = 8 << 20

// write makes the new db and syncs it.
//
// Each transaction writes to one bucket only: bbolt places the pages of several in the order of a map. And the free list
// is kept in the file and as an array, the former because the boltdb of 3.0 to 3.2 reads no other, the latter because it
// hands out pages in a fixed order. So the same records make the same file.
func (c *conversion) write(ctx context.Context, path string, small []bucket) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		NoSync: true, NoGrowSync: true, FreelistType: bolt.FreelistArrayType, InitialMmapSize: int(c.size()),
	})
	if err != nil {
		return err
	}
	if err := errors.Join(c.fill(ctx, db, small), db.Close()); err != nil {
		return err
	}
	if err := c.takeOwner(path); err != nil {
		return err
	}
	return syncFile(path)
}

func (c *conversion) fill(ctx context.Context, db *bolt.DB, small []bucket) error {
	for _, b := range small {
		if err := update(db, b.name, func(dst *bolt.Bucket) error {
			for _, e := range b.elements {
				if err := dst.Put(e.k, e.v); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	w := keyWriter{records: c.records, arena: &c.arena}
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := update(db, keyspace.BucketKey, w.batch); err != nil {
			return err
		}
		c.progress(int64(w.next))
		if w.next == len(w.records) {
			return nil
		}
	}
}

func update(db *bolt.DB, bucket string, fn func(*bolt.Bucket) error) error {
	if err := db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		b.FillPercent = 1 // bucket key only ever grows at its end, the others hardly at all
		return fn(b)
	}); err != nil {
		return fmt.Errorf("write bucket %s: %w", bucket, err)
	}
	return nil
}

// keyWriter writes the records to bucket key, some at a time.
type keyWriter struct {
	records []record
	arena   *arena
	next    int
	sub     int64 // of the next record, if it has the revision of the one before
}

func (w *keyWriter) batch(b *bolt.Bucket) error {
	for bytes := 0; w.next < len(w.records) && bytes < batchBytes; w.next++ {
		r := w.records[w.next]
		if w.next > 0 && w.records[w.next-1].modified == r.modified {
			w.sub++
		} else {
			w.sub = 0
		}
		if err := b.Put(revision(r.modified, w.sub), w.arena.kv(r)); err != nil {
			return err
		}
		bytes += int(r.size)
	}
	return nil
}

// takeOwner gives the new db the mode and the owner of the old one, or mode 0600 and the owner of its directory.
func (c *conversion) takeOwner(path string) error {
	mode := fs.FileMode(0o600)
	model, err := os.Stat(c.DB)
	if errors.Is(err, fs.ErrNotExist) {
		model, err = os.Stat(filepath.Dir(c.DB))
	} else if err == nil {
		mode = model.Mode().Perm()
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(path, mode); err != nil {
		return err
	}
	own, err := os.Stat(path)
	if err != nil {
		return err
	}
	is, want := own.Sys().(*syscall.Stat_t), model.Sys().(*syscall.Stat_t)
	if is.Uid == want.Uid && is.Gid == want.Gid {
		return nil
	}
	return os.Chown(path, int(want.Uid), int(want.Gid))
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// progress tells how many records are done, of which each counts when written and when proven.
func (c *conversion) progress(done int64) {
	if c.Progress != nil {
		c.Progress(done, 2*int64(len(c.records)))
	}
}
