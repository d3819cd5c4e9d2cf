package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

const events = "/registry/events/"

// withoutTTLs writes what an older tool leaves: n events without a lease, one with, and keys beside them.
func withoutTTLs(t *testing.T, set binaries.Set, minor string, n int) member {
	t.Helper()
	m := blank(t, set)
	m.version = versionfile.Version{Release: newest(t, set, minor).Release, Storage: versionfile.Etcd3}
	m.on(t, minor, func(s *pathtest.Server) {
		c, err := s.V3()
		must(t, err)
		for i := range n {
			_, err := c.Put(t.Context(), fmt.Sprintf("%s%05d", events, i), fmt.Sprintf("event %d", i))
			must(t, err)
		}
		lease, err := c.Grant(t.Context(), 7200)
		must(t, err)
		_, err = c.Put(t.Context(), events+"leased", "x", clientv3.WithLease(lease.ID))
		must(t, err)
		must(t, s.FillJSON(t.Context(), 20))
		_, err = c.Put(t.Context(), "/registry/eventsource", "not below it")
		must(t, err)
		m.content = read(t, s, versionfile.Etcd3)
	})
	return m
}

// TestAttachLeases: every key below the directory has a lease afterwards, those that had one keep it, and nothing else is
// another than before. A run that is interrupted is gone on with, and the backup is the one from before it.
func TestAttachLeases(t *testing.T) {
	set := etcds(t)
	for _, minor := range longOr([]string{"3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7"}, "3.1", "3.4", "3.7") {
		t.Run(minor, func(t *testing.T) {
			t.Parallel()
			m := withoutTTLs(t, set, minor, 1200)
			r := m.request(t, minor)

			ctx, cancel := context.WithCancelCause(t.Context())
			r.Observer = func(e migrate.Event) {
				if e.What == "attach" && e.Done > 1 {
					cancel(errors.New("enough"))
				}
			}
			report, err := migrate.New(r).AttachLeases(ctx, strings.TrimSuffix(events, "/"), time.Hour)
			if migrate.KindOf(err) != migrate.Interrupted || report.Attached == 0 || report.Attached >= 1200 {
				t.Fatalf("the interrupted run: %+v, %v", report, err)
			}
			first := report.Backup

			r.Observer = nil
			again, err := migrate.New(r).AttachLeases(t.Context(), events, time.Hour)
			must(t, err)
			if again.Backup != first || report.Attached+again.Attached < 1200 || again.Leases == 0 || again.Keys < 1201 {
				t.Errorf("after %+v the next run did %+v", report, again)
			}
			if _, err := os.Stat(filepath.Join(m.dir, "etcd-migrate", migrate.JournalName)); !os.IsNotExist(err) {
				t.Errorf("the journal is still there: %v", err)
			}
			if idle, err := migrate.New(r).AttachLeases(t.Context(), events, time.Hour); err != nil || idle.Attached != 0 {
				t.Errorf("with nothing to do: %+v, %v", idle, err)
			}

			l, err := datadir.NewLayout(m.dir, "")
			must(t, err)
			must(t, datadir.OpenBackup(first).Verify(t.Context(), nil))
			if b := datadir.OpenBackup(first); b.Manifest.Reason != "before leases are attached to keys" {
				t.Errorf("the backup's reason is %q", b.Manifest.Reason)
			}
			m.on(t, minor, func(s *pathtest.Server) {
				for key, now := range read(t, s, versionfile.Etcd3).Keys {
					was := m.content.Keys[key]
					below := strings.HasPrefix(key, events)
					switch {
					case now.Value != was.Value || now.Created != was.Created:
						t.Errorf("%s has changed", key)
					case below && now.Expiry.IsZero():
						t.Errorf("%s has no lease", key)
					case (!below || !was.Expiry.IsZero()) && now.Modified != was.Modified:
						t.Errorf("%s was written again", key)
					}
				}
				if got := len(read(t, s, versionfile.Etcd3).Keys); got != len(m.content.Keys) {
					t.Errorf("there are %d keys after %d", got, len(m.content.Keys))
				}
			})
			// What an interrupted run has left goes back to what it was.
			_, err = datadir.OpenBackup(first).Restore(t.Context(), l, nil)
			must(t, err)
			m.on(t, minor, func(s *pathtest.Server) {
				for _, d := range pathtest.Compare(m.content, read(t, s, versionfile.Etcd3)) {
					t.Errorf("after the restore: %s", d)
				}
			})
		})
	}
}

