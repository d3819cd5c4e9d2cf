package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// gate looks at the data right before an etcd starts that is known to stop at what older ones leave behind. The steps
// before it see to that, so this is the proof that they have.
func (m *Migrator) gate(ctx context.Context, s Step) error {
	if s.Kind != StepUpgrade || !s.To.Minor().AtLeast(3, 6) {
		return nil
	}
	data, err := readMember(ctx, m.layout)
	if err != nil {
		return err
	}
	defer data.close()
	next := s.To.Minor()
	if n := data.entries.foreign; n > 0 {
		return fmt.Errorf("%d entries of the raft log are in the format of the v2 API, which etcd %s panics on", n, next)
	}
	if n := len(data.entries.v2); n > 0 && v3_6.Less(next) {
		return fmt.Errorf("entries of the raft log are in the format of etcd 3.5 or older (%v), which etcd %s panics on", data.entries.v2, next)
	}
	if auth := data.tree.Auth(); len(data.tree.TopLevel())+len(auth.Users)+len(auth.Roles) > 0 {
		return fmt.Errorf("the v2 store still holds keys, users or roles, which etcd %s refuses", next)
	}
	var st State
	if err := data.describeMembers(&st); err != nil {
		return err
	}
	if d := st.membersDiffer(); d != "" {
		return fmt.Errorf("the db's members are not those of the cluster, and etcd %s would go by them: %s", next, d)
	}
	return nil
}

// proveV2Empty sees that nothing of the v2 store is left on the disk.
func (m *Migrator) proveV2Empty() error {
	data, err := m.readLog()
	if err != nil {
		return err
	}
	if n := len(data.tree.TopLevel()); n > 0 {
		return fmt.Errorf("the v2 store still holds %d names at its top level", n)
	}
	auth := data.tree.Auth()
	if m.V2Leftovers == LeftoversDiscard && len(auth.Users)+len(auth.Roles) > 0 {
		return fmt.Errorf("the v2 store still holds %d users and %d roles", len(auth.Users), len(auth.Roles))
	}
	return nil
}

// sideData is what the db holds beside the keys and must still hold after a step: whoever reads it decides on it.
type sideData struct {
	info   keyspace.V3Info
	leases map[int64]int64 // TTLs by ID
	left   map[int64]int64 // what is left of them when an etcd starts, in seconds
}

// sideData gives nil without a db.
func (m *Migrator) sideData() (*sideData, error) {
	db, err := keyspace.OpenDB(m.layout.DB())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer db.Close()
	info, err := db.Info()
	if err != nil {
		return nil, err
	}
	leases, err := db.Leases()
	if err != nil {
		return nil, err
	}
	left, err := db.Remaining()
	return &sideData{info, leases, left}, err
}

// leaseSlack is for clocks that are read at other moments than etcd's, and for leases that are counted in seconds.
const leaseSlack = 2 * time.Second

// couldEnd reports whether a lease can have ended in a step that has taken so long. Etcd begins to count all that is left of
// a lease when it has been elected, which is after its start. In a cluster, another member can have been elected long
// before. A key whose lease is not there never ends.
func (m *Migrator) couldEnd(side *sideData, id int64, took time.Duration) bool {
	if side == nil {
		return false
	}
	left, ok := side.left[id]
	if m.st.several() {
		return ok
	}
	if noted := m.st.checkpoints[id]; noted > 0 {
		left = min(left, noted)
	}
	return ok && left <= int64((took+leaseSlack)/time.Second)
}

// proveSideData compares it before and after a step. Leases end, and the keys that end with them raise the revision.
func (m *Migrator) proveSideData(s Step, before, after *sideData, took time.Duration, result *StepReport) error {
	if before == nil || s.Kind == StepRecord || s.Kind == StepConvert || s.Kind == StepConvertBack || s.From.Storage == versionfile.Etcd2 || result.Replayed > 0 {
		return nil // the conversion proves its own
	}
	if after == nil {
		return errors.New("the db is gone")
	}
	if m.mayReplicate() || result.Replicated {
		return m.proveRevision(before, after, result)
	}
	for id, ttl := range before.leases {
		if now, ok := after.leases[id]; !ok {
			if !m.couldEnd(before, id, took) {
				return fmt.Errorf("lease %x of %d s is gone after %s", id, ttl, took.Round(time.Millisecond))
			}
			result.LeasesEnded++
		} else if now != ttl {
			return fmt.Errorf("lease %x has a TTL of %d s, and had one of %d s before the step", id, now, ttl)
		}
	}
	if len(after.leases) != len(before.leases)-result.LeasesEnded {
		return errors.New("there are leases that were not there before the step")
	}
	b, a := before.info, after.info
	switch {
	case a.Revision != b.Revision && (result.TTLsEnded == 0 || a.Revision < b.Revision):
		return fmt.Errorf("the v3 store is at revision %d, and was at %d before the step", a.Revision, b.Revision)
	case max(a.Compacted, a.ScheduledCompaction) != max(b.Compacted, b.ScheduledCompaction):
		return fmt.Errorf("the v3 store is compacted at %d, and was at %d before the step", a.Compacted, b.Compacted)
	case !slices.Equal(a.Alarms, b.Alarms):
		return fmt.Errorf("the alarms are %v, and were %v before the step", a.Alarms, b.Alarms)
	case a.AuthEnabled != b.AuthEnabled, !slices.Equal(a.Users, b.Users), !slices.Equal(a.Roles, b.Roles):
		return errors.New("users, roles or whether authentication is enabled are not what they were before the step")
	}
	return nil
}

// v2Index gives the index of the v2 store, 0 where it does not matter.
func (m *Migrator) v2Index(s Step) (uint64, error) {
	if !m.st.several() || s.From.Storage != versionfile.Etcd2 {
		return 0, nil
	}
	data, err := m.readLog()
	if err != nil {
		return 0, err
	}
	return data.tree.Index(), nil
}

// proveIndex is proveRevision for the v2 store.
func proveIndex(before, after uint64) error {
	if after <= before {
		return fmt.Errorf("the keys are not what they were before the step, and yet the v2 store is at index %d and was at %d", after, before)
	}
	return nil
}

// proveRevision is what is left of proveSideData where other members write: the store never goes back, and it has not
// changed without having gone on.
func (m *Migrator) proveRevision(before, after *sideData, result *StepReport) error {
	b, a := before.info.Revision, after.info.Revision
	switch {
	case a < b:
		return fmt.Errorf("the v3 store is at revision %d, and was at %d before the step", a, b)
	case a == b && result.Replicated:
		return fmt.Errorf("the keys are not what they were before the step, and yet the v3 store is still at revision %d", a)
	}
	return nil
}
