package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestOldManifest runs the command of GCE's etcd manifest of Kubernetes 1.13 to 1.30 as it is, but for the directories.
func TestOldManifest(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	bin, data, log := filepath.Join(root, "bin"), filepath.Join(root, "etcd/data"), filepath.Join(root, "etcd.log")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, b := range set.Binaries {
		path, err := filepath.Abs(b.Path)
		if err == nil {
			err = os.Symlink(path, filepath.Join(bin, filepath.Base(path)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "migrate-if-needed.sh")); err != nil {
		t.Fatal(err)
	}

	target, _ := set.Newest(versionfile.Minor{Major: 3, Minor: 6})
	first, _ := set.Newest(versionfile.Minors()[0])
	s, err := pathtest.Start(t.Context(), first, data, "--heartbeat-interval", "100", "--election-timeout", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.FillV2(t.Context(), 50); err != nil {
		t.Fatal(err)
	}
	before, err := s.ReadV2(t.Context(), pathtest.Hidden...)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}

	const command = `if [ -e /usr/local/bin/migrate-if-needed.sh ]; then /usr/local/bin/migrate-if-needed.sh 1>>/var/log/etcd.log 2>&1; fi; ` +
		`exec /usr/local/bin/etcd --name etcd-master --listen-peer-urls PEER --initial-advertise-peer-urls PEER ` +
		`--advertise-client-urls CLIENT --listen-client-urls CLIENT --quota-backend-bytes=4294967296 --data-dir /var/etcd/data ` +
		`--initial-cluster-state new --initial-cluster etcd-master=PEER 1>>/var/log/etcd.log 2>&1`
	client, peer := "http://"+freeAddress(t), "http://"+freeAddress(t)
	words := strings.NewReplacer("/usr/local/bin", bin, "/var/etcd/data", data, "/var/log/etcd.log", log, "PEER", peer, "CLIENT", client)
	cmd := exec.Command("/bin/sh", "-c", words.Replace(command))
	cmd.Env = []string{asMain + "=1", "PATH=" + os.Getenv("PATH"), "TARGET_STORAGE=etcd3", "TARGET_VERSION=" + target.Release.String(), "DATA_DIRECTORY=" + data,
		"INITIAL_CLUSTER=etcd-master=" + peer, "LISTEN_PEER_URLS=" + peer, "INITIAL_ADVERTISE_PEER_URLS=" + peer,
		"ETCD_CREDS=", "ETCD_APISERVER_CREDS=", "ETCD_SNAPSHOT_COUNT=10000", "ETCD_HOSTNAME=master", "ETCDCTL_API=3",
		"BIN_DIR=" + bin} // the one thing that is not in the manifest, because it is always /usr/local/bin there
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(log)
			t.Logf("%s", b)
		}
	}()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{client}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var status *clientv3.StatusResponse
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		status, err = c.Status(ctx, client)
		cancel()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if status.Version != target.Release.String() {
		t.Errorf("it is etcd %s", status.Version)
	}
	after, err := pathtest.ReadV3(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if len(after.Keys) == 0 {
		t.Error("the etcd is empty")
	}
	for _, diff := range pathtest.Compare(before, after) {
		t.Error(diff)
	}
}

// TestDropInRequest checks what becomes of the old flags and variables.
func TestDropInRequest(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	bin, _ := set.Newest(versionfile.Minor{Major: 3, Minor: 6})
	target := bin.Release.String() + "/etcd3"
	type request struct {
		DataDir, WALDir, Name, Target, TTL string
		Quota                              int64
		Rollback                           bool
	}
	usual := []string{"--bin-dir", set.Dir, "--data-dir", "/d", "--target-version", bin.Release.String(), "--target-storage", "etcd3"}
	for name, tc := range map[string]struct {
		args, env []string
		want      request
	}{
		"nothing more": {nil, nil, request{"/d", "", "", target, "/registry/events 1h0m0s", 0, true}},
		"ETCD_NAME":    {nil, []string{"ETCD_NAME=m1", "ETCD_HOSTNAME=h"}, request{"/d", "", "m1", target, "/registry/events 1h0m0s", 0, true}},
		"a hostname, another prefix": {nil, []string{"ETCD_HOSTNAME=h", "ETCD_DATA_PREFIX=/kubernetes/"},
			request{"/d", "", "etcd-h", target, "/kubernetes/events 1h0m0s", 0, true}},
		"a directory": {[]string{"--etcd-data-prefix=/kubernetes", "--ttl-keys-directory=/x"}, nil,
			request{"/d", "", "", target, "/x 1h0m0s", 0, true}},
		"etcd's flags": {nil, []string{"ETCD_CREDS= --peer-cert-file /x --quota-backend-bytes=100  --wal-dir /w --data-dir=/other"},
			request{"/d", "/w", "", target, "/registry/events 1h0m0s", 100, true}},
		"no way back": {[]string{"--no-allow-rollback"}, nil, request{"/d", "", "", target, "/registry/events 1h0m0s", 0, false}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, kv := range tc.env {
				k, v, _ := strings.Cut(kv, "=")
				t.Setenv(k, v)
			}
			var c dropIn
			parser, _, inPod := newParser("/usr/local/bin/migrate", nil)
			if !inPod {
				t.Error("not made for pods")
			}
			kctx, err := parser.Parse(append(usual, tc.args...))
			if err != nil {
				t.Fatal(err)
			}
			c = *kctx.Model.Target.Addr().Interface().(*dropIn)
			r, err := c.request(func(string) {})
			if err != nil {
				t.Fatal(err)
			}
			got := request{r.DataDir, r.WALDir, r.Name, r.Target.String(), r.TTLDirectory + " " + r.TTL.String(), r.QuotaBytes, r.AllowRollback}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
