package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// withTLS gives all members one certificate for their peer listeners, and makes them demand it.
func (c *etcdCluster) withTLS() {
	dir := c.t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		must(c.t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(c.t, err)
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "peers"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	must(c.t, err)
	raw, err := x509.MarshalECPrivateKey(key)
	must(c.t, err)
	certFile := write("peer.crt", "CERTIFICATE", der)
	c.tls = []string{
		"--peer-cert-file=" + certFile, "--peer-key-file=" + write("peer.key", "EC PRIVATE KEY", raw), "--peer-trusted-ca-file=" + certFile,
		"--peer-client-cert-auth",
	}
	for _, m := range c.members {
		m.peer = strings.Replace(m.peer, "http:", "https:", 1)
	}
}

// fails waits until a member's etcd-migrate has ended with an exit code, and gives what it has said.
func (c *etcdCluster) fails(m *clusterMember, code int) string {
	c.t.Helper()
	select {
	case <-m.done:
	case <-time.After(2 * time.Minute):
		c.t.Fatalf("%s does not end", m.name)
	}
	log, err := os.ReadFile(m.log)
	must(c.t, err)
	if got := m.cmd.ProcessState.ExitCode(); got != code {
		c.t.Fatalf("%s ended with %d, want %d", m.name, got, code)
	}
	m.cmd = nil
	return string(log)
}

// TestClusterMemberMissing: a member that never comes is named when the time is over, and the others can go on from where
// they are as soon as it does.
func TestClusterMemberMissing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.fill("3.5")
	late := c.members[2]
	for _, m := range c.members[:2] {
		c.start(m, "3.7", "--step-timeout=10s")
	}
	named := regexp.MustCompile(`level=ERROR msg="waiting for .*m3 \(not reachable`) // the other one can be gone by then, too
	for _, m := range c.members[:2] {
		if log := c.fails(m, exitFailed); !named.MatchString(log) || !strings.Contains(log, "same command") {
			t.Errorf("%s does not say whom it waited for: %s", m.name, log)
		}
		if v, err := versionfile.Read(m.dir); err == nil && v.Release.Minor().String() != "3.5" {
			t.Errorf("%s: version.txt says %s", m.name, v)
		}
	}
	for _, m := range append(c.members[:2:2], late) {
		c.start(m, "3.7")
	}
	c.arrived("3.7")
}

// TestClusterRemovedMember: a member that was removed while it was down says so.
func TestClusterRemovedMember(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	servers := c.boot("3.5", "--strict-reconfig-check=false")
	removed := c.members[2]
	must(t, servers[2].Stop())
	_, err := c.serving(c.members[0], time.Minute).MemberRemove(t.Context(), c.memberIDs(c.members[0])[removed.name])
	must(t, err)
	c.start(removed, "3.6", "--step-timeout=30s")
	if log := c.fails(removed, exitFailed); !strings.Contains(log, "removed from its cluster") {
		t.Errorf("it does not say why: %s", log)
	}
}

// TestClusterNotJoined: members that wait in an agreement for one that still runs its own etcd name it.
func TestClusterNotJoined(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	servers := c.boot("3.6")
	c.serving(c.members[0], time.Minute)
	for i, m := range c.members[:2] {
		must(t, servers[i].Stop())
		c.start(m, "3.5", "--allow-rollback", "--step-timeout=25s")
	}
	named := fmt.Sprintf("m3 (etcd %s, has not joined the agreement)", servers[2].Release)
	for _, m := range c.members[:2] {
		if log := c.fails(m, exitFailed); strings.Count(log, named) < 2 {
			t.Errorf("%s does not say %q both while it waits and at the end: %s", m.name, named, log)
		}
	}
}

// TestClusterRemovedMeanwhile: nobody waits for a member that was removed while this one lagged behind and could not know.
func TestClusterRemovedMeanwhile(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	servers := c.boot("3.5", "--strict-reconfig-check=false")
	removed := c.memberIDs(c.members[0])[c.members[2].name]
	must(t, servers[0].Stop())
	client := c.serving(c.members[1], time.Minute)
	_, err := client.MemberRemove(t.Context(), removed)
	must(t, err)
	must(t, servers[1].Stop())
	_ = servers[2].Stop() // which may have ended by itself
	c.members = c.members[:2]
	for _, m := range c.members {
		c.start(m, "3.7", "--step-timeout=40s")
	}
	for _, m := range c.members {
		c.serving(m, time.Minute)
		if ids := c.memberIDs(m); len(ids) != 2 {
			t.Errorf("%s lists the members %v", m.name, ids)
		}
	}
}

// TestClusterLearnerAndLaggard: a learner walks along, and so does a member that has missed all that the cluster's raft log
// still holds, and needs a snapshot from the others.
func TestClusterLearnerAndLaggard(t *testing.T) {
	if os.Getenv("ETCD_MIGRATE_HA") == "" {
		t.Skip("make ha")
	}
	t.Parallel()
	c := newCluster(t, 3)
	servers := c.boot("3.5", "--snapshot-count=10")
	client := c.serving(c.members[0], time.Minute)
	learner := c.add()
	learner.learner = true
	var err error
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err = client.MemberAddAsLearner(t.Context(), []string{learner.peer}); err == nil || time.Now().After(deadline) {
			break // the members must have known each other for 5 s
		}
	}
	must(t, err)
	c.tls = []string{"--initial-cluster-state=existing"} // of effect only on a fresh data dir
	c.start(learner, "3.5")                              // a fresh data dir: it becomes etcd at once
	c.serving(learner, time.Minute)
	must(t, servers[2].Stop())
	must(t, servers[0].FillV3(t.Context(), 50))
	c.before, err = servers[0].ReadV3(t.Context())
	must(t, err)
	c.ids = c.memberIDs(c.members[0])
	learner.end(syscall.SIGTERM)
	must(t, servers[0].Stop())
	must(t, servers[1].Stop())
	for _, m := range c.members {
		c.start(m, "3.7")
	}
	c.arrived("3.7")
}

// TestClusterOfFive is there for its figures.
func TestClusterOfFive(t *testing.T) {
	if os.Getenv("ETCD_MIGRATE_HA") == "" {
		t.Skip("make ha")
	}
	c := newCluster(t, 5)
	servers := c.boot("3.4")
	must(t, servers[0].FillV3(t.Context(), 5000))
	var err error
	c.before, err = servers[0].ReadV3(t.Context())
	must(t, err)
	c.ids = c.memberIDs(c.members[0])
	for _, s := range servers {
		must(t, s.Stop())
	}
	began := time.Now()
	for _, m := range c.members {
		c.start(m, "3.6")
	}
	for _, m := range c.members {
		c.serving(m, 3*time.Minute)
	}
	t.Logf("5 members, %d keys, 3.4 to 3.6: all serve after %s", len(c.before.Keys), time.Since(began).Round(100*time.Millisecond))
	c.arrived("3.6")
}
