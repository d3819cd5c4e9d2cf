package keyspace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"golang.org/x/sys/unix"
)

// The buckets of the v3 store, as go.etcd.io/etcd/server/v3/storage/schema/bucket.go names them. Every etcd from 3.0 to
// 3.7 has these and no others.
const (
	BucketKey            = "key"
	BucketMeta           = "meta"
	BucketLease          = "lease"
	BucketAlarm          = "alarm"
	BucketCluster        = "cluster"
	BucketMembers        = "members"
	BucketMembersRemoved = "members_removed"
	BucketAuth           = "auth"
	BucketAuthUsers      = "authUsers"
	BucketAuthRoles      = "authRoles"
)

// ErrInUse says that an etcd runs on the db. OpenDB returns it.
var ErrInUse = errors.New("held by a running etcd")

// DB is the v3 store of a stopped member: its file member/snap/db, open for reading. While it is open no etcd can start
// on the file. It is not safe for concurrent use.
//
// Damage to the file is always an error that names the file, never a panic. Damage inside a key or a value cannot be
// seen: bbolt keeps no checksum of them.
type DB struct {
	path    string
	file    *os.File
	size    int64
	pages   *v3Pages
	buckets map[string]v3Bucket
}

// OpenDB opens a stopped member's db, written by any etcd from 3.0 to 3.7. The error is ErrInUse if an etcd runs on it,
// and fs.ErrNotExist if there is no such file.
func OpenDB(path string) (*DB, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open db: %w", err)
	}
	d := &DB{path: path, file: file}
	if err := d.open(); err != nil {
		file.Close()
		return nil, fmt.Errorf("open db %s: %w", path, err)
	}
	return d, nil
}

func (d *DB) open() error {
	if err := v3Lock(d.file); err != nil {
		return err
	}
	info, err := d.file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("it is no file: %w", fs.ErrInvalid)
	}
	return d.load(d.file, info.Size())
}

// load reads the meta pages and the root bucket.
func (d *DB) load(r io.ReaderAt, size int64) (err error) {
	d.size = size
	if d.pages, err = openV3Pages(r, size); err != nil {
		return err
	}
	if d.buckets, err = d.pages.buckets(); err != nil {
		return fmt.Errorf("read the root bucket: %w", err)
	}
	return nil
}

// v3Lock takes the lock that a running etcd holds exclusively: go.etcd.io/bbolt/bolt_unix.go. Closing the file frees it.
func v3Lock(file *os.File) error {
	for {
		switch err := unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrInUse
		case err != nil:
			return fmt.Errorf("lock: %w", err)
		default:
			return nil
		}
	}
}

// EndWith makes whatever reads the db from now on end with the context, with the cause of that: a db can be of many GiB, and
// the disk slow.
func (d *DB) EndWith(ctx context.Context) { d.pages.ctx = ctx }

// Close lets go of the file.
func (d *DB) Close() error { return d.file.Close() }

// Buckets gives the names of the buckets that exist, sorted.
func (d *DB) Buckets() []string { return slices.Sorted(maps.Keys(d.buckets)) }

// EachIn calls fn for every element of a bucket as etcd stored it, in ascending order of its keys. A bucket that does not
// exist is empty. Both slices are valid only during the call. An error of fn ends the walk and is returned as it is.
func (d *DB) EachIn(bucket string, fn func(k, v []byte) error) error {
	return d.walk(bucket, false, fn)
}

func (d *DB) walk(bucket string, descending bool, fn func(k, v []byte) error) error {
	b, ok := d.buckets[bucket]
	if !ok {
		return nil
	}
	var fnErr error
	_, err := d.pages.walk(b, 0, descending, func(k, v []byte) error {
		fnErr = fn(k, v)
		return fnErr
	})
	if err == nil || fnErr != nil {
		return err
	}
	return d.damaged(bucket, err)
}

func (d *DB) damaged(bucket string, err error) error {
	return fmt.Errorf("read bucket %s of db %s: %w", bucket, d.path, err)
}

