package main

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestClusterRollingV2: a member of etcd2 that has gone ahead by one minor has nothing to do at a restart, though the data of
// all that a v2 store has says that its cluster has not followed.
func TestClusterRollingV2(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	servers := c.boot("2.2")
	m := c.members[0]
	must(t, servers[0].Stop())
	for _, nothing := range []bool{false, true} {
		must(t, os.RemoveAll(m.log))
		c.start(m, "2.3", "--keep-backups=1")
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			if res, err := http.Get(m.client + "/health"); err == nil {
				_ = res.Body.Close()
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("etcd 2.3 does not serve")
			}
		}
		if log, err := os.ReadFile(m.log); err != nil || strings.Contains(string(log), "step started") == nothing {
			t.Errorf("a step is made: %v (%v), want %v", nothing, err, !nothing)
		}
		m.end(syscall.SIGTERM)
		if backups, err := os.ReadDir(filepath.Join(m.dir, "etcd-migrate", "backups")); err != nil || len(backups) != 1 || !strings.Contains(backups[0].Name(), "2.2") {
			t.Errorf("the backups are %v, %v, want that from before the upgrade", backups, err)
		}
	}
	for _, s := range servers[1:] {
		must(t, s.Stop())
	}
}

// TestClusterLateLeftovers: a member that comes after the others have emptied the v2 store and gone to 3.6 writes nothing to the
// log that 3.6 panics on.
func TestClusterLateLeftovers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	servers := c.boot("3.5", "--enable-v2")
	must(t, servers[0].FillV3(t.Context(), 20))
	for _, name := range []string{"left", "over/below", "_hidden"} {
		if status, body, err := servers[0].V2(t.Context(), http.MethodPut, "/"+name, url.Values{"value": {"x"}}); err != nil || status >= 400 {
			t.Fatalf("%d %s %v", status, body, err)
		}
	}
	user, err := http.NewRequestWithContext(t.Context(), http.MethodPut, c.members[0].client+"/v2/auth/users/joe",
		strings.NewReader(`{"user":"joe","password":"x"}`))
	must(t, err)
	res, err := http.DefaultClient.Do(user)
	must(t, err)
	must(t, res.Body.Close())
	if res.StatusCode != http.StatusCreated {
		t.Fatal(res.Status)
	}
	c.before, err = servers[0].ReadV3(t.Context())
	must(t, err)
	for _, s := range servers {
		must(t, s.Stop())
	}
	late := c.members[2]
	for _, m := range c.members[:2] {
		c.start(m, "3.6", "--v2-leftovers=discard")
	}
	for _, m := range c.members[:2] {
		c.serving(m, 3*time.Minute)
	}
	c.start(late, "3.6", "--v2-leftovers=discard", "--step-timeout=2m")
	c.arrived("3.6")
	for _, m := range c.members { // also when they read their logs again
		m.end(syscall.SIGTERM)
	}
	for _, m := range c.members {
		c.start(m, "3.6", "--v2-leftovers=discard")
	}
	c.arrived("3.6")
}

// TestClusterTwoInARow goes from 3.4 to 3.5 and on to 3.6, member by member, without a pause: the cluster's version can still be
// 3.4 when the first one is stopped for 3.6. Before, one member is started as 3.6 by mistake, which waits for the others.
func TestClusterTwoInARow(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	servers := c.boot("3.4")
	must(t, servers[0].FillV3(t.Context(), 20))
	var err error
	c.before, err = servers[0].ReadV3(t.Context())
	must(t, err)
	must(t, servers[0].Stop())
	c.start(c.members[0], "3.6", "--step-timeout=5s")
	if said := c.fails(c.members[0], exitFailed); !strings.Contains(said, "waiting for") || !strings.Contains(said, "never that of one alone") {
		t.Errorf("it said:\n%s", said)
	}
	for i, m := range c.members {
		if i > 0 {
			must(t, servers[i].Stop())
		}
		c.start(m, "3.5", "--step-timeout=2m")
		c.serving(m, 3*time.Minute)
	}
	for _, m := range c.members {
		m.end(syscall.SIGTERM)
		c.start(m, "3.6", "--step-timeout=2m")
		c.serving(m, 3*time.Minute)
	}
	c.arrived("3.6")
}
