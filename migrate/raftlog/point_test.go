package raftlog

import (
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// TestReplaceAt cuts a log off in the middle, for another cluster, and is killed after each of the changes that count: the log
// is the old one or the new one, for our reader and for etcd's code, and a second call leads to the same end.
func TestReplaceAt(t *testing.T) {
	at := Point{Index: 25, Term: 1, ConfState: raftpb.ConfState{Voters: []uint64{7, 9}}, ClusterID: 99}
	for done := range 3 { // changes before it is killed
		dir := threeFiles(t)
		replace := func() *Replacement {
			l, sum, _ := openAll(t, dir)
			again := at
			if l.ClusterID() == at.ClusterID {
				again.ClusterID = 0 // as the caller does, who sees that it has been done
			}
			r, err := PrepareReplacementAt(l, sum, filepath.Join(dir, "snap"), Padded, again, write([]byte(newStore)))
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		r := replace()
		if !r.snapFirst {
			t.Fatal("the file of another cluster would come before the snapshot that begins it")
		}
		for _, p := range []placement{r.snap, r.wal}[:done] {
			if err := datadir.Rename(p.temp, p.path); err != nil {
				t.Fatal(err)
			}
		}
		l, sum, _ := openAll(t, dir)
		old := l.ClusterID() == 8 && sum.HardState.Commit == 30
		fresh := l.ClusterID() == 99 && sum.HardState.Commit == 25
		if done < 2 && !old || done == 2 && !fresh {
			t.Errorf("killed after %d changes: cluster %x, %+v", done, l.ClusterID(), sum.HardState)
		}
		if err := replace().Install(); err != nil {
			t.Fatal(err)
		}
		l, sum, indexes := openAll(t, dir)
		if s := l.Snapshot(); l.ClusterID() != 99 || l.NodeID() != 7 || s.Index != 25 || len(indexes) > 0 || sum.Uncommitted > 0 ||
			!slices.Equal(s.ConfState.Voters, []uint64{7, 9}) || sum.HardState != (raftpb.HardState{Term: 1, Vote: 7, Commit: 25}) {
			t.Errorf("killed after %d changes: member %x of cluster %x, snapshot %+v, %+v", done, l.NodeID(), l.ClusterID(), s, sum)
		}
		snaps, err := wal.ValidSnapshotEntries(zap.NewNop(), filepath.Join(dir, "wal"))
		if err != nil {
			t.Fatal(err)
		}
		if s, err := snap.New(zap.NewNop(), filepath.Join(dir, "snap")).LoadNewestAvailable(snaps); err != nil || s.Metadata.Index != 25 {
			t.Errorf("etcd starts from %v, %v", s, err)
		}
	}
	for name, index := range map[string]uint64{"beyond the commit": 31, "before the snapshot": 1} {
		l, sum, _ := openAll(t, threeFiles(t))
		if _, err := PrepareReplacementAt(l, sum, t.TempDir(), Padded, Point{Index: index, Term: 1, ClusterID: 99}, write(nil)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
