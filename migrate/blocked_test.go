package migrate_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestBlocked: what cannot be made good is refused in words that help, by a plan in the same, and nothing has been changed.
func TestBlocked(t *testing.T) {
	set := etcds(t)
	for name, tc := range map[string]struct {
		make   func(t *testing.T) member
		target string
		with   func(*migrate.Request)
		says   []string
	}{
		"F02 a db that a failed start has made anew": {func(t *testing.T) member {
			m := v3Only(t, set, nil, "3.3", "3.4")
			m.on(t, "3.4", func(s *pathtest.Server) { putV3(t, s, 10) }, "--snapshot-count", "5")
			must(t, os.Remove(filepath.Join(m.dir, "member", "snap", "db")))
			fails(t, m, "3.4", "snap: snapshot file doesn't exist")
			return m
		}, "3.7", nil, []string{"contains raft entry 0", "was lost and made anew", "restore a backup"}},
		"F02 a db that is an older copy": {func(t *testing.T) member {
			m := v3Only(t, set, nil, "3.4")
			db := filepath.Join(m.dir, "member", "snap", "db")
			old, err := os.ReadFile(db)
			must(t, err)
			m.on(t, "3.4", func(s *pathtest.Server) { putV3(t, s, 10) }, "--snapshot-count", "5")
			must(t, os.WriteFile(db, old, 0o600))
			return m
		}, "3.7", nil, []string{"or it is an older copy", "restore a backup"}},
		"F07 a member that was removed, at 3.6": {func(t *testing.T) member {
			m := v3Only(t, set, nil, "3.6")
			addZombie(t, m.dir)
			return m
		}, "3.7", nil, []string{`dead00000000beef "gone" is in the db only`, "etcdctl member remove"}},
		"F08 a learner in the db, at 3.6": {func(t *testing.T) member {
			m := v3Only(t, set, nil, "3.6")
			markLearner(t, m.dir)
			return m
		}, "3.7", nil, []string{"is a learner in the db only"}},
		"F12 a downgrade in progress": {func(t *testing.T) member {
			return v3Only(t, set, func(s *pathtest.Server) { enableDowngrade(t, s, "3.5.0") }, "3.6")
		}, "3.7", nil, []string{"a downgrade to etcd 3.5.0", "etcdctl downgrade cancel"}},
		"F19 v2 authentication is enabled": {func(t *testing.T) member {
			m := blank(t, set)
			m.on(t, "3.4", func(s *pathtest.Server) {
				putV3(t, s, 1)
				addV2Users(t, s)
				v2Auth(t, s, "enable", "")
			}, "--enable-v2")
			return m
		}, "3.6", func(r *migrate.Request) { r.V2Leftovers = migrate.LeftoversDiscard },
			[]string{"authentication of the v2 API is enabled", "auth disable"}},
		"F13 no room": {func(t *testing.T) member { return v3Only(t, set, nil, "3.4") }, "3.7", nil,
			[]string{"has 1.0 KiB free", "the backup", "a segment of the raft log 64 MiB", "--backup-dir"}},
	} {
		t.Run(name, func(t *testing.T) { // not parallel: see freeSpace
			m := tc.make(t)
			if strings.HasPrefix(name, "F13") {
				defer migrate.SetFreeSpace(1 << 10)()
			}
			r := m.request(t, tc.target)
			if tc.with != nil {
				tc.with(&r)
			}
			_, _, planErr := migrate.New(r).Plan(t.Context())
			refusedUnchanged(t, m, r, tc.says...)
			if _, err := migrate.New(r).Run(t.Context()); planErr == nil || planErr.Error() != err.Error() {
				t.Errorf("Plan says %v, and Run %v", planErr, err)
			}
		})
	}
}

func enableDowngrade(t *testing.T, s *pathtest.Server, to string) {
	t.Helper()
	c, err := s.V3()
	must(t, err)
	_, err = etcdserverpb.NewMaintenanceClient(c.ActiveConnection()).Downgrade(t.Context(),
		&etcdserverpb.DowngradeRequest{Action: etcdserverpb.DowngradeRequest_ENABLE, Version: to})
	must(t, err)
}

