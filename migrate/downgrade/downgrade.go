// Package downgrade brings the data of a stopped sole member down by one minor, without any etcd: keys, revisions, leases,
// users, the member and its cluster stay what they are, and the older etcd starts on them as on its own. It does so for
// every minor from 3.7 down to 2.2.
//
// Etcd 3.6 and 3.7 can be asked to prepare their own data for the minor below (`etcdctl downgrade enable`). That is not
// used: it takes 4 s to come about, and then stays pending in the data until the older etcd has served for 5 s. A newer
// etcd that is started before that, whether for another upgrade or because this program was killed, leaves the cluster
// version where it is for ever.
//
// # What stands in the way of an older etcd
//
// Not the keys: the db's buckets key, lease, alarm and auth* are the same from 3.0 to 3.7. What stands in the way is
//
//   - the cluster version, which makes an older etcd refuse to start. Up to 3.5 the v2 store has it, which is in the raft
//     snapshot and in the entries after that; 3.6 and newer go by bucket cluster of the db;
//   - entries of the log that an older etcd does not know or panics on, and from 3.0 to 2.3 the framing of the WAL;
//   - the db's storage version, and that 2.3 refuses a member with any db.
//
// So Offline writes the version fields of the db anew, and puts a new raft snapshot at the end of the log that makes the
// entries before it void: see raftlog.Replacement.
//
// # In what order
//
//  1. The db's fields, in one transaction of bbolt. What is left out there is what the newer etcd does not need: it takes
//     the data for that of its older minor and takes it over again.
//  2. The log. From the instant on at which the new raft snapshot has its name, the data is the older minor's.
//  3. Only from 3.0 to 2.3: the db is removed, which must not hold any keys.
//
// If it is killed at any instant, the newer etcd still starts on the data (before 2 is done) or the older one already does
// (after). A second call does all of it again, with the same result.
package downgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Params says what is brought down, and to where.
type Params struct {
	// Log and Summary are the stopped member's log, read to its end, and Tree is the v2 store after its last committed
	// entry. Offline changes the tree's cluster version.
	Log     *raftlog.Log
	Summary raftlog.Summary
	Tree    *keyspace.Tree
	// SnapDir is the directory member/snap, with the db.
	SnapDir string
	// To is the minor below that of the data.
	To versionfile.Minor
	// AcceptLoss names what may be lost.
	AcceptLoss []convert.Loss
	// Several allows the data of one of several members, which must all be brought down from the same raft entry: At, from
	// behind which nothing is kept. Without At it is the last committed one. The ConfState in it is made from the Tree.
	Several bool
	At      *raftlog.Point
	// DropLeases says which leases go, nil for none.
	DropLeases func(id int64) bool
}

// Report is what a downgrade did.
type Report struct {
	ClusterVersion string `json:"clusterVersion"` // before
	RaftIndex      uint64 `json:"raftIndex"`      // of the new raft snapshot
	// Checkpoints counts leases that had used up a part of their TTL as 3.4 and newer note it, and begin anew because
	// older ones do not.
	Checkpoints int `json:"checkpoints,omitempty"`
	// Zombies counts members that only the db knew, and that a later upgrade to 3.6 would have brought back to life.
	Zombies int `json:"zombies,omitempty"`
	// Lost are the accepted losses that there were.
	Lost []convert.Problem `json:"lost,omitempty"`
}

// ErrUnsettled says that the data may not hold all that was written to it, because etcd was killed: it has to be started
// and stopped once more, at its own minor.
var ErrUnsettled = convert.ErrUnsettled

// Offline brings the data down by one minor. The error is a *convert.RefusedError if something would be lost that
// AcceptLoss does not name, wraps ErrUnsettled if etcd was not stopped cleanly, and wraps keyspace.ErrInUse if it
// still runs. After these nothing was changed. After any other error the data is that of the newer minor or that of the
// older one, and Offline can be called again.
func Offline(ctx context.Context, p Params) (Report, error) {
	report, err := offline(ctx, p)
	if err != nil {
		return Report{}, fmt.Errorf("bring the data down to %s: %w", p.To, err)
	}
	return report, nil
}

func offline(ctx context.Context, p Params) (Report, error) {
	d, err := read(p)
	if err == nil {
		err = d.checkVersion()
	}
	if err != nil {
		return Report{}, err
	}
	problems, err := d.problems()
	if err != nil {
		return Report{}, err
	}
	if refused := slices.DeleteFunc(slices.Clone(problems), func(pr convert.Problem) bool {
		return slices.Contains(p.AcceptLoss, pr.Loss)
	}); len(refused) > 0 {
		return Report{}, &convert.RefusedError{Problems: refused}
	}
	if err := context.Cause(ctx); err != nil {
		return Report{}, err
	}
	report := Report{ClusterVersion: d.clusterVersion(), RaftIndex: d.at.Index, Lost: problems}
	// The log is prepared first because that can fail, and replaced last.
	before := fingerprint(d.Tree)
	d.Tree.SetClusterVersion(p.To)
	framing := raftlog.Padded
	if p.To.Major == 2 {
		framing = raftlog.Unpadded
	}
	fresh, err := d.prepareLog(framing)
	if err != nil {
		return Report{}, err
	}
	err = d.proveStore(fresh.Store(), before)
	if err == nil && p.To.Major >= 3 {
		err = d.lowerDB(&report)
	}
	if err != nil {
		return Report{}, errors.Join(err, fresh.Discard())
	}
	if err := fresh.Install(); err != nil {
		return Report{}, err
	}
	if d.db && p.To.Major == 2 {
		err = removeDB(d.dbPath())
	}
	return report, err
}

// Check gives what would be lost, whether accepted or not, without changing anything. The data may be of any minor above,
// so that a way of several steps can be checked before the first one, and need not be settled.
func Check(p Params) ([]convert.Problem, error) {
	d, err := read(p)
	if err == nil {
		var problems []convert.Problem
		if problems, err = d.problems(); err == nil {
			return problems, nil
		}
	}
	return nil, fmt.Errorf("check the downgrade to %s: %w", p.To, err)
}

// proveStore checks that the new snapshot's v2 store holds what the old log does.
func (d *data) proveStore(store []byte, before keyspace.Fingerprint) error {
	tree, err := keyspace.LoadTree(store)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	after := fingerprint(tree)
	if diff := keyspace.Compare(&before, &after); !diff.Equal() {
		return fmt.Errorf("read back: the new raft snapshot does not hold the same as the old log: %s", diff)
	}
	members, err := tree.Members()
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if !slices.EqualFunc(members, d.members, sameMember) || tree.Index() != d.Tree.Index() ||
		tree.ClusterVersion() != d.Tree.ClusterVersion() {
		return errors.New("read back: the new raft snapshot is not as it was written")
	}
	return nil
}

// prepareLog writes the new end of the log.
func (d *data) prepareLog(framing raftlog.Framing) (*raftlog.Replacement, error) {
	if !d.Several {
		return raftlog.PrepareReplacement(d.Log, d.Summary, d.SnapDir, framing, d.Tree.Save)
	}
	return raftlog.PrepareReplacementAt(d.Log, d.Summary, d.SnapDir, framing, d.at, d.Tree.Save)
}

func sameMember(a, b keyspace.V2Member) bool { return a.ID == b.ID && a.IsLearner == b.IsLearner }

func removeDB(path string) error {
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the db that etcd 2.x would refuse: %w", err)
	}
	return datadir.SyncDir(filepath.Dir(path))
}
