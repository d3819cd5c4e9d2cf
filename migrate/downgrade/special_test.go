package downgrade

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// user starts an etcd of any 3.x, on which nobody may be able to do anything without a password, and gives a client.
func user(t testing.TB, version, dir, name, password string, flags ...string) (c *clientv3.Client, stop func()) {
	t.Helper()
	url := func() string {
		u, err := pathtest.FreeURL()
		must(t, err)
		return u
	}
	client, peer := url(), url()
	cmd := exec.Command(etcdBinary(t, version).Path, append([]string{
		"--name", pathtest.Name, "--data-dir", dir, "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", pathtest.Name + "=" + peer,
		"--heartbeat-interval", "10", "--election-timeout", "50",
	}, flags...)...)
	cmd.Env = []string{"ETCD_UNSUPPORTED_ARCH=arm64"}
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	must(t, cmd.Start())
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var err error
		c, err = clientv3.New(clientv3.Config{
			Endpoints: []string{client}, Username: name, Password: password, DialTimeout: time.Second, Logger: zap.NewNop(),
		})
		if err == nil {
			if _, err = c.Get(t.Context(), "/a/1"); err == nil {
				t.Cleanup(func() { c.Close() })
				return c, stop
			}
			c.Close()
		}
		if time.Now().After(deadline) {
			lines := strings.Split(output.String(), "\n")
			t.Fatalf("etcd %s as %q: %v\n%s", version, name, err, strings.Join(lines[max(0, len(lines)-5):], "\n"))
		}
	}
}

// TestAuth takes users, roles and permissions from 3.7 to 3.1, and to 3.0 only if asked to.
func TestAuth(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "data")
	c, stop := user(t, "3.7", dir, "", "")
	for _, name := range []string{"root", "alice"} {
		_, err := c.UserAdd(ctx, name, name+"'s password")
		must(t, err)
		_, err = c.RoleAdd(ctx, name)
		must(t, err)
		_, err = c.UserGrantRole(ctx, name, name)
		must(t, err)
	}
	_, err := c.UserAddWithOptions(ctx, "by certificate", "", &clientv3.UserAddOptions{NoPassword: true})
	must(t, err)
	_, err = c.RoleGrantPermission(ctx, "alice", "/a/", "/a0", clientv3.PermissionType(clientv3.PermReadWrite))
	must(t, err)
	_, err = c.Put(ctx, "/b", "not for alice")
	must(t, err)
	_, err = c.AuthEnable(ctx)
	must(t, err)
	stop()

	for _, to := range slices.Backward(v3Minors[:len(v3Minors)-1]) {
		if to == "3.0" { // which does not keep anybody out
			p := params(t, dir, to)
			var refused *convert.RefusedError
			if _, err := Offline(ctx, p); !errors.As(err, &refused) || refused.Problems[0].Loss != convert.LossV3Auth {
				t.Errorf("got %v", err)
			}
			p.AcceptLoss = []convert.Loss{convert.LossV3Auth}
			_, err := Offline(ctx, p)
			must(t, err)
			break
		}
		down(t, dir, to)
		c, stop := user(t, to, dir, "alice", "alice's password")
		if _, err := c.Get(ctx, "/b"); err == nil {
			t.Errorf("etcd %s: alice reads what she must not", to)
		}
		nobody, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), DialTimeout: time.Second, Logger: zap.NewNop()})
		must(t, err)
		if _, err := nobody.Put(ctx, "/a/1", "x"); err == nil {
			t.Errorf("etcd %s: anybody can write", to)
		}
		nobody.Close()
		if _, err := c.Put(ctx, "/a/"+to, to); err != nil {
			t.Errorf("etcd %s: alice: %v", to, err)
		}
		stop()
	}
	if info := dbInfo(t, dir); !slices.Equal(info.Users, []string{"alice", "by certificate", "root"}) || !info.AuthEnabled {
		t.Errorf("at 3.0: %+v", info)
	}
}

