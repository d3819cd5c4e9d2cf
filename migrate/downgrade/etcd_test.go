package downgrade

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// etcdBinary gives the newest etcd of a minor, "3.4", that `make binaries` has built.
func etcdBinary(t testing.TB, minor string) binaries.Binary {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real etcds")
	}
	return pathtest.Binary(t, os.Getenv("ETCD_MIGRATE_BIN_DIR"), minor)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func minor(t testing.TB, s string) versionfile.Minor {
	t.Helper()
	m, err := versionfile.ParseMinor(s)
	must(t, err)
	return m
}

// serve starts an etcd on a data dir, and stops it when the test ends.
func serve(t testing.TB, version, dir string, flags ...string) *pathtest.Server {
	t.Helper()
	return pathtest.Serve(t, etcdBinary(t, version), dir, flags...)
}

// upgrade makes a private etcd take the data over, as a step of a migration does.
func upgrade(t testing.TB, version, dir string, flags ...func(*member.Config)) {
	t.Helper()
	e := private(t, version, dir, flags...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, e.Ready(ctx))
	if version >= "3" {
		_, err := e.ForceSnapshot(ctx)
		must(t, err)
	}
	must(t, e.Stop(ctx))
}

func private(t testing.TB, version, dir string, change ...func(*member.Config)) *member.Etcd {
	t.Helper()
	bin := etcdBinary(t, version)
	cfg := member.Config{Path: bin.Path, Release: bin.Release, DataDir: dir, Name: pathtest.Name, SnapshotCount: 3}
	for _, c := range change {
		c(&cfg)
	}
	e, err := member.Start(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { e.Stop(context.Background()) })
	return e
}

// load reads a stopped member's log and v2 store, as the migrator does.
func load(t testing.TB, dir string) (*raftlog.Log, raftlog.Summary, *keyspace.Tree) {
	t.Helper()
	return loadFrom(t, filepath.Join(dir, "member", "snap"), filepath.Join(dir, "member", "wal"))
}

func loadFrom(t testing.TB, snapDir, walDir string) (*raftlog.Log, raftlog.Summary, *keyspace.Tree) {
	t.Helper()
	log, err := raftlog.Open(snapDir, walDir)
	must(t, err)
	tree, sum, err := replay(log)
	must(t, err)
	return log, sum, tree
}

func replay(log *raftlog.Log) (*keyspace.Tree, raftlog.Summary, error) {
	tree := keyspace.NewTree()
	if s := log.Snapshot(); s.Index > 0 {
		var err error
		if tree, err = keyspace.LoadTree(s.Data); err != nil {
			return nil, raftlog.Summary{}, err
		}
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
	return tree, sum, err
}

func params(t testing.TB, dir, to string) Params {
	t.Helper()
	log, sum, tree := load(t, dir)
	return Params{Log: log, Summary: sum, Tree: tree, SnapDir: filepath.Join(dir, "member", "snap"), To: minor(t, to)}
}

func down(t testing.TB, dir, to string) Report {
	t.Helper()
	r, err := Offline(t.Context(), params(t, dir, to))
	must(t, err)
	return r
}

func same(t testing.TB, what string, before, after pathtest.Content) {
	t.Helper()
	for _, diff := range pathtest.Compare(before, after) {
		t.Errorf("%s: %s", what, diff)
	}
}

func readV3(t testing.TB, s *pathtest.Server) pathtest.Content {
	t.Helper()
	c, err := s.ReadV3(t.Context())
	must(t, err)
	return c
}

var v3Minors = []string{"3.0", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7"}

// TestEveryPair brings the data of each minor down by one: the older etcd serves the same and takes writes, and the newer
// one takes it over again.
func TestEveryPair(t *testing.T) {
	for i, to := range v3Minors[:len(v3Minors)-1] {
		from := v3Minors[i+1]
		t.Run(from+" to "+to, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "data")
			s := serve(t, from, dir)
			must(t, s.FillV3(t.Context(), 50))
			before := readV3(t, s)
			must(t, s.Stop())

			r := down(t, dir, to)
			if r.ClusterVersion != from+".0" || r.RaftIndex == 0 {
				t.Errorf("%+v", r)
			}
			checkFields(t, dir, to)

			s = serve(t, to, dir)
			below := readV3(t, s)
			if to == "3.0" {
				knowTTLs(below, before)
			}
			same(t, "below", before, below)
			must(t, writeMore(s, "below"))
			below = readV3(t, s)
			knowTTLs(below, before)
			must(t, s.Stop())

			upgrade(t, from, dir)
			s = serve(t, from, dir)
			same(t, "above again", below, readV3(t, s))
			must(t, writeMore(s, "above"))
			members, err := memberCount(s)
			must(t, err)
			if members != 1 {
				t.Errorf("there are %d members", members)
			}
			must(t, s.Stop())
		})
	}
}

// checkFields sees that the db has the fields of its minor, and no others.
func checkFields(t testing.TB, dir, minor string) {
	t.Helper()
	db, err := keyspace.OpenDB(filepath.Join(dir, "member", "snap", "db"))
	must(t, err)
	defer db.Close()
	fields := map[string]string{}
	for _, bucket := range []string{"meta", "cluster"} {
		must(t, db.EachIn(bucket, func(k, v []byte) error { fields[string(k)] = string(v); return nil }))
	}
	if fields["clusterVersion"] != minor+".0" {
		t.Errorf("clusterVersion is %q", fields["clusterVersion"])
	}
	for field, since := range map[string]string{"term": "3.5", "storageVersion": "3.6", "downgrade": "3.8", "consistent_index": "3.0"} {
		if _, got := fields[field]; got != (minor >= since) {
			t.Errorf("at %s: there is a field %s: %v", minor, field, got)
		}
	}
	if _, got := fields["confState"]; got && minor < "3.5" {
		t.Errorf("at %s: there is a confState", minor)
	}
}

// knowTTLs puts what another reading says of TTLs into one of an etcd 3.0, which cannot tell.
func knowTTLs(unknowing, knowing pathtest.Content) {
	for name, k := range knowing.Keys {
		if u := unknowing.Keys[name]; u.Lease == k.Lease && k.Lease != 0 {
			u.TTL, u.Expiry = k.TTL, k.Expiry
			unknowing.Keys[name] = u
		}
	}
}

func writeMore(s *pathtest.Server, name string) error {
	c, err := s.V3()
	if err != nil {
		return err
	}
	for i := range 20 {
		if _, err := c.Put(context.Background(), fmt.Sprintf("/more/%s/%d", name, i), name); err != nil {
			return err
		}
	}
	return nil
}

func memberCount(s *pathtest.Server) (int, error) {
	c, err := s.V3()
	if err != nil {
		return 0, err
	}
	r, err := c.MemberList(context.Background())
	if err != nil {
		return 0, err
	}
	return len(r.Members), nil
}
