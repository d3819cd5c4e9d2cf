package migrate

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/etcd-migrate/etcd-migrate/migrate/cluster"
	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
)

// noSnapshots is a snapshot count that is never reached: a decision must stay in every member's log.
const noSnapshots = 1 << 40

// errMissed says that the member's log does not have the decision although the others went by it.
var errMissed = errors.New("this member's log does not hold the entry that the members have agreed on: it was out of reach, and has then been " +
	"sent a raft snapshot from after it")

const missedHint = "start the other members' etcds without etcd-migrate, of the version that their data is at, and remove this member with " +
	"`etcdctl member remove`; stop them, give the same command again on them, and add this member anew with an empty data dir when they are done"

// trailInV2 reads what agreements to convert have left in the member's log.
func (m *Migrator) trailInV2() (*cluster.Trail, error) {
	log, err := raftlog.Open(m.layout.SnapDir(), m.layout.WALDir)
	if err != nil {
		return nil, err
	}
	const marks = "/1/" + member.MarksV2 + "/"
	trail := &cluster.Trail{}
	_, err = log.Each(func(e raftlog.Entry) error {
		switch {
		case e.Kind == raftlog.ConfChange:
			trail.Write()
		case e.Kind != raftlog.V2 || e.V2.Method == "QGET" || e.V2.Method == "SYNC":
		case e.V2.Path+"/" == marks: // the others' emptying of the store
		case !strings.HasPrefix(e.V2.Path, marks):
			if !strings.HasPrefix(e.V2.Path, "/0/") {
				trail.Write()
			}
		case e.V2.Method == "PUT" && e.V2.Path == marks+cluster.MarkDecide:
			at, attempt, err := member.ParseMarkV2(e.V2.Val)
			if err != nil {
				return fmt.Errorf("entry %d: the mark of the decision has no time or no number: %w", e.Index, err)
			}
			trail.Decide(cluster.Decision{Attempt: attempt, Index: e.Index, Term: e.Term, At: at})
		}
		return nil
	})
	return trail, err
}

// convertTogether converts what the v2 store holds at one and the same raft entry, with the time in that entry, so that the
// dbs of all members hold the same records, leases and revisions. No member writes a raft snapshot before all have
// converted, so a member that was killed still finds the entry in its log.
func (m *Migrator) convertTogether(ctx context.Context, s Step) error {
	ctx, cancel := m.stepContext(ctx, s)
	defer cancel()
	j, err := m.ownJournal()
	if err != nil {
		return err
	}
	if j.Converted > 0 { // by an earlier run, and others may have gone on without this member since
		if err := m.withPeers(ctx, s, m.joined); err != nil {
			return err
		}
	}
	for {
		done, attempt, err := m.hasConverted(j.Converted)
		if err != nil {
			return err
		}
		if !done {
			d, err := m.decideConversion(ctx, s)
			if err != nil {
				return err
			}
			if err := m.convertAt(ctx, d); err != nil {
				return err
			}
			if j, err = m.ownJournal(); err != nil { // with what convertAt has noted
				return err
			}
			j.Converted, attempt = d.Index, d.Attempt
			if err := datadir.WriteJSON(journalPath(m.layout), j); err != nil {
				return err
			}
		}
		err = m.withPeers(ctx, s, func(ctx context.Context, etcd *member.Etcd) error {
			if err := m.joined(ctx, etcd); err != nil {
				return err
			}
			return m.round(member.V2Board{Etcd: etcd}).Away(ctx, attempt)
		})
		if !errors.Is(err, cluster.ErrAnew) {
			return err
		}
	}
}

// hasConverted reports whether the conversion that the journal tells of still is one of what the v2 store holds: if an etcd
// has served clients since, it is not.
func (m *Migrator) hasConverted(index uint64) (done bool, attempt int64, err error) {
	if index == 0 {
		return false, 0, nil
	}
	trail, err := m.trailInV2()
	if err != nil {
		return false, 0, err
	}
	d := trail.At(index)
	if d.Index == index && d.Writes == 0 {
		return true, d.Attempt, nil
	}
	data, err := m.readLog()
	if err != nil {
		return false, 0, err
	}
	// The others may have gone on, and have emptied the store by now.
	return data.tree.Stats(m.now()).Keys == 0, d.Attempt, nil
}

// decideConversion lets the members agree. What they have agreed on before may not be there any more, or users have written
// since, if that attempt was given up: then they do it again.
func (m *Migrator) decideConversion(ctx context.Context, s Step) (d cluster.Decision, err error) {
	void := map[int64]bool{}
	for {
		var attempt int64
		err := m.withPeers(ctx, s, func(ctx context.Context, etcd *member.Etcd) (err error) {
			if err := m.joined(ctx, etcd); err != nil {
				return err
			}
			r := m.round(member.V2Board{Etcd: etcd})
			r.Void = void
			attempt, err = r.Decide(ctx)
			return err
		})
		if errors.Is(err, cluster.ErrMissed) {
			return d, errMissed
		}
		if err != nil {
			return d, err
		}
		trail, err := m.trailInV2()
		if err != nil {
			return d, err
		}
		if d = trail.Decision(attempt); d.Index > 0 && d.Writes == 0 {
			return d, nil
		}
		void[attempt] = true
	}
}

// round is this member's part in an agreement.
func (m *Migrator) round(board cluster.Board) *cluster.Round {
	ids := []string{m.st.Member.ID}
	for _, p := range m.peers.Members() {
		ids = append(ids, p.ID)
	}
	return &cluster.Round{Board: board, Self: m.st.Member.ID, IDs: ids, Waiting: m.awaited.set,
		Prepare: func(context.Context) error { return nil }}
}

// withPeers runs the step's etcd with all that the members need to agree on something, and does it.
func (m *Migrator) withPeers(ctx context.Context, s Step, do func(context.Context, *member.Etcd) error) error {
	cfg, err := m.config(s)
	if err != nil {
		return err
	}
	cfg.SnapshotCount = noSnapshots
	cfg.V2 = s.Kind == StepConvert && !v2Until.Less(s.To.Minor())
	m.log = nil // what etcd makes of it has to be read anew
	return m.running(ctx, cfg, func(etcd *member.Etcd) error {
		return m.watching(ctx, s, etcd, func() error { return do(ctx, etcd) })
	})
}

// convertAt converts the v2 store as it was at the decision.
func (m *Migrator) convertAt(ctx context.Context, d cluster.Decision) error {
	data := &contents{until: d.Index}
	if err := data.replay(m.layout); err != nil {
		return err
	}
	p := m.conversion(data)
	p.LogEnd = p.RaftIndex
	p.RaftIndex, p.RaftTerm, p.Now = d.Index, d.Term, d.At
	p.Progress, p.Publish = m.progress("convert", UnitRecords), m.noteMade
	report, err := convert.ToV3(ctx, p)
	if err != nil {
		return err
	}
	m.report.Conversion = &report
	m.st.converted, m.st.V3.Revision = true, report.Revision
	return nil
}
