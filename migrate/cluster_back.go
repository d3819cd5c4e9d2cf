package migrate

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/cluster"
	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/downgrade"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// leaving is where all members of a cluster leave its log in a rollback, and the cluster that they are from there on. With
// another ID, members that have left and members that have not cannot talk to each other: no write can be committed with the
// help of a member that later drops it.
type leaving struct {
	Index     uint64 `json:"index"`
	Term      uint64 `json:"term"`
	From      string `json:"from"`      // ID of the cluster
	ClusterID string `json:"clusterID"` // of the new one
}

// markLeases begins the IDs of the leases that are marks: "ETCM".
const markLeases = 0x4554434d << 32

func isMarkLease(id int64) bool { return id&^0xffffffff == markLeases }

// markLease gives the lease of a mark.
func markLease(mark string) int64 {
	if mark == cluster.MarkDecide {
		return markLeases | 1
	}
	sum := sha256.Sum256([]byte(mark))
	return markLeases | 0x80000000 | int64(binary.BigEndian.Uint32(sum[:])>>1)
}

// errOthersLeft ends the wait of a member that sees others run an older etcd.
var errOthersLeft = errors.New("other members have gone back already")

// agreeToLeave lets the members agree on the raft entry from which all of them go back, with the etcd that they have, and
// notes it down. A member that was killed after that and comes back when the others have left needs no quorum: it has the
// entry in its log, and the others' new cluster is proof that it counts.
func (m *Migrator) agreeToLeave(ctx context.Context, s Step) error {
	ctx, cancel := m.stepContext(ctx, s)
	defer cancel()
	void := map[int64]bool{}
	for try := 1; ; try++ {
		attempt, err := m.decideToLeave(ctx, s, void)
		if err == nil {
			err = m.noteLeaving(ctx, s, attempt)
		}
		// A lease that has ended in that moment has done so for all of them. And what is left of an attempt that was given up,
		// whose decision is gone or has writes behind it, is so for all of them, too.
		if attempt == 0 || try == mostTries || !errors.Is(err, errBeyond) && !errors.Is(err, errMissed) {
			return err
		}
		void[attempt] = true
	}
}

// mostTries is how often the members try to find a moment in which nothing changes.
const mostTries = 5

// quiet is how long no lease may end from the decision on. Shorter leases are let end before it.
const quiet = 30 * time.Second

// decideToLeave gives the number of the attempt that the members have agreed in, 0 if others have left already.
func (m *Migrator) decideToLeave(ctx context.Context, s Step, void map[int64]bool) (attempt int64, err error) {
	side, err := m.sideData()
	if err != nil || side == nil {
		return 0, err
	}
	known := slices.Collect(maps.Keys(side.leases))
	err = m.withPeers(ctx, s, func(whole context.Context, etcd *member.Etcd) error {
		ctx, stop := m.untilOthersLeft(whole, s)
		defer stop()
		err := m.joined(ctx, etcd)
		if err == nil {
			r := m.round(member.LeaseBoard{Etcd: etcd, ID: markLease})
			r.Void = void
			r.Prepare = func(ctx context.Context) error { return etcd.QuietLeases(ctx, quiet, known, isMarkLease) }
			attempt, err = r.Decide(ctx)
		}
		if err == nil {
			// Our own log must go on to where the members leave, or it could lack a write that stands in the way. If it is
			// the others that cannot be reached now, they have found nothing of that kind in theirs.
			err = etcd.Joined(ctx)
		}
		if errors.Is(context.Cause(ctx), errOthersLeft) {
			return nil // which needs no quorum
		}
		return err
	})
	if err == nil {
		err = m.applyAlone(ctx, s)
	}
	return attempt, err
}

// applyAlone sees that the db holds all that the log knows to be committed. Without a quorum an etcd does apply that when it
// starts, but answers no question about it.
func (m *Migrator) applyAlone(ctx context.Context, s Step) error {
	for wait := time.Second; ; wait *= 2 {
		err := m.unapplied()
		if !errors.Is(err, convert.ErrUnsettled) {
			return err
		}
		err = m.withPeers(ctx, s, func(ctx context.Context, etcd *member.Etcd) error {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-etcd.Exited():
			case <-time.After(wait):
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

func (m *Migrator) unapplied() error {
	log, err := raftlog.Open(m.layout.SnapDir(), m.layout.WALDir)
	if err != nil {
		return err
	}
	db, err := keyspace.OpenDB(m.layout.DB())
	if err != nil {
		return err
	}
	defer db.Close()
	return convert.Unapplied(log, db, isMarkLease)
}

// untilOthersLeft gives a context that ends with errOthersLeft when another member runs an older etcd.
func (m *Migrator) untilOthersLeft(ctx context.Context, s Step) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(watchPeers):
			}
			for _, p := range m.peers.Status(ctx) {
				if p.Err == nil && p.Server.Minor().Less(s.To.Minor()) {
					cancel(errOthersLeft)
				}
			}
		}
	}()
	return ctx, func() { cancel(context.Canceled) }
}

