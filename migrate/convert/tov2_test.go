package convert

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// serveV2 starts a real etcd 3.x.
func serveV2(t testing.TB, minor int, dir string) *pathtest.Server {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real etcds")
	}
	return pathtest.Serve(t, pathtest.Binary(t, os.Getenv("ETCD_MIGRATE_BIN_DIR"), fmt.Sprintf("3.%d", minor)), dir)
}

// loadV2 reads a stopped member's log and v2 store, as the migrator does.
func loadV2(t testing.TB, dir string) V2Params {
	t.Helper()
	snapDir := filepath.Join(dir, "member", "snap")
	log, err := raftlog.Open(snapDir, filepath.Join(dir, "member", "wal"))
	must(t, err)
	tree := keyspace.NewTree()
	if s := log.Snapshot(); s.Index > 0 {
		tree, err = keyspace.LoadTree(s.Data)
		must(t, err)
	}
	sum, err := log.Each(func(e raftlog.Entry) error {
		switch e.Kind {
		case raftlog.V2:
			return tree.ApplyV2(e.V2)
		case raftlog.V3:
			return tree.ApplyV3(e.V3)
		case raftlog.ConfChange:
			return tree.ApplyConfChange(e.ConfChange)
		}
		return nil
	})
	must(t, err)
	return V2Params{Log: log, Summary: sum, Tree: tree, SnapDir: snapDir, Now: time.Now()}
}

// v2Files gives the names and sizes of a member's files, without what etcd allocates and does not use.
func v2Files(t testing.TB, dir string) map[string]int64 {
	t.Helper()
	files := map[string]int64{}
	must(t, filepath.WalkDir(filepath.Join(dir, "member"), func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			info, err := e.Info()
			must(t, err)
			files[filepath.Base(path)] = info.Size() + info.ModTime().UnixNano()
		}
		return err
	}))
	return files
}

