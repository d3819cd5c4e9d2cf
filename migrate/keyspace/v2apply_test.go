package keyspace

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestTreeUpdateOfDirectory pins the one request that 3.5 and later treat unlike all before, which the store of 3.6
// cannot show.
func TestTreeUpdateOfDirectory(t *testing.T) {
	yes, expiration := true, time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		version, value string
		expiry         time.Time
		counts         uint64
	}{
		{"", "", expiration, 1},
		{"2.3.0", "", expiration, 1},
		{"3.4.0", "", expiration, 1},
		{"3.4.0", "a directory has none", time.Time{}, 0},
		{"3.5.0", "", time.Time{}, 0},
		{"3.6.0", "", time.Time{}, 0},
	} {
		t.Run(tt.version+tt.value, func(t *testing.T) {
			tree := NewTree()
			apply := func(r *etcdserverpb.Request) {
				if err := tree.ApplyV2(r); err != nil {
					t.Fatal(err)
				}
			}
			if tt.version != "" {
				apply(&etcdserverpb.Request{Method: "PUT", Path: "/0/version", Val: tt.version})
			}
			apply(&etcdserverpb.Request{Method: "PUT", Path: "/1/dir", Dir: true})
			before := tree.Index()
			apply(&etcdserverpb.Request{
				Method: "PUT", Path: "/1/dir", Dir: true, Val: tt.value, PrevExist: &yes, Expiration: expiration.UnixNano(),
			})
			want := v2Node{Dir: true, Created: before, Modified: before, Expiry: tt.expiry}
			if diff := cmp.Diff(want, v2Nodes(tree)["/1/dir"]); diff != "" {
				t.Errorf("directory (-want +got)\n%s", diff)
			}
			if got := tree.Index() - before; got != tt.counts {
				t.Errorf("the index rose by %d, want %d", got, tt.counts)
			}
		})
	}
}

func TestTreeRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		r    *etcdserverpb.Request
		want string
	}{
		{"method", &etcdserverpb.Request{Method: "PATCH", Path: "/1/a"}, "no such method"},
		{"no method", &etcdserverpb.Request{}, "no such method"},
		{"version", &etcdserverpb.Request{Method: "PUT", Path: "/0/version", Val: "new"}, "cluster version"},
		{"member", &etcdserverpb.Request{Method: "PUT", Path: "/0/members/ab/attributes", Val: "{}"}, "no such member"},
		{"attributes", &etcdserverpb.Request{Method: "PUT", Path: "/0/members/ab/attributes", Val: "s3cret"}, "of the attributes of member ab: the value is none"},
		{"member ID", &etcdserverpb.Request{Method: "PUT", Path: "/1/0/members/ab/attributes/x/y", Val: "{}"}, "no member ID"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree := NewTree()
			err := tree.ApplyV2(tt.r)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("a value is in %q", err)
			}
			if tree.Index() != 0 {
				t.Errorf("index is %d", tree.Index())
			}
		})
	}
}