func dbInfo(t testing.TB, dir string) keyspace.V3Info {
	t.Helper()
	db, err := keyspace.OpenDB(filepath.Join(dir, "member", "snap", "db"))
	must(t, err)
	defer db.Close()
	info, err := db.Info()
	must(t, err)
	return info
}

// TestNoSpace takes a db that is full, with its alarm, from 3.7 to 3.0.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	full := "--quota-backend-bytes=2000000"
	c, stop := user(t, "3.7", dir, "", "", full)
	var err error
	for i := 0; err == nil && i < 100; i++ {
		_, err = c.Put(t.Context(), fmt.Sprint(i), strings.Repeat("x", 200_000))
	}
	stop()
	before := outcomeOf(t, dir).V3
	for _, to := range slices.Backward(v3Minors[:len(v3Minors)-1]) {
		down(t, dir, to)
		if alarms := dbInfo(t, dir).Alarms; len(alarms) != 1 || alarms[0].Type != "NOSPACE" {
			t.Errorf("at %s: alarms %v", to, alarms)
		}
	}
	c, stop = user(t, "3.0", dir, "", "", full)
	if _, err := c.Put(t.Context(), "x", "x"); err == nil {
		t.Error("etcd 3.0 writes")
	}
	stop()
	if after := outcomeOf(t, dir).V3; after != before {
		t.Error("the keys have changed")
	}
}

// TestCheckpoints removes what 3.4 notes about leases and 3.3 does not know.
func TestCheckpoints(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s := serve(t, "3.4", dir)
	c, err := s.V3()
	must(t, err)
	var ids []clientv3.LeaseID
	for range 2 {
		l, err := c.Grant(t.Context(), 3600)
		must(t, err)
		ids = append(ids, l.ID)
	}
	must(t, s.Stop())
	key := binary.BigEndian.AppendUint64(nil, uint64(ids[0]))
	must(t, convert.UpdateDB(filepath.Join(dir, "member", "snap", "db"), func(tx convert.Tx) error {
		raw, err := (&leasepb.Lease{ID: int64(ids[0]), TTL: 3600, RemainingTTL: 60}).Marshal()
		must(t, err)
		return tx.Bucket([]byte("lease")).Put(key, raw)
	}))
	if r := down(t, dir, "3.3"); r.Checkpoints != 1 {
		t.Errorf("%+v", r)
	}
	upgrade(t, "3.3", dir)
	upgrade(t, "3.4", dir)
	s = serve(t, "3.4", dir)
	c, err = s.V3()
	must(t, err)
	for _, id := range ids {
		if l, err := c.TimeToLive(t.Context(), id); err != nil || l.TTL < 3000 {
			t.Errorf("lease %x: %+v, %v", id, l, err)
		}
	}
}

// TestPendingDowngrade begins with etcd's own downgrade, which is not at its end. If it stayed pending, the newer etcd
// would never again raise the cluster version.
func TestPendingDowngrade(t *testing.T) {
	for _, p := range [][2]string{{"3.7", "3.6"}, {"3.6", "3.5"}} {
		t.Run(p[0], func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "data")
			upgrade(t, p[0], dir)
			e := private(t, p[0], dir)
			must(t, e.Ready(t.Context()))
			c, err := e.V3()
			must(t, err)
			_, err = c.Downgrade(t.Context(), clientv3.DowngradeEnable, p[1])
			must(t, err)
			_, err = e.ForceSnapshot(t.Context())
			must(t, err)
			must(t, e.Stop(t.Context()))
			if info := dbInfo(t, dir); info.Downgrade == "" {
				t.Fatalf("no downgrade is pending: %+v", info)
			}
			down(t, dir, p[1])
			if info := dbInfo(t, dir); info.Downgrade != "" || info.ClusterVersion != p[1]+".0" {
				t.Errorf("%+v", info)
			}
			upgrade(t, p[1], dir)
			upgrade(t, p[0], dir)
		})
	}
}

