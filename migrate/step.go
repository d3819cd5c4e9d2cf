package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// snapshotCount makes an etcd write a raft snapshot after a handful of entries: see StepUpgrade in docs/architecture.md.
var snapshotCount uint64 = 3 // 0 is for tests, which show what happens without

// rollingSnapshotCount is the same where clients write meanwhile, who would pay for a snapshot after every few writes.
const rollingSnapshotCount = 50

// take makes one step: do it, prove that it lost nothing, and only then write version.txt.
func (m *Migrator) take(ctx context.Context, s Step, before *keyspace.Fingerprint) (*keyspace.Fingerprint, error) {
	began := m.now()
	m.tell(Event{Kind: EventStepStarted})
	m.agreement, m.etcdMemory, m.unrun = nil, 0, false
	if err := m.keepEtcdsOut(); err != nil {
		return nil, m.fail(ctx, s, err)
	}
	if err := m.gate(ctx, s); err != nil {
		return nil, m.fail(ctx, s, err)
	}
	side, err := m.sideData()
	if err != nil {
		return nil, m.fail(ctx, s, err)
	}
	index, err := m.v2Index(s)
	if err != nil {
		return nil, m.fail(ctx, s, err)
	}
	after, err := m.do(ctx, s, before)
	if err == nil {
		err = m.keepEtcdsOut() // also of a log that the step has written anew
	}
	if err != nil {
		return nil, m.fail(ctx, s, err)
	}
	result := StepReport{Step: s, Keys: int(after.Records), Fingerprint: after.String(), FingerprintBefore: before.String(), Agreement: m.agreement}
	took := m.now().Sub(began)
	err = m.prove(s, before, after, side, took, &result)
	var sideAfter *sideData
	if err == nil && side != nil {
		if sideAfter, err = m.sideData(); err != nil {
			return nil, m.fail(ctx, s, err) // what cannot be read has not failed its proof
		}
		err = m.proveSideData(s, side, sideAfter, took, &result)
	}
	if err == nil && result.Replicated && s.From.Storage == versionfile.Etcd2 {
		indexAfter, readErr := m.v2Index(s)
		if readErr != nil {
			return nil, m.fail(ctx, s, readErr)
		}
		err = proveIndex(index, indexAfter)
	}
	if err != nil {
		return nil, m.fail(ctx, s, m.rememberFailure(s, err))
	}
	if err := m.record(s); err != nil {
		return nil, m.fail(ctx, s, err)
	}
	if err := m.continueJournal(s, after, sideAfter); err != nil {
		done := s
		done.From = s.To // version.txt says so by now
		return nil, m.fail(ctx, done, err)
	}
	result.Seconds, result.PeakMemoryBytes = m.now().Sub(began).Seconds(), max(m.etcdMemory, ownPeakMemory())
	m.report.Steps = append(m.report.Steps, result)
	m.tell(Event{Kind: EventStepDone, Result: &result})
	return after, nil
}

// do makes the step's change and gives the fingerprint of what is there afterwards.
func (m *Migrator) do(ctx context.Context, s Step, before *keyspace.Fingerprint) (*keyspace.Fingerprint, error) {
	var err error
	switch s.Kind {
	case StepRecord:
		return before, nil
	case StepConvert:
		err = m.convert(ctx, s)
	case StepConvertBack, StepDowngrade:
		err = m.goBack(ctx, s)
	case StepReplay:
		if m.st.several() && m.plan.Back() {
			err = m.agreeToLeave(ctx, s)
			break
		}
		err = m.runEtcd(ctx, s)
	case StepUpgrade, StepEmptyV2:
		err = m.runEtcd(ctx, s)
	}
	if err != nil {
		return nil, err
	}
	return m.fingerprint(ctx, s.To.Storage)
}

// prove compares the records before and after a step that took so long. The only difference that may be is that TTLs have
// ended, and then all keys with that TTL are gone, together, and not before their time.
func (m *Migrator) prove(s Step, before, after *keyspace.Fingerprint, side *sideData, took time.Duration, result *StepReport) error {
	if s.Kind == StepConvert || s.Kind == StepConvertBack {
		return nil // compared record by record before the new db took its place: a TTL is an expiry before, a lease after
	}
	if n := m.st.Log.Unapplied(); n > 0 && m.step == 1 && !m.st.several() {
		result.Replayed = n // they are part of what is there now, and of every proof from here on
		return nil
	}
	d := keyspace.Compare(before, after)
	for _, ended := range d.Ended {
		// Of a key of the v2 store the instant is known at which it ends, in nanoseconds.
		// Of several members it is the leader's clock that counts.
		if s.To.Storage == versionfile.Etcd2 && ended.ID > m.now().UnixNano() && !m.st.several() {
			return fmt.Errorf("%d keys are gone before their time", ended.Before)
		}
		if s.To.Storage == versionfile.Etcd3 && !m.couldEnd(side, ended.ID, took) {
			return fmt.Errorf("%d keys with lease %x are gone before their time", ended.Before, ended.ID)
		}
		result.TTLsEnded += int(ended.Before)
	}
	if !d.Kept() && m.st.several() {
		result.Replicated = true // if the store has gone on
		return nil
	}
	if !d.Kept() {
		return fmt.Errorf("the keys are not what they were before the step: %s", d)
	}
	return nil
}

