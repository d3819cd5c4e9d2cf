package migrate_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestMain makes this test binary what it is called: see standIn.
func TestMain(m *testing.M) {
	name := filepath.Base(os.Args[0])
	if what, ok := strings.CutPrefix(name, spoils); ok {
		panic(spoil(what))
	}
	if name == misses {
		panic(missElection())
	}
	os.Exit(m.Run())
}

const spoils = "spoils-"

// spoiling gives a binary that becomes a real etcd, and before that does to the db what no real etcd can be made to do.
func spoiling(t *testing.T, what string, etcd binaries.Binary) binaries.Binary {
	t.Helper()
	return standIn(t, spoils+what, etcd)
}

// standIn gives a binary that is this test binary by another name, because the environment and the flags of a private etcd leave
// no room to say what it shall do. The etcd that it stands for lies beside it.
func standIn(t *testing.T, name string, etcd binaries.Binary) binaries.Binary {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	path := filepath.Join(t.TempDir(), name)
	must(t, os.Symlink(exe, path))
	real, err := filepath.Abs(etcd.Path)
	must(t, err)
	must(t, os.Symlink(real, path+".real"))
	return binaries.Binary{Path: path, Release: etcd.Release}
}

func spoil(what string) error {
	for _, arg := range os.Args {
		if dir, ok := strings.CutPrefix(arg, "--data-dir="); ok {
			db, err := bbolt.Open(filepath.Join(dir, "member", "snap", "db"), 0o600, nil)
			if err != nil {
				return err
			}
			if err := errors.Join(db.Update(spoilers[what]), db.Close()); err != nil {
				return err
			}
		}
	}
	return becomeReal()
}

func becomeReal() error { return syscall.Exec(os.Args[0]+".real", os.Args, os.Environ()) }

var spoilers = map[string]func(*bbolt.Tx) error{
	"key": func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("key")).Delete(revisionOf(tx, "/kept"))
	},
	"leased-key": func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("key")).Delete(revisionOf(tx, "/leased"))
	},
	"value": func(tx *bbolt.Tx) error {
		return rewrite(tx, "/kept", func(kv *mvccpb.KeyValue) { kv.Value = []byte("2") })
	},
	"lease-of-key": func(tx *bbolt.Tx) error {
		return rewrite(tx, "/leased", func(kv *mvccpb.KeyValue) { kv.Lease = 0 })
	},
	// The last two revisions are a key that came and went, so that without them the keys are what they were.
	"revision": func(tx *bbolt.Tx) error {
		for range 2 {
			c := tx.Bucket([]byte("key")).Cursor()
			c.Last()
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	},
	"compaction": func(tx *bbolt.Tx) error {
		three := make([]byte, 17)
		binary.BigEndian.PutUint64(three, 3)
		three[8] = '_'
		return tx.Bucket([]byte("meta")).Put([]byte("scheduledCompactRev"), three)
	},
	"lease":       func(tx *bbolt.Tx) error { return tx.Bucket([]byte("lease")).Delete(leaseID(7)) },
	"lease-added": func(tx *bbolt.Tx) error { return tx.Bucket([]byte("lease")).Put(leaseID(8), []byte{8, 8, 16, 100}) },
	"lease-ttl":   func(tx *bbolt.Tx) error { return tx.Bucket([]byte("lease")).Put(leaseID(7), []byte{8, 7, 16, 100}) },
	"alarm":       func(tx *bbolt.Tx) error { return empty(tx, "alarm") },
	"user":        func(tx *bbolt.Tx) error { return tx.Bucket([]byte("authUsers")).Delete([]byte("app")) },
	"role":        func(tx *bbolt.Tx) error { return tx.Bucket([]byte("authRoles")).Delete([]byte("reader")) },
	"auth":        func(tx *bbolt.Tx) error { return tx.Bucket([]byte("auth")).Put([]byte("authEnabled"), []byte{0}) },
}

