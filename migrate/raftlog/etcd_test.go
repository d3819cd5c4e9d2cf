package raftlog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

var versions = []string{
	"2.2.5", "2.3.8", "3.0.17", "3.1.20", "3.2.32", "3.3.27", "3.4.31", "3.5.35", "3.6.16", "3.7.3",
}

// hasV2 and hasV3 say which API an etcd serves without being asked to.
func hasV2(version string) bool { return version < "3.4" }
func hasV3(version string) bool { return version >= "3" }

// etcdBinary finds one of the real etcd binaries that "make binaries" builds.
func etcdBinary(t testing.TB, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real etcds")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(set.Dir, name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make binaries", err)
	}
	return path
}

// environment is this process's without anything that would configure an etcd.
func environment() []string {
	env := []string{"ETCDCTL_API=3"}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ETCD") {
			env = append(env, v)
		}
	}
	if runtime.GOARCH != "amd64" {
		env = append(env, "ETCD_UNSUPPORTED_ARCH="+runtime.GOARCH)
	}
	return env
}

// run runs a tool to its end.
func run(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(etcdBinary(t, name), args...)
	cmd.Env = environment()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// etcd is a real etcd that runs.
type etcd struct {
	t        testing.TB
	version  string
	url      string
	snap     string
	wal      string
	cmd      *exec.Cmd
	finished chan struct{}
	output   bytes.Buffer
}

func freeURL(t testing.TB) string {
	t.Helper()
	u, err := pathtest.FreeURL()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// start starts an etcd as the only member. Later flags win over earlier ones. It does not wait for it to be ready: the
// first write does.
func start(t testing.TB, version, dataDir string, flags ...string) *etcd {
	t.Helper()
	peer := freeURL(t)
	return startMember(t, version, dataDir, peer, append([]string{"--initial-cluster", "n=" + peer}, flags...)...)
}

func startMember(t testing.TB, version, dataDir, peer string, flags ...string) *etcd {
	t.Helper()
	e := &etcd{
		t: t, version: version, url: freeURL(t), finished: make(chan struct{}),
		snap: filepath.Join(dataDir, "member", "snap"), wal: filepath.Join(dataDir, "member", "wal"),
	}
	for i, f := range flags {
		if f == "--wal-dir" {
			e.wal = flags[i+1]
		}
	}
	e.cmd = exec.Command(etcdBinary(t, "etcd-"+version), append([]string{
		"--name", "n", "--data-dir", dataDir,
		"--listen-client-urls", e.url, "--advertise-client-urls", e.url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--heartbeat-interval", "10", "--election-timeout", "50",
	}, flags...)...)
	e.cmd.Env = environment()
	e.cmd.Stdout, e.cmd.Stderr = &e.output, &e.output
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = e.cmd.Wait() // etcd ends by the signal that stops it
		close(e.finished)
	}()
	t.Cleanup(func() { e.end(syscall.SIGKILL) })
	return e
}

func (e *etcd) end(s syscall.Signal) {
	_ = e.cmd.Process.Signal(s)
	select {
	case <-e.finished:
	case <-time.After(20 * time.Second):
		_ = e.cmd.Process.Kill()
		<-e.finished
		e.t.Errorf("etcd %s did not stop:\n%s", e.version, &e.output)
	}
}

func (e *etcd) stop() { e.end(syscall.SIGTERM) }
func (e *etcd) kill() { e.end(syscall.SIGKILL) }

// until repeats try until it succeeds or etcd is gone.
func (e *etcd) until(what string, try func() error) {
	e.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-e.finished:
		case <-time.After(20 * time.Millisecond):
			if time.Now().Before(deadline) {
				continue
			}
			e.kill()
		}
		e.t.Fatalf("etcd %s: %s: %v\n%s", e.version, what, err, &e.output)
	}
}

// putV2 writes a key through the v2 API.
func (e *etcd) putV2(key, value string) {
	e.t.Helper()
	e.until("put "+key, func() error { return e.tryPutV2(key, value, 5*time.Second) })
}

func (e *etcd) tryPutV2(key, value string, timeout time.Duration) error {
	body := strings.NewReader(url.Values{"value": {value}}.Encode())
	req, err := http.NewRequest(http.MethodPut, e.url+"/v2/keys"+key, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: timeout}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

// proposeV2 has a leader without a quorum take a write, which cannot succeed.
func (e *etcd) proposeV2(key string) {
	e.t.Helper()
	if err := e.tryPutV2(key, "v", 300*time.Millisecond); err == nil {
		e.t.Fatal("a write without a quorum has succeeded")
	}
}

// logs is nil if a text is in the files of the member's log.
func (e *etcd) logs(text string) error {
	files, err := filepath.Glob(filepath.Join(e.wal, "*.wal"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if content, err := os.ReadFile(f); err == nil && bytes.Contains(content, []byte(text)) {
			return nil
		}
	}
	return fmt.Errorf("%s is in none of %v", text, files)
}

// leads reports whether the member is its cluster's leader.
func (e *etcd) leads() bool {
	e.t.Helper()
	resp, err := http.Get(e.url + "/v2/stats/self")
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return bytes.Contains(body, []byte("StateLeader"))
}

// putV3 writes keys through the v3 API.
func (e *etcd) putV3(value string, keys ...string) {
	e.t.Helper()
	e.until("listen", func() error { // a client that is refused would wait a second before it tries again
		c, err := net.Dial("tcp", strings.TrimPrefix(e.url, "http://"))
		if err == nil {
			err = c.Close()
		}
		return err
	})
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.url}, Logger: zap.NewNop()})
	if err != nil {
		e.t.Fatal(err)
	}
	defer c.Close()
	for _, key := range keys {
		e.until("put "+key, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_, err := c.Put(ctx, key, value)
			return err
		})
	}
}

// put writes n keys through each API that this etcd has, and gives their names.
func (e *etcd) put(prefix string, n int) (v2, v3 []string) {
	e.t.Helper()
	for i := range n {
		if hasV2(e.version) {
			v2 = append(v2, fmt.Sprintf("/%s/%d", prefix, i))
			e.putV2(v2[i], "v2 value")
		}
		if hasV3(e.version) {
			v3 = append(v3, fmt.Sprintf("%s.%d", prefix, i))
		}
	}
	if len(v3) > 0 {
		e.putV3("v3 value", v3...)
	}
	return v2, v3
}
