package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// etcdCluster is a cluster of several members on loopback, each with a data dir of its own.
type etcdCluster struct {
	t       *testing.T
	set     binaries.Set
	members []*clusterMember
	before  pathtest.Content
	ids     map[string]uint64 // member IDs by name, before
	tls     []string          // flags for the peer listeners, if they have certificates
}

// clusterMember is one of them: the process that runs as it, if one does.
type clusterMember struct {
	name, dir    string
	peer, client string // URLs
	cmd          *exec.Cmd
	done         chan struct{}
	log          string // path: what the process says
	learner      bool
}

func newCluster(t *testing.T, n int) *etcdCluster {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	must(t, err)
	c := &etcdCluster{t: t, set: set}
	for range n {
		c.add()
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			m.end(syscall.SIGKILL)
			if t.Failed() {
				log, _ := os.ReadFile(m.log)
				lines := slices.DeleteFunc(strings.Split(string(log), "\n"), func(l string) bool {
					return strings.HasPrefix(l, "{") && !strings.Contains(l, "panic") && !strings.Contains(l, "fatal") || strings.Contains(l, "| rafthttp")
				})
				t.Logf("%s:\n%s", m.name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
			}
		}
	})
	return c
}

func (c *etcdCluster) add() *clusterMember {
	dir := c.t.TempDir()
	m := &clusterMember{
		name: fmt.Sprintf("m%d", len(c.members)+1), dir: filepath.Join(dir, "etcd"), peer: freeURL(c.t), client: freeURL(c.t), log: filepath.Join(dir, "log"),
	}
	c.members = append(c.members, m)
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lastPort is the last one that freeURL has looked at. They are on 127.0.0.1, which the certificates of these tests are for,
// and below those that the kernel gives to connections, which would take one while its member is down.
var lastPort atomic.Int32

func init() { lastPort.Store(20000 + rand.Int32N(8000)) }

func freeURL(t *testing.T) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", lastPort.Add(1))
		if l, err := net.Listen("tcp", addr); err == nil {
			must(t, l.Close())
			return "http://" + addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

func (c *etcdCluster) newest(minor string) binaries.Binary {
	c.t.Helper()
	m, err := versionfile.ParseMinor(minor)
	must(c.t, err)
	b, ok := c.set.Newest(m)
	if !ok {
		c.t.Fatalf("no etcd %s; run `make binaries`", minor)
	}
	return b
}

// flags are those of a member's etcd.
func (c *etcdCluster) flags(m *clusterMember) []string {
	var initial []string
	for _, o := range c.members {
		initial = append(initial, o.name+"="+o.peer)
	}
	return append([]string{
		"--name=" + m.name, "--data-dir=" + m.dir, "--listen-peer-urls=" + m.peer, "--initial-advertise-peer-urls=" + m.peer,
		"--listen-client-urls=" + m.client, "--advertise-client-urls=" + m.client, "--initial-cluster=" + strings.Join(initial, ","),
		"--heartbeat-interval=100", "--election-timeout=1000",
	}, c.tls...)
}

// boot starts etcds of that minor as the members, in the order of the members.
func (c *etcdCluster) boot(minor string, extra ...string) []*pathtest.Server {
	c.t.Helper()
	bin := c.newest(minor)
	servers := make([]*pathtest.Server, len(c.members))
	var wg sync.WaitGroup
	for i, m := range c.members {
		wg.Go(func() {
			s, err := pathtest.Start(c.t.Context(), bin, m.dir, append(c.flags(m), extra...)...)
			if err != nil {
				c.t.Error(err)
				return
			}
			servers[i] = s
		})
	}
	wg.Wait()
	c.t.Cleanup(func() {
		for _, s := range servers {
			if s != nil {
				_ = s.Kill() // unless it was stopped
			}
		}
	})
	if c.t.Failed() {
		c.t.FailNow()
	}
	return servers
}

// fill lets etcds of that minor write data, and stops them.
func (c *etcdCluster) fill(minor string, extra ...string) {
	c.t.Helper()
	servers := c.boot(minor, extra...)
	var err error
	if servers[0].Release.Minor().Storage() == versionfile.Etcd2 {
		must(c.t, servers[0].FillV2(c.t.Context(), 50))
		c.before, err = servers[0].ReadV2(c.t.Context(), pathtest.Hidden...)
	} else {
		must(c.t, servers[0].FillV3(c.t.Context(), 50))
		c.before, err = servers[0].ReadV3(c.t.Context())
		c.ids = c.memberIDs(c.members[0])
	}
	must(c.t, err)
	for _, s := range servers {
		must(c.t, s.Stop())
	}
}

// start starts `etcd-migrate run` for a member, which becomes the etcd of that minor.
func (c *etcdCluster) start(m *clusterMember, minor string, flags ...string) {
	c.t.Helper()
	args := append([]string{"run", "--bin-dir", c.set.Dir, "--log-format", "text"}, flags...)
	args = append(append(args, "--", c.newest(minor).Path), c.flags(m)...)
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(c.t, err)
	defer log.Close()
	m.cmd = exec.Command(os.Args[0], args...)
	m.cmd.Env = append(os.Environ(), asMain+"=1")
	m.cmd.Stdout, m.cmd.Stderr = log, log
	must(c.t, m.cmd.Start())
	m.done = make(chan struct{})
	go func() {
		_ = m.cmd.Wait()
		close(m.done)
	}()
}

func (m *clusterMember) end(sig syscall.Signal) {
	if m.cmd != nil {
		_ = m.cmd.Process.Signal(sig)
		<-m.done
		m.cmd = nil
	}
}

// killRandomly kills one member's etcd-migrate at random moments and starts it again, until it has become the target.
// ETCD_MIGRATE_KILLS says how often; the default is once. The first kill must come in time, or there is no test.
func (c *etcdCluster) killRandomly(minor string, flags ...string) {
	kills, err := strconv.Atoi(os.Getenv("ETCD_MIGRATE_KILLS"))
	if err != nil {
		kills = 1
	}
	m := c.members[rand.IntN(len(c.members))]
	for i := range kills {
		within := 4 * time.Second
		if i == 0 {
			within = 2 * time.Second // from the start of the last one
		}
		time.Sleep(time.Duration(rand.Int64N(int64(within))))
		must(c.t, m.cmd.Process.Signal(syscall.SIGSTOP)) // so that it cannot become the target between the look and the kill
		if program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", m.cmd.Process.Pid)); err != nil || strings.HasPrefix(program, c.set.Dir) {
			must(c.t, m.cmd.Process.Signal(syscall.SIGCONT))
			if i == 0 {
				c.t.Errorf("%s was done before it could be killed: %v", m.name, err)
			}
			return
		}
		m.end(syscall.SIGKILL)
		c.t.Logf("killed %s", m.name)
		c.start(m, minor, flags...)
	}
}

// client gives a client of a member that has become the target etcd and serves.
func (c *etcdCluster) client(m *clusterMember) (*clientv3.Client, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.client}, Logger: zap.NewNop(), MaxCallRecvMsgSize: 1 << 30})
	must(c.t, err)
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
	defer cancel()
	var opts []clientv3.OpOption
	if m.learner { // which answers nothing else
		opts = append(opts, clientv3.WithSerializable())
	}
	if _, err := client.Get(ctx, "x", opts...); err != nil {
		_ = client.Close()
		return nil, err
	}
	c.t.Cleanup(func() { _ = client.Close() })
	return client, nil
}

