package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// progressRecords is how many records are proven between two calls of Progress.
const progressRecords = 10_000

// prove reads the finished db anew, with a reader that shares no code with bbolt, which wrote it, and compares all that
// is in it with all that had to be.
func (c *conversion) prove(ctx context.Context, path string, small []bucket) (
	after keyspace.Fingerprint, info keyspace.V3Info, err error,
) {
	db, err := keyspace.OpenDB(path)
	if err != nil {
		return after, info, err
	}
	defer db.Close()
	err = db.Each(func(r keyspace.Record) error {
		after.Add(r)
		if after.Records%progressRecords == 0 {
			c.progress(int64(len(c.records)) + after.Records)
			return context.Cause(ctx)
		}
		return nil
	})
	if err != nil {
		return after, info, err
	}
	if d := keyspace.Compare(&c.before, &after); !d.Equal() {
		return after, info, fmt.Errorf("it does not hold the same as the v2 store: %s", d)
	}
	leases, err := db.Leases()
	if err != nil {
		return after, info, err
	}
	if !maps.Equal(leases, c.leases) {
		return after, info, errors.New("it does not hold the right leases")
	}
	for _, b := range small {
		if err := proveBucket(db, b); err != nil {
			return after, info, err
		}
	}
	if info, err = db.Info(); err == nil && info.Revision != c.revision {
		err = fmt.Errorf("its revision is %d and not %d", info.Revision, c.revision)
	}
	c.progress(2 * int64(len(c.records)))
	return after, info, err
}

func proveBucket(db *keyspace.DB, b bucket) error {
	wrong := fmt.Errorf("bucket %s is not as it was written", b.name)
	rest := b.elements
	err := db.EachIn(b.name, func(k, v []byte) error {
		if len(rest) == 0 || !bytes.Equal(k, rest[0].k) || !bytes.Equal(v, rest[0].v) {
			return wrong
		}
		rest = rest[1:]
		return nil
	})
	if err == nil && len(rest) > 0 {
		return wrong
	}
	return err
}
