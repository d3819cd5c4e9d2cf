package convert

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize/english"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// The losses that a conversion back to the v2 store can bring.
const (
	// LossUnfitKeys: keys that the v2 store cannot have would be gone: those that are not paths below "/" in UTF-8, and
	// those that are the directory of another key.
	LossUnfitKeys Loss = "unfit-keys"
	// LossNotUTF8: keys with a value that is not UTF-8 would be gone.
	LossNotUTF8 Loss = "not-utf8"
	// LossNotJSON: values that are not JSON are kept, but a Kubernetes API server that stores in etcd2 cannot read them.
	LossNotJSON Loss = "not-json"
	// LossV3Auth: what the v3 API's users and roles protect would be open to everybody. The v2 store does not have them, and
	// etcd 3.0 does not heed them.
	LossV3Auth Loss = "v3-auth"
	// LossV2Keys: keys that the v2 store holds beside those of the v3 store would be gone.
	LossV2Keys Loss = "v2-keys"
)

// problem appends a problem of the keys counted, if there are any; text says what is wrong with them.
func (t *Tally) problem(ps []Problem, loss Loss, text string) []Problem {
	if t.Count == 0 {
		return ps
	}
	return append(ps, Problem{Loss: loss, Count: t.Count, Text: fmt.Sprintf("%s: %s", text, english.Plural(int(t.Count), "key", "")), Keys: t.Keys})
}

// verdict is what becomes of a record.
type verdict int

const (
	fits verdict = iota
	notJSON
	notUTF8
	unfit
)

func judge(r keyspace.Record) verdict {
	switch {
	case !keyspace.FitsV2(r.Key):
		return unfit
	case !utf8.Valid(r.Value):
		return notUTF8
	case !json.Valid(r.Value):
		return notJSON
	}
	return fits
}

// collect replaces what users have in the tree by the records of the db, without their values if it is only to find out
// what the problems are.
func (c *reversal) collect(ctx context.Context, values bool) ([]Problem, error) {
	left, err := c.leftovers()
	if err != nil {
		return nil, err
	}
	c.Tree.Clear()
	c.displaced = map[string]bool{}
	tallies := map[verdict]*Tally{notJSON: {}, notUTF8: {}, unfit: {}}
	c.total = 0
	err = c.db.Each(func(r keyspace.Record) error {
		delete(left, content(r))
		if c.total++; c.total%progressRecords == 0 {
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
		v := judge(r)
		if v != fits {
			tallies[v].Add(r.Key)
		}
		if v == notUTF8 || v == unfit {
			return nil
		}
		if !values {
			r.Value = nil
		}
		if key := c.Tree.Put(c.asV2(r)); key != nil {
			c.displaced[string(key)] = true
			tallies[unfit].Add(key)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.progress(c.total)

	var ps []Problem
	ps = tallies[unfit].problem(ps, LossUnfitKeys, "the v2 store cannot have keys that are not clean paths below / "+
		"or that are the directory of another key")
	ps = tallies[notUTF8].problem(ps, LossNotUTF8, "the v2 store cannot have values that are not UTF-8")
	ps = tallies[notJSON].problem(ps, LossNotJSON,
		"values that are not JSON, such as Kubernetes writes as protobuf, are of no use to a Kubernetes that stores in etcd2")
	if n := len(c.info.Users) + len(c.info.Roles); n > 0 || c.info.AuthEnabled {
		ps = append(ps, Problem{Loss: LossV3Auth, Count: int64(n), Text: fmt.Sprintf(
			"the v3 API has %s and %s: they cannot be carried over, and the v2 API would ask for no password of theirs",
			english.Plural(len(c.info.Users), "user", ""), english.Plural(len(c.info.Roles), "role", ""))})
	}
	if n := len(left); n > 0 {
		var t Tally
		for _, key := range slices.Sorted(maps.Values(left)) {
			t.Add([]byte(key))
		}
		ps = append(ps, Problem{Loss: LossV2Keys, Count: t.Count, Keys: t.Keys, Text: fmt.Sprintf(
			"the v2 store holds %s that the v3 store does not hold so, and that the conversion would replace", english.Plural(n, "key", ""))})
	}
	return ps, nil
}

// leftovers gives the keys that the v2 store still holds. A conversion that was killed after it had put the new log into place
// leaves all that it has converted, and an upgrade from etcd2 can have left what it has converted.
func (c *reversal) leftovers() (map[[sha256.Size]byte]string, error) {
	left := map[[sha256.Size]byte]string{}
	err := c.Tree.Each(c.Now, func(r keyspace.Record) error {
		left[content(r)] = string(r.Key)
		return nil
	})
	return left, err
}

// content is a digest of what a conversion keeps as it is.
func content(r keyspace.Record) [sha256.Size]byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(r.Modified))
	b = binary.BigEndian.AppendUint64(b, uint64(len(r.Key)))
	return sha256.Sum256(append(append(b, r.Key...), r.Value...))
}

// asV2 gives a record of the db as the v2 store has it. A key whose lease is not there stays for ever, as it does in
// etcd 3.x.
func (c *reversal) asV2(r keyspace.Record) keyspace.Record {
	if ttl, ok := c.leases[r.Lease]; ok && r.Lease != 0 {
		r.Expiry = c.Now.Add(time.Duration(min(max(ttl, 1), maxTTL)) * time.Second).UTC()
	}
	r.Lease, r.Version = 0, 1
	return r
}

// prove compares the v2 store that was read back with the db, record by record.
func (c *reversal) prove(ctx context.Context, store []byte) (before, after keyspace.Fingerprint, err error) {
	tree, err := keyspace.LoadTree(store)
	if err != nil {
		return before, after, err
	}
	if err := tree.Each(time.Time{}, func(r keyspace.Record) error {
		after.Add(r)
		return nil
	}); err != nil {
		return before, after, err
	}
	var n int64
	err = c.db.Each(func(r keyspace.Record) error {
		if n++; n%progressRecords == 0 {
			c.progress(c.total + n)
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
		if v := judge(r); v != notUTF8 && v != unfit && !c.displaced[string(r.Key)] {
			before.Add(c.asV2(r))
		}
		return nil
	})
	if err != nil {
		return before, after, err
	}
	c.progress(2 * c.total)
	if d := keyspace.Compare(&before, &after); !d.Equal() {
		return before, after, fmt.Errorf("it does not hold the same as the v3 store: %s", d)
	}
	if tree.Index() < uint64(c.info.Revision) {
		return before, after, fmt.Errorf("its index is %d, below revision %d", tree.Index(), c.info.Revision)
	}
	return before, after, nil
}

// progress tells how many records are done, of which each counts when read and when proven.
func (c *reversal) progress(done int64) {
	if c.Progress != nil {
		c.Progress(done, 2*c.total)
	}
}