// serving waits until a member's target etcd serves.
func (c *etcdCluster) serving(m *clusterMember, within time.Duration) *clientv3.Client {
	c.t.Helper()
	for deadline := time.Now().Add(within); ; {
		client, err := c.client(m)
		if err == nil {
			return client
		}
		select {
		case <-m.done: // nil, and so never, if it runs without etcd-migrate
			c.t.Fatalf("%s has ended", m.name)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s does not serve: %v", m.name, err)
		}
	}
}

func (c *etcdCluster) memberIDs(m *clusterMember) map[string]uint64 {
	c.t.Helper()
	client := c.serving(m, time.Minute)
	res, err := client.MemberList(c.t.Context())
	must(c.t, err)
	ids := map[string]uint64{}
	for _, v := range res.Members {
		ids[v.Name] = v.ID
	}
	return ids
}

// arrived waits until all members serve the target, and compares: every record on every member, the same hash on all of
// them, the member list, version.txt.
func (c *etcdCluster) arrived(minor string) {
	c.t.Helper()
	hashes := map[string]bool{}
	for _, m := range c.members {
		client := c.serving(m, 3*time.Minute)
		if v, err := versionfile.Read(m.dir); err != nil || v.Release.Minor().String() != minor {
			c.t.Errorf("%s: version.txt is %s, %v", m.name, v, err)
		}
		if m.learner {
			continue
		}
		after, err := pathtest.ReadV3(c.t.Context(), client)
		must(c.t, err)
		for _, d := range pathtest.Compare(c.before, after) {
			c.t.Errorf("%s: %s", m.name, d)
		}
		ids := c.memberIDs(m)
		if len(ids) != len(c.members) || c.ids != nil && fmt.Sprint(ids) != fmt.Sprint(c.ids) {
			c.t.Errorf("%s lists the members %v, and they were %v", m.name, ids, c.ids)
		}
		list, err := client.MemberList(c.t.Context())
		must(c.t, err)
		for _, v := range list.Members {
			if !slices.ContainsFunc(c.members, func(o *clusterMember) bool { return o.name == v.Name && slices.Equal(v.PeerURLs, []string{o.peer}) }) {
				c.t.Errorf("%s lists the member %s at %v", m.name, v.Name, v.PeerURLs)
			}
		}
		s, err := client.Status(c.t.Context(), m.client)
		must(c.t, err)
		if !strings.HasPrefix(s.Version, minor+".") {
			c.t.Errorf("%s runs etcd %s", m.name, s.Version)
		}
	}
	// A lease may end between two hashes: then they are taken again.
	for deadline := time.Now().Add(30 * time.Second); ; {
		clear(hashes)
		var all []string
		for _, m := range c.members {
			if m.learner {
				continue
			}
			client := c.serving(m, time.Minute)
			h, err := client.HashKV(c.t.Context(), m.client, 0)
			if status.Code(err) == codes.Unimplemented {
				return // before 3.3
			}
			must(c.t, err)
			all = append(all, fmt.Sprintf("%s: %x at %d, compacted at %d", m.name, h.Hash, h.Header.Revision, h.CompactRevision))
			hashes[fmt.Sprintf("%x %d", h.Hash, h.Header.Revision)] = true
		}
		if len(hashes) == 1 {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the members hold different data: %q", all)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestClusterUpgrade upgrades a cluster that is shut down over several minors: its members start at different moments, and
// one is killed and started again.
func TestClusterUpgrade(t *testing.T) {
	paths := [][2]string{{"3.4", "3.7"}, {"2.3", "3.3"}} // 3.3 is the first that tells the hash of its store
	if os.Getenv("ETCD_MIGRATE_HA") != "" {
		paths = append(paths, [2]string{"3.1", "3.7"}, [2]string{"2.2", "3.7"})
	}
	for _, p := range paths {
		t.Run(p[0]+" to "+p[1], func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3)
			if p[0] == "3.4" {
				c.withTLS()
			}
			c.fill(p[0])
			began := time.Now()
			for i, m := range c.members {
				time.Sleep(time.Duration(i) * time.Second)
				c.start(m, p[1])
			}
			c.killRandomly(p[1])
			c.arrived(p[1])
			t.Logf("%s to %s took %s", p[0], p[1], time.Since(began).Round(time.Millisecond))
		})
	}
}

// TestClusterRollback brings a cluster back over several minors, with one member killed and started again.
func TestClusterRollback(t *testing.T) {
	paths := [][2]string{{"3.7", "3.4"}}
	if os.Getenv("ETCD_MIGRATE_HA") != "" {
		paths = append(paths, [2]string{"3.6", "3.5"}, [2]string{"3.4", "3.1"}, [2]string{"3.2", "3.0"})
	}
	for _, p := range paths {
		t.Run(p[0]+" to "+p[1], func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3)
			c.fill(p[0])
			began := time.Now()
			for i, m := range c.members {
				time.Sleep(time.Duration(i) * time.Second)
				c.start(m, p[1], "--allow-rollback")
			}
			c.killRandomly(p[1], "--allow-rollback")
			c.arrived(p[1])
			t.Logf("%s to %s took %s", p[0], p[1], time.Since(began).Round(time.Millisecond))
			client := c.serving(c.members[0], time.Minute)
			_, err := client.Put(t.Context(), "/after", "1")
			must(t, err)
			leases, err := client.Leases(t.Context())
			if status.Code(err) == codes.Unimplemented {
				return // before 3.3
			}
			must(t, err)
			for _, l := range leases.Leases {
				if l.ID>>32 == 0x4554434d {
					t.Errorf("lease %x is a mark that has been left behind", l.ID)
				}
			}
		})
	}
}

