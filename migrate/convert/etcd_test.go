package convert

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
)

// program gives the path of a program that `make binaries` has built, such as etcd-3.0.17.
func program(t testing.TB, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real etcds")
	}
	dir := os.Getenv("ETCD_MIGRATE_BIN_DIR")
	for up := "."; dir == "" && len(up) < 40; up += "/.." {
		if _, err := os.Stat(filepath.Join(up, "bin", "etcd")); err == nil {
			dir = filepath.Join(up, "bin", "etcd")
		}
	}
	bin := filepath.Join(dir, name)
	if _, err := os.Stat(bin); dir == "" || err != nil {
		t.Fatalf("%s is missing: run make binaries", name)
	}
	return bin
}

// etcd is a running etcd of one member.
type etcd struct {
	t    testing.TB
	url  string
	v3   *clientv3.Client
	stop func()
}

// start runs an etcd on a data dir, and waits until it answers.
func start(t testing.TB, version, dir string, args ...string) *etcd {
	t.Helper()
	bin := program(t, "etcd-"+version)
	// An address of its own in 127.0.0.0/8, so that no other process takes the ports in between.
	host := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	client, peer := "http://"+host+":2379", "http://"+host+":2380"
	cmd := exec.Command(bin, append([]string{
		"--name", "m", "--data-dir", dir, "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "m=" + peer,
		"--heartbeat-interval", "10", "--election-timeout", "50",
	}, args...)...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "ETCD") })
	cmd.Env = append(cmd.Env, "ETCD_UNSUPPORTED_ARCH=arm64")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	must(t, cmd.Start())
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	e := &etcd{t: t, url: client, stop: func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-exited
	}}
	t.Cleanup(e.stop)
	for deadline := time.After(30 * time.Second); ; {
		err := e.ready(strings.HasPrefix(version, "2."))
		if err == nil {
			return e
		}
		select {
		case <-exited:
			t.Fatalf("etcd %s has ended:\n%s", version, &log)
		case <-deadline:
			e.stop()
			t.Fatalf("etcd %s does not answer: %v\n%s", version, err, &log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ready makes a request that needs a leader. The v3 client is made once the port is open: before, it would wait for a
// second until it tries again.
func (e *etcd) ready(v2 bool) error {
	resp, err := http.Get(e.url + "/v2/keys/?quorum=true")
	if err != nil {
		return err
	}
	resp.Body.Close()
	if v2 {
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", resp.Status)
		}
		return nil
	}
	if e.v3 == nil {
		e.v3, err = clientv3.New(clientv3.Config{
			Endpoints: []string{e.url}, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
		})
		must(e.t, err)
		e.t.Cleanup(func() { e.v3.Close() })
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = e.v3.Get(ctx, "x")
	return err
}

// v2 makes a request of the v2 API: method, path below /v2/keys, and form values as "name=value".
func (e *etcd) v2(method, path string, form ...string) {
	e.t.Helper()
	values := url.Values{}
	for _, f := range form {
		name, value, _ := strings.Cut(f, "=")
		values.Set(name, value)
	}
	target := e.url + "/v2/keys" + (&url.URL{Path: path}).EscapedPath()
	var body io.Reader
	if method == http.MethodDelete {
		target += "?" + values.Encode()
	} else {
		body = strings.NewReader(values.Encode())
	}
	req, err := http.NewRequest(method, target, body)
	must(e.t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	must(e.t, err)
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		text, _ := io.ReadAll(resp.Body)
		e.t.Fatalf("%s %s: %s: %s", method, path, resp.Status, text)
	}
}

// load reads a stopped member's v2 store and the position of its log, as the migrator does.
func load(t testing.TB, dir string) Params {
	t.Helper()
	log, err := raftlog.Open(filepath.Join(dir, "member", "snap"), filepath.Join(dir, "member", "wal"))
	must(t, err)
	tree := keyspace.NewTree()
	if s := log.Snapshot(); s.Index > 0 {
		tree, err = keyspace.LoadTree(s.Data)
		must(t, err)
	}
	sum, err := log.Each(func(e raftlog.Entry) error {
		switch e.Kind {
		case raftlog.V2:
			return tree.ApplyV2(e.V2)
		case raftlog.V3:
			return tree.ApplyV3(e.V3)
		case raftlog.ConfChange:
			return tree.ApplyConfChange(e.ConfChange)
		}
		return nil
	})
	must(t, err)
	return Params{
		Tree: tree, RaftIndex: sum.HardState.Commit, RaftTerm: sum.LastTerm, Now: time.Now(),
		DB: filepath.Join(dir, "member", "snap", "db"),
	}
}

// copyDir copies a data dir.
func copyDir(t testing.TB, dir string) string {
	t.Helper()
	dst := filepath.Join(t.TempDir(), "m")
	must(t, os.CopyFS(dst, os.DirFS(dir)))
	return dst
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