// TestSeparateWAL has the log elsewhere.
func TestSeparateWAL(t *testing.T) {
	t.Parallel()
	dir, wal := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "wal")
	s := serve(t, "3.5", dir, "--wal-dir", wal)
	must(t, s.FillV3(t.Context(), 10))
	before := readV3(t, s)
	must(t, s.Stop())
	log, sum, tree := loadFrom(t, filepath.Join(dir, "member", "snap"), wal)
	_, err := Offline(t.Context(), Params{
		Log: log, Summary: sum, Tree: tree, SnapDir: filepath.Join(dir, "member", "snap"), To: minor(t, "3.4"),
	})
	must(t, err)
	s = serve(t, "3.4", dir, "--wal-dir", wal)
	same(t, "3.4", before, readV3(t, s))
	must(t, s.Stop())
}

// TestUnsettled meets an etcd that was killed. Its own minor has to start once more.
func TestUnsettled(t *testing.T) {
	for from, to := range map[string]string{"3.7": "3.6", "3.4": "3.3"} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "data")
			s := serve(t, from, dir)
			must(t, s.FillV3(t.Context(), 20))
			content := readV3(t, s)
			must(t, s.WriteOnce(t.Context()))
			must(t, s.Kill())
			before := filesIn(t, dir)
			if _, err := Offline(t.Context(), params(t, dir, to)); !errors.Is(err, ErrUnsettled) {
				t.Fatalf("got %v", err)
			}
			if after := filesIn(t, dir); !slices.Equal(before, after) {
				t.Errorf("files were %q, are %q", before, after)
			}
			upgrade(t, from, dir)
			down(t, dir, to)
			s = serve(t, to, dir)
			after := readV3(t, s)
			if k := after.Keys["/pathtest/written"]; k.Value != "1" {
				t.Errorf("what was written last is %+v", k)
			}
			delete(after.Keys, "/pathtest/written")
			same(t, to, content, after)
			must(t, s.Stop())
		})
	}
}

// TestRefuses tries what must not be done, and sees that nothing is.
func TestRefuses(t *testing.T) {
	t.Parallel()
	bases := map[string]string{}
	for version, v2 := range map[string]bool{"3.6": false, "3.4": false, "3.0": false, "2.3": true} {
		bases[version], _ = fill(t, version, v2)
		trim(t, bases[version])
	}
	member := func(kind raftpb.ConfChangeType, learner bool) func(*Params) {
		return func(p *Params) {
			context, err := json.Marshal(map[string]any{"id": 77, "peerURLs": []string{"http://other:2380"}, "isLearner": learner})
			must(t, err)
			must(t, p.Tree.ApplyConfChange(&raftpb.ConfChange{Type: kind, NodeID: 77, Context: context}))
		}
	}
	inDB := func(fn func(tx convert.Tx) error) func(*Params) {
		return func(p *Params) { must(t, convert.UpdateDB(p.dbPath(), fn)) }
	}
	for name, test := range map[string]struct {
		from, to string
		change   func(*Params)
		want     string
	}{
		"two minors at once": {"3.4", "3.2", nil, "cluster at etcd 3.4, and it goes down one minor at a time"},
		"upwards":            {"3.4", "3.6", nil, "cluster at etcd 3.4"},
		"the newest":         {"3.4", "3.7", nil, "no known minor lies above it"},
		"unknown":            {"3.4", "4.0", nil, "no known minor lies above it"},
		"second member":      {"3.4", "3.3", member(raftpb.ConfChangeAddNode, false), "cluster of 2 members"},
		"learner":            {"3.4", "3.3", member(raftpb.ConfChangeAddLearnerNode, true), "cluster of 2 members"},
		"zombie at 3.6": {"3.6", "3.5", inDB(func(tx convert.Tx) error {
			return tx.Bucket([]byte("members")).Put([]byte("4d"), []byte(`{"id":77,"peerURLs":["http://other:2380"]}`))
		}), "the db names 2 members"},
		"db is missing": {"3.4", "3.3", func(p *Params) { must(t, os.Remove(p.dbPath())) }, "db is missing"},
		"db without its log": {"3.4", "3.3", inDB(func(tx convert.Tx) error {
			return tx.Bucket([]byte("meta")).Put([]byte("consistent_index"), uint64Bytes(1e6))
		}), "the log has lost its end"},
		"v3 keys": {"3.0", "2.3", nil, "the v3 store holds"},
		"v2 value is not UTF-8": {"2.3", "2.2", func(p *Params) {
			must(t, p.Tree.ApplyV2(&etcdserverpb.Request{Method: "PUT", Path: "/1/x", Val: "\xff"}))
		}, "names or values that are not UTF-8, which a raft snapshot cannot hold: 1 key"},
		"corrupt": {"3.4", "3.3", inDB(func(tx convert.Tx) error {
			alarm, err := (&etcdserverpb.AlarmMember{MemberID: 1, Alarm: etcdserverpb.AlarmType_CORRUPT}).Marshal()
			must(t, err)
			return tx.Bucket([]byte("alarm")).Put(alarm, nil)
		}), "CORRUPT"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			copyDir(t, dir, bases[test.from])
			p := params(t, dir, test.to)
			if test.change != nil {
				test.change(&p)
			}
			before := digest(t, dir)
			_, err := Offline(t.Context(), p)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v", err)
			}
			if after := digest(t, dir); after != before {
				t.Errorf("files have changed:\n%s\n%s", before, after)
			}
			problems, checkErr := Check(p)
			var refused *convert.RefusedError
			if lost := errors.As(err, &refused); lost != (checkErr == nil && len(problems) == 1) && lost {
				t.Errorf("Check: %+v, %v", problems, checkErr)
			}
		})
	}
}

