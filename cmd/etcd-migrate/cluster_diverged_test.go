package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// TestClusterDiverged: members whose data is not the same say so, and never serve, however often they are started again. Nor does
// any of them get another one's data in the place of its own: who is right is for a person to find out, who can then go on.
func TestClusterDiverged(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	servers := c.boot("3.5")
	client := c.serving(c.members[0], time.Minute)
	for i := range 20 { // without TTLs: what is written by their end can bring the member a snapshot before it is looked at
		_, err := client.Put(t.Context(), fmt.Sprintf("/k%d", i), "value")
		must(t, err)
	}
	for _, s := range servers {
		must(t, s.Stop())
	}
	wrong := c.members[2]
	db, err := bolt.Open(dbOf(wrong), 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("key"))
		k, v := b.Cursor().First()
		v = bytes.Clone(v)
		v[len(v)-1] ^= 1 // the last byte of its value
		return b.Put(bytes.Clone(k), v)
	}))
	must(t, db.Close())
	var was [][]byte
	for _, m := range c.members {
		was = append(was, firstRecord(t, m))
	}

	// The first time, one of them can be left without a quorum by those that have found it out before.
	found := map[*clusterMember]bool{}
	for range 3 {
		for _, m := range c.members {
			c.start(m, "3.7", "--step-timeout=20s")
		}
		for _, m := range c.members {
			code := exitFailed
			if found[m] {
				code = exitRefused
			}
			log := c.fails(m, code)
			found[m] = strings.Contains(log, "is not the same at revision") && strings.Contains(log, "m3 (member")
		}
		for i, m := range c.members {
			if !bytes.Equal(firstRecord(t, m), was[i]) {
				t.Errorf("%s has got the data of another one", m.name)
			}
		}
		if !found[wrong] && !(found[c.members[0]] && found[c.members[1]]) {
			t.Fatal("none has found it out")
		}
	}

	c.replace(wrong)
	for _, m := range c.members {
		c.start(m, "3.7")
	}
	c.arrived("3.7")
}

// replace is what the hint says: the backups of all members restored, and the wrong one removed and added anew.
func (c *etcdCluster) replace(wrong *clusterMember) {
	c.t.Helper()
	for _, m := range c.members {
		restore := exec.Command(os.Args[0], "backup", "restore", "--data-dir", m.dir, "newest")
		restore.Env = append(os.Environ(), asMain+"=1")
		if out, err := restore.CombinedOutput(); err != nil {
			c.t.Fatalf("%s: %v: %s", m.name, err, out)
		}
	}
	all := c.members
	c.members = nil
	for _, m := range all {
		if m != wrong {
			c.members = append(c.members, m)
		}
	}
	servers := c.boot("3.5", "--strict-reconfig-check=false")
	client := c.serving(c.members[0], time.Minute)
	_, err := client.MemberRemove(c.t.Context(), c.memberIDs(c.members[0])[wrong.name])
	must(c.t, err)
	_, err = client.MemberAdd(c.t.Context(), []string{wrong.peer})
	must(c.t, err)
	c.members = all
	must(c.t, os.RemoveAll(wrong.dir))
	s, err := pathtest.Start(c.t.Context(), c.newest("3.5"), wrong.dir, append(c.flags(wrong), "--initial-cluster-state=existing")...)
	must(c.t, err)
	c.before, err = s.ReadV3(c.t.Context())
	must(c.t, err)
	c.ids = c.memberIDs(wrong)
	for _, s := range append(servers, s) {
		must(c.t, s.Stop())
	}
}

func dbOf(m *clusterMember) string { return filepath.Join(m.dir, "member", "snap", "db") }

// firstRecord gives the value of the oldest revision in a member's db.
func firstRecord(t *testing.T, m *clusterMember) (v []byte) {
	t.Helper()
	db, err := bolt.Open(dbOf(m), 0o400, &bolt.Options{ReadOnly: true})
	must(t, err)
	defer db.Close()
	must(t, db.View(func(tx *bolt.Tx) error {
		_, first := tx.Bucket([]byte("key")).Cursor().First()
		v = bytes.Clone(first)
		return nil
	}))
	return v
}
