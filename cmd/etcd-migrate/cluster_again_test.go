package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestClusterGivenUp: all members are killed right after they have agreed, the old etcds serve clients again, whose writes make
// raft snapshots that pass the decision, and then the members agree anew.
func TestClusterGivenUp(t *testing.T) {
	t.Run("conversion", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, 3)
		c.fill("2.3")
		for _, m := range c.members {
			c.start(m, "3.1")
		}
		c.killAllWhen("the members have agreed", 2, func(m *clusterMember) bool { return c.logHolds(m, "/1/_etcd-migrate/go") })
		c.writtenSince(30, "--snapshot-count=5")
		c.passedBySnapshots()
		for _, m := range c.members {
			c.start(m, "3.1", "--step-timeout=60s")
		}
		c.arrived("3.1")
	})
	for name, noted := range map[string]string{"in a conversion": `"made"`, "after a conversion": `"converted":`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3)
			c.fill("2.3")
			for _, m := range c.members {
				c.start(m, "3.1")
			}
			c.killAllWhen("one has noted "+noted, 1, func(m *clusterMember) bool {
				content, err := os.ReadFile(filepath.Join(m.dir, "etcd-migrate", "migration.json"))
				return err == nil && bytes.Contains(content, []byte(noted))
			})
			c.writtenSince(10)
			for _, m := range c.members {
				c.start(m, "3.1", "--step-timeout=60s")
			}
			c.arrived("3.1")
		})
	}
	t.Run("one after the conversion", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, 3)
		c.fill("2.3")
		for _, m := range c.members {
			c.start(m, "3.1", "--step-timeout=60s")
		}
		// The others go on when they have seen that it is done, and empty the v2 store.
		late := c.members[2]
		within := func(what string, so func() bool) {
			t.Helper()
			for deadline := time.Now().Add(time.Minute); !so(); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("it never happens that %s", what)
				}
			}
		}
		within("all have converted", func() bool {
			v, err := versionfile.Read(late.dir)
			return err == nil && v.Storage == versionfile.Etcd3
		})
		late.end(syscall.SIGKILL)
		within("the others have emptied the v2 store", func() bool {
			log, err := os.ReadFile(c.members[0].log)
			return err == nil && bytes.Contains(log, []byte("kind=upgrade from=3.0"))
		})
		// As if it had been killed before this was written.
		must(t, os.WriteFile(filepath.Join(late.dir, versionfile.Name), []byte("3.0.17/etcd2"), 0o600))
		c.start(late, "3.1", "--step-timeout=60s")
		c.arrived("3.1")
	})
	t.Run("rollback", func(t *testing.T) {
		if os.Getenv("ETCD_MIGRATE_HA") == "" {
			t.Skip("make ha")
		}
		t.Parallel()
		c := newCluster(t, 3)
		c.fill("3.6")
		for _, m := range c.members {
			c.start(m, "3.5", "--allow-rollback")
		}
		// The last thing that is agreed on comes before any member has noted it.
		c.killAllWhen("the members have agreed", 1, func(m *clusterMember) bool {
			content, err := os.ReadFile(filepath.Join(m.dir, "etcd-migrate", "migration.json"))
			return err == nil && bytes.Contains(content, []byte(`"left"`))
		})
		servers := c.boot("3.6", "--snapshot-count=5")
		must(t, servers[0].FillV3(t.Context(), 30))
		var err error
		c.before, err = servers[0].ReadV3(t.Context())
		must(t, err)
		for _, s := range servers {
			must(t, s.Stop())
		}
		c.passedBySnapshots()
		for _, m := range c.members {
			c.start(m, "3.5", "--allow-rollback", "--step-timeout=60s")
		}
		for _, m := range c.members {
			select { // one that had noted it finds out that it no longer counts
			case <-m.done:
				c.fails(m, exitFailed)
				c.start(m, "3.5", "--allow-rollback", "--step-timeout=60s")
			case <-time.After(5 * time.Second):
			}
		}
		c.arrived("3.5")
	})
}

// writtenSince lets etcds 3.0 serve the v2 store again, and take n writes.
func (c *etcdCluster) writtenSince(n int, flags ...string) {
	c.t.Helper()
	servers := c.boot("3.0", flags...)
	for i := range n {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			status, body, err := servers[0].V2(c.t.Context(), http.MethodPut, fmt.Sprintf("/since/%d", i), url.Values{"value": {"x"}})
			if err == nil && status < 400 {
				break
			}
			if time.Now().After(deadline) { // they lose each other for a moment on a busy machine
				c.t.Fatalf("%d %s %v", status, body, err)
			}
		}
	}
	var err error
	c.before, err = servers[0].ReadV2(c.t.Context(), pathtest.Hidden...)
	must(c.t, err)
	for _, s := range servers {
		must(c.t, s.Stop())
	}
}

// TestClusterOneAtTheTarget: one member has been brought to the target while the others ran, and then all of them are shut
// down and started with the same command.
func TestClusterOneAtTheTarget(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	servers := c.boot("3.5")
	must(t, servers[0].FillV3(t.Context(), 50))
	var err error
	c.before, err = servers[0].ReadV3(t.Context())
	must(t, err)
	c.ids = c.memberIDs(c.members[0])
	first := c.members[2]
	must(t, servers[2].Stop())
	c.start(first, "3.6")
	c.serving(first, time.Minute)
	must(t, servers[0].Stop())
	must(t, servers[1].Stop())
	first.end(syscall.SIGTERM)
	for _, m := range c.members {
		c.start(m, "3.6")
	}
	c.arrived("3.6")
}

// killAllWhen kills all members as soon as it is so for a number of them.
func (c *etcdCluster) killAllWhen(what string, n int, so func(*clusterMember) bool) {
	c.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		yes := 0
		for _, m := range c.members {
			if so(m) {
				yes++
			}
		}
		if yes >= n {
			break
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("it never happens that %s", what)
		}
	}
	for _, m := range c.members {
		_ = m.cmd.Process.Signal(syscall.SIGKILL)
	}
	for _, m := range c.members {
		m.end(syscall.SIGKILL)
		addr := strings.TrimPrefix(m.peer, "http://")
		for { // its private etcd ends with it, a moment later
			if l, err := net.Listen("tcp", addr); err == nil {
				must(c.t, l.Close())
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// passedBySnapshots sees that each member has made raft snapshots since it was killed.
func (c *etcdCluster) passedBySnapshots() {
	c.t.Helper()
	for _, m := range c.members {
		if snaps, err := filepath.Glob(filepath.Join(m.dir, "member", "snap", "*.snap")); err != nil || len(snaps) < 2 {
			c.t.Fatalf("%s has %d raft snapshots, %v", m.name, len(snaps), err)
		}
	}
}

// logHolds looks for a text in a member's raft log.
func (c *etcdCluster) logHolds(m *clusterMember, text string) bool {
	files, err := filepath.Glob(filepath.Join(m.dir, "member", "wal", "*.wal"))
	must(c.t, err)
	for _, f := range files {
		if bytes.Contains(written(f), []byte(text)) {
			return true
		}
	}
	return false
}

// written reads a file up to where nothing has been written yet: etcd makes those of its log 64 MB long at once.
func written(path string) (content []byte) {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	page := make([]byte, 64<<10)
	for {
		n, err := f.Read(page)
		if err != nil || len(bytes.Trim(page[:n], "\x00")) == 0 {
			return content
		}
		content = append(content, page[:n]...)
	}
}