// TestAttachLeasesThatEnd: keys end by themselves while leases are attached, with their own leases and with those that they were
// given. That is no loss, and nothing else is gone.
func TestAttachLeasesThatEnd(t *testing.T) {
	set := etcds(t)
	const n, slow = 1200, 8 * time.Second
	for _, minor := range longOr([]string{"3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7"}, "3.1", "3.7") {
		t.Run(minor, func(t *testing.T) {
			made := withoutTTLs(t, set, minor, n)
			var kept int
			made.on(t, minor, func(s *pathtest.Server) {
				kept = len(read(t, s, versionfile.Etcd3).Keys)
				c, err := s.V3()
				must(t, err)
				lease, err := c.Grant(t.Context(), 4) // which begins anew when an etcd is started
				must(t, err)
				for _, key := range []string{events + "short", "/registry/masterleases/10.0.0.1"} {
					_, err = c.Put(t.Context(), key, "x", clientv3.WithLease(lease.ID))
					must(t, err)
				}
			})
			for name, ttl := range map[string]time.Duration{"their own": time.Hour, "given": time.Second} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					m := made.clone(t)
					r := m.request(t, minor)
					waited := false
					r.Observer = func(e migrate.Event) {
						if e.What == "attach" && !waited {
							waited = true
							time.Sleep(slow)
						}
					}
					report, err := migrate.New(r).AttachLeases(t.Context(), events, ttl)
					must(t, err)
					given := report.Ended - 2
					if report.Attached != n || (given > 0) != (ttl < slow) {
						t.Errorf("did %+v", report)
					}
					m.on(t, minor, func(s *pathtest.Server) {
						keys := read(t, s, versionfile.Etcd3).Keys
						for _, key := range []string{events + "leased", "/registry/eventsource"} {
							if keys[key].Value == "" {
								t.Errorf("%s is gone", key)
							}
						}
						if ttl > slow && len(keys) != kept {
							t.Errorf("there are %d keys, and %d are to stay", len(keys), kept)
						}
					})
				})
			}
		})
	}
}

// TestAttachLeasesProof: an etcd that loses or changes keys while leases are attached is found out, below the directory, too.
func TestAttachLeasesProof(t *testing.T) {
	set := etcds(t)
	made := v3Only(t, set, func(s *pathtest.Server) {
		c, err := s.V3()
		must(t, err)
		lease, err := c.Grant(t.Context(), 7200)
		must(t, err)
		_, err = c.Put(t.Context(), "/leased", "1", clientv3.WithLease(lease.ID))
		must(t, err)
		_, err = c.Put(t.Context(), "/kept", "1")
		must(t, err)
		putV3(t, s, 5) // of what is last, the revision is missed
	}, "3.5")
	for what, says := range map[string]string{
		"key": "records without a lease changed", "value": "records without a lease changed",
		"leased-key": "before their time", "lease-of-key": "before their time",
	} {
		for _, directory := range []string{"/", "/elsewhere"} {
			t.Run(what+" "+directory, func(t *testing.T) {
				t.Parallel()
				m := made.clone(t)
				r := m.request(t, "3.7")
				r.Binaries = set.With(spoiling(t, what, newest(t, set, "3.5")))
				_, err := migrate.New(r).AttachLeases(t.Context(), directory, time.Hour)
				if err == nil || migrate.KindOf(err) != migrate.Failed || !strings.Contains(err.Error(), says) {
					t.Fatalf("got %v, want a failed proof that says %q", err, says)
				}
				_, err = migrate.New(m.request(t, "3.7")).AttachLeases(t.Context(), directory, time.Hour)
				if err == nil || migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), says) {
					t.Errorf("the next run: %v", err)
				}
			})
		}
	}
}

// TestMigrationAfterAttachLeases: a migration goes on from where AttachLeases was killed before it did anything. The journal is
// the migration's from then on, and keeps the next AttachLeases away from data half way.
func TestMigrationAfterAttachLeases(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "3.4", versionfile.Etcd3)
	r := m.request(t, "3.7")
	ctx, cancel := context.WithCancelCause(t.Context())
	r.Observer = func(e migrate.Event) {
		if e.Kind == migrate.EventBackup {
			cancel(errors.New("enough"))
		}
	}
	attached, err := migrate.New(r).AttachLeases(ctx, "/", time.Hour)
	if migrate.KindOf(err) != migrate.Interrupted || attached.Attached != 0 {
		t.Fatalf("the interrupted run: %+v, %v", attached, err)
	}
	r.Observer = nil
	report := interrupted(t, m, r)
	if report.Backup != attached.Backup {
		t.Errorf("the migration used the backup %s, and not %s", report.Backup, attached.Backup)
	}
	was := tree(t, m.dir)
	if _, err = migrate.New(r).AttachLeases(t.Context(), "/", time.Hour); migrate.KindOf(err) != migrate.Refused {
		t.Errorf("on data half way: %v", err)
	}
	unchanged(t, m.dir, was)
	m.migrate(t, "3.7")
}

