package migrate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// LeaseReport is what AttachLeases did.
type LeaseReport struct {
	Keys     int    `json:"keys"`     // below the directory
	Attached int    `json:"attached"` // of these, those that had no lease and have one now
	Leases   int    `json:"leases"`
	Backup   string `json:"backup"`
}

// keysPerLease keeps a lease small: when it ends, etcd deletes all of its keys in one revision, and one with every event
// of a cluster has stopped API servers.
const keysPerLease = 500

// AttachLeases gives every key below a directory that has no lease one with that TTL. It is for data that an older tool
// has converted without its TTLs, the events of Kubernetes for example. The etcd that the data belongs to does it, on a
// private listener, so each of these keys gets a new mod revision; the version of the data stays what it is.
func (m *Migrator) AttachLeases(ctx context.Context, directory string, ttl time.Duration) (*LeaseReport, error) {
	prefix := strings.TrimSuffix(directory, "/") + "/"
	if ttl < time.Second {
		return nil, refuse(fmt.Errorf("a TTL of %s is less than a second", ttl), "give a longer one")
	}
	if err := m.open(); err != nil {
		return nil, err
	}
	unlock, err := m.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := m.takeOver(); err != nil {
		return nil, err
	}
	if readJournal(m.layout) != nil {
		return nil, refuse(errors.New("a migration of this data dir has been begun and not finished"), "finish it first")
	}
	if m.st, err = Inspect(ctx, m.layout, m.now()); err != nil {
		return nil, err
	}
	if problem := m.st.blocking(); problem != nil {
		return nil, &Error{Kind: Refused, Op: "attach leases", Err: problem, Hint: problem.Hint}
	}
	bin, ok := m.Binaries.Newest(m.st.Version.Minor())
	switch {
	case m.st.Presence == Fresh:
		return nil, refuse(fmt.Errorf("%s holds no member's data", m.st.DataDir), "check the path")
	case m.st.Version.Storage != versionfile.Etcd3 || !m.st.Version.Minor().AtLeast(3, 1):
		return nil, refuse(fmt.Errorf("the data is at %s, and leases can be attached from 3.1/etcd3 on", m.st.Version), "migrate it first")
	case !ok:
		return nil, refuse(fmt.Errorf("there is no etcd %s among %s", m.st.Version.Minor(), m.Binaries), "name another directory with --bin-dir")
	}
	m.report, m.step = &Report{}, 1
	s := Step{Kind: StepReplay, From: m.st.Version, To: versionfile.Version{Release: bin.Release, Storage: versionfile.Etcd3}, Binary: bin.Path}
	m.plan = Plan{From: m.st.Version, Target: s.To, Steps: []Step{s}}
	if err := m.verifyBinaries(ctx); err != nil {
		return nil, refuse(err, "the etcd must be what its name says")
	}
	before, err := m.firstFingerprint(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.backUp(ctx, before); err != nil {
		return nil, err
	}
	report := &LeaseReport{Backup: m.backup}
	if err := m.attach(ctx, s, prefix, ttl, report); err != nil {
		return report, m.fail(ctx, s, err)
	}
	return report, m.finish(before)
}

func (m *Migrator) attach(ctx context.Context, s Step, prefix string, ttl time.Duration, report *LeaseReport) (err error) {
	cfg, err := m.config(s)
	if err != nil {
		return err
	}
	etcd, err := member.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopEtcd(ctx, etcd)) }()
	if err := etcd.Ready(ctx); err != nil {
		return err
	}
	c, err := etcd.V3()
	if err != nil {
		return err
	}
	a := attacher{c: c, ttl: ttl, report: report}
	const page = 500
	end := clientv3.GetPrefixRangeEnd(prefix)
	for from := prefix; ; {
		res, err := c.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page))
		if err != nil {
			return fmt.Errorf("read keys: %w", err)
		}
		for _, kv := range res.Kvs {
			report.Keys++
			if kv.Lease == 0 {
				if err := a.attach(ctx, string(kv.Key), string(kv.Value), kv.ModRevision); err != nil {
					return err
				}
			}
		}
		if !res.More {
			return nil
		}
		from = string(res.Kvs[len(res.Kvs)-1].Key) + "\x00"
	}
}

// attacher gives keys leases, one after another.
type attacher struct {
	c      *clientv3.Client
	ttl    time.Duration
	report *LeaseReport
	lease  clientv3.LeaseID
}

func (a *attacher) attach(ctx context.Context, key, value string, revision int64) error {
	if a.report.Attached%keysPerLease == 0 {
		lease, err := a.c.Grant(ctx, int64((a.ttl+time.Second-1)/time.Second))
		if err != nil {
			return fmt.Errorf("grant lease %d: %w", a.report.Leases+1, err)
		}
		a.lease = lease.ID
		a.report.Leases++
	}
	// Nobody else can write, so the condition only says that this is about the value that has just been read.
	res, err := a.c.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
		Then(clientv3.OpPut(key, value, clientv3.WithLease(a.lease))).
		Commit()
	if err == nil && !res.Succeeded {
		err = errors.New("the key changed")
	}
	if err != nil {
		return fmt.Errorf("attach a lease to key number %d: %w", a.report.Keys, err)
	}
	a.report.Attached++
	return nil
}
