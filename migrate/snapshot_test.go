package migrate_test

import (
	"os/exec"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// restored is what the etcdctl of that minor makes of the member's db.
func (m member) restored(t *testing.T, minor string) member {
	t.Helper()
	bin := newest(t, m.set, minor)
	m2 := blank(t, m.set)
	m2.content = m.content
	cmd := exec.Command(filepath.Join(filepath.Dir(bin.Path), "etcdctl-"+bin.Release.String()), "snapshot", "restore",
		filepath.Join(m.dir, "member", "snap", "db"), "--skip-hash-check", "--data-dir", m2.dir,
		"--name", pathtest.Name, "--initial-cluster", pathtest.Name+"=http://127.0.0.1:1", "--initial-advertise-peer-urls", "http://127.0.0.1:1")
	cmd.Env = []string{"ETCDCTL_API=3"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return m2
}

// awaitBatch makes etcd write to the db what it has had for 100 ms at most: older ones may end without, since it is in
// their log, too.
func awaitBatch(t *testing.T) func(*pathtest.Server) {
	return func(s *pathtest.Server) {
		c, err := s.V3()
		must(t, err)
		_, err = etcdserverpb.NewMaintenanceClient(c.ActiveConnection()).Hash(t.Context(), &etcdserverpb.HashRequest{})
		must(t, err) // which commits it first
	}
}

// TestRestoredByAnOlderEtcd: the db that etcd 3.4 was brought back with still has the raft state that only 3.5 writes, but the
// cluster is at 3.4, and so says its log.
func TestRestoredByAnOlderEtcd(t *testing.T) {
	set := etcds(t)
	newer := v3Only(t, set, awaitBatch(t), "3.5")
	m := newer.restored(t, "3.4")
	m.on(t, "3.4", func(s *pathtest.Server) { m.content = read(t, s, versionfile.Etcd3) })
	st := inspect(t, m.dir)
	if st.Version.Minor() != v(3, 4) || st.Version.Storage != versionfile.Etcd3 {
		t.Fatalf("is taken for %s because of %v", st.Version, st.Evidence)
	}
	r := m.migrate(t, "3.5")
	if r.From.Minor() != v(3, 4) {
		t.Errorf("migrated from %s", r.From)
	}
	m.migrate(t, "3.7")
	m.serves(t, "3.7")
}

// TestRestoredSnapshot: a data dir that `etcdctl snapshot restore` has just made, which no etcd has run on, is known for what
// it is. The db still has the member that the snapshot was taken of (F07).
func TestRestoredSnapshot(t *testing.T) {
	set := etcds(t)
	for _, minor := range []string{"3.0", "3.2", "3.3", "3.4", "3.5"} {
		t.Run(minor, func(t *testing.T) {
			t.Parallel()
			m := v3Only(t, set, awaitBatch(t), minor).restored(t, minor)
			st := inspect(t, m.dir)
			if st.Version.Minor().String() != minor {
				t.Errorf("is taken for %s because of %v, problems %v", st.Version, st.Evidence, st.Problems)
			}
			if minor < "3.5" && !hasProblem(st, "members-differ") {
				t.Errorf("the members of the db are %v, and the problems %v", st.V3.Members, st.Problems)
			}
			m.migrate(t, "3.7")
			m.serves(t, "3.7")
		})
	}
}
