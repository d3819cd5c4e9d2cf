package keyspace

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"
)

// TestLoadTree compares with what etcd reads from the same JSON.
func TestLoadTree(t *testing.T) {
	for name, snapshot := range map[string]string{
		"fresh":    `{"Root":{"Path":"/","Children":{}},"CurrentIndex":0}`,
		"no order": `{"CurrentIndex":7,"Root":{"Children":{"1":{"Children":{"a":{"Value":"v","ModifiedIndex":3,"CreatedIndex":2}}}}}}`,
		"spaces":   " {\n\"Root\" : { \"Children\" :{ \"1\":{\"Children\" : { } }} } ,\t\"CurrentIndex\" : 12 }\r\n ",
		"unknown": `{"Future":[{"x":[1,{"y":"}]\""}]},null],"Root":{"New":-1.5e9,"Children":{"1":{"Children":{"a":{"More":{},` +
			`"Value":"v","Children":null,"Flag":true}}}}},"CurrentIndex":1,"Stats":{"a":1}}`,
		"escapes":     `{"Root":{"Children":{"1":{"Children":{"\u0061\n\"\\":{"Value":"\u2028\u003c\ud83d\ude00\ud800 \b\f"}}}}},"CurrentIndex":1}`,
		"not UTF-8":   "{\"Root\":{\"Children\":{\"1\":{\"Children\":{\"a\xff\xfeb\":{\"Value\":\"\xe6\x97\\\"\xff\"}}}}},\"CurrentIndex\":1}",
		"same name":   "{\"Root\":{\"Children\":{\"1\":{\"Children\":{\"a\xff\":{\"Value\":\"1\",\"ExpireTime\":\"2030-01-01T00:00:00Z\"},\"a\xfe\":{\"Value\":\"2\"}}}}},\"CurrentIndex\":1}",
		"expiry":      `{"Root":{"Children":{"1":{"Children":{"a":{"Path":"/1/a","ExpireTime":"2015-06-01T12:00:00.123456789+02:00"},"b":{"ExpireTime":"0001-01-01T00:00:00Z"}}}}},"CurrentIndex":1}`,
		"directories": `{"Root":{"Children":{"1":{"Children":{"dir":{"ExpireTime":"2030-01-01T00:00:00Z","Children":{"k":{"Value":""}}},"empty":{"Children":{}}}},"2":{"Children":{}}}},"CurrentIndex":9223372036854775807}`,
	} {
		t.Run(name, func(t *testing.T) {
			store := v2store.New("/0", "/1")
			if err := store.Recovery([]byte(snapshot)); err != nil {
				t.Fatal(err)
			}
			tree, err := LoadTree([]byte(snapshot))
			if err != nil {
				t.Fatal(err)
			}
			pair := &v2Pair{tree, store}
			pair.compare(t, name)
			pair.apply(t, &etcdserverpb.Request{Method: "SYNC", Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()})
			pair.compare(t, "SYNC")
		})
	}
}

func TestLoadTreeRefuses(t *testing.T) {
	deep := strings.Repeat(`{"Children":{"d":`, treeMaxDepth+1)
	for _, tt := range []struct{ snapshot, want string }{
		{``, "offset 0 of its 0 bytes: it is cut off"},
		{`null`, `'n' is where '{' should be`},
		{`{}`, "no Root or no CurrentIndex"},
		{`{"Root":{"Children":{}}}`, "no Root or no CurrentIndex"},
		{`{"Root":null,"CurrentIndex":1}`, "'n' is where '{' should be"},
		{`{"Root":{},"CurrentIndex":1}`, "its Root is no directory"},
		{`{"Root":{"Children":{"1":{"Value":"a"}}},"CurrentIndex":1}`, "/1 is no directory"},
		{`{"Root":{"Children":{},"ExpireTime":"2015-06-01T12:00:00Z"},"CurrentIndex":1}`, "no directory that stays"},
		{`{"Root":{"Children":{"a/b":{}}},"CurrentIndex":1}`, "a name in a directory"},
		{`{"Root":{"Children":{"":{}}},"CurrentIndex":1}`, "a name in a directory"},
		{`{"Root":{"Children":{"a":null}},"CurrentIndex":1}`, "'n' is where '{' should be"},
		{`{"Root":{"Children":{"a":{"ExpireTime":"tomorrow"}}},"CurrentIndex":1}`, "an ExpireTime is no time"},
		{`{"Root":{"Children":{"a":{"Value":"\x"}}},"CurrentIndex":1}`, "offset 38 of its 59 bytes: a string has an escape"},
		{"{\"Root\":{\"Children\":{\"a\":{\"Value\":\"a\nb\"}}},\"CurrentIndex\":1}", "offset 36 of its 60 bytes: a string has a control character"},
		{`{"Root":{"Children":{}},"CurrentIndex":9223372036854775808}`, "an index is too large"},
		{`{"Root":{"Children":{}},"CurrentIndex":-1}`, "an index is no number"},
		{`{"Root":{"Children":{}},"CurrentIndex":1.5}`, "a comma or a closing brace is missing"},
		{`{"Root":{"Children":{}},"CurrentIndex":1}{}`, "something follows its end"},
		{`{"Root":` + deep, "nest more than 100000 deep"},
		{`{"Stats":}`, "a value is missing"},
	} {
		_, err := LoadTree([]byte(tt.snapshot))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.60s: got %v, want %q", tt.snapshot, err, tt.want)
		}
	}
}