// TestToV2Losses has each thing in the v3 store that the v2 store has no room for.
func TestToV2Losses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := serveV2(t, 0, dir)
	c, err := s.V3()
	must(t, err)
	ctx := t.Context()
	lease, err := c.Grant(ctx, 600)
	must(t, err)
	for _, kv := range [][2]string{
		{"/registry/a", `{"kind":"Pod"}`}, {"/registry/b", `{}`}, {"/registry/_c", `[]`},
		{"/registry/text", "not JSON"}, {"/registry/empty", ""}, {"/registry/dir", `{"a":"directory"}`}, {"/registry/dir/x", `{}`},
		{"compact_rev_key", "5"}, {"/registry/", "{}"}, {"//x", "{}"}, {"/\xff", "{}"}, {"/a/0/members/1f/attributes", "{}"},
		{"/registry/protobuf", "k8s\x00\n\xff"},
	} {
		_, err := c.Put(ctx, kv[0], kv[1])
		must(t, err)
	}
	_, err = c.Put(ctx, "/registry/leased", "1", clientv3.WithLease(lease.ID))
	must(t, err)
	_, err = c.Put(ctx, "/registry/a gone", "{}")
	must(t, err)
	_, err = c.Delete(ctx, "/registry/a gone")
	must(t, err)
	_, err = c.UserAdd(ctx, "alice", "secret")
	must(t, err)
	status, body, err := s.V2(ctx, http.MethodPut, "/old", url.Values{"value": {"v2"}})
	if err != nil || status != http.StatusCreated {
		t.Fatalf("%d %s %v", status, body, err)
	}
	before, err := s.ReadV3(ctx)
	must(t, err)
	must(t, s.Stop())
	untouched := v2Files(t, dir)

	problems, err := CheckV2(ctx, loadV2(t, dir))
	must(t, err)
	counts := map[Loss]int64{}
	var all []Loss
	for _, p := range problems {
		counts[p.Loss] = p.Count
		all = append(all, p.Loss)
		for _, secret := range []string{"not JSON", "k8s", "secret"} {
			if strings.Contains(strings.TrimPrefix(p.Text, "values that are not JSON"), `"`+secret) {
				t.Errorf("a value is shown: %s", p.Text)
			}
		}
	}
	if diff := cmp.Diff(map[Loss]int64{
		LossUnfitKeys: 6, LossNotUTF8: 1, LossNotJSON: 2, LossV3Auth: 1, LossV2Keys: 1,
	}, counts); diff != "" {
		t.Error(diff)
	}
	for loss, want := range map[Loss][]string{
		LossNotUTF8: {"/registry/protobuf"}, LossNotJSON: {"/registry/empty", "/registry/text"}, LossV2Keys: {"/old"},
	} {
		i := slices.IndexFunc(problems, func(p Problem) bool { return p.Loss == loss })
		if diff := cmp.Diff(want, problems[i].Keys); diff != "" || strings.Contains(problems[i].Text, "/registry") {
			t.Errorf("%s: %s; %s", loss, problems[i].Text, diff)
		}
	}
	for i := range all { // any one that is not accepted is enough
		p := loadV2(t, dir)
		p.AcceptLoss = slices.Delete(slices.Clone(all), i, i+1)
		_, err := ToV2(ctx, p)
		var refused *RefusedError
		if !errors.As(err, &refused) || len(refused.Problems) != 1 || refused.Problems[0].Loss != all[i] {
			t.Errorf("without %s: %v", all[i], err)
		}
	}
	if after := v2Files(t, dir); !maps.Equal(untouched, after) {
		t.Errorf("files have changed: %v, %v", untouched, after)
	}

	p := loadV2(t, dir)
	p.AcceptLoss = all
	var done []int64
	p.Progress = func(n, total int64) { done = append(done, n*1000+total) }
	report, err := ToV2(ctx, p)
	must(t, err)
	if report.Records != 7 || report.TTLs != 1 || report.Hidden != 1 || len(report.Lost) != len(all) ||
		report.FingerprintBefore != report.FingerprintAfter || report.Index < uint64(report.Revision) {
		t.Errorf("%+v", report)
	}
	if want := []int64{14*1000 + 28, 28*1000 + 28}; !slices.Equal(done, want) {
		t.Errorf("progress %v", done)
	}
	want := pathtest.Content{Keys: map[string]pathtest.Key{}, Read: before.Read}
	for _, name := range []string{"a", "b", "_c", "text", "empty", "dir/x", "leased"} {
		k := before.Keys["/registry/"+name]
		if k.Modified == 0 {
			t.Fatal(name)
		}
		if k.Lease != 0 {
			k.Expiry = before.Read.Add(600 * time.Second)
		}
		k.Lease, k.TTL = 0, 0
		want.Keys["/registry/"+name] = k
	}
	s = serveV2(t, 0, dir)
	after, err := s.ReadV2(ctx, "/registry/_c")
	must(t, err)
	for _, diff := range pathtest.Compare(want, after) {
		t.Error(diff)
	}
	if left, err := s.ReadV3(ctx); err != nil || len(left.Keys) > 0 {
		t.Errorf("the v3 store holds %d keys, %v", len(left.Keys), err)
	}
	must(t, s.Stop())

	// Once more does nothing.
	untouched = v2Files(t, dir)
	if again, err := ToV2(ctx, loadV2(t, dir)); err != nil || again.Records != 7 {
		t.Errorf("again: %+v, %v", again, err)
	}
	if problems, err := CheckV2(ctx, loadV2(t, dir)); err != nil || len(problems) > 0 {
		t.Errorf("again: %v, %v", problems, err)
	}
	if after := v2Files(t, dir); !maps.Equal(untouched, after) {
		t.Error("files have changed")
	}
}

