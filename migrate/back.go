package migrate

import (
	"context"
	"fmt"
	"slices"

	"github.com/dustin/go-humanize/english"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/downgrade"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// isBack reports whether the way from one version to another leads to an older minor or to the older store.
func isBack(from, to versionfile.Version) bool {
	return to.Minor().Less(from.Minor()) || from.Storage == versionfile.Etcd3 && to.Storage == versionfile.Etcd2
}

// Back reports whether the plan is a rollback.
func (p Plan) Back() bool {
	return slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Kind == StepDowngrade || s.Kind == StepConvertBack })
}

// Forward reports whether the plan leads to a newer minor or to the v3 store.
func (p Plan) Forward() bool {
	return slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Kind == StepUpgrade || s.Kind == StepConvert })
}

// checkAllowed refuses a rollback that nobody has asked for: an old image that is started by mistake must not take the
// data back with it.
func (m *Migrator) checkAllowed() error {
	if m.BackOnly && m.plan.Forward() {
		return &Error{Kind: Refused, Op: "roll back", Err: fmt.Errorf("the data is at %s, which is not above the target %s", m.st.Version, m.plan.Target),
			Hint: "to go on to a newer version, give `etcd-migrate migrate`"}
	}
	if !m.plan.Back() || m.AllowRollback {
		return nil
	}
	return refuse(fmt.Errorf("the data is at %s, which is above the target %s", m.plan.From, m.plan.Target),
		"if you mean to go back, allow it with --allow-rollback (ALLOW_ROLLBACK=true) or give `etcd-migrate rollback`; "+
			"if not, start the etcd that the data belongs to")
}

// back adds the steps down to the target's minor and store. None of them needs an etcd; where the older etcd is at hand,
// it is run on what the step has made of the data, before the step counts as done.
func (b *planner) back(st State, target versionfile.Version) error {
	n := st.Log.Unapplied()
	agree := st.several() && !st.left
	if agree || n > 0 && !st.several() {
		bin, ok := b.binary(b.at.Minor(), target)
		if !ok {
			return b.missing(b.at.Minor(), target)
		}
		why := fmt.Sprintf("etcd was not stopped cleanly: %d log entries wait to be applied", n)
		if agree {
			why = "the members agree on the raft entry from which all of them go back"
		}
		b.run(StepReplay, bin, why)
	} else if st.unrun == b.at.Minor().String() {
		if bin, ok := b.binary(b.at.Minor(), target); ok {
			b.run(StepReplay, bin, unrun(b.at.Minor()))
		}
	}
	for isBack(b.at, target) {
		m := b.at.Minor()
		toV2 := b.at.Storage == versionfile.Etcd3 && target.Storage == versionfile.Etcd2
		if toV2 && (m == v3Since || m == target.Minor()) {
			b.add(StepConvertBack, versionfile.Version{Release: b.at.Release, Storage: versionfile.Etcd2}, "",
				fmt.Sprintf("the keys of the v3 store become keys of the v2 store, leases as TTLs: %s", english.Plural(st.V3.Keys, "key", "")))
			continue
		}
		previous := m.Previous()
		to, path := versionfile.Release{Line: previous}, ""
		if previous == target.Minor() {
			to = target.Release
		}
		bin, ok := b.binary(previous, target)
		switch {
		case !ok && st.several() && previous == target.Minor():
			return b.missing(previous, target)
		case ok && st.several() && previous != target.Minor():
			to = bin.Release // only the target's etcd runs: it takes all members
		case ok:
			to, path = bin.Release, bin.Path
		}
		b.add(StepDowngrade, versionfile.Version{Release: to, Storage: b.at.Storage}, path,
			fmt.Sprintf("etcd data moves one minor at a time, and %s comes before %s", previous, m))
	}
	return nil
}

// goBack makes one step down.
func (m *Migrator) goBack(ctx context.Context, s Step) error {
	data, err := m.readLog()
	if err != nil {
		return err
	}
	m.log = nil // the step changes it
	if s.Kind == StepConvertBack {
		p := m.conversionBack(data)
		p.Progress = m.progress("convert", UnitRecords)
		report, err := convert.ToV2(ctx, p)
		m.report.ConversionBack = &report
		return err
	}
	p := m.stepDown(data, s)
	if m.st.several() {
		if err := m.leaveAt(data, &p); err != nil {
			return err
		}
	}
	if s.Binary == "" || m.st.several() {
		if _, err := downgrade.Offline(ctx, p); err != nil || s.Binary == "" {
			return err
		}
		return m.runEtcd(ctx, s)
	}
	// From here on the data may be one of the older minor, and nothing in it tells that its etcd has not run on it.
	if err := m.noteUnrun(s.To.Minor()); err != nil {
		return err
	}
	if _, err := downgrade.Offline(ctx, p); err != nil {
		return err
	}
	m.unrun = true
	return m.runEtcd(ctx, s)
}

func (m *Migrator) noteUnrun(minor versionfile.Minor) error {
	j, err := m.ownJournal()
	if err != nil {
		return err
	}
	j.Unrun = minor.String()
	return datadir.WriteJSON(journalPath(m.layout), j)
}

func (m *Migrator) conversionBack(data *contents) convert.V2Params {
	return convert.V2Params{
		Log: data.log, Summary: data.summary, Tree: data.tree, SnapDir: m.layout.SnapDir(), Now: m.now(), AcceptLoss: m.AcceptLoss,
	}
}

func (m *Migrator) stepDown(data *contents, s Step) downgrade.Params {
	return downgrade.Params{
		Log: data.log, Summary: data.summary, Tree: data.tree, SnapDir: m.layout.SnapDir(), To: s.To.Minor(), AcceptLoss: m.AcceptLoss,
		Several: m.st.several(),
	}
}

// checkBack refuses what a step of a rollback would refuse, before the first one.
func (m *Migrator) checkBack(ctx context.Context, s Step) error {
	data, err := readLog(m.layout) // for itself, because checking uses it up
	if err != nil {
		return refuse(err, "the data cannot be read; restore a backup (of one of several members: remove it and add it anew instead), or see docs/troubleshooting.md")
	}
	var problems []convert.Problem
	if s.Kind == StepConvertBack {
		problems, err = convert.CheckV2(ctx, m.conversionBack(data))
	} else {
		problems, err = downgrade.Check(m.stepDown(data, s))
	}
	switch {
	case ctx.Err() != nil:
		return &Error{Kind: Interrupted, Op: "check", Err: context.Cause(ctx), Hint: "give the same command again"}
	case err != nil:
		return refuse(err, "see docs/troubleshooting.md")
	}
	problems = slices.DeleteFunc(problems, func(p convert.Problem) bool {
		// Keys that are in the v3 store now will not be, at 3.0.
		return p.Loss == convert.LossV3Keys && m.st.Version.Storage == versionfile.Etcd3
	})
	return m.refuseLosses(problems)
}
