package keyspace

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
)

// Fingerprint is a digest over records, the same whatever order they are added in. Two equal fingerprints mean that no
// record was lost, added or changed in any field. Records that end by themselves are kept apart by their lease, so that
// it can be told whether whole leases have ended and nothing else has happened. The zero value is ready for use.
type Fingerprint struct {
	Records int64 // how many were added
	Bytes   int64 // of their keys and values

	permanent fpGroup
	leases    map[int64]fpGroup // by lease ID, or by expiry in Unix nanoseconds for a record of the v2 store
	buf       []byte
}

// fpGroup is the digest of some records: the sum of their SHA-256 hashes mod 2^256, lowest 64 bits first.
//
// A sum does not depend on the order, so neither the v2 store's tree nor the v3 store's revisions need sorting. Unlike
// an exclusive or, it tells a record that is there twice from one that is not there. That two different sets of records
// that nobody made for the purpose have the same sum is as likely as that two hashes are equal.
type fpGroup struct {
	sum     [4]uint64
	records int64
}

func (g fpGroup) add(hash [sha256.Size]byte) fpGroup {
	var carry uint64
	for i := range g.sum {
		g.sum[i], carry = bits.Add64(g.sum[i], binary.LittleEndian.Uint64(hash[8*i:]), carry)
	}
	g.records++
	return g
}

// Add takes a record into the fingerprint. It keeps nothing of it.
func (f *Fingerprint) Add(r Record) {
	var expiry, second, nanosecond int64
	if !r.Expiry.IsZero() {
		expiry, second, nanosecond = r.Expiry.UnixNano(), r.Expiry.Unix(), int64(r.Expiry.Nanosecond())
	}
	// The lengths come first, so that no two records give the same bytes.
	b := f.buf[:0]
	for _, n := range [...]int64{
		int64(len(r.Key)), int64(len(r.Value)), r.Created, r.Modified, r.Version, r.Lease, second, nanosecond,
	} {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	b = append(append(b, r.Key...), r.Value...)
	f.buf = b

	f.Records++
	f.Bytes += int64(len(r.Key) + len(r.Value))
	hash := sha256.Sum256(b)
	switch lease := cmp.Or(r.Lease, expiry); {
	case lease == 0:
		f.permanent = f.permanent.add(hash)
	case f.leases == nil:
		f.leases = map[int64]fpGroup{lease: fpGroup{}.add(hash)}
	default:
		f.leases[lease] = f.leases[lease].add(hash)
	}
}

// String gives 16 hexadecimal digits for logs and reports. They say nothing about the records.
func (f *Fingerprint) String() string {
	b := f.permanent.append(nil)
	for _, lease := range slices.Sorted(maps.Keys(f.leases)) {
		b = f.leases[lease].append(binary.LittleEndian.AppendUint64(b, uint64(lease)))
	}
	hash := sha256.Sum256(b)
	return hex.EncodeToString(hash[:8])
}

// MarshalText writes f as String does.
func (f *Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

func (g fpGroup) append(b []byte) []byte {
	for _, n := range g.sum {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return binary.LittleEndian.AppendUint64(b, uint64(g.records))
}

// FingerprintDB takes the fingerprint of what a db holds now. It reads every revision once.
func FingerprintDB(d *DB) (*Fingerprint, error) {
	var f Fingerprint
	err := d.Each(func(r Record) error {
		f.Add(r)
		return nil
	})
	return &f, err
}

// Difference is what lies between two fingerprints.
type Difference struct {
	// Ended are leases of which no record is left. A lease ends with all of its records at once.
	Ended []Lease `json:"ended,omitempty"`
	// Changed are leases with other records than before, and leases that were not there before.
	Changed []Lease `json:"changed,omitempty"`
	// Permanent is whether the records without a lease are others than before.
	Permanent bool `json:"permanent,omitempty"`
	// Before and After are the numbers of records without a lease.
	Before int64 `json:"before"`
	After  int64 `json:"after"`
}

// Lease is the number of records of one lease, before and after.
type Lease struct {
	// ID is a lease ID, or for records of the v2 store the instant of their expiry in Unix nanoseconds.
	ID     int64 `json:"id"`
	Before int64 `json:"before"`
	After  int64 `json:"after"`
}

// Compare gives the difference between two fingerprints. Leases are in ascending order of their IDs.
func Compare(before, after *Fingerprint) Difference {
	d := Difference{
		Permanent: before.permanent != after.permanent,
		Before:    before.permanent.records,
		After:     after.permanent.records,
	}
	for id, b := range before.leases {
		switch a, ok := after.leases[id]; {
		case !ok:
			d.Ended = append(d.Ended, Lease{ID: id, Before: b.records})
		case a != b:
			d.Changed = append(d.Changed, Lease{ID: id, Before: b.records, After: a.records})
		}
	}
	for id, a := range after.leases {
		if _, ok := before.leases[id]; !ok {
			d.Changed = append(d.Changed, Lease{ID: id, After: a.records})
		}
	}
	byID := func(a, b Lease) int { return cmp.Compare(a.ID, b.ID) }
	slices.SortFunc(d.Ended, byID)
	slices.SortFunc(d.Changed, byID)
	return d
}

// Equal reports whether there is no difference at all.
func (d Difference) Equal() bool { return d.Kept() && len(d.Ended) == 0 }

// Kept reports whether nothing was lost, added or changed, other than that leases have ended.
func (d Difference) Kept() bool { return !d.Permanent && len(d.Changed) == 0 }

// String says in words what the difference is.
func (d Difference) String() string {
	if d.Equal() {
		return "no difference"
	}
	var parts []string
	if d.Permanent {
		parts = append(parts, fmt.Sprintf("records without a lease changed: %d before, %d after", d.Before, d.After))
	}
	if len(d.Changed) > 0 {
		before, after := fpCount(d.Changed)
		parts = append(parts, fmt.Sprintf("leases changed: %d, with %d records before, %d after",
			len(d.Changed), before, after))
	}
	if len(d.Ended) > 0 {
		before, _ := fpCount(d.Ended)
		parts = append(parts, fmt.Sprintf("leases ended: %d, with %d records", len(d.Ended), before))
	}
	return strings.Join(parts, "; ")
}

func fpCount(leases []Lease) (before, after int64) {
	for _, l := range leases {
		before += l.Before
		after += l.After
	}
	return before, after
}
