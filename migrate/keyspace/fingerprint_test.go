package keyspace

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/quick"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fpRecord is a Record that testing/quick can make.
type fpRecord struct {
	Key, Value                 []byte
	Created, Modified, Version int64
	Lease                      uint8
	Expiry                     uint16 // seconds from a fixed instant, 0 for none
}

func (r fpRecord) record() Record {
	rec := Record{
		Key: r.Key, Value: r.Value, Created: r.Created, Modified: r.Modified, Version: r.Version,
		Lease: int64(r.Lease % 4),
	}
	if r.Expiry%8 != 0 {
		rec.Expiry = time.Unix(1e9+int64(r.Expiry%8), 5)
	}
	return rec
}

func fpOf(records ...Record) *Fingerprint {
	f := new(Fingerprint)
	for _, r := range records {
		f.Add(r)
	}
	return f
}

func TestFingerprintIgnoresOrder(t *testing.T) {
	property := func(rs []fpRecord, seed uint64) bool {
		var records []Record
		for _, r := range rs {
			records = append(records, r.record())
		}
		before := fpOf(records...)
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(records), func(i, j int) {
			records[i], records[j] = records[j], records[i]
		})
		after := fpOf(records...)
		return before.String() == after.String() && Compare(before, after).Equal() &&
			before.Records == int64(len(records)) && before.Bytes == after.Bytes
	}
	if err := quick.Check(property, nil); err != nil {
		t.Error(err)
	}
}

func TestFingerprintSeesEveryField(t *testing.T) {
	base := Record{
		Key: []byte("/a"), Value: []byte("bc"), Created: 3, Modified: 7, Version: 2, Lease: 9,
		Expiry: time.Unix(1700000000, 1),
	}
	changes := map[string]func(*Record){
		"key":              func(r *Record) { r.Key = []byte("/b") },
		"value":            func(r *Record) { r.Value = []byte("bd") },
		"key/value border": func(r *Record) { r.Key, r.Value = []byte("/ab"), []byte("c") },
		"created":          func(r *Record) { r.Created++ },
		"modified":         func(r *Record) { r.Modified++ },
		"created/modified": func(r *Record) { r.Created, r.Modified = r.Modified, r.Created },
		"version":          func(r *Record) { r.Version++ },
		"lease":            func(r *Record) { r.Lease++ },
		"no lease":         func(r *Record) { r.Lease = 0 },
		"expiry second":    func(r *Record) { r.Expiry = r.Expiry.Add(time.Second) },
		"expiry nano":      func(r *Record) { r.Expiry = r.Expiry.Add(1) },
		"far expiry":       func(r *Record) { r.Expiry = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) },
		"no expiry":        func(r *Record) { r.Expiry = time.Time{} },
	}
	other := Record{Key: []byte("/other"), Created: 1, Modified: 1, Version: 1}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			changed := base
			change(&changed)
			before, after := fpOf(other, base), fpOf(other, changed)
			if before.String() == after.String() {
				t.Error("the change does not show in the text")
			}
			if d := Compare(before, after); d.Kept() || d.Equal() {
				t.Errorf("the change was not noticed: %+v", d)
			}
		})
	}
}

func TestFingerprintCountsRepeats(t *testing.T) {
	r := Record{Key: []byte("/a"), Created: 1, Modified: 1}
	for n := range 4 {
		records := make([]Record, n)
		for i := range records {
			records[i] = r
		}
		if d := Compare(fpOf(), fpOf(records...)); d.Equal() != (n == 0) || d.After != int64(n) {
			t.Errorf("%d times the same record: %+v", n, d)
		}
	}
}

func TestCompare(t *testing.T) {
	stay := Record{Key: []byte("/stay"), Modified: 1}
	leased := func(lease int64, key string) Record { return Record{Key: []byte(key), Modified: 2, Lease: lease} }
	tests := map[string]struct {
		before, after []Record
		want          Difference
		kept, equal   bool
		text          string
	}{
		"nothing": {kept: true, equal: true, text: "no difference"},
		"same": {
			before: []Record{stay, leased(1, "a"), leased(2, "b")},
			after:  []Record{leased(2, "b"), leased(1, "a"), stay},
			want:   Difference{Before: 1, After: 1}, kept: true, equal: true, text: "no difference",
		},
		"a lease has ended": {
			before: []Record{stay, leased(1, "a"), leased(2, "b"), leased(2, "c")},
			after:  []Record{stay, leased(1, "a")},
			want:   Difference{Before: 1, After: 1, Ended: []Lease{{ID: 2, Before: 2}}},
			kept:   true, text: "leases ended: 1, with 2 records",
		},
		"a lease has ended in part": {
			before: []Record{leased(2, "b"), leased(2, "c")},
			after:  []Record{leased(2, "b")},
			want:   Difference{Changed: []Lease{{ID: 2, Before: 2, After: 1}}},
			text:   "leases changed: 1, with 2 records before, 1 after",
		},
		"a record was lost, a lease has ended": {
			before: []Record{stay, leased(1, "a")},
			want:   Difference{Permanent: true, Before: 1, Ended: []Lease{{ID: 1, Before: 1}}},
			text:   "records without a lease changed: 1 before, 0 after; leases ended: 1, with 1 records",
		},
		"a lease was lost": {
			before: []Record{leased(1, "a")},
			after:  []Record{leased(0, "a")},
			want:   Difference{Permanent: true, After: 1, Ended: []Lease{{ID: 1, Before: 1}}},
			text:   "records without a lease changed: 0 before, 1 after; leases ended: 1, with 1 records",
		},
		"another lease": {
			before: []Record{leased(1, "a")},
			after:  []Record{leased(5, "a")},
			want:   Difference{Ended: []Lease{{ID: 1, Before: 1}}, Changed: []Lease{{ID: 5, After: 1}}},
			text:   "leases changed: 1, with 0 records before, 1 after; leases ended: 1, with 1 records",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := Compare(fpOf(tt.before...), fpOf(tt.after...))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if got.Kept() != tt.kept || got.Equal() != tt.equal {
				t.Errorf("kept %v, equal %v, want %v, %v", got.Kept(), got.Equal(), tt.kept, tt.equal)
			}
			if got.String() != tt.text {
				t.Errorf("got %q, want %q", got, tt.text)
			}
		})
	}
}

func TestFingerprintText(t *testing.T) {
	f := fpOf(Record{Key: []byte("/secret"), Value: []byte("hidden"), Modified: 1}, Record{Key: []byte("x"), Lease: 4})
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) != 18 || strings.Contains(string(text), "secret") || f.String() == new(Fingerprint).String() {
		t.Errorf("got %s", text)
	}
}

func BenchmarkFingerprint(b *testing.B) {
	const records = 100_000
	value := make([]byte, 400)
	keys := make([][]byte, records)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "/registry/pods/default/pod-%06d", i)
	}
	for b.Loop() {
		var f Fingerprint
		for i, k := range keys {
			f.Add(Record{Key: k, Value: value, Created: int64(i), Modified: int64(i), Version: 1, Lease: int64(i % 1000)})
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/100k")
}
