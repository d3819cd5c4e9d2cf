package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// LeaseReport is what AttachLeases did.
type LeaseReport struct {
	Keys     int    `json:"keys"`     // below the directory
	Attached int    `json:"attached"` // of these, those that had no lease and have one now
	Leases   int    `json:"leases"`
	Ended    int    `json:"ended,omitempty"` // keys anywhere whose lease, an earlier one or a new one, ended meanwhile
	Backup   string `json:"backup"`
}

// keysPerLease keeps a lease small: when it ends, etcd deletes all of its keys in one revision, and one with every event
// of a cluster has stopped API servers.
const keysPerLease = 500

// AttachLeases gives every key below a directory that has no lease one with that TTL. It is for data that an older tool
// has converted without its TTLs, the events of Kubernetes for example. The etcd that the data belongs to does it, on a
// private listener, so each of these keys gets a new mod revision; the version of the data stays what it is. All errors are
// of type *Error. It can be killed at any moment: given again, it goes on.
func (m *Migrator) AttachLeases(ctx context.Context, directory string, ttl time.Duration) (*LeaseReport, error) {
	prefix := strings.TrimSuffix(directory, "/") + "/"
	if ttl < time.Second {
		return nil, refuse(fmt.Errorf("a TTL of %s is less than a second", ttl), "give a longer one")
	}
	if err := m.begin(); err != nil {
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
	earlier, err := m.earlierRun()
	if err != nil {
		return nil, err
	}
	if earlier != nil && earlier.Backup == "" {
		earlier = nil // it has not got to its first step
	}
	if earlier != nil && !earlier.Leases {
		return nil, refuse(errors.New("a migration of this data dir has been begun and not finished"),
			"finish it first: "+finishCommand(m.layout, earlier))
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
	case m.st.several():
		return nil, refuse(errors.New("the data is that of one of several members, and leases are attached by the cluster"),
			"start the cluster, and give the keys leases with `etcdctl lease grant` and `etcdctl put --lease`")
	case m.st.Version.Storage != versionfile.Etcd3 || !m.st.Version.Minor().AtLeast(3, 1):
		return nil, refuse(fmt.Errorf("the data is at %s, and leases can be attached from 3.1/etcd3 on", m.st.Version), "migrate it first")
	case !ok:
		return nil, refuse(fmt.Errorf("there is no etcd %s among %s", m.st.Version.Minor(), m.Binaries), "name another directory with --bin-dir")
	}
	m.report, m.step = &Report{}, 1
	s := Step{Kind: StepReplay, From: m.st.Version, To: versionfile.Version{Release: bin.Release, Storage: versionfile.Etcd3}, Binary: bin.Path}
	m.plan = Plan{From: m.st.Version, Target: s.To, Steps: []Step{s}}
	if err := m.verifyBinaries(ctx); err != nil {
		return nil, refuse(err, "the etcd must be what its name says, and within reach of the user that the data belongs to")
	}
	if err := m.backUpForLeases(ctx, earlier); err != nil {
		return nil, err
	}
	defer m.letEtcdIn()
	report := &LeaseReport{Backup: m.backup}
	after, err := m.attachAndProve(ctx, s, prefix, ttl, report)
	if err != nil {
		return report, m.fail(ctx, s, err)
	}
	return report, m.finish(after)
}

// finishCommand is the whole command that goes on with an interrupted migration, as restoreCommand is one.
func finishCommand(l datadir.Layout, j *journal) string {
	words := []string{"etcd-migrate", "migrate"}
	switch {
	case !isBack(j.From, j.Target):
	case j.From.Storage == versionfile.Etcd2 && j.Target.Storage == versionfile.Etcd3:
		words = append(words, "--allow-rollback") // it also converts, which `rollback` refuses
	default:
		words[1] = "rollback"
	}
	words = append(words, "--data-dir", shellWord(l.DataDir))
	if l.SeparateWAL() {
		words = append(words, "--wal-dir", shellWord(l.WALDir))
	}
	if dir := filepath.Dir(j.Backup); dir != l.BackupsDir("") {
		words = append(words, "--backup-dir", shellWord(dir))
	}
	words = append(words, "--target-version", j.Target.Release.String())
	if j.Target.Storage == versionfile.Etcd2 && !j.Target.Minor().Less(v3Since) {
		words = append(words, "--target-storage", string(versionfile.Etcd2)) // not what it is by default
	}
	return "`" + strings.Join(words, " ") + "`"
}

// attachAndProve attaches the leases, and proves that it has done nothing else.
func (m *Migrator) attachAndProve(ctx context.Context, s Step, prefix string, ttl time.Duration, report *LeaseReport) (*keyspace.Fingerprint, error) {
	if m.st.Log.Unapplied() > 0 {
		// Writes that are in the log only are no part of the fingerprint before.
		if err := m.runEtcd(ctx, s); err != nil {
			return nil, err
		}
	}
	began := m.now()
	side, err := m.sideData()
	if err != nil {
		return nil, err
	}
	a := attacher{ttl: ttl, report: report, granted: map[int64]int64{}}
	var bare keyspace.Fingerprint
	err = m.eachKey(func(r keyspace.Record) {
		if r.Lease == 0 && bytes.HasPrefix(r.Key, []byte(prefix)) {
			bare.Add(besidesLease(r, 0))
		} else {
			a.want.Add(r)
		}
	})
	if err != nil {
		return nil, err
	}
	if err := m.attach(ctx, s, prefix, &a); err != nil {
		return nil, err
	}
	var after keyspace.Fingerprint
	err = m.eachKey(func(r keyspace.Record) {
		if _, ok := a.granted[r.Lease]; ok {
			r = besidesLease(r, r.Lease)
		}
		after.Add(r)
	})
	if err != nil {
		return nil, err
	}
	maps.Copy(side.left, a.granted)
	found, d := keyspace.Compare(&bare, &a.found), keyspace.Compare(&a.want, &after)
	for _, ended := range d.Ended {
		if !m.couldEnd(side, ended.ID, m.now().Sub(began)) {
			return nil, m.rememberFailure(s, fmt.Errorf("%d keys with lease %x are gone before their time", ended.Before, ended.ID))
		}
		report.Ended += int(ended.Before)
	}
	for _, d := range []keyspace.Difference{found, d} {
		if !d.Kept() {
			return nil, m.rememberFailure(s, fmt.Errorf("the keys are not what they were before leases were attached: %s", d))
		}
	}
	return &after, nil
}

// backUpForLeases makes the backup, or goes on using the one of a run that was killed.
func (m *Migrator) backUpForLeases(ctx context.Context, earlier *journal) error {
	m.leases = true
	if earlier != nil {
		return m.useBackup(*earlier, Event{Kind: EventBackup, Backup: earlier.Backup, Reused: true})
	}
	now, err := m.firstFingerprint(ctx)
	if err != nil {
		return err
	}
	return m.backUp(ctx, now)
}

// eachKey calls fn for every key of the stopped member.
func (m *Migrator) eachKey(fn func(keyspace.Record)) error {
	db, err := keyspace.OpenDB(m.layout.DB())
	if err != nil {
		return err
	}
	defer db.Close()
	return db.Each(func(r keyspace.Record) error {
		fn(r)
		return nil
	})
}

// besidesLease is what attaching a lease must not change of a key, which writes it again.
func besidesLease(r keyspace.Record, lease int64) keyspace.Record {
	return keyspace.Record{Key: r.Key, Value: r.Value, Created: r.Created, Lease: lease}
}

func (m *Migrator) attach(ctx context.Context, s Step, prefix string, a *attacher) error {
	cfg, err := m.config(s)
	if err != nil {
		return err
	}
	return m.running(ctx, cfg, func(etcd *member.Etcd) error {
		if err := etcd.Ready(ctx); err != nil {
			return err
		}
		if a.c, err = etcd.V3(); err != nil {
			return err
		}
		return m.attachWith(ctx, a, prefix)
	})
}

func (m *Migrator) attachWith(ctx context.Context, a *attacher, prefix string) error {
	report, progress := a.report, m.progress("attach", UnitRecords)
	const page = 500
	end := clientv3.GetPrefixRangeEnd(prefix)
	for from := prefix; ; {
		res, err := a.c.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page))
		if err != nil {
			return fmt.Errorf("read keys: %w", err)
		}
		total := int64(report.Keys) + res.Count
		for _, kv := range res.Kvs {
			report.Keys++
			progress(int64(report.Keys), max(total, int64(report.Keys)+1))
			if kv.Lease == 0 {
				if err := a.attach(ctx, kv); err != nil {
					return err
				}
			}
		}
		if !res.More {
			progress(int64(report.Keys), int64(report.Keys))
			return nil
		}
		from = string(res.Kvs[len(res.Kvs)-1].Key) + "\x00"
	}
}

