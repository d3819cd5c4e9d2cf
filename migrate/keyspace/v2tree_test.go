package keyspace

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"
)

// v2Node is what the tests compare of one node, whoever gives it.
type v2Node struct {
	Dir               bool
	Value             string
	Created, Modified uint64
	Expiry            time.Time
}

// v2Nodes gives every node of the tree by its path, expired and hidden ones included.
func v2Nodes(t *Tree) map[string]v2Node {
	nodes := map[string]v2Node{}
	var walk func(path string, n *treeNode)
	walk = func(path string, n *treeNode) {
		got := v2Node{Dir: n.isDir(), Value: n.value, Created: n.created, Modified: n.modified}
		if n.ttl != nil {
			got.Expiry = n.ttl.expiry
		}
		nodes[path] = got
		for name, child := range n.children {
			walk(strings.TrimSuffix(path, "/")+"/"+name, child)
		}
	}
	walk("/", t.root)
	return nodes
}

// v2StoreNodes does the same for etcd's store. Its nodes are reached by reflection because its own listing hides some.
func v2StoreNodes(st v2store.Store) map[string]v2Node {
	nodes := map[string]v2Node{}
	var walk func(path string, n reflect.Value)
	walk = func(path string, n reflect.Value) {
		n = n.Elem()
		children := n.FieldByName("Children")
		got := v2Node{
			Dir: !children.IsNil(), Value: n.FieldByName("Value").String(),
			Created: n.FieldByName("CreatedIndex").Uint(), Modified: n.FieldByName("ModifiedIndex").Uint(),
		}
		if expiry := n.FieldByName("ExpireTime").Interface().(time.Time); !expiry.IsZero() {
			got.Expiry = expiry.UTC()
		}
		nodes[path] = got
		for _, name := range children.MapKeys() {
			walk(strings.TrimSuffix(path, "/")+"/"+name.String(), children.MapIndex(name))
		}
	}
	walk("/", reflect.ValueOf(st).Elem().FieldByName("Root"))
	return nodes
}

// v2Pair is a tree and etcd's store, which get the same requests.
type v2Pair struct {
	tree  *Tree
	store v2store.Store
}

func newV2Pair() *v2Pair { return &v2Pair{NewTree(), v2store.New("/0", "/1")} }

// apply does with the store what etcd 3.5's applierV2store and applyV2Request do (server/etcdserver/apply_v2.go), except
// for the paths that go to the membership, which have a test of their own.
func (p *v2Pair) apply(t *testing.T, r *etcdserverpb.Request) {
	t.Helper()
	if err := p.tree.ApplyV2(r); err != nil {
		t.Fatalf("apply %s: %v", r, err)
	}
	ttl := v2store.TTLOptionSet{Refresh: r.Refresh != nil && *r.Refresh}
	if r.Expiration != 0 {
		ttl.ExpireTime = time.Unix(0, r.Expiration)
	}
	conditional := r.PrevIndex > 0 || r.PrevValue != ""
	switch {
	case r.Method == "POST":
		p.store.Create(r.Path, r.Dir, r.Val, true, ttl)
	case r.Method == "PUT" && r.PrevExist != nil && *r.PrevExist && !conditional:
		p.store.Update(r.Path, r.Val, ttl)
	case r.Method == "PUT" && r.PrevExist != nil && !*r.PrevExist:
		p.store.Create(r.Path, r.Dir, r.Val, false, ttl)
	case r.Method == "PUT" && conditional:
		p.store.CompareAndSwap(r.Path, r.PrevValue, r.PrevIndex, r.Val, ttl)
	case r.Method == "PUT":
		p.store.Set(r.Path, r.Dir, r.Val, ttl)
	case r.Method == "DELETE" && conditional:
		p.store.CompareAndDelete(r.Path, r.PrevValue, r.PrevIndex)
	case r.Method == "DELETE":
		p.store.Delete(r.Path, r.Dir, r.Recursive)
	case r.Method == "QGET":
		p.store.Get(r.Path, r.Recursive, r.Sorted)
	case r.Method == "SYNC":
		p.store.DeleteExpiredKeys(time.Unix(0, r.Time))
	}
}