// correctVersionFile makes version.txt say what the data was found to be at, where it says something else: an earlier run
// was killed between a step and its record. Should this one be killed there too, the two would be two minors apart, and
// nobody could tell any more which of them is right. With no step left, this is the record that it was killed before.
func (m *Migrator) correctVersionFile() error {
	if f := m.st.VersionFile; m.st.Presence == Fresh || f == nil || *f == m.st.Version {
		return nil
	}
	if err := versionfile.Write(m.layout.DataDir, m.st.Version); err != nil {
		return &Error{Kind: Failed, Op: "correct version.txt", Err: err, Backup: m.backup, Data: fmt.Sprintf("the data is at %s", m.st.Version),
			Hint: "the data dir must be writable; give the same command again"}
	}
	corrected := m.st.Version
	m.st.VersionFile = &corrected
	return nil
}

// record makes version.txt say what the data now is.
func (m *Migrator) record(s Step) error {
	if m.st.Presence == Fresh {
		if err := errors.Join(datadir.MkdirAll(m.layout.DataDir), datadir.MkdirAll(m.layout.WorkDir())); err != nil {
			return err
		}
		if err := datadir.WriteFile(freshMarker(m.layout), nil, 0o600); err != nil {
			return err
		}
	}
	if err := versionfile.Write(m.layout.DataDir, s.To); err != nil {
		return err
	}
	recorded := s.To
	m.st.VersionFile = &recorded
	return nil
}

