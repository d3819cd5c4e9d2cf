package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// TestClusterDiverged: members whose data is not the same say so, and never serve, however often they are started again. Nor does
// any of them get another one's data in the place of its own: who is right is for a person to find out, who can then go on.
func TestClusterDiverged(t *testing.T) {
	for name, damage := range map[string]func(*bolt.Bucket) error{
		"another value": changeFirst,
		"the last write is lost": func(records *bolt.Bucket) error { // at its own newest revision it is the same as the others
			last, _ := records.Cursor().Last()
			return records.Delete(bytes.Clone(last))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3)
			servers := c.bootForDamage()
			for _, s := range servers {
				must(t, s.Stop())
			}
			wrong := c.members[2]
			c.damage(wrong, damage)
			was := c.records(true)

			// The first time, one of them can be left without a quorum by those that have found it out before.
			found := map[*clusterMember]bool{}
			for range 2 {
				for _, m := range c.members {
					c.start(m, "3.7", "--step-timeout=20s")
				}
				for _, m := range c.members {
					code := exitFailed
					if found[m] {
						code = exitRefused
					}
					found[m] = c.names(m, c.fails(m, code))
				}
				c.unchanged(was, true)
				if both := found[c.members[0]] && found[c.members[1]]; !both && !found[wrong] {
					t.Fatal("none has found it out")
				}
			}

			c.replace(wrong)
			for _, m := range c.members {
				c.start(m, "3.7")
			}
			c.arrived("3.7")
			if _, ok := c.before.Keys["/k59"]; !ok {
				t.Error("the last write is lost")
			}
		})
	}
}

// TestClusterDivergedAndBehind: a right member that is behind is started together with the wrong one alone, which leads then. It
// does not get the wrong data, since the other one has written no raft snapshot, and both say that they are not the same.
func TestClusterDivergedAndBehind(t *testing.T) {
	for target, serves := range map[string]bool{"3.6": true, "3.7": false} { // a rolling upgrade needs no third member
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3)
			servers := c.bootForDamage()
			behind, right, wrong := c.members[0], c.members[1], c.members[2]
			must(t, servers[0].Stop())
			client := c.serving(right, time.Minute)
			lease, err := client.Grant(t.Context(), 6) // what ends moves the revision on, and so hides that keys have changed
			must(t, err)
			_, err = client.Put(t.Context(), "/leased", "", clientv3.WithLease(lease.ID))
			must(t, err)
			must(t, servers[1].Stop())
			must(t, servers[2].Stop())
			c.damage(wrong, changeFirst)
			was := c.records(false) // the last one ends with its lease

			for _, two := range [][]*clusterMember{{right, wrong}, {wrong, behind}} {
				for _, m := range two {
					c.start(m, target, "--step-timeout=20s")
				}
				for _, m := range two {
					if log := c.fails(m, exitFailed); serves && !c.names(m, log) {
						t.Errorf("%s does not find it out: %s", m.name, log)
					}
				}
				c.unchanged(was, false)
			}
			for _, m := range c.members {
				c.start(m, target, "--step-timeout=20s")
			}
			named := 0
			for _, m := range c.members {
				if c.names(m, c.fails(m, exitFailed)) {
					named++
				}
			}
			if c.unchanged(was, false); named == 0 {
				t.Error("none has found it out")
			}
		})
	}
}

// changeFirst changes the last byte of the oldest record's value.
func changeFirst(records *bolt.Bucket) error {
	k, v := records.Cursor().First()
	v = bytes.Clone(v)
	v[len(v)-1] ^= 1
	return records.Put(bytes.Clone(k), v)
}

// bootForDamage gives running etcds with keys that have no TTLs: what is written by the end of one can bring a member a snapshot
// before it is looked at.
func (c *etcdCluster) bootForDamage() []*pathtest.Server {
	c.t.Helper()
	servers := c.boot("3.5")
	client := c.serving(c.members[0], time.Minute)
	for i := range 60 { // a rolling upgrade writes a raft snapshot after 50
		_, err := client.Put(c.t.Context(), fmt.Sprintf("/k%d", i), "value")
		must(c.t, err)
	}
	return servers
}

func (c *etcdCluster) damage(m *clusterMember, do func(records *bolt.Bucket) error) {
	c.t.Helper()
	db, err := bolt.Open(dbOf(m), 0o600, nil)
	must(c.t, err)
	must(c.t, db.Update(func(tx *bolt.Tx) error { return do(tx.Bucket([]byte("key"))) }))
	must(c.t, db.Close())
}

// names reports whether a member says that the data of it and of another one is not the same.
func (c *etcdCluster) names(m *clusterMember, log string) bool {
	return strings.Contains(log, "the data of this member, "+m.name) && strings.Contains(log, "is not the same at revision")
}

// records gives the oldest record in each member's db, and the newest, if asked.
func (c *etcdCluster) records(newest bool) (all []string) {
	c.t.Helper()
	for _, m := range c.members {
		db, err := bolt.Open(dbOf(m), 0o400, &bolt.Options{ReadOnly: true})
		must(c.t, err)
		must(c.t, db.View(func(tx *bolt.Tx) error {
			records := tx.Bucket([]byte("key")).Cursor()
			k, v := records.First()
			if newest {
				lastKey, lastValue := records.Last()
				k, v = slices.Concat(k, lastKey), slices.Concat(v, lastValue)
			}
			all = append(all, string(k)+string(v))
			return nil
		}))
		must(c.t, db.Close())
	}
	return all
}

func (c *etcdCluster) unchanged(was []string, newest bool) {
	c.t.Helper()
	for i, now := range c.records(newest) {
		if now != was[i] {
			c.t.Errorf("%s has got the data of another one", c.members[i].name)
		}
	}
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
