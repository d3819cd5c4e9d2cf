package convert

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// record is a key of the new db: the revision that it goes below, and where in the arena its value in bucket key is, which
// is an encoded mvccpb.KeyValue. It has no pointers, so that the garbage collector need not look at millions of them.
type record struct {
	modified            int64
	chunk, offset, size uint32
}

// arena holds the encoded records. A million allocations would take longer than the rest of the conversion.
type arena struct{ chunks [][]byte }

const arenaChunk = 1 << 20

// take gives a slice of so many bytes, which stays, and where it is.
func (a *arena) take(size int) (b []byte, chunk, offset uint32) {
	last := len(a.chunks) - 1
	if last < 0 || cap(a.chunks[last])-len(a.chunks[last]) < size {
		a.chunks = append(a.chunks, make([]byte, 0, max(size, arenaChunk)))
		last++
	}
	used := len(a.chunks[last])
	a.chunks[last] = a.chunks[last][:used+size]
	return a.chunks[last][used:], uint32(last), uint32(used)
}

func (a *arena) kv(r record) []byte { return a.chunks[r.chunk][r.offset:][:r.size:r.size] }

// key gives the key within the encoded record: field 1, which comes first.
func (a *arena) key(r record) []byte {
	kv := a.kv(r)[1:]
	n, size := binary.Uvarint(kv)
	return kv[size:][:n]
}

// collect encodes every record of the tree and sorts them in the order of bucket key: by revision, and those that share one
// by their keys.
func (c *conversion) collect() error {
	c.leases = make(map[int64]int64)
	c.records = make([]record, 0, c.stats.Keys)
	err := c.Tree.Each(c.Now, func(r keyspace.Record) error {
		if r.Modified < 1 {
			return fmt.Errorf("a key has modifiedIndex %d, which is no revision", r.Modified)
		}
		switch {
		case r.Expiry.IsZero() && c.needsTTL(r.Key):
			r.Lease = c.givenLease(r.Modified)
			c.given++
		case !r.Expiry.IsZero():
			r.Lease, r.Expiry = c.lease(r.Expiry), time.Time{}
		}
		c.before.Add(r)
		kv := mvccpb.KeyValue{
			Key: r.Key, Value: r.Value, CreateRevision: r.Created, ModRevision: r.Modified, Version: r.Version,
			Lease: r.Lease,
		}
		size := kv.Size()
		b, chunk, offset := c.arena.take(size)
		if _, err := kv.MarshalToSizedBuffer(b); err != nil {
			return fmt.Errorf("encode the key with modifiedIndex %d: %w", r.Modified, err)
		}
		c.records = append(c.records, record{r.Modified, chunk, offset, uint32(size)})
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the v2 store: %w", err)
	}
	slices.SortFunc(c.records, func(a, b record) int {
		if a.modified != b.modified {
			return cmp.Compare(a.modified, b.modified)
		}
		return bytes.Compare(c.arena.key(a), c.arena.key(b))
	})
	return nil
}

// needsTTL reports whether a key without a TTL is to get one.
func (c *conversion) needsTTL(key []byte) bool {
	if c.TTL <= 0 || c.TTLDirectory == "" {
		return false
	}
	return bytes.HasPrefix(key, []byte(strings.TrimSuffix(c.TTLDirectory, "/")+"/"))
}

// maxTTL is the longest TTL in seconds that etcd grants: MaxLeaseTTL in server/v3/lease/lessor.go. It is 285 years.
const maxTTL = 9_000_000_000

// lease gives the ID of the lease that ends at this instant: the Unix second in which it lies, rounded up. So the ID is the
// same whenever the conversion is run, keys that end in the same second share a lease, and no key ends early.
//
// A lease is a TTL of whole seconds that etcd starts to count when it starts, at most one second longer than the key still
// has now. Etcd itself raises a TTL below its minimum, 3/2 of the election timeout rounded up to seconds, which is 2
// seconds by default.
func (c *conversion) lease(expiry time.Time) (id int64) {
	id = expiry.Unix()
	if expiry.Nanosecond() > 0 {
		id++
	}
	c.leases[id] = min(max(id-c.Now.Unix(), 1), maxTTL)
	return id
}

// givenLeases is the ID that those of keys without a TTL are counted from. It is above every instant that a TTL can end at.
const givenLeases = 1 << 62

// givenLease gives the ID of the lease of a key that had no TTL and gets one. It is the same whenever the conversion is run, and
// one lease has so few keys that an API server survives their end, which is in one revision for all of them.
func (c *conversion) givenLease(modified int64) (id int64) {
	const perLease = 500
	id = givenLeases + modified/perLease
	c.leases[id] = min(int64((c.TTL+time.Second-1)/time.Second), maxTTL)
	return id
}

// size estimates how many bytes of its quota the new db will take: the leaf pages of bucket key as bbolt fills them
// (splitIndex in go.etcd.io/bbolt/node.go) and a little for all else. Most pages hold a few records, so a mere sum would
// be far too low.
func (c *conversion) size() int64 {
	const header, element, pageSize = 16, 16 + revisionLen, 4096
	pages, used, n := int64(0), header, 0
	for _, r := range c.records {
		size := element + int(r.size)
		if n >= 2 && used+size > pageSize {
			pages += int64(math.Ceil(float64(used) / pageSize))
			used, n = header, 0
		}
		used += size
		n++
	}
	pages += int64(math.Ceil(float64(used) / pageSize))
	return (pages + pages/25 + 16) * pageSize
}