// attacher gives keys leases, one after another.
type attacher struct {
	c       *clientv3.Client
	ttl     time.Duration
	report  *LeaseReport
	lease   int64
	room    int             // for how many more keys
	granted map[int64]int64 // TTLs in seconds by lease

	// found are the keys as they were read, and want are all that must be there in the end: these with their leases, and those
	// that are left alone. A lease can end in the same run, and then nothing but want has its keys.
	found, want keyspace.Fingerprint
}

func (a *attacher) attach(ctx context.Context, kv *mvccpb.KeyValue) error {
	r := keyspace.Record{Key: kv.Key, Value: kv.Value, Created: kv.CreateRevision}
	a.found.Add(r)
	if a.room == 0 {
		if err := a.grant(ctx); err != nil {
			return err
		}
	}
	err := a.put(ctx, kv)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) { // it has ended before it was full
		if err := a.grant(ctx); err != nil {
			return err
		}
		err = a.put(ctx, kv)
	}
	if err != nil {
		return fmt.Errorf("attach a lease to key number %d: %w", a.report.Keys, err)
	}
	a.want.Add(besidesLease(r, a.lease))
	a.room--
	a.report.Attached++
	return nil
}

func (a *attacher) grant(ctx context.Context) error {
	lease, err := a.c.Grant(ctx, int64((a.ttl+time.Second-1)/time.Second))
	if err != nil {
		return fmt.Errorf("grant lease %d: %w", a.report.Leases+1, err)
	}
	a.lease, a.room = int64(lease.ID), keysPerLease
	a.granted[a.lease] = lease.TTL
	a.report.Leases++
	return nil
}

// put writes a key again, with the lease. Nobody else can write, so the condition only says that this is about the value that
// has just been read.
func (a *attacher) put(ctx context.Context, kv *mvccpb.KeyValue) error {
	res, err := a.c.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision)).
		Then(clientv3.OpPut(string(kv.Key), string(kv.Value), clientv3.WithLease(clientv3.LeaseID(a.lease)))).
		Commit()
	if err == nil && !res.Succeeded {
		err = errors.New("the key changed")
	}
	return err
}
