package downgrade

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"
	"unicode/utf8"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// data is a stopped member's data as it is before a downgrade.
type data struct {
	Params
	log     *raftlog.Log
	summary raftlog.Summary
	tree    *keyspace.Tree
	member  keyspace.V2Member

	db     bool // there is one
	info   keyspace.V3Info
	v3Keys int64 // counted only on the way to 2.x
	leases map[int64]int64
}

func (p *Params) dbPath() string { return filepath.Join(p.SnapDir, "db") }

// read reads and checks all that a downgrade depends on.
func read(p Params) (*data, error) {
	if _, known := p.To.Next(); !p.To.Known() || !known {
		return nil, fmt.Errorf("no known minor lies above it")
	}
	d := &data{Params: p}
	if err := d.readDB(); err != nil {
		return nil, err
	}
	if err := d.readLog(); err != nil {
		return nil, err
	}
	return d, d.check()
}

func (d *data) readDB() error {
	db, err := keyspace.OpenDB(d.dbPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer db.Close()
	d.db = true
	if d.info, err = db.Info(); err != nil {
		return err
	}
	if d.leases, err = db.Leases(); err != nil || d.To.Major >= 3 {
		return err
	}
	fp, err := keyspace.FingerprintDB(db)
	d.v3Keys = fp.Records
	return err
}

func (d *data) readLog() (err error) {
	if d.log, err = raftlog.Open(d.SnapDir, d.WALDir); err != nil {
		return err
	}
	d.tree = keyspace.NewTree()
	if s := d.log.Snapshot(); s.Index > 0 {
		if d.tree, err = keyspace.LoadTree(s.Data); err != nil {
			return fmt.Errorf("%s: %w", s.Path, err)
		}
	}
	var pending int
	d.summary, err = d.log.Each(func(e raftlog.Entry) error {
		switch e.Kind {
		case raftlog.V2:
			return d.tree.ApplyV2(e.V2)
		case raftlog.ConfChange:
			return d.tree.ApplyConfChange(e.ConfChange)
		case raftlog.V3:
			if e.Index > d.info.ConsistentIndex && d.missing(e.V3) {
				pending++
			}
			return d.tree.ApplyV3(e.V3)
		}
		return nil
	})
	if err == nil && pending > 0 {
		err = fmt.Errorf("%w: %d writes of the log may not have reached the db", ErrUnsettled, pending)
	}
	return err
}

// missing reports whether an entry that the db does not claim to contain may be missing there. Up to 3.4 etcd notes the
// index only with a write to a key, so what else it has applied since is not pending although it looks so. What says that
// the cluster is at some version or names the members is written anew in any case.
func (d *data) missing(r *etcdserverpb.InternalRaftRequest) bool {
	switch {
	case r.LeaseGrant != nil:
		_, there := d.leases[r.LeaseGrant.ID]
		return !there
	case r.LeaseRevoke != nil: // also of lease 0, which is how package member writes
		_, there := d.leases[r.LeaseRevoke.ID]
		return there
	case r.Alarm != nil:
		return r.Alarm.Action != etcdserverpb.AlarmRequest_GET
	}
	return r.Put != nil || r.DeleteRange != nil || r.Txn != nil || r.Compaction != nil || r.LeaseCheckpoint != nil ||
		r.AuthEnable != nil || r.AuthDisable != nil ||
		r.AuthUserAdd != nil || r.AuthUserDelete != nil || r.AuthUserChangePassword != nil ||
		r.AuthUserGrantRole != nil || r.AuthUserRevokeRole != nil ||
		r.AuthRoleAdd != nil || r.AuthRoleDelete != nil ||
		r.AuthRoleGrantPermission != nil || r.AuthRoleRevokePermission != nil
}

// clusterVersion is what the data says: 3.6 and newer go by the db, older ones by the v2 store.
func (d *data) clusterVersion() string {
	v2, _ := versionfile.ParseRelease(d.tree.ClusterVersion())
	v3, _ := versionfile.ParseRelease(d.info.ClusterVersion)
	if v2.Compare(v3) < 0 {
		return d.info.ClusterVersion
	}
	return d.tree.ClusterVersion()
}

// check refuses data that is not that of a sole member at the minor above, or at the lower one already because a call
// was killed.
func (d *data) check() error {
	from, _ := d.To.Next()
	if v, err := versionfile.ParseRelease(d.clusterVersion()); err == nil && v.Minor() != from && v.Minor() != d.To {
		return fmt.Errorf("the data is of a cluster at etcd %s, and it goes down one minor at a time", v.Minor())
	}
	if !d.db && d.To.Major >= 3 {
		return fmt.Errorf("%s is missing", d.dbPath())
	}
	if d.info.ConsistentIndex > d.summary.HardState.Commit {
		return fmt.Errorf("the db contains raft entry %d, but the raft log ends at %d: the log has lost its end",
			d.info.ConsistentIndex, d.summary.HardState.Commit)
	}
	members, err := d.tree.Members()
	if err != nil {
		return err
	}
	if len(members) != 1 || members[0].ID != d.log.NodeID() || members[0].IsLearner {
		return fmt.Errorf("the data is of a cluster of %d members, and only a sole member can be brought down", len(members))
	}
	d.member = members[0]
	if !from.AtLeast(3, 6) {
		return nil // the db's members do not count
	}
	if m := d.info.Members; len(m) != 1 || m[0].ID != d.log.NodeID() || m[0].IsLearner {
		return fmt.Errorf("the db names %d members, and only a sole member can be brought down", len(m))
	}
	return nil
}

// problems gives what would be lost.
func (d *data) problems() ([]convert.Problem, error) {
	var ps []convert.Problem
	if d.v3Keys > 0 {
		ps = append(ps, convert.Problem{Loss: convert.LossV3Keys, Count: d.v3Keys, Text: fmt.Sprintf(
			"the v3 store holds %d keys, and etcd %s has no v3 store", d.v3Keys, d.To)})
	}
	var unfit int64
	err := d.tree.Each(time.Time{}, func(r keyspace.Record) error {
		if !utf8.Valid(r.Key) || !utf8.Valid(r.Value) {
			unfit++
		}
		return nil
	})
	if unfit > 0 {
		ps = append(ps, convert.Problem{Loss: "", Count: unfit, Text: fmt.Sprintf(
			"%d keys of the v2 store have a name or a value that is not UTF-8, which no raft snapshot can hold", unfit)})
	}
	for _, a := range d.info.Alarms {
		if a.Type == etcdserverpb.AlarmType_CORRUPT.String() {
			ps = append(ps, convert.Problem{Count: 1, Text: "the alarm CORRUPT is set: etcd has found its data to be damaged"})
		}
	}
	return ps, err
}

func fingerprint(t *keyspace.Tree) keyspace.Fingerprint {
	var f keyspace.Fingerprint
	_ = t.Each(time.Time{}, func(r keyspace.Record) error { // which is its only error
		f.Add(r)
		return nil
	})
	return f
}
