package migrate

import (
	"context"
	"errors"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/member"
)

// keepEtcdsOut keeps any etcd that is not ours from the data, from here on until ours is started. One that is there already is
// an error: what it writes is no business of a proof.
func (m *Migrator) keepEtcdsOut() error {
	m.letEtcdIn()
	if m.st.Presence == Fresh {
		return nil
	}
	release, err := m.layout.KeepEtcdsOut()
	if err == nil {
		m.letIn = release
	}
	return err
}

func (m *Migrator) letEtcdIn() {
	if m.letIn != nil {
		m.letIn()
		m.letIn = nil
	}
}

// running starts an etcd, does something with it and stops it. If it has missed its election, it is started again, a few times.
func (m *Migrator) running(ctx context.Context, cfg member.Config, do func(*member.Etcd) error) error {
	const tries = 4
	for try := 1; ; try++ {
		cfg.Impatient = cfg.Peers == nil && try < tries
		err := m.runOnce(ctx, cfg, do)
		if !errors.Is(err, member.ErrMissed) {
			return err
		}
		m.Log.Debug("private etcd is started again", "because", err, "try", try)
	}
}

func (m *Migrator) runOnce(ctx context.Context, cfg member.Config, do func(*member.Etcd) error) (err error) {
	m.letEtcdIn()
	etcd, err := member.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() {
		if err == nil || errors.Is(err, member.ErrMissed) {
			if keepErr := m.keepEtcdsOut(); keepErr != nil {
				err = keepErr
			}
		}
	}()
	defer func() {
		stopErr := stopEtcd(ctx, etcd)
		switch {
		case stopErr != nil && errors.Is(err, member.ErrMissed):
			err = stopErr // then it must not be started again
		case !errors.Is(err, member.ErrEnded) || !errors.Is(stopErr, member.ErrEnded): // the same end would be told twice
			err = errors.Join(err, stopErr)
		}
	}()
	return do(etcd)
}

// stopGrace is how long an etcd is left to stop cleanly after a signal to us, or after its time is over: a container is killed
// 30 s after the signal.
const stopGrace = 20 * time.Second

// stopEtcd stops an etcd. That is not to be hurried by whatever ended the step, because a clean stop leaves nothing to mend.
func stopEtcd(ctx context.Context, etcd *member.Etcd) error {
	patient, hurry := context.WithCancel(context.WithoutCancel(ctx))
	defer hurry()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopGrace, hurry) })()
	return etcd.Stop(patient)
}
