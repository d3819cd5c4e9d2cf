package member

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func v3(t *testing.T, e *Etcd) *clientv3.Client {
	t.Helper()
	c, err := e.V3()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestNoSpace makes a step on a member that refuses writes because its db is full.
func TestNoSpace(t *testing.T) {
	each(t, "3.1", "", func(t *testing.T, r string) {
		t.Parallel()
		cfg := Config{DataDir: filepath.Join(t.TempDir(), "data"), SnapshotCount: 3, QuotaBytes: 1}
		e := startReady(t, r, cfg) // with every db too large from the start
		put := func(value string) error {
			_, err := v3(t, e).Put(soon(t), "a", value)
			return err
		}
		if err := put("x"); !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Fatalf("put says %v, want that there is no space", err)
		}
		forceSnapshot(t, e)
		stop(t, e)

		cfg.QuotaBytes = 0
		e = startReady(t, r, cfg)
		alarms, err := v3(t, e).AlarmList(soon(t))
		if err != nil || len(alarms.Alarms) != 1 {
			t.Fatalf("alarms are %v, %v, want one", alarms, err)
		}
		before := readStores(t, e)
		if err := e.Write(soon(t)); err != nil {
			t.Error(err)
		}
		forceSnapshot(t, e)
		if got := readStores(t, e); got != before {
			t.Errorf("got %v, want %v", got, before)
		}
		if err := put("y"); !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Errorf("put says %v, want that the alarm is still set", err)
		}
		stop(t, e)
	})
}

// TestAuth makes a step on a member that lets nobody write without a password.
func TestAuth(t *testing.T) {
	each(t, "3.1", "", func(t *testing.T, r string) {
		t.Parallel()
		cfg := Config{DataDir: filepath.Join(t.TempDir(), "data"), SnapshotCount: 3}
		e := startReady(t, r, cfg)
		c := v3(t, e)
		ctx := soon(t)
		if _, err := c.Put(ctx, "a", "x"); err != nil {
			t.Fatal(err)
		}
		_, userErr := c.UserAdd(ctx, "root", "secret")
		_, roleErr := c.RoleAdd(ctx, "root")
		_, grantErr := c.UserGrantRole(ctx, "root", "root")
		_, enableErr := c.AuthEnable(ctx)
		if err := errors.Join(userErr, roleErr, grantErr, enableErr); err != nil {
			t.Fatal(err)
		}
		stop(t, e)
		before := buckets(t, cfg.DataDir)

		e = startReady(t, r, cfg)
		if err := e.Write(soon(t)); err != nil {
			t.Error(err)
		}
		forceSnapshot(t, e)
		_, err := v3(t, e).Get(soon(t), "a")
		if is31 := !e.cfg.Release.Minor().AtLeast(3, 2); is31 && err == nil || !is31 && err != nil {
			t.Errorf("a read says %v", err) // 3.1 does not know users by their certificates
		}
		stop(t, e)
		if after := buckets(t, cfg.DataDir); len(after) != len(before) {
			t.Errorf("the db had %d entries and has %d", len(before), len(after))
		}
	})
}

// TestAuthV2 is the same for the v2 API, which has users and roles of its own.
func TestAuthV2(t *testing.T) {
	each(t, "", "3.5", func(t *testing.T, r string) {
		t.Parallel()
		cfg := Config{DataDir: filepath.Join(t.TempDir(), "data"), SnapshotCount: 1, V2: true}
		e := startReady(t, r, cfg)
		putV2(t, e, "/a")
		if e.cfg.Release.Minor().Major == 2 { // it looks every 500 ms whether the cluster version is one with auth
			if err := insist(soon(t), func(context.Context) error {
				res, err := e.client.Get(e.url() + "/v2/auth/users")
				if err == nil {
					err = res.Body.Close()
				}
				if err == nil && res.StatusCode != http.StatusOK {
					err = errors.New(res.Status)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		request(t, e.client, "PUT", e.url()+"/v2/auth/users/root", `{"user":"root","password":"secret"}`)
		request(t, e.client, "PUT", e.url()+"/v2/auth/enable", "")
		u := e.url()[len("https://"):]
		request(t, e.client, "PUT", "https://root:secret@"+u+"/v2/auth/roles/guest",
			`{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}`)
		stop(t, e)

		e = startReady(t, r, cfg)
		if err := e.Write(soon(t)); err != nil {
			t.Error(err)
		}
		forceSnapshot(t, e)
		err := e.EmptyV2(soon(t), []string{"a"})
		if is2 := e.cfg.Release.Minor().Major == 2; is2 && err == nil || !is2 && err != nil {
			t.Errorf("EmptyV2 says %v", err) // 2.x does not know users by their certificates
		}
		stop(t, e)
	})
}

// TestCorruptAlarm: nothing is to be done with data that its own etcd found to differ between members.
func TestCorruptAlarm(t *testing.T) {
	each(t, "3.3", "", func(t *testing.T, r string) {
		t.Parallel()
		e := startReady(t, r, Config{SnapshotCount: 3})
		_, err := pb.NewMaintenanceClient(v3(t, e).ActiveConnection()).Alarm(soon(t),
			&pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT})
		if err != nil {
			t.Fatal(err)
		}
		_, snapshotErr := e.ForceSnapshot(soon(t))
		for name, err := range map[string]error{
			"Ready": e.Ready(soon(t)), "Write": e.Write(soon(t)), "ForceSnapshot": snapshotErr,
		} {
			if wantError(t, err, running, ""); !errors.Is(err, rpctypes.ErrCorrupt) {
				t.Errorf("%s says %v", name, err)
			}
		}
		stop(t, e)
	})
}