// TestHeeds tries what needs a 3.4 and no damage.
func TestHeeds(t *testing.T) {
	t.Parallel()
	base, _ := fill(t, "3.4", false)
	trim(t, base)
	t.Run("zombies", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		copyDir(t, dir, base)
		must(t, convert.UpdateDB(filepath.Join(dir, "member", "snap", "db"), func(tx convert.Tx) error {
			return tx.Bucket([]byte("members")).Put([]byte("4d"), []byte(`{"id":77,"peerURLs":["http://other:2380"]}`))
		}))
		if r := down(t, dir, "3.3"); r.Zombies != 1 {
			t.Errorf("%+v", r)
		}
		if info := dbInfo(t, dir); len(info.Members) != 1 {
			t.Errorf("%+v", info.Members)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		p, before := params(t, base, "3.3"), digest(t, base)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Offline(ctx, p); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if after := digest(t, base); before != after {
			t.Error("files have changed")
		}
	})
	t.Run("entries that do not move the db's index", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		copyDir(t, dir, base)
		s := serve(t, "3.4", dir)
		c, err := s.V3()
		must(t, err)
		stays, err := c.Grant(t.Context(), 1000)
		must(t, err)
		goes, err := c.Grant(t.Context(), 1000)
		must(t, err)
		_, err = c.Revoke(t.Context(), goes.ID)
		must(t, err)
		must(t, s.Stop())
		if _, sum, _ := load(t, dir); dbInfo(t, dir).ConsistentIndex >= sum.HardState.Commit-1 {
			t.Fatal("the index has moved")
		}
		down(t, dir, "3.3")
		s = serve(t, "3.3", dir)
		c, err = s.V3()
		must(t, err)
		if l, err := c.TimeToLive(t.Context(), stays.ID); err != nil || l.GrantedTTL != 1000 {
			t.Errorf("%+v, %v", l, err)
		}
		must(t, s.Stop())
	})
	t.Run("in use", func(t *testing.T) {
		p := params(t, base, "3.3")
		s := serve(t, "3.4", base)
		if _, err := Offline(t.Context(), p); !errors.Is(err, keyspace.ErrInUse) {
			t.Errorf("got %v", err)
		}
		must(t, s.Stop())
	})
}

// digest is all that is in the files.
func digest(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, name := range filesIn(t, dir) {
		data, err := os.ReadFile(filepath.Join(dir, "member", name))
		must(t, err)
		fmt.Fprintf(&b, "%s %d %x\n", name, len(data), sha256.Sum256(data))
	}
	return b.String()
}