// Each calls fn for every key that the store holds now, without its history: newest modification first. Keys that share
// a lease or a transaction come in no other order. An error of fn ends the walk and is returned as it is.
//
// It takes 16 bytes and a map slot of memory per key.
func (d *DB) Each(fn func(Record) error) error {
	// The bucket is walked from the newest revision down, so that the first sight of a key is its newest state, and a
	// tombstone hides everything older. A key is remembered by two independent hashes, 128 bits: with 100 million keys
	// the chance that any two are taken for one is below 2^-75, and the seeds are new in each process.
	first, second := maphash.MakeSeed(), maphash.MakeSeed()
	seen := make(map[[2]uint64]struct{})
	var kv mvccpb.KeyValue
	return d.walk(BucketKey, true, func(k, v []byte) error {
		revision, deleted, err := v3Revision(k)
		if err != nil {
			return d.damaged(BucketKey, err)
		}
		kv = mvccpb.KeyValue{Key: kv.Key[:0], Value: kv.Value[:0]} // their memory is used again
		if err := kv.Unmarshal(v); err != nil {
			return d.damaged(BucketKey, fmt.Errorf("decode revision %d: %w", revision, err))
		}
		// An empty value is what `etcdutl snapshot restore --bump-revision` leaves.
		if !deleted && len(v) > 0 && kv.ModRevision != revision {
			return d.damaged(BucketKey, fmt.Errorf("revision %d calls itself revision %d", revision, kv.ModRevision))
		}
		known := len(seen)
		seen[[2]uint64{maphash.Bytes(first, kv.Key), maphash.Bytes(second, kv.Key)}] = struct{}{}
		if len(seen) == known || deleted {
			return nil
		}
		return fn(Record{
			Key: kv.Key, Value: kv.Value, Created: kv.CreateRevision, Modified: kv.ModRevision,
			Version: kv.Version, Lease: kv.Lease,
		})
	})
}

// v3Revision decodes a bucket key of bucket key: the main revision, 8 bytes big-endian, '_', and the number within the
// transaction, 8 bytes; a 't' at the end marks a deletion. See go.etcd.io/etcd/server/v3/storage/mvcc/revision.go.
func v3Revision(k []byte) (main int64, deleted bool, err error) {
	if len(k) < 17 || len(k) > 18 || k[8] != '_' || len(k) == 18 && k[17] != 't' {
		return 0, false, fmt.Errorf("%x is no revision", k)
	}
	return int64(binary.BigEndian.Uint64(k)), len(k) == 18, nil
}

// Leases gives the TTL in seconds that each lease was granted, by lease ID. A running etcd starts them anew at each
// start, unless it has noted what is left of one: see Remaining.
func (d *DB) Leases() (map[int64]int64, error) {
	return d.eachLease(func(l *leasepb.Lease) int64 { return l.TTL })
}

// Remaining gives what is left of each lease in seconds, counted from the next start of an etcd: its TTL, or less if etcd
// has noted how much of it is over (from 3.4 on, with --experimental-enable-lease-checkpoint-persist).
func (d *DB) Remaining() (map[int64]int64, error) {
	return d.eachLease(func(l *leasepb.Lease) int64 {
		if l.RemainingTTL > 0 {
			return min(l.RemainingTTL, l.TTL)
		}
		return l.TTL
	})
}

func (d *DB) eachLease(value func(*leasepb.Lease) int64) (map[int64]int64, error) {
	leases := make(map[int64]int64)
	var l leasepb.Lease
	err := d.walk(BucketLease, false, func(k, v []byte) error {
		l.Reset()
		if err := l.Unmarshal(v); err != nil {
			return d.damaged(BucketLease, fmt.Errorf("decode lease %x: %w", k, err))
		}
		if len(k) != 8 || uint64(l.ID) != binary.BigEndian.Uint64(k) {
			return d.damaged(BucketLease, fmt.Errorf("lease %x calls itself lease %x", k, l.ID))
		}
		leases[l.ID] = value(&l)
		return nil
	})
	return leases, err
}
