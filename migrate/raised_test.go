package migrate_test

import (
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestVersionRaised: an etcd that is killed right after it has proposed the new cluster version leaves that in its log, and not as
// committed. The older etcd would commit it, and panic; the data is the newer one's.
func TestVersionRaised(t *testing.T) {
	set := etcds(t)
	for _, tc := range []struct{ from, next string }{{"3.6", "3.7"}, {"3.5", "3.6"}, {"3.3", "3.4"}} {
		t.Run(tc.from, func(t *testing.T) {
			t.Parallel()
			m := write(t, set, tc.from, versionfile.Etcd3)
			m.writeVersion(t, m.version.String())
			propose(t, m.dir, tc.next)
			fails(t, m.clone(t), tc.from, "")
			if st := inspect(t, m.dir); st.Version.Minor().String() != tc.next {
				t.Errorf("is taken for %s, because of %v", st.Version, st.Evidence)
			}
			m.migrate(t, "3.7")
			m.serves(t, "3.7")
		})
	}
}

// propose writes a cluster version into the log that is not committed yet, in the form that the etcd of that minor does.
func propose(t *testing.T, dir, minor string) {
	t.Helper()
	log, err := raftlog.Open(filepath.Join(dir, "member/snap"), filepath.Join(dir, "member/wal"))
	must(t, err)
	w, err := wal.Open(zap.NewNop(), filepath.Join(dir, "member/wal"), walpb.Snapshot{Index: log.Snapshot().Index, Term: log.Snapshot().Term})
	must(t, err)
	_, state, entries, err := w.ReadAll()
	must(t, err)
	data, err := (&etcdserverpb.InternalRaftRequest{
		Header: &etcdserverpb.RequestHeader{ID: 1}, ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: minor + ".0"}}).Marshal()
	if minor == "3.4" {
		data, err = (&etcdserverpb.Request{ID: 1, Method: "PUT", Path: "/0/version", Val: minor + ".0"}).Marshal()
	}
	must(t, err)
	last := entries[len(entries)-1].Index
	must(t, w.Save(state, []raftpb.Entry{{Index: last + 1, Term: state.Term, Data: data}}))
	must(t, w.Close())
}