func (p *v2Pair) compare(t *testing.T, after any) {
	t.Helper()
	if got, want := p.tree.Index(), p.store.Index(); got != want {
		t.Fatalf("after %v: index %d, etcd has %d", after, got, want)
	}
	got, want := v2Nodes(p.tree), v2StoreNodes(p.store)
	if !maps.Equal(got, want) {
		t.Fatalf("after %v: nodes differ (-etcd +tree)\n%s", after, cmp.Diff(want, got))
	}
	p.compareViews(t, time.Unix(0, 1.58e18), want)

	// What is on the heap is what has an expiry, each where it thinks it is.
	expiring := 0
	for _, n := range got {
		if !n.Expiry.IsZero() {
			expiring++
		}
	}
	if len(p.tree.ttls) != expiring {
		t.Fatalf("after %v: %d on the heap, %d with an expiry", after, len(p.tree.ttls), expiring)
	}
	for i, e := range p.tree.ttls {
		if e.at != i || e.node.ttl != e || e.parent.children[e.name] != e.node {
			t.Fatalf("after %v: heap entry %d (%q) is wrong", after, i, e.name)
		}
	}
}

// compareViews holds Each and Stats against etcd's nodes: the keys of users in bytewise order, but not what is over.
func (p *v2Pair) compareViews(t *testing.T, now time.Time, nodes map[string]v2Node) {
	t.Helper()
	var want, got []string
	for path, n := range nodes {
		if n.Dir || !strings.HasPrefix(path, "/1/") {
			continue
		}
		over := false
		for p := path; p != "/"; p = filepath.Dir(p) {
			x := nodes[p].Expiry
			over = over || !x.IsZero() && !x.After(now)
		}
		if !over {
			want = append(want, path[len("/1"):])
		}
	}
	slices.Sort(want)
	size := 0
	p.tree.Each(now, func(r Record) error {
		got = append(got, string(r.Key))
		size += len(r.Key) + len(r.Value)
		return nil
	})
	if !slices.Equal(got, want) {
		t.Fatalf("Each differs (-want +got)\n%s", cmp.Diff(want, got))
	}
	if s := p.tree.Stats(now); s.Keys != len(want) || s.Bytes != int64(size) {
		t.Fatalf("%+v, but %d keys of %d bytes", s, len(want), size)
	}
}

// reload replaces both by what they read back from etcd's snapshot.
func (p *v2Pair) reload(t *testing.T) {
	t.Helper()
	saved, err := p.store.Save()
	if err != nil {
		t.Fatal(err)
	}
	store := v2store.New("/0", "/1")
	if err := store.Recovery(saved); err != nil {
		t.Fatal(err)
	}
	tree, err := LoadTree(saved)
	if err != nil {
		t.Fatal(err)
	}
	p.store, p.tree = store, tree
	p.compare(t, "a reload")
}

// v2Script makes requests out of a source of small numbers: a random one or a fuzzer's bytes.
type v2Script struct {
	next func(n int) int // 0 to n-1
	ops  int64
	now  int64 // of the last SYNC, in seconds since 2020
}