// noteLeaving finds the decision in the member's log and writes it to the journal. If others have left before this member has
// seen that it counts, it is the one that the cluster which they are now follows from.
func (m *Migrator) noteLeaving(ctx context.Context, s Step, attempt int64) error {
	j, err := m.ownJournal()
	if err != nil {
		return err
	}
	log, err := raftlog.Open(m.layout.SnapDir(), m.layout.WALDir)
	if err != nil {
		return err
	}
	trail, err := trailInLeases(log)
	if err != nil {
		return err
	}
	candidates := trail.All()
	if attempt != 0 {
		candidates = []cluster.Decision{trail.Decision(attempt)}
	}
	if attempt == 0 {
		m.awaitOthers(ctx)
	}
	for _, d := range candidates {
		left := &leaving{Index: d.Index, Term: d.Term, From: m.st.Log.ClusterID, ClusterID: newClusterID(m.st.Log.ClusterID, d, m.plan.Target.Minor())}
		switch {
		case d.Index == 0:
			return errMissed
		case attempt == 0 && !m.othersAre(ctx, left.ClusterID):
			continue
		case d.Writes > 0:
			return fmt.Errorf("%d entries of the raft log after the one that the members have agreed on (%d) change the data: %w", d.Writes, d.Index, errBeyond)
		}
		j.Left = left
		return datadir.WriteJSON(journalPath(m.layout), j)
	}
	if len(candidates) == 0 {
		return errMissed
	}
	return fmt.Errorf("other members run an etcd before %s, and not because they have gone back together with this one", s.To.Minor())
}

// errBeyond says that a member cannot go back with the others because it would lose something.
var errBeyond = errors.New("going back there would lose writes")

const beyondHint = "if none of the others has gone back, give the same command again on all of them; if some have, this member holds writes that " +
	"theirs do not: to keep them, stop all members, restore the backups of all of them, from this migration, and begin the rollback again; only if " +
	"they may be lost, remove this member with `etcdctl member remove` and add it anew with an empty data dir"

// awaitOthers waits until one of the other members answers. They have gone back already, and may be between their private etcd
// and the target's.
func (m *Migrator) awaitOthers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		for _, p := range m.peers.Members() {
			if _, err := m.peers.ClusterID(ctx, p); err == nil {
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchPeers):
		}
	}
}

// othersAre reports whether one of the other members is in that cluster.
func (m *Migrator) othersAre(ctx context.Context, clusterID string) bool {
	for _, p := range m.peers.Members() {
		if got, err := m.peers.ClusterID(ctx, p); err == nil && got == clusterID {
			return true
		}
	}
	return false
}

// newClusterID follows from what was decided, so that only members that go back to the same minor from the same entry meet.
func newClusterID(old string, d cluster.Decision, to versionfile.Minor) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "etcd-migrate rollback of %s from %d in term %d to %s", old, d.Index, d.Term, to))
	return id(binary.BigEndian.Uint64(sum[:]))
}

// trailInLeases reads what agreements to go back have left in the log.
func trailInLeases(log *raftlog.Log) (*cluster.Trail, error) {
	trail := &cluster.Trail{}
	_, err := log.Each(func(e raftlog.Entry) error {
		switch {
		case e.Kind == raftlog.ConfChange, e.Kind == raftlog.V3 && changesData(e.V3):
			trail.Write()
		case e.Kind == raftlog.V3 && e.V3.LeaseGrant != nil && e.V3.LeaseGrant.ID == markLease(cluster.MarkDecide):
			trail.Decide(cluster.Decision{Attempt: member.MarkOfLease(e.V3.LeaseGrant.TTL), Index: e.Index, Term: e.Term})
		}
		return nil
	})
	return trail, err
}

// changesData reports whether a request of the v3 API leaves a trace. What etcd says to itself does not, nor do our own
// writes and marks.
func changesData(r *etcdserverpb.InternalRaftRequest) bool {
	switch {
	case r.LeaseGrant != nil:
		return !isMarkLease(r.LeaseGrant.ID)
	case r.LeaseRevoke != nil:
		return r.LeaseRevoke.ID != 0 && !isMarkLease(r.LeaseRevoke.ID)
	case r.LeaseCheckpoint != nil, r.ClusterVersionSet != nil, r.ClusterMemberAttrSet != nil, r.Authenticate != nil:
		return false
	}
	return r.Range == nil && r.AuthStatus == nil
}

// leaveAt makes the first step down begin at the decision, in the new cluster. The steps after it begin where that one ended.
func (m *Migrator) leaveAt(data *contents, p *downgrade.Params) error {
	j, err := m.ownJournal()
	if err != nil {
		return err
	}
	if j.Left == nil {
		return errors.New("the journal does not say from where the members go back")
	}
	p.DropLeases = isMarkLease
	if id(data.log.ClusterID()) != j.Left.From {
		return nil
	}
	clusterID, err := parseID(j.Left.ClusterID)
	if err != nil {
		return err
	}
	trail, err := trailInLeases(data.log)
	if err != nil {
		return err
	}
	if d := trail.At(j.Left.Index); d.Index == 0 || d.Writes > 0 {
		j.Left = nil // the members have to agree anew
		return errors.Join(datadir.WriteJSON(journalPath(m.layout), j), fmt.Errorf(
			"the raft log does not end as it did when the members agreed on where to go back from: an etcd has run on it since: %w", errBeyond))
	}
	at := &contents{until: j.Left.Index}
	if err := at.replay(m.layout); err != nil {
		return err
	}
	p.Tree = at.tree
	p.At = &raftlog.Point{Index: j.Left.Index, Term: j.Left.Term, ClusterID: clusterID}
	return nil
}