// runEtcd lets the step's etcd take the data over. From 3.0 on it does not count as done before a raft snapshot of this
// etcd is on disk: the next minor then starts from that, and never has to read a log entry or a snapshot of an older one.
// Without it, data does get stuck at 3.1, 3.2, 3.5, 3.6 and 3.7.
func (m *Migrator) runEtcd(ctx context.Context, s Step) error {
	ctx, cancel := m.stepContext(ctx, s)
	defer cancel()
	cfg, err := m.config(s)
	if err != nil {
		return err
	}
	if s.Kind == StepReplay && s.To.Minor() == v2Until && m.st.startsAtV2() {
		// It never gets ready before it has started from another snapshot, which it can only be made to write with v2.
		withV2 := cfg
		withV2.V2, withV2.SnapshotCount = true, snapshotCount
		err := m.running(ctx, withV2, func(etcd *member.Etcd) error {
			_, err := etcd.ForceSnapshot(ctx)
			return err
		})
		if err != nil {
			return err
		}
	}
	var emptyV2 func(*member.Etcd) error
	if s.Kind == StepEmptyV2 {
		if emptyV2, err = m.emptyV2(ctx, s, cfg); err != nil {
			return err
		}
	}
	m.log = nil // what etcd makes of it has to be read anew
	compares := m.compares(s)
	if compares {
		if err := m.noteCompared(false); err != nil {
			return err
		}
	}
	if compares && !m.agreed && cfg.SnapshotCount != noSnapshots {
		// A member that is behind a raft snapshot of its leader gets the leader's db in the place of its own, right or wrong. So
		// there is none before all are known to be the same.
		first := cfg
		first.SnapshotCount, compares = noSnapshots, false
		err := m.running(ctx, first, func(etcd *member.Etcd) error {
			if err := m.ready(ctx, s, etcd); err != nil {
				return err
			}
			return m.agree(ctx, s, etcd)
		})
		if err != nil {
			return err
		}
	}
	err = m.running(ctx, cfg, func(etcd *member.Etcd) error {
		if err := m.ready(ctx, s, etcd); err != nil {
			return err
		}
		if compares {
			if err := m.agree(ctx, s, etcd); err != nil {
				return err
			}
		}
		if emptyV2 != nil {
			if err := emptyV2(etcd); err != nil {
				return err
			}
		}
		// A learner cannot, unless others write, which those that wait for it at the next step do.
		if m.plan.forcesSnapshot(m.step-1) && (m.together && m.step < len(m.plan.Steps) || !m.st.Member.Learner) {
			if _, err := etcd.ForceSnapshot(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && emptyV2 != nil {
		err = m.proveV2Empty()
	}
	return err
}

// stepContext ends when the step has taken too long.
func (m *Migrator) stepContext(ctx context.Context, s Step) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, m.StepTimeout,
		fmt.Errorf("etcd %s was not done after %s (--step-timeout)", s.To.Release, m.StepTimeout))
}

func (m *Migrator) config(s Step) (member.Config, error) {
	owner, err := m.owner()
	if err != nil {
		return member.Config{}, err
	}
	cfg := member.Config{
		Path:                s.Binary,
		Release:             s.To.Release,
		DataDir:             m.layout.DataDir,
		Name:                m.st.Member.Name,
		AdvertiseClientURLs: m.st.Member.ClientURLs,
		QuotaBytes:          m.QuotaBytes,
		V2:                  s.Kind == StepEmptyV2,
		Learner:             m.st.Member.Learner,
		Credential:          owner,
		Log:                 m.Log,
	}
	progress := m.progress("etcd", UnitLines)
	cfg.Printed = func(lines int64) { progress(lines, 0) }
	cfg.Ended = func(peak int64) { m.etcdMemory = max(m.etcdMemory, peak) }
	if m.st.several() {
		cfg.Peers = m.Peers
	}
	if m.layout.SeparateWAL() {
		cfg.WALDir = m.layout.WALDir
	}
	// A raft snapshot of the v2 store is JSON, which replaces the bytes of keys and values that are not UTF-8, and makes one of
	// two such keys. The log keeps them for the conversion.
	cfg.SnapshotCount = noSnapshots
	if m.plan.forcesSnapshot(m.step - 1) {
		cfg.SnapshotCount = snapshotCount
		if m.st.several() && !m.together {
			cfg.SnapshotCount = rollingSnapshotCount
		}
	}
	return cfg, nil
}

// owner makes root start an etcd as the user that the data belongs to, so that no file changes hands.
func (m *Migrator) owner() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	info, err := os.Stat(m.layout.MemberDir())
	if err != nil {
		return nil, err
	}
	st := info.Sys().(*syscall.Stat_t)
	if st.Uid == 0 {
		return nil, nil
	}
	return &syscall.Credential{Uid: st.Uid, Gid: st.Gid}, nil
}

// readLog reads the member's log and v2 store, unless they are what they were when they were last read.
func (m *Migrator) readLog() (*contents, error) {
	if m.log == nil {
		data, err := readLog(m.layout)
		if err != nil {
			return nil, err
		}
		m.log = data
	}
	return m.log, nil
}

// fingerprint reads all records of the store that holds the user's keys.
func (m *Migrator) fingerprint(ctx context.Context, storage versionfile.Storage) (*keyspace.Fingerprint, error) {
	if storage == versionfile.Etcd3 {
		db, err := keyspace.OpenDB(m.layout.DB())
		if err != nil {
			return nil, err
		}
		defer db.Close()
		db.EndWith(ctx)
		var fp keyspace.Fingerprint
		add, added := m.adding(&fp)
		err = db.Each(add)
		added()
		return &fp, err
	}
	data, err := m.readLog()
	if err != nil {
		return nil, err
	}
	var fp keyspace.Fingerprint
	add, added := m.adding(&fp)
	err = data.tree.Each(m.now(), add)
	added()
	return &fp, err
}

// adding gives what adds records to a fingerprint and tells how far it is, and what tells the end.
func (m *Migrator) adding(fp *keyspace.Fingerprint) (add func(keyspace.Record) error, added func()) {
	const often = 4096                              // to look at the clock at each record would take as long as to add it
	about := int64(max(m.st.V2.Keys, m.st.V3.Keys)) // as many as were found before the first step, in one store or the other
	progress := m.progress("prove", UnitRecords)
	add = func(r keyspace.Record) error {
		fp.Add(r)
		if fp.Records%often == 0 {
			progress(fp.Records, max(fp.Records+1, about))
		}
		return nil
	}
	return add, func() { progress(fp.Records, fp.Records) }
}

// firstFingerprint is that of the data as it was found.
func (m *Migrator) firstFingerprint(ctx context.Context) (*keyspace.Fingerprint, error) {
	if m.st.Presence == Fresh {
		return &keyspace.Fingerprint{}, nil
	}
	fp, err := m.fingerprint(ctx, m.st.Version.Storage)
	if err != nil && ctx.Err() != nil {
		return nil, &Error{Kind: Interrupted, Op: "read the data", Err: context.Cause(ctx), Hint: "give the same command again"}
	}
	if err != nil {
		return nil, refuse(err, "the data cannot be read; restore a backup (of one of several members: remove it and add it anew instead), or see docs/troubleshooting.md")
	}
	return fp, nil
}