var v2Elements = []string{
	"a", "b", "a-b", "c", "_h", "_", "é", "日本", "a b", "x\xffy", "x\xfey", "\x01", `q"\`, "<&>", "00000000000000000007",
	"members", strings.Repeat("long", 20),
}

var v2Values = []string{"", "1", "2", "v", `{"kind":"Pod"}`, "\x00\x1f\x7f", "\xff\xfe", "日本\u2028", strings.Repeat("V", 300)}

func (s *v2Script) path() string {
	switch s.next(24) {
	case 0:
		return []string{"/", "", "/0", "/1", "/1/", "1", "//", "/..", "/2", "/1/..", "/0/a/../../1"}[s.next(11)]
	case 1:
		return "/1" + strings.Repeat("/d", 25)
	case 2:
		return "1//" + v2Elements[s.next(4)] + "/./" + v2Elements[s.next(4)] + "/../b/"
	case 3:
		return "/2/" + v2Elements[s.next(4)]
	}
	p := "/1"
	for range 1 + s.next(4) {
		if s.next(3) > 0 {
			p += "/" + v2Elements[s.next(4)]
		} else {
			p += "/" + v2Elements[s.next(len(v2Elements))]
		}
	}
	return p
}

// expiration gives none, one to come, one that is over, or one so old that etcd treats it in its own way. No two are the
// same, because in etcd chance decides between equal ones.
func (s *v2Script) expiration() int64 {
	unique := s.ops * 1000
	base := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	switch s.next(12) {
	case 0, 1, 2:
		return base + (s.now+int64(s.next(200)))*1e9 + unique
	case 3:
		return base + (s.now-int64(s.next(50)))*1e9 + unique
	case 4:
		return []int64{unique, -unique, base - 30*365*86400e9 + unique, 9e18 + unique}[s.next(4)]
	}
	return 0
}

func (s *v2Script) bool() *bool {
	b := s.next(2) == 0
	return &b
}

func (s *v2Script) request(p *v2Pair) *etcdserverpb.Request {
	s.ops++
	r := &etcdserverpb.Request{
		ID: uint64(s.ops), Path: s.path(), Val: v2Values[s.next(len(v2Values))], Expiration: s.expiration(),
		Dir: s.next(6) == 0,
	}
	if s.next(6) == 0 {
		r.Refresh = s.bool()
	}
	switch s.next(20) {
	case 0, 1, 2, 3, 4, 5:
		r.Method = "PUT"
	case 6, 7, 8:
		r.Method, r.PrevExist = "PUT", s.bool()
	case 9, 10, 11, 12:
		r.Method = []string{"PUT", "DELETE"}[s.next(2)]
		if s.next(3) == 0 {
			r.PrevExist = s.bool()
		}
		n, _, _ := p.tree.find(treeClean(r.Path))
		if n == nil {
			n = p.tree.root
		}
		switch s.next(4) {
		case 0:
			r.PrevIndex = n.modified
		case 1:
			r.PrevValue = n.value
		case 2:
			r.PrevIndex, r.PrevValue = n.modified, n.value
		case 3:
			r.PrevIndex, r.PrevValue = uint64(s.next(100)), v2Values[s.next(len(v2Values))]
		}
	case 13, 14, 15:
		r.Method, r.Recursive = "DELETE", s.next(4) == 0
	case 16, 17:
		r.Method = "POST"
	case 18:
		r.Method = "QGET"
	case 19:
		r.Method = "SYNC"
		s.now += int64(s.next(40))
		r.Time = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano() + s.now*1e9
		if len(p.tree.ttls) > 0 && s.next(4) == 0 {
			r.Time = p.tree.ttls[0].expiry.UnixNano() + int64(s.next(3)-1) // on the very nanosecond, and beside it
		}
	}
	return r
}

// as36 makes the tree take itself for one of etcd 3.6, whose store it is compared with.
func (p *v2Pair) as36(t *testing.T) {
	p.apply(t, &etcdserverpb.Request{Method: "PUT", Path: "/0/version/", Val: "3.6.0"})
}

func TestTreeAgainstV2Store(t *testing.T) {
	const ops = 20_000
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 2))
			p, s := newV2Pair(), &v2Script{next: rnd.IntN}
			p.as36(t)
			for i := range ops / 4 {
				r := s.request(p)
				p.apply(t, r)
				if i%20 == 0 {
					p.compare(t, r)
				}
				if i%500 == 499 {
					p.reload(t)
				}
			}
			p.compare(t, "all")
			if len(v2Nodes(p.tree)) < 50 {
				t.Fatal("the script leaves too little to compare")
			}
		})
	}
}

func FuzzTreeAgainstV2Store(f *testing.F) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		script := make([]byte, 400)
		for i := range script {
			script[i] = byte(rnd.Uint32())
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		p := newV2Pair()
		s := &v2Script{next: func(n int) int {
			if len(script) == 0 {
				return 0
			}
			b := int(script[0])
			script = script[1:]
			return b % n
		}}
		p.as36(t)
		for len(script) > 0 {
			r := s.request(p)
			p.apply(t, r)
			p.compare(t, r)
		}
		p.reload(t)
		p.apply(t, &etcdserverpb.Request{Method: "SYNC", Time: time.Now().UnixNano()})
		p.compare(t, "SYNC")
	})
}
