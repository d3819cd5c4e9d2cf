package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
)

// losses are what --accept-loss takes. Users and roles of the v2 API are not among them: they would still be in the way
// at 3.6.
var losses = []convert.Loss{
	convert.LossV3Keys, convert.LossOverQuota, // etcd2 to etcd3
	convert.LossUnfitKeys, convert.LossNotUTF8, convert.LossNotJSON, convert.LossV2Keys, convert.LossV3Auth, // and back
}

// ParseLosses reads a comma-separated list of losses that are accepted in a conversion.
func ParseLosses(list string) ([]convert.Loss, error) {
	var accepted []convert.Loss
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if !slices.Contains(losses, convert.Loss(name)) {
			return nil, fmt.Errorf("%q is not one of %v", name, losses)
		}
		accepted = append(accepted, convert.Loss(name))
	}
	return accepted, nil
}

// accepted are the losses that the conversion may bring.
func (m *Migrator) accepted() []convert.Loss {
	accepted := slices.Clone(m.AcceptLoss)
	if m.V2Leftovers == LeftoversDiscard {
		accepted = append(accepted, convert.LossV2Auth)
	}
	return accepted
}

// conversion says what is converted to what.
func (m *Migrator) conversion(data *contents) convert.Params {
	return convert.Params{
		// Of a member that was killed, the db can contain entries beyond the last commit that was noted. They are settled
		// by the time of the conversion itself.
		RaftIndex: data.summary.HardState.Commit + uint64(data.summary.Uncommitted),
		Tree:      data.tree, RaftTerm: data.summary.LastTerm,
		Now: m.now(), DB: m.layout.DB(), QuotaBytes: m.QuotaBytes, AcceptLoss: m.accepted(), Earlier: m.st.made, Several: m.st.several(),
		TTLDirectory: m.TTLDirectory, TTL: m.TTL,
	}
}

// convert writes the records of the v2 store into a new db.
func (m *Migrator) convert(ctx context.Context, s Step) error {
	if m.st.several() {
		return m.convertTogether(ctx, s)
	}
	data, err := m.readLog()
	if err != nil {
		return err
	}
	p := m.conversion(data)
	p.Progress, p.Publish = m.progress("convert", UnitRecords), m.noteMade
	report, err := convert.ToV3(ctx, p)
	if err != nil {
		return err
	}
	m.report.Conversion = &report
	return nil
}

// noteMade notes what the v3 store is about to be. If the run is killed before the conversion counts, an etcd may serve the v2
// store again, and then the records of the v3 store are others than those of the next conversion.
func (m *Migrator) noteMade(made convert.Made, replaces *convert.Made) error {
	j, err := m.ownJournal()
	if err != nil {
		return err
	}
	j.Made = nil
	if replaces != nil && *replaces != made { // which is in its place until then
		j.Made = append(j.Made, *replaces)
	}
	j.Made = append(j.Made, made)
	m.st.made = j.Made
	return datadir.WriteJSON(journalPath(m.layout), j)
}

// checkConversion refuses what the conversion would refuse later on, before the first step: nothing that an etcd does on
// the way there changes it.
func (m *Migrator) checkConversion() (demand, error) {
	data, err := m.readLog()
	if err != nil {
		return demand{}, refuse(err, "the data cannot be read; restore a backup (of one of several members: remove it and add it anew instead), or see docs/troubleshooting.md")
	}
	p := m.conversion(data)
	problems, err := convert.Check(p)
	if err != nil {
		return demand{}, refuse(err, "see docs/troubleshooting.md")
	}
	return m.demandOfConversion(data), m.refuseLosses(problems)
}

// refuseLosses refuses the losses that nobody has accepted, each with what can be done about it.
func (m *Migrator) refuseLosses(problems []convert.Problem) error {
	problems = slices.DeleteFunc(problems, func(p convert.Problem) bool { return slices.Contains(m.accepted(), p.Loss) })
	if len(problems) == 0 {
		return nil
	}
	var errs []error
	var about []Names
	for _, p := range problems {
		errs = append(errs, errors.New(p.Text))
		about = append(about, m.st.namesOf(p)...)
	}
	return refuse(errors.Join(errs...), lossHints(problems)).naming(about)
}

// lossHints says what can be done about them: once, where it is the same for several.
func lossHints(problems []convert.Problem) string {
	var hints, accept []string
	restore := ", or restore a backup from before the upgrade"
	for _, p := range problems {
		switch p.Loss {
		case "":
			hints, restore = append(hints, "this cannot be accepted: mend it first"+restore), ""
		case convert.LossV2Auth:
			hints = append(hints, "note the users and roles down, disable v2 authentication if it is enabled, and discard them with --v2-leftovers=discard; "+
				"create them anew in v3 with `etcdctl user add`, `etcdctl role add` and `etcdctl auth enable`")
		case convert.LossOverQuota:
			hints = append(hints, "give the quota that etcd will run with (--quota-backend-bytes, up to 8 GiB), or accept it with --accept-loss=over-quota")
		case convert.LossV3Keys:
			hints = append(hints, "if the v2 store is what counts, accept it with --accept-loss=v3-keys; if the v3 store is, write etcd3 to version.txt")
		default:
			accept = append(accept, string(p.Loss))
		}
	}
	if len(accept) > 0 {
		hints = append(hints, "accept it with --accept-loss="+strings.Join(accept, ",")+restore)
	}
	return strings.Join(hints, "; ")
}

// demandOfConversion is what the new db takes beside the old one. With pages that are half full it is twice the records.
func (m *Migrator) demandOfConversion(data *contents) demand {
	stats := data.tree.Stats(m.now())
	const perRecord = 128 // keys, revisions and page headers, generously
	return demand{"the new db", m.layout.SnapDir(), 2 * (uint64(stats.Bytes) + uint64(stats.Keys)*perRecord + 1<<20)}
}

// hintFor says what to do next after a step has failed.
func hintFor(err error, several bool) string {
	next := "mend the cause and give the same command again to go on from there, or restore the backup and start the etcd that the data belonged to"
	if several {
		next = "mend the cause and give the same command again to go on from there; or stop all members and restore the backups of all of them, never " +
			"that of one alone, and start the etcds that the data belonged to"
	}
	if hint := hintForCluster(err); hint != "" {
		return hint
	}
	var stranger *datadir.HeldError
	if errors.As(err, &stranger) {
		return "an etcd was started on the data while it is being migrated: stop it, and give the same command again; what it has written is kept"
	}
	var e *member.Error
	if errors.As(err, &e) && e.Hint != "" {
		return e.Hint + "; " + next
	}
	return next
}