func leaseID(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

func empty(tx *bbolt.Tx, bucket string) error {
	c := tx.Bucket([]byte(bucket)).Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.First() {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// revisionOf finds the revision at which a key was written last.
func revisionOf(tx *bbolt.Tx, key string) (revision []byte) {
	_ = tx.Bucket([]byte("key")).ForEach(func(k, v []byte) error {
		var kv mvccpb.KeyValue
		if kv.Unmarshal(v) == nil && string(kv.Key) == key {
			revision = append([]byte(nil), k...)
		}
		return nil
	})
	return revision
}

func rewrite(tx *bbolt.Tx, key string, change func(*mvccpb.KeyValue)) error {
	b, at := tx.Bucket([]byte("key")), revisionOf(tx, key)
	var kv mvccpb.KeyValue
	if err := kv.Unmarshal(b.Get(at)); err != nil {
		return err
	}
	change(&kv)
	v, err := kv.Marshal()
	if err != nil {
		return err
	}
	return b.Put(at, v)
}

// TestProof: an etcd that loses or changes anything in a step is found out. The step does not count, no later run goes on from
// there, and the backup brings back what was.
func TestProof(t *testing.T) {
	set := etcds(t)
	made := ofAllSorts(t, set)
	for what, says := range map[string]string{
		"key": "the keys are not what they were", "value": "the keys are not what they were",
		"leased-key": "1 keys with lease 9 are gone before their time", "lease-of-key": "1 keys with lease 9 are gone before their time",
		"revision": "the v3 store is at revision", "compaction": "the v3 store is compacted at 3",
		"lease": "lease 7 of 3600 s is gone", "lease-added": "leases that were not there", "lease-ttl": "lease 7 has a TTL of 100 s",
		"alarm": "the alarms are []", "user": "users, roles", "role": "users, roles", "auth": "users, roles",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			m := made.clone(t)
			before := tree(t, filepath.Join(m.dir, "member"))
			r := m.request(t, "3.7")
			r.Binaries = set.With(spoiling(t, what, newest(t, set, "3.6")))
			report, err := migrate.New(r).Run(t.Context())
			var e *migrate.Error
			if !errors.As(err, &e) || e.Kind != migrate.Failed || !strings.Contains(err.Error(), says) || e.Backup == "" || !strings.Contains(e.Hint, "backup restore") {
				t.Fatalf("got %v, want a failed proof that says %q, and the backup", err, says)
			}
			if v, err := versionfile.Read(m.dir); err != nil || v != m.version || len(report.Steps) != 0 {
				t.Errorf("version.txt is %s, %v; %d steps count as done", v, err, len(report.Steps))
			}
			var journal map[string]any
			must(t, datadir.ReadJSON(filepath.Join(m.dir, "etcd-migrate", migrate.JournalName), &journal))
			if failed, _ := journal["failed"].(string); !strings.Contains(failed, says) {
				t.Errorf("the journal says %v", journal)
			}
			for _, target := range []string{"3.6", "3.7"} { // now with the real one
				_, err := migrate.New(m.request(t, target)).Run(t.Context())
				if migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), says) {
					t.Errorf("the next run to %s: %v", target, err)
				}
			}
			l, err := datadir.NewLayout(m.dir, "")
			must(t, err)
			_, err = datadir.OpenBackup(e.Backup).Restore(t.Context(), l, nil)
			must(t, err)
			unchanged(t, filepath.Join(m.dir, "member"), before)
			m.migrate(t, "3.7")
		})
	}
}

// ofAllSorts is data of 3.5 with one of everything that a step has to leave alone.
func ofAllSorts(t *testing.T, set binaries.Set) member {
	t.Helper()
	m := blank(t, set)
	m.version = versionfile.Version{Release: newest(t, set, "3.5").Release, Storage: versionfile.Etcd3}
	m.on(t, "3.5", func(s *pathtest.Server) {
		ctx := t.Context()
		c, err := s.V3()
		must(t, err)
		putV3(t, s, 5)
		for _, id := range []int64{7, 9} {
			_, err := etcdserverpb.NewLeaseClient(c.ActiveConnection()).LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{ID: id, TTL: 3600})
			must(t, err)
		}
		_, err = c.Put(ctx, "/kept", "1")
		must(t, err)
		_, err = c.Put(ctx, "/leased", "1", clientv3.WithLease(9))
		must(t, err)
		_, err = c.Put(ctx, "/gone", "1")
		must(t, err)
		_, err = c.Delete(ctx, "/gone")
		must(t, err)
		_, err = c.UserAdd(ctx, "app", "pw")
		must(t, err)
		_, err = c.RoleAdd(ctx, "reader")
		must(t, err)
		raiseAlarm(t, s)
		enableAuth(t, s)
	})
	m.writeVersion(t, m.version.String())
	return m
}

// TestGate: the last look before an etcd 3.6 and 3.7, should the steps before it not have settled what these stop at.
func TestGate(t *testing.T) {
	set := etcds(t)
	made := v3Only(t, set, nil, "3.5")
	for name, tc := range map[string]struct {
		spoil func(*testing.T, string)
		to    string
		says  string // nothing: it passes
	}{
		"nothing wrong":    {func(*testing.T, string) {}, "3.6.16/etcd3", ""},
		"F07 a zombie":     {addZombie, "3.6.16/etcd3", `the db's members are not those of the cluster, and etcd 3.6 would go by them: dead00000000beef "gone" is in the db only`},
		"F08 a learner":    {markLearner, "3.6.16/etcd3", "is a learner in the db only"},
		"older minors":     {addZombie, "3.5.35/etcd3", ""},
		"F06 what 3.5 has": {func(*testing.T, string) {}, "3.7.3/etcd3", "which etcd 3.7 panics on"},
	} {
		t.Run(name, func(t *testing.T) {
			m := made.clone(t)
			tc.spoil(t, m.dir)
			to, err := versionfile.Parse(tc.to)
			must(t, err)
			err = migrate.Gate(t.Context(), m.request(t, "3.7"), migrate.Step{Kind: migrate.StepUpgrade, To: to})
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
		})
	}
}
