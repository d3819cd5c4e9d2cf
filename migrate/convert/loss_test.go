package convert

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

func TestLosses(t *testing.T) {
	auth := func(t *testing.T) *keyspace.Tree {
		tree := tree(t, 10, 10, 0)
		must(t, tree.ApplyV2(&etcdserverpb.Request{Method: "PUT", Path: "/2/users/root", Val: "{}"}))
		must(t, tree.ApplyV2(&etcdserverpb.Request{Method: "PUT", Path: "/2/roles/guest", Val: "{}"}))
		must(t, tree.ApplyV2(&etcdserverpb.Request{Method: "PUT", Path: "/2/enabled", Val: "true"}))
		return tree
	}
	tests := map[string]struct {
		tree  func(*testing.T) *keyspace.Tree
		old   map[string]map[string]string
		quota int64
		want  Problem
		text  string
	}{
		"v3-keys": {
			old:  map[string]map[string]string{"key": v3Key(3, "theirs", 0)},
			want: Problem{Loss: LossV3Keys, Count: 1, Keys: []string{"theirs"}}, text: "already holds 1 key that",
		},
		"v2-auth": {
			tree: auth, want: Problem{Loss: LossV2Auth, Count: 2}, text: "1 user and 1 role, and its authentication is enabled",
		},
		"over-quota": {
			tree:  func(t *testing.T) *keyspace.Tree { return tree(t, 1000, 1000, 0) },
			quota: 1 << 20, want: Problem{Loss: LossOverQuota, Count: -1}, text: "would take 1.4 MiB and its quota is 1.0 MiB",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.tree == nil {
				tt.tree = func(t *testing.T) *keyspace.Tree { return tree(t, 10, 10, 0) }
			}
			p := params(t, tt.tree(t))
			p.QuotaBytes = tt.quota
			makeDB(t, p.DB, tt.old)
			before := readFile(t, p.DB)

			problems, err := Check(p)
			must(t, err)
			if len(problems) != 1 || !strings.Contains(problems[0].Text, tt.text) {
				t.Fatalf("problems %+v, want %q", problems, tt.text)
			}
			tt.want.Text = problems[0].Text
			if tt.want.Count < 0 {
				c, err := prepare(p)
				must(t, err)
				tt.want.Count = c.size() - tt.quota
				c.close()
			}
			if diff := cmp.Diff(tt.want, problems[0]); diff != "" {
				t.Error(diff)
			}
			var refused *RefusedError
			_, err = ToV3(t.Context(), p)
			if !errors.As(err, &refused) || !cmp.Equal(refused.Problems, problems) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got error %v", err)
			}
			if readFile(t, p.DB) != before {
				t.Error("the db was changed")
			}
			onlyDB(t, p)

			p.AcceptLoss = []Loss{Loss(name)}
			report, err := ToV3(t.Context(), p)
			must(t, err)
			records, _, _ := readDB(t, p.DB)
			if int64(len(records)) != report.Records || !cmp.Equal(report.Lost, problems) {
				t.Errorf("%d records, report %+v", len(records), report)
			}
		})
	}
}

// TestNoQuota has an etcd without a quota, which etcd writes as one below 0.
func TestNoQuota(t *testing.T) {
	p := params(t, tree(t, 100, 0, 0))
	p.QuotaBytes = -1
	problems, err := Check(p)
	must(t, err)
	if len(problems) > 0 {
		t.Errorf("%+v", problems)
	}
}

// TestRerun converts again over the result of a conversion, as after a crash before version.txt was written.
func TestRerun(t *testing.T) {
	p := params(t, tree(t, 100, 10, 10))
	_, err := ToV3(t.Context(), p)
	must(t, err)

	p.Now = now.Add(35 * time.Second) // 4 leases have ended since
	report, err := ToV3(t.Context(), p)
	must(t, err)
	if report.Records != 96 || report.Expired != 4 || len(report.Lost) != 0 {
		t.Errorf("report: %+v", report)
	}

	db, err := bolt.Open(p.DB, 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		for k, v := range v3Key(200, "theirs", 0) {
			must(t, tx.Bucket([]byte("key")).Put([]byte(k), []byte(v)))
		}
		return nil
	}))
	must(t, db.Close())
	var refused *RefusedError
	if _, err = ToV3(t.Context(), p); !errors.As(err, &refused) || refused.Problems[0].Count != 97 {
		t.Errorf("got error %v", err)
	}
	p.AcceptLoss = []Loss{LossV3Keys}
	report, err = ToV3(t.Context(), p)
	must(t, err)
	if report.Revision != 200 || report.Index != 100 { // no client may see revision 101 to 200 a second time
		t.Errorf("report: %+v", report)
	}
}

func TestRefusesDamage(t *testing.T) {
	p := params(t, tree(t, 10, 10, 0))
	check := func(want string) {
		t.Helper()
		before := readFile(t, p.DB)
		_, err := ToV3(t.Context(), p)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), p.DB) {
			t.Errorf("got error %v, want %q", err, want)
		}
		if _, err := Check(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check gave error %v, want %q", err, want)
		}
		if readFile(t, p.DB) != before {
			t.Error("the db was changed")
		}
		onlyDB(t, p)
	}
	makeDB(t, p.DB, map[string]map[string]string{"meta": {"consistent_index": string(uint64Bytes(501))}})
	check("contains raft entry 501, but the raft log ends at 500")

	db, err := bolt.Open(p.DB, 0o600, nil)
	must(t, err)
	check("held by a running etcd")
	must(t, db.Close())

	must(t, os.Truncate(p.DB, 4096*3))
	check("cut short")
	must(t, os.Truncate(p.DB, 0))
	check("meta page")
}

func TestCancelled(t *testing.T) {
	for _, when := range []int64{0, 6000, 30_000} { // before, while writing, while proving
		p := params(t, tree(t, 20_000, 1000, 0))
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := errors.New("told to stop")
		p.Progress = func(done, total int64) {
			if done > when {
				cancel(stop)
			}
		}
		if when == 0 {
			cancel(stop)
		}
		if _, err := ToV3(ctx, p); !errors.Is(err, stop) {
			t.Errorf("at %d: got error %v", when, err)
		}
		if entries, _ := os.ReadDir(filepath.Dir(p.DB)); len(entries) != 0 {
			t.Errorf("at %d: files are left: %v", when, entries)
		}
		cancel(nil)
	}
}
