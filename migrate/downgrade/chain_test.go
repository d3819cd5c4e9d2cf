package downgrade

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// fillJSON stores in the v3 store what the v2 store can hold as well: JSON below clean paths, with deleted keys, keys that
// came back, leases, large values and transactions.
func fillJSON(t testing.TB, s *pathtest.Server) {
	t.Helper()
	c, err := s.V3()
	must(t, err)
	ctx := t.Context()
	put := func(key, value string, opts ...clientv3.OpOption) {
		t.Helper()
		_, err := c.Put(ctx, key, value, opts...)
		must(t, err)
	}
	remove := func(key string, opts ...clientv3.OpOption) {
		t.Helper()
		_, err := c.Delete(ctx, key, opts...)
		must(t, err)
	}
	for i := range 30 {
		put(fmt.Sprintf("/registry/pods/default/pod-%02d", i), fmt.Sprintf(`{"kind":"Pod","n":%d}`, i))
		put(fmt.Sprintf("/registry/gone/%02d", i), `{"kind":"Gone"}`)
	}
	remove("/registry/gone/", clientv3.WithPrefix())
	put("/registry/back", `{"n":1}`)
	remove("/registry/back")
	put("/registry/back", `{"n":2}`)
	for i := range 3 {
		lease, err := c.Grant(ctx, int64(3600+i))
		must(t, err)
		put(fmt.Sprintf("/registry/events/%d", i), `{"kind":"Event"}`, clientv3.WithLease(lease.ID))
		put(fmt.Sprintf("/registry/events/%d-too", i), `{"kind":"Event"}`, clientv3.WithLease(lease.ID))
	}
	for i := range 3 {
		put("/registry/changed", fmt.Sprintf(`{"n":%d}`, i))
	}
	put("/registry/large", `"`+strings.Repeat("0123456789", 90<<10)+`"`)
	put("/registry/text", `"<a href=\"\u2028\"> & ünïcödé 键 \\ \u0000"`)
	put("/registry/ünïcödé-键 with space", `null`)
	put("/registry/_hidden/a", `[1,2,3]`)
	_, err = c.Txn(ctx).Then(clientv3.OpPut("/txn/a", "1"), clientv3.OpPut("/txn/b", "2"), clientv3.OpDelete("/registry/changed")).Commit()
	must(t, err)
	put("/registry/deleted last", `{}`)
	remove("/registry/deleted last") // so the revision is above that of every key
}

func toV2(t testing.TB, dir string) convert.V2Report {
	t.Helper()
	log, sum, tree := load(t, dir)
	r, err := convert.ToV2(t.Context(), convert.V2Params{
		Log: log, Summary: sum, Tree: tree, SnapDir: filepath.Join(dir, "member", "snap"), Now: time.Now(),
	})
	must(t, err)
	return r
}

func toV3(t testing.TB, dir string) {
	t.Helper()
	_, sum, tree := load(t, dir)
	_, err := convert.ToV3(t.Context(), convert.Params{
		Tree: tree, RaftIndex: sum.HardState.Commit, RaftTerm: sum.LastTerm, Now: time.Now(),
		DB: filepath.Join(dir, "member", "snap", "db"),
	})
	must(t, err)
}

func readV2(t testing.TB, s *pathtest.Server) pathtest.Content {
	t.Helper()
	c, err := s.ReadV2(t.Context(), "/registry/_hidden")
	must(t, err)
	return c
}

func putV2(t testing.TB, s *pathtest.Server, key, value string) {
	t.Helper()
	status, body, err := s.V2(t.Context(), http.MethodPut, key, url.Values{"value": {value}})
	must(t, err)
	if status != http.StatusCreated {
		t.Fatalf("PUT %s: %d %s", key, status, body)
	}
}

// withoutLeases is what a v2 store holds of a v3 store's keys.
func withoutLeases(c pathtest.Content) pathtest.Content {
	v2 := pathtest.Content{Keys: map[string]pathtest.Key{}, Revision: c.Revision, Read: c.Read}
	for name, k := range c.Keys {
		k.Lease, k.TTL = 0, 0
		v2.Keys[name] = k
	}
	return v2
}

// TestAllTheWay goes from 3.7 to 2.2, either without any etcd in between or with each on the way taking the data over,
// and up to 3.7 again through every etcd.
func TestAllTheWay(t *testing.T) {
	for name, stops := range map[string]bool{"at one go": false, "with every etcd": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "data")
			s := serve(t, "3.7", dir)
			fillJSON(t, s)
			before := readV3(t, s)
			c, err := s.V3()
			must(t, err)
			r, err := c.Get(t.Context(), "x")
			must(t, err)
			revision := uint64(r.Header.Revision)
			must(t, s.Stop())

			for _, to := range slices.Backward(v3Minors[:len(v3Minors)-1]) {
				down(t, dir, to)
				if stops {
					upgrade(t, to, dir)
				}
			}
			if report := toV2(t, dir); report.Index < revision || report.Revision != int64(revision) {
				t.Errorf("the revision was %d: %+v", revision, report)
			}
			for _, to := range []string{"3.0", "2.3", "2.2"} {
				if to != "3.0" {
					down(t, dir, to)
				}
				if stops {
					s := serve(t, to, dir)
					same(t, to, withoutLeases(before), readV2(t, s))
					must(t, s.Stop())
				}
			}

			s = serve(t, "2.2", dir)
			below := readV2(t, s)
			same(t, "2.2", withoutLeases(before), below)
			checkWatch(t, s, revision)
			putV2(t, s, "/written by 2.2", "{}")
			below = readV2(t, s)
			if k := below.Keys["/written by 2.2"]; k.Modified <= int64(revision) {
				t.Errorf("a new key has index %d, and the revision was %d", k.Modified, revision)
			}
			must(t, s.Stop())

			upgrade(t, "2.3", dir)
			upgrade(t, "3.0", dir)
			toV3(t, dir)
			empty := func(c *member.Config) { c.V2 = true }
			e := private(t, "3.0", dir, empty)
			must(t, e.Ready(t.Context()))
			must(t, e.EmptyV2(t.Context(), []string{"registry", "txn", "written by 2.2"}))
			_, err = e.ForceSnapshot(t.Context())
			must(t, err)
			must(t, e.Stop(t.Context()))
			for _, m := range v3Minors[1:] {
				upgrade(t, m, dir)
			}
			s = serve(t, "3.7", dir)
			above := readV3(t, s)
			same(t, "3.7 again", below, withoutLeases(above))
			must(t, s.Stop())
		})
	}
}

// checkWatch sees that a watch from an index of before is not left to wait.
func checkWatch(t *testing.T, s *pathtest.Server, index uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	status, body, err := s.V2(ctx, http.MethodGet, "/registry/pods",
		url.Values{"wait": {"true"}, "recursive": {"true"}, "waitIndex": {fmt.Sprint(index - 3)}})
	if err != nil || status != http.StatusBadRequest || !strings.Contains(string(body), `"errorCode":401`) {
		t.Errorf("a watch from index %d got %d %s %v", index-3, status, body, err)
	}
}