// TestToV2EveryMinor converts where both stores are served, and goes on with etcd.
func TestToV2EveryMinor(t *testing.T) {
	for minor := range 6 {
		t.Run(fmt.Sprint("3.", minor), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			dir := filepath.Join(t.TempDir(), "data")
			s := serveV2(t, minor, dir)
			c, err := s.V3()
			must(t, err)
			for i := range 50 {
				_, err := c.Put(ctx, fmt.Sprintf("/registry/%d", i%20), fmt.Sprintf(`{"n":%d}`, i))
				must(t, err)
			}
			lease, err := c.Grant(ctx, 100)
			must(t, err)
			_, err = c.Put(ctx, "/registry/leased", "1", clientv3.WithLease(lease.ID))
			must(t, err)
			must(t, s.Stop())

			p := loadV2(t, dir)
			p.Now = time.Date(2040, 5, 5, 5, 5, 5, 5, time.UTC)
			report, err := ToV2(ctx, p)
			must(t, err)
			if report.Records != 21 || report.Revision != 52 || report.Index < 52 {
				t.Errorf("%+v", report)
			}
			p = loadV2(t, dir)
			must(t, p.Tree.Each(p.Now, func(r keyspace.Record) error {
				want := time.Time{}
				if string(r.Key) == "/registry/leased" {
					want = time.Date(2040, 5, 5, 5, 6, 45, 5, time.UTC)
				}
				if !r.Expiry.Equal(want) || r.Modified > 52 || r.Modified < 2 || r.Created > r.Modified {
					t.Errorf("%s: %+v", r.Key, r)
				}
				return nil
			}))
			s = serveV2(t, minor, dir)
			must(t, s.WriteOnce(ctx))
			must(t, s.Stop())
		})
	}
}

func TestToV2Refuses(t *testing.T) {
	base := filepath.Join(t.TempDir(), "data")
	s := serveV2(t, 3, base)
	c, err := s.V3()
	must(t, err)
	_, err = c.Put(t.Context(), "/a", "{}")
	must(t, err)
	must(t, s.Kill())
	killed := loadV2(t, base)
	if _, err := ToV2(t.Context(), killed); !errors.Is(err, ErrUnsettled) {
		t.Errorf("after a kill: %v", err)
	}
	s = serveV2(t, 3, base)
	if _, err := ToV2(t.Context(), killed); !errors.Is(err, keyspace.ErrInUse) {
		t.Errorf("with a running etcd: %v", err)
	}
	must(t, s.Stop())

	ctx, cancel := context.WithCancelCause(t.Context())
	for name, test := range map[string]struct {
		change func(*V2Params)
		want   string
	}{
		"3.6":                    {func(p *V2Params) { p.Tree.SetClusterVersion(versionfile.Minor{Major: 3, Minor: 6}) }, "cluster at etcd 3.6, which does not serve both stores"},
		"2.3":                    {func(p *V2Params) { p.Tree.SetClusterVersion(versionfile.Minor{Major: 2, Minor: 3}) }, "cluster at etcd 2.3, which does not serve both stores"},
		"db is missing":          {func(p *V2Params) { p.SnapDir = t.TempDir() }, "no such file"},
		"the log is not settled": {func(p *V2Params) { p.Summary.Uncommitted = 2 }, "2 entries lie beyond the commit"},
		"the log's end is lost":  {func(p *V2Params) { p.Summary.HardState.Commit = 1 }, "the log has lost its end"},
		"another's membership": {func(p *V2Params) {
			p.Tree = keyspace.NewTree()
			p.Tree.SetClusterVersion(versionfile.Minor{Major: 3, Minor: 3})
		}, "cluster of 0 members"},
	} {
		p := loadV2(t, base)
		test.change(&p)
		before := v2Files(t, base)
		if _, err := ToV2(t.Context(), p); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if after := v2Files(t, base); !maps.Equal(before, after) {
			t.Errorf("%s: files have changed: %v, %v", name, before, after)
		}
	}
	cancel(errors.New("no more of it"))
	if _, err := ToV2(ctx, loadV2(t, base)); err == nil || !strings.Contains(err.Error(), "no more of it") {
		t.Errorf("cancelled: %v", err)
	}
}

// FuzzUpdateDB has bytes that are no db.
func FuzzUpdateDB(f *testing.F) {
	path := filepath.Join(f.TempDir(), "db")
	must(f, updateDB(path, func(tx Tx) error { return noteIndex(tx, 7) })) // which makes one
	whole, err := os.ReadFile(path)
	must(f, err)
	f.Add(whole)
	f.Add(whole[:5000])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "db")
		must(t, os.WriteFile(path, b, 0o600))
		_ = UpdateDB(path, func(tx Tx) error { return noteIndex(tx, 8) }) // must not panic
	})
}