// TestLoadTreeCutOff reads every beginning of a snapshot: none may pass for a whole one.
func TestLoadTreeCutOff(t *testing.T) {
	store := v2store.New("/0", "/1")
	store.Set("/1/a/é", false, "<v>\"\xff", v2store.TTLOptionSet{ExpireTime: time.Unix(2e9, 5)})
	store.Delete("/1/none", true, true)
	saved, err := store.Save()
	if err != nil {
		t.Fatal(err)
	}
	for n := range saved {
		if n < len(saved)-3000 && n > 3000 {
			continue // the empty event history
		}
		if _, err := LoadTree(saved[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes were accepted", n, len(saved))
		}
	}
	if _, err := LoadTree(saved); err != nil {
		t.Fatal(err)
	}
}

func FuzzLoadTree(f *testing.F) {
	f.Add([]byte(`{"Root":{"Path":"/","CreatedIndex":0,"ModifiedIndex":0,"ExpireTime":"0001-01-01T00:00:00Z","Value":"","Children":` +
		`{"0":{"Children":{}},"1":{"Children":{"a":{"ExpireTime":"2015-06-01T12:00:00+02:00","Value":"\u003c","Children":null}}}}},` +
		`"WatcherHub":{"EventHistory":{"Queue":{"Events":[null,{"action":"set"}]}}},"CurrentIndex":3,"Stats":{},"CurrentVersion":2}`))
	f.Add([]byte(`{"Root":{"Children":{}},"CurrentIndex":1}`))
	f.Fuzz(func(t *testing.T, snapshot []byte) {
		before := string(snapshot)
		tree, err := LoadTree(snapshot)
		if string(snapshot) != before {
			t.Fatal("the snapshot was changed")
		}
		if err != nil {
			return
		}
		now := time.Unix(1.5e9, 0)
		keys := 0
		if err := tree.Each(now, func(Record) error { keys++; return nil }); err != nil {
			t.Fatal(err)
		}
		if s := tree.Stats(now); s.Keys != keys {
			t.Fatalf("%d records, %+v", keys, s)
		}
		tree.Members()
		tree.RemovedMembers()
		if err := tree.ApplyV2(&etcdserverpb.Request{Method: "SYNC", Time: 2e18}); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzLoadTreeString reads one string as a name and as a value, and compares with encoding/json.
func FuzzLoadTreeString(f *testing.F) {
	for _, s := range []string{`plain`, `\u0000\ud83d\ude00\ud83d`, "\xff\\\"", `\`, `\u12`, "a\x00", "日本"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var want string
		wantErr := json.Unmarshal([]byte(`"`+s+`"`), &want)
		value := `{"Root":{"Children":{"1":{"Children":{"k":{"Value":"` + s + `"}}}}},"CurrentIndex":1}`
		name := `{"Root":{"Children":{"1":{"Children":{"` + s + `":{}}}}},"CurrentIndex":1}`

		tree, err := LoadTree([]byte(value))
		if wantErr == nil {
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := tree.value("/1/k"); got != want {
				t.Fatalf("value %q, want %q", got, want)
			}
		} else if err == nil && !strings.Contains(s, `"`) {
			t.Fatalf("value %q was accepted: %v", s, wantErr)
		}

		tree, err = LoadTree([]byte(name))
		if wantErr != nil || want == "" || strings.Contains(want, "/") {
			if err == nil && !strings.Contains(s, `"`) {
				t.Fatalf("name %q was accepted", s)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.TopLevel(); len(got) != 1 || got[0] != want {
			t.Fatalf("names %q, want %q", got, want)
		}
	})
}

// v2Key and v2Value make a benchmark's keys as Kubernetes would name them, and values of about 100 bytes.
func v2Key(i int) string { return fmt.Sprintf("/1/registry/pods/namespace-%03d/pod-%07d", i%500, i) }

func v2Value(i int, escaped bool) string {
	if escaped {
		return fmt.Sprintf(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"pod-%07d","uid":"%07d"},"status":{}}`, i, i)
	}
	return fmt.Sprintf("%-100d", i)
}

// v2Snapshot writes the JSON of a store with this many keys, as etcd's Save would, without needing etcd's memory for it.
func v2Snapshot(keys int, escaped bool) []byte {
	var b strings.Builder
	fields := func(path string, index int, value string) {
		v, _ := json.Marshal(value)
		fmt.Fprintf(&b, `{"Path":"%s","CreatedIndex":%d,"ModifiedIndex":%d,"ExpireTime":"0001-01-01T00:00:00Z","Value":%s,"Children":`,
			path, index, index, v)
	}
	dir := func(path, name string) {
		fields(path, 3, "")
		fmt.Fprintf(&b, `{"%s":`, name)
	}
	b.WriteString(`{"Root":`)
	dir("/", "1")
	dir("/1", "registry")
	dir("/1/registry", "pods")
	fields("/1/registry/pods", 3, "")
	b.WriteByte('{')
	for ns := range 500 {
		if ns > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"namespace-%03d":`, ns)
		fields(fmt.Sprintf("/1/registry/pods/namespace-%03d", ns), 3, "")
		b.WriteByte('{')
		for i := ns; i < keys; i += 500 {
			if i > ns {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `"pod-%07d":`, i)
			fields(v2Key(i), 1_000_000+i, v2Value(i, escaped))
			b.WriteString("null}")
		}
		b.WriteString("}}")
	}
	fmt.Fprintf(&b, `}}}}}}}},"CurrentIndex":%d,"CurrentVersion":2}`, 3_000_000+keys)
	return []byte(b.String())
}

// TestV2Snapshot makes sure that the benchmark reads what etcd would.
func TestV2Snapshot(t *testing.T) {
	for _, escaped := range []bool{false, true} {
		snapshot := v2Snapshot(2000, escaped)
		store := v2store.New("/0", "/1")
		if err := store.Recovery(snapshot); err != nil {
			t.Fatal(err)
		}
		tree, err := LoadTree(snapshot)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := v2Nodes(tree), v2StoreNodes(store); len(got) != 2000+505 || !maps.Equal(got, want) {
			t.Fatalf("%d nodes, differ (-etcd +tree)\n%s", len(got), cmp.Diff(want, got))
		}
	}
}

// heapInUse gives the bytes that are reachable.
func v2HeapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkLoadTree(b *testing.B) {
	for _, escaped := range []bool{false, true} {
		b.Run(fmt.Sprintf("keys=1000000/escaped=%v", escaped), func(b *testing.B) {
			snapshot := v2Snapshot(1_000_000, escaped)
			b.SetBytes(int64(len(snapshot)))
			b.ReportAllocs()
			before := v2HeapInUse()
			var tree *Tree
			for b.Loop() {
				var err error
				if tree, err = LoadTree(snapshot); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(v2HeapInUse()-before)/1e6, "tree-MB")
			b.ReportMetric(float64(len(snapshot))/1e6, "snapshot-MB")
			runtime.KeepAlive(tree)
		})
	}
}

// BenchmarkReplay includes the decoding of the requests. With v2store it is etcd's own store that gets them.
func BenchmarkReplay(b *testing.B) {
	for _, keys := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprintf("puts=%d", keys), func(b *testing.B) { benchmarkReplay(b, keys, false) })
		b.Run(fmt.Sprintf("v2store/puts=%d", keys), func(b *testing.B) { benchmarkReplay(b, keys, true) })
	}
}

func benchmarkReplay(b *testing.B, keys int, etcd bool) {
	entries := make([][]byte, keys)
	for i, k := range rand.New(rand.NewPCG(1, 5)).Perm(keys) {
		r := etcdserverpb.Request{ID: uint64(i), Method: "PUT", Path: v2Key(k), Val: v2Value(k, true)}
		var err error
		if entries[i], err = r.Marshal(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	before := v2HeapInUse()
	var pair v2Pair
	for b.Loop() {
		pair = *newV2Pair()
		for _, entry := range entries {
			var r etcdserverpb.Request
			if err := r.Unmarshal(entry); err != nil {
				b.Fatal(err)
			}
			if etcd {
				pair.store.Set(r.Path, r.Dir, r.Val, v2store.TTLOptionSet{})
			} else if err := pair.tree.ApplyV2(&r); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(v2HeapInUse()-before)/1e6, "tree-MB")
	runtime.KeepAlive(pair)
	runtime.KeepAlive(entries)
}

func BenchmarkEach(b *testing.B) {
	tree, err := LoadTree(v2Snapshot(1_000_000, false))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		tree.Each(time.Now(), func(Record) error { n++; return nil })
		if n != 1_000_000 {
			b.Fatal(n)
		}
	}
}