// TestClusterWithoutPeers: a command that does not say how the member meets the others is refused, and changes nothing.
func TestClusterWithoutPeers(t *testing.T) {
	c := newCluster(t, 2)
	c.fill("3.5")
	out, err := asTool("migrate", "--target-version", "3.6", "--data-dir", c.members[0].dir, "--bin-dir", c.set.Dir).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitRefused || !strings.Contains(string(out), "etcd-migrate run") {
		t.Errorf("%v: %s", err, out)
	}
	entries, err := os.ReadDir(c.members[0].dir)
	must(t, err)
	if slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == versionfile.Name }) {
		t.Error("a version.txt has been written")
	}
}

// TestClusterRolling upgrades one member after the other while a client writes all the time. No write that was answered may
// be lost, and each member serves before the next one is touched, as an orchestrator demands.
func TestClusterRolling(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	servers := c.boot("3.5")
	c.ids = c.memberIDs(c.members[0])
	w := c.writeAllTheTime()
	for i, m := range c.members {
		must(t, servers[i].Stop())
		c.start(m, "3.6")
		c.serving(m, 2*time.Minute)
		if i == 0 {
			// A restart before the others have followed: the cluster's version is still 3.5.
			m.end(syscall.SIGTERM)
			c.start(m, "3.6")
			c.serving(m, 2*time.Minute)
			if backups, err := os.ReadDir(filepath.Join(m.dir, "etcd-migrate", "backups")); err != nil || len(backups) != 1 {
				t.Errorf("%d backups after a restart, %v", len(backups), err)
			}
		}
		w.more(t, 20)
	}
	acknowledged := w.stop()
	for _, m := range c.members {
		res, err := c.serving(m, time.Minute).Get(t.Context(), "/written/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		must(t, err)
		have := map[string]bool{}
		for _, kv := range res.Kvs {
			have[string(kv.Key)] = true
		}
		for _, key := range acknowledged {
			if !have[key] {
				t.Errorf("%s has lost %s", m.name, key)
			}
		}
	}
	t.Logf("%d writes were answered, and each of them is on every member", len(acknowledged))
	var err error
	c.before, err = pathtest.ReadV3(t.Context(), c.serving(c.members[0], time.Minute))
	must(t, err)
	c.arrived("3.6")
}

// writer writes one key after the other, to whichever member answers.
type writer struct {
	cancel func()
	done   chan struct{}
	mu     sync.Mutex
	keys   []string // of the writes that were answered
}

func (c *etcdCluster) writeAllTheTime() *writer {
	var endpoints []string
	for _, m := range c.members {
		endpoints = append(endpoints, m.client)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	must(c.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer client.Close()
		for n := 0; ctx.Err() == nil; n++ {
			key := fmt.Sprintf("/written/%06d", n)
			try, cancel := context.WithTimeout(ctx, 2*time.Second)
			if _, err := client.Put(try, key, key); err == nil {
				w.mu.Lock()
				w.keys = append(w.keys, key)
				w.mu.Unlock()
			}
			cancel()
		}
	}()
	c.t.Cleanup(func() { w.stop() })
	return w
}

// more waits until so many more writes have been answered.
func (w *writer) more(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.keys)
	}
	for from, deadline := count(), time.Now().Add(time.Minute); count() < from+n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the cluster takes no writes any more")
		}
	}
}

func (w *writer) stop() []string {
	w.cancel()
	<-w.done
	return w.keys
}
