package migrate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/cluster"
	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
)

// decision is the raft entry at which the members have agreed to change their data offline: see cluster.Decide.
type decision struct {
	index, term uint64
	at          time.Time // when it was proposed, by the clock of the member that did; of a V2Board only
	stands      bool      // nobody can go back on it
	// writes counts the entries behind it that change what users have stored. There must be none: they would be lost.
	writes int
}

// noSnapshots is a snapshot count that is never reached: a decision must stay in every member's log.
const noSnapshots = 1 << 40

// errMissed says that the member's log does not have the decision although the others went by it.
var errMissed = errors.New("this member's log does not hold the entry that the members have agreed on: it was out of reach, and has then been " +
	"sent a raft snapshot from after it")

const missedHint = "let the other members go on without it; then remove this member with `etcdctl member remove` and add it anew with an empty data dir"

// decisionInV2 finds the decision of a conversion in the member's log.
func (m *Migrator) decisionInV2() (d decision, err error) {
	log, err := raftlog.Open(m.layout.SnapDir(), m.layout.WALDir)
	if err != nil {
		return d, err
	}
	const marks = "/1/" + member.MarksV2 + "/"
	_, err = log.Each(func(e raftlog.Entry) error {
		switch {
		case e.Kind == raftlog.ConfChange && d.index > 0:
			d.writes++
		case e.Kind != raftlog.V2 || e.V2.Method == "QGET" || e.V2.Method == "SYNC":
		case !strings.HasPrefix(e.V2.Path, marks):
			if !strings.HasPrefix(e.V2.Path, "/0/") && d.index > 0 {
				d.writes++
			}
		case e.V2.Method == "PUT" && e.V2.Path == marks+cluster.MarkDecide:
			at, err := time.Parse(time.RFC3339Nano, e.V2.Val)
			if err != nil {
				return fmt.Errorf("entry %d: the mark of the decision has no time: %w", e.Index, err)
			}
			d = decision{index: e.Index, term: e.Term, at: at}
		case e.V2.Method == "PUT" && e.V2.Path == marks+cluster.MarkGo:
			d.stands = d.index > 0
		}
		return nil
	})
	return d, err
}

// convertTogether converts what the v2 store holds at one and the same raft entry, with the time in that entry, so that the
// dbs of all members hold the same records, leases and revisions. No member writes a raft snapshot before all have
// converted, so a member that was killed still finds the entry in its log.
func (m *Migrator) convertTogether(ctx context.Context, s Step) error {
	ctx, cancel := m.stepContext(ctx, s)
	defer cancel()
	j := readJournal(m.layout)
	if j == nil {
		return errors.New("the journal is gone")
	}
	done, err := m.hasConverted(j.Converted)
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
		j.Converted = d.index
		if err := datadir.WriteJSON(journalPath(m.layout), j); err != nil {
			return err
		}
	}
	return m.withPeers(ctx, s, func(ctx context.Context, etcd *member.Etcd) error {
		if err := etcd.Joined(ctx); err != nil {
			return err
		}
		board := member.V2Board{Etcd: etcd}
		return cluster.Away(ctx, board, markConverted, m.st.Member.ID, m.memberIDs(), func() (bool, error) {
			// The marks go when the v2 store is emptied, for which all members must have converted.
			there, err := board.Has(ctx, cluster.MarkGo)
			return !there, err
		})
	})
}

func markConverted(id string) string { return "converted-" + id }

// hasConverted reports whether the conversion that the journal tells of still is one of what the v2 store holds: if an etcd
// has served clients since, it is not.
func (m *Migrator) hasConverted(index uint64) (bool, error) {
	if index == 0 {
		return false, nil
	}
	d, err := m.decisionInV2()
	return d.index == index && d.writes == 0 || m.st.V2.Keys == 0, err
}

// decideConversion lets the members agree, if they have not yet.
func (m *Migrator) decideConversion(ctx context.Context, s Step) (decision, error) {
	d, err := m.decisionInV2()
	if stale := d.writes > 0; err == nil && (!d.stands || stale) {
		err = m.withPeers(ctx, s, func(ctx context.Context, etcd *member.Etcd) error {
			if err := etcd.Joined(ctx); err != nil {
				return err
			}
			board := member.V2Board{Etcd: etcd}
			return cluster.Decide(ctx, board, m.st.Member.ID, m.memberIDs(), stale, func(ctx context.Context) error {
				for _, id := range m.memberIDs() { // what an earlier attempt has left
					if err := board.Clear(ctx, markConverted(id)); err != nil {
						return err
					}
				}
				return nil
			})
		})
		if err == nil {
			d, err = m.decisionInV2()
		}
	}
	switch {
	case err != nil:
		return d, err
	case !d.stands:
		return d, errMissed
	case d.writes > 0:
		return d, fmt.Errorf("the v2 store has been written to %d times since the members agreed on what to convert: an etcd has run on it", d.writes)
	}
	return d, nil
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
	return running(ctx, cfg, func(etcd *member.Etcd) error {
		return m.watching(ctx, s, etcd, func() error { return do(ctx, etcd) })
	})
}

func (m *Migrator) memberIDs() (ids []string) {
	for _, v := range m.st.Members {
		ids = append(ids, v.ID)
	}
	return ids
}

// convertAt converts the v2 store as it was at the decision.
func (m *Migrator) convertAt(ctx context.Context, d decision) error {
	data := &contents{until: d.index}
	if err := data.replay(m.layout); err != nil {
		return err
	}
	p := m.conversion(data)
	p.LogEnd = p.RaftIndex
	p.RaftIndex, p.RaftTerm, p.Now = d.index, d.term, d.at
	p.Progress = m.progress("convert", "records")
	report, err := convert.ToV3(ctx, p)
	if err != nil {
		return err
	}
	m.report.Conversion = &report
	return nil
}