// TestRights: files of several owners are refused if the owner's etcd could not use them.
func TestRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	set := etcds(t)
	m := v3Only(t, set, nil, "3.4")
	must(t, os.Chown(filepath.Join(m.dir, "member"), 65534, 65534))
	refusedUnchanged(t, m, m.request(t, "3.7"), "belongs to user 0", "to user 65534", "chown -R 65534:65534")
}

// TestWithoutForcedSnapshots switches the cure for F03 and F05 off: then the same migration does not get through.
func TestWithoutForcedSnapshots(t *testing.T) {
	set := etcds(t)
	for name, tc := range map[string]struct {
		m            member
		target, says string
	}{
		"F03 a 2.x version in the snapshot": {from2(t, set, "3.0", "3.4"), "3.7", "not capable"},
		"F05 SYNC in the log":               {v3Only(t, set, awaitSync, "3.0"), "3.7", "format of the v2 API"},
	} {
		t.Run(name, func(t *testing.T) {
			before := tc.m.clone(t)
			defer migrate.SetSnapshotCount(0)()
			r := tc.m.request(t, tc.target)
			r.StepTimeout = 10 * time.Second
			if _, err := migrate.New(r).Run(t.Context()); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("without forced snapshots: %v", err)
			}
			migrate.SetSnapshotCount(3)
			before.migrate(t, tc.target)
		})
	}
}

// TestEnvironment: variables that kill or mislead an etcd do not reach the private ones.
func TestEnvironment(t *testing.T) {
	set := etcds(t)
	m := v3Only(t, set, nil, "3.4")
	for name, value := range map[string]string{
		"ETCD_NAME": "other", "ETCD_DATA_DIR": "/nonexistent", "ETCD_LISTEN_CLIENT_URLS": "http://0.0.0.0:2379", "ETCD_PORT": "tcp://10.0.0.1:2379",
		"ETCDCTL_ENDPOINTS": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1",
	} {
		t.Setenv(name, value)
	}
	m.migrate(t, "3.5")
	m.serves(t, "3.5")
	bare := exec.Command(newest(t, set, "3.5").Path, "--name=default", "--data-dir", t.TempDir())
	if out, err := bare.CombinedOutput(); err == nil || !strings.Contains(string(out), "conflicting environment variable") {
		t.Errorf("an etcd with this environment: %v, %s", err, out)
	}
}

// TestInspectCounts: what inspect says is what was written.
func TestInspectCounts(t *testing.T) {
	set := etcds(t)
	m := blank(t, set)
	m.on(t, "3.5", func(s *pathtest.Server) {
		c, err := s.V3()
		must(t, err)
		for key, value := range map[string]string{"/a": `{"kind":"Pod"}`, "/b": "k8s\x00\x0a", "/c": "[1]\n", "/d": "text", "/e": ""} {
			_, err := c.Put(t.Context(), key, value)
			must(t, err)
		}
		for range 200 {
			_, err := c.Put(t.Context(), "/big", strings.Repeat("x", 10_000))
			must(t, err)
		}
		res, err := c.Get(t.Context(), "/big")
		must(t, err)
		_, err = c.Compact(t.Context(), res.Header.Revision, clientv3.WithCompactPhysical())
		must(t, err)
		_, err = c.Grant(t.Context(), 3600)
		must(t, err)
		raiseAlarm(t, s)
	})
	st := inspect(t, m.dir)
	if want := (migrate.Encodings{JSON: 2, Protobuf: 1, Other: 3}); st.V3.Values != want || st.V3.Keys != 6 {
		t.Errorf("%d keys with values %+v, want %+v", st.V3.Keys, st.V3.Values, want)
	}
	if st.V3.FreeBytes < 1<<20 || st.V3.FreeBytes >= st.V3.SizeBytes {
		t.Errorf("%d of %d bytes of the db are free", st.V3.FreeBytes, st.V3.SizeBytes)
	}
	if st.V3.Leases != 1 || st.V3.CompactRevision != st.V3.Revision || len(st.V3.Members) != 1 || len(st.V3.Alarms) != 1 {
		t.Errorf("leases %d, compacted at %d of %d, members %v, alarms %v",
			st.V3.Leases, st.V3.CompactRevision, st.V3.Revision, st.V3.Members, st.V3.Alarms)
	}
	if st.Version != (versionfile.Version{Release: versionfile.Release{Line: v(3, 5)}, Storage: versionfile.Etcd3}) {
		t.Errorf("it is taken for %s", st.Version)
	}
}
