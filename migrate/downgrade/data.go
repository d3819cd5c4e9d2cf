package downgrade

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize/english"
	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// data is a stopped member's data as it is before a downgrade.
type data struct {
	Params
	members []keyspace.V2Member
	at      raftlog.Point // where the new log begins

	db     bool // there is one
	info   keyspace.V3Info
	v3Keys convert.Tally // only on the way to 2.x
}

func (p *Params) dbPath() string { return filepath.Join(p.SnapDir, "db") }

// read reads what the db says and checks that it is a sole member's data.
func read(p Params) (*data, error) {
	if _, known := p.To.Next(); !p.To.Known() || !known {
		return nil, errors.New("no known minor lies above it")
	}
	d := &data{Params: p}
	err := d.withDB(func(db *keyspace.DB) (err error) {
		d.db = true
		if d.info, err = db.Info(); err != nil || p.To.Major >= 3 {
			return err
		}
		return db.Each(func(r keyspace.Record) error {
			d.v3Keys.Add(r.Key)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return d, d.checkMember()
}

// withDB calls fn with the open db, if there is one.
func (d *data) withDB(fn func(*keyspace.DB) error) error {
	db, err := keyspace.OpenDB(d.dbPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer db.Close()
	return fn(db)
}

// clusterVersion is what the data says: 3.6 and newer go by the db, older ones by the v2 store.
func (d *data) clusterVersion() string {
	v2, _ := versionfile.ParseRelease(d.Tree.ClusterVersion())
	v3, _ := versionfile.ParseRelease(d.info.ClusterVersion)
	if v2.Compare(v3) < 0 {
		return d.info.ClusterVersion
	}
	return d.Tree.ClusterVersion()
}

// checkVersion refuses data that is not of the minor above, or of the lower one already because a call was killed, and
// data that etcd has not finished writing.
func (d *data) checkVersion() error {
	from, _ := d.To.Next()
	if v, err := versionfile.ParseRelease(d.clusterVersion()); err == nil && v.Minor() != from && v.Minor() != d.To {
		return fmt.Errorf("the data is of a cluster at etcd %s, and it goes down one minor at a time", v.Minor())
	}
	if !d.db && d.To.Major >= 3 {
		return fmt.Errorf("%s is missing", d.dbPath())
	}
	if last := d.Summary.HardState.Commit + uint64(d.Summary.Uncommitted); d.info.ConsistentIndex > last {
		return fmt.Errorf("the db contains raft entry %d, but the raft log ends at %d: the log has lost its end",
			d.info.ConsistentIndex, last)
	}
	return d.checkApplied()
}

// checkApplied refuses a db that lacks entries of the log.
func (d *data) checkApplied() error {
	return d.withDB(func(db *keyspace.DB) error { return convert.Unapplied(d.Log, db, d.DropLeases) })
}

// checkMember refuses the data of several members, unless Several allows it: what is left behind would not be a cluster,
// and what an older etcd takes for a voter may be a learner.
func (d *data) checkMember() error {
	members, err := d.Tree.Members()
	if err != nil {
		return err
	}
	d.members = members
	d.at = raftlog.Point{Index: d.Summary.HardState.Commit, Term: d.Summary.LastTerm}
	if d.At != nil {
		d.at = *d.At
	}
	for _, m := range members {
		d.at.ConfState.Voters = append(d.at.ConfState.Voters, m.ID)
		if d.Several && m.IsLearner {
			return fmt.Errorf("member %x is a learner, which cannot be brought down", m.ID)
		}
	}
	if d.Several && slices.ContainsFunc(members, func(m keyspace.V2Member) bool { return m.ID == d.Log.NodeID() }) {
		return nil
	}
	if len(members) != 1 || members[0].ID != d.Log.NodeID() || members[0].IsLearner {
		return fmt.Errorf("the data is of a cluster of %d members, and only a sole member can be brought down", len(members))
	}
	if v, _ := versionfile.ParseRelease(d.clusterVersion()); !v.Minor().AtLeast(3, 6) {
		return nil // the db's members do not count
	}
	if len(d.info.Members) == 0 { // an etcd that was killed soon after its first start has not written them yet
		if err := d.checkApplied(); err != nil {
			return err
		}
	}
	if m := d.info.Members; len(m) != 1 || m[0].ID != d.Log.NodeID() || m[0].IsLearner {
		return fmt.Errorf("the db names %d members, and only a sole member can be brought down", len(m))
	}
	return nil
}

// problems gives what would be lost. What nobody can accept is an error.
func (d *data) problems() ([]convert.Problem, error) {
	var ps []convert.Problem
	if n := d.v3Keys.Count; n > 0 {
		ps = append(ps, convert.Problem{Loss: convert.LossV3Keys, Count: n, Keys: d.v3Keys.Keys, Text: fmt.Sprintf(
			"the v3 store holds %s, and etcd %s has no v3 store", english.Plural(int(n), "key", ""), d.To)})
	}
	if d.info.AuthEnabled && d.To == (versionfile.Minor{Major: 3, Minor: 0}) {
		users, roles := len(d.info.Users), len(d.info.Roles)
		ps = append(ps, convert.Problem{Loss: convert.LossV3Auth, Count: int64(users + roles), Text: fmt.Sprintf(
			"etcd 3.0 forgets at each start that authentication is enabled: its %s and %s stay, "+
				"but everybody could read and write everything", english.Plural(users, "user", ""), english.Plural(roles, "role", ""))})
	}
	unfit := 0
	err := d.Tree.Each(time.Time{}, func(r keyspace.Record) error {
		if !utf8.Valid(r.Key) || !utf8.Valid(r.Value) {
			unfit++
		}
		return nil
	})
	if err == nil && unfit > 0 {
		err = fmt.Errorf("the v2 store has names or values that are not UTF-8, which a raft snapshot cannot hold: %s", english.Plural(unfit, "key", ""))
	}
	for _, a := range d.info.Alarms {
		if a.Type == etcdserverpb.AlarmType_CORRUPT.String() {
			err = errors.New("the alarm CORRUPT is set: etcd has found its data to be damaged")
		}
	}
	return ps, err
}

// fingerprint is that of the v2 store's records, the expired ones included.
func fingerprint(t *keyspace.Tree) keyspace.Fingerprint {
	var f keyspace.Fingerprint
	_ = t.Each(time.Time{}, func(r keyspace.Record) error { // which is its only error
		f.Add(r)
		return nil
	})
	return f
}