// TestAttachLeasesRefuses: a migration that is under way has to be finished, and what cannot be is told before anything is
// changed.
func TestAttachLeasesRefuses(t *testing.T) {
	set := etcds(t)
	v3 := write(t, set, "3.4", versionfile.Etcd3)
	for name, tc := range map[string]struct {
		m      member
		before func(t *testing.T, m member)
		with   func(*testing.T, *migrate.Request)
		ttl    time.Duration
		want   []string
	}{
		"a TTL of nothing":      {v3, nil, nil, 0, []string{"less than a second"}},
		"etcd2":                 {write(t, set, "2.3", versionfile.Etcd2), nil, nil, time.Hour, []string{"2.3", "migrate it first"}},
		"no etcd of that minor": {v3, nil, without("3.4"), time.Hour, []string{"no etcd 3.4", "--bin-dir"}},
		"a migration under way": {v3, underWay("3.4.31/etcd3", "3.7.3/etcd3"), nil, time.Hour,
			[]string{"not finished", "`etcd-migrate migrate --data-dir ", "/etcd --target-version 3.7.3`"}},
		"one with dirs of their own": {v3, underWay("3.4.31/etcd3", "3.7.3/etcd3"), dirsOfTheirOwn, time.Hour,
			[]string{"`etcd-migrate migrate --data-dir ", " --wal-dir ", "/wal --backup-dir ", "/backups --target-version 3.7.3`"}},
		"a rollback under way": {v3, underWay("3.6.16/etcd3", "3.3.27/etcd3"), nil, time.Hour,
			[]string{"`etcd-migrate rollback --data-dir ", "/etcd --target-version 3.3.27`"}},
		"a rollback to etcd2": {v3, underWay("3.4.31/etcd3", "3.4.31/etcd2"), nil, time.Hour,
			[]string{"`etcd-migrate rollback ", " --target-version 3.4.31 --target-storage etcd2`"}},
		"a rollback to 2.3": {v3, underWay("3.4.31/etcd3", "2.3.8/etcd2"), nil, time.Hour,
			[]string{"`etcd-migrate rollback ", " --target-version 2.3.8`"}},
		"a rollback that converts": {v3, underWay("3.5.35/etcd2", "3.4.31/etcd3"), nil, time.Hour,
			[]string{"`etcd-migrate migrate --allow-rollback --data-dir ", " --target-version 3.4.31`"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := tc.m.clone(t)
			if tc.before != nil {
				tc.before(t, m)
			}
			r := m.request(t, "3.7")
			if tc.with != nil {
				tc.with(t, &r)
			}
			was := tree(t, m.dir)
			_, err := migrate.New(r).AttachLeases(t.Context(), events, tc.ttl)
			if migrate.KindOf(err) != migrate.Refused {
				t.Fatalf("got %v", err)
			}
			for _, want := range append(tc.want, "nothing has been changed") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			unchanged(t, m.dir, was)
		})
	}
}

// underWay leaves what a migration leaves that was killed.
func underWay(from, target string) func(*testing.T, member) {
	return func(t *testing.T, m member) {
		t.Helper()
		l, err := datadir.NewLayout(m.dir, "")
		must(t, err)
		b, err := datadir.CreateBackup(t.Context(), l, l.BackupsDir(""), datadir.Meta{Version: m.version}, nil)
		must(t, err)
		must(t, datadir.WriteJSON(filepath.Join(m.dir, "etcd-migrate", migrate.JournalName), map[string]any{
			"format": 1, "from": from, "target": target, "backup": b.Path, "permanent": ""}))
	}
}

// dirsOfTheirOwn moves the WAL and the backups out of the data dir.
func dirsOfTheirOwn(t *testing.T, r *migrate.Request) {
	t.Helper()
	dir := t.TempDir()
	r.WALDir, r.BackupDir = filepath.Join(dir, "wal"), filepath.Join(dir, "backups")
	must(t, os.Rename(filepath.Join(r.DataDir, "member", "wal"), r.WALDir))
	must(t, os.Rename(filepath.Join(r.DataDir, "etcd-migrate", "backups"), r.BackupDir))
}
