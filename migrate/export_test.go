package migrate

import (
	"context"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// SetSnapshotCount changes when private etcds write raft snapshots, and gives what changes it back.
func SetSnapshotCount(n uint64) (undo func()) {
	old := snapshotCount
	snapshotCount = n
	return func() { snapshotCount = old }
}

// SetFreeSpace makes every file system have that much room.
func SetFreeSpace(n uint64) (undo func()) {
	old := freeSpace
	freeSpace = func(string) (uint64, error) { return n, nil }
	return func() { freeSpace = old }
}

// Preflight does all of a run that comes before the first change, but for asking the etcds of their versions: it says what
// the data is, what would be done with it, and gives the fingerprint of its records.
func Preflight(ctx context.Context, r Request) (st State, fingerprint *keyspace.Fingerprint, err error) {
	m := New(r)
	m.report = &Report{}
	if err := m.open(); err != nil {
		return st, nil, err
	}
	if err := m.inspectAndPlan(ctx); err != nil {
		return m.st, nil, err
	}
	if err := m.checkAllowed(); err != nil {
		return m.st, nil, err
	}
	for _, s := range m.plan.Steps {
		var err error
		switch s.Kind {
		case StepConvert:
			_, err = m.checkConversion()
		case StepConvertBack, StepDowngrade:
			err = m.checkBack(ctx, s)
		}
		if err != nil {
			return m.st, nil, err
		}
	}
	fingerprint, err = m.firstFingerprint(ctx)
	return m.st, fingerprint, err
}

// Gate takes the last look at the data before a step's etcd.
func Gate(ctx context.Context, r Request, s Step) error {
	m := New(r)
	if err := m.open(); err != nil {
		return err
	}
	return m.gate(ctx, s)
}
