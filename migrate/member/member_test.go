package member

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

var releases = []string{
	"2.2.5", "2.3.8", "3.0.17", "3.1.20", "3.2.32", "3.3.27", "3.4.31", "3.5.35", "3.6.16", "3.7.3",
}

func TestMain(m *testing.M) {
	if role, isFake := strings.CutPrefix(filepath.Base(os.Args[0]), "fake-"); isFake {
		fakeEtcd(role)
	}
	if role := os.Getenv(helperEnv); role != "" {
		os.Exit(helper(role))
	}
	os.Exit(m.Run())
}

func release(t testing.TB, s string) versionfile.Release {
	t.Helper()
	r, err := versionfile.ParseRelease(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// etcdBinary finds a built etcd or etcdctl, for example "etcd-3.5.35".
func etcdBinary(t testing.TB, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real etcds")
	}
	dirs := []string{os.Getenv("ETCD_MIGRATE_BIN_DIR")}
	if dirs[0] == "" {
		wd, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		dirs = nil
		for dir := wd; dir != "/"; dir = filepath.Dir(dir) {
			dirs = append(dirs, filepath.Join(dir, "bin", "etcd"))
		}
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatalf("%s was not found: run make binaries", name)
	return ""
}

// each runs a test for every release that is at least the first and at most the last minor, each "" for no bound.
func each(t *testing.T, first, last string, test func(t *testing.T, release string)) {
	for _, r := range releases {
		m := release(t, r).Minor().String()
		if first != "" && m < first || last != "" && m > last {
			continue
		}
		t.Run(r, func(t *testing.T) { test(t, r) })
	}
}

// soon is a context for whatever is quick unless the machine is busy.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// start starts a private etcd, and sees to it that it is gone after the test.
func start(t testing.TB, r string, cfg Config) *Etcd {
	t.Helper()
	cfg.Release = release(t, r)
	if cfg.Path == "" {
		cfg.Path = etcdBinary(t, "etcd-"+r)
	}
	if cfg.DataDir == "" {
		cfg.DataDir = filepath.Join(t.TempDir(), "data")
	}
	e, err := Start(soon(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		over, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = e.Stop(over)
	})
	return e
}

// startReady also waits until it is ready.
func startReady(t testing.TB, r string, cfg Config) *Etcd {
	t.Helper()
	e := start(t, r, cfg)
	if err := e.Ready(soon(t)); err != nil {
		t.Fatal(err)
	}
	return e
}

func forceSnapshot(t testing.TB, e *Etcd) uint64 {
	t.Helper()
	index, err := e.ForceSnapshot(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func stop(t testing.TB, e *Etcd) {
	t.Helper()
	if err := e.Stop(soon(t)); err != nil {
		t.Fatal(err)
	}
}

// plainEtcd is an etcd as an operator runs it: without TLS.
type plainEtcd struct {
	url  string
	stop func()
}

// plainFlags are how an operator's member is called.
var plainFlags = []string{
	"--name=m-1", "--advertise-client-urls=http://etcd-0.example:2379,https://10.1.2.3:2379",
	"--initial-advertise-peer-urls=http://127.0.0.1:2380", "--initial-cluster=m-1=http://127.0.0.1:2380",
}

// plainMember is the same for a private etcd.
var plainMember = Config{
	Name: "m-1", AdvertiseClientURLs: []string{"http://etcd-0.example:2379", "https://10.1.2.3:2379"},
}

func startPlain(t testing.TB, r, dataDir string, flags ...string) *plainEtcd {
	t.Helper()
	client, err := pathtest.FreeURL()
	if err != nil {
		t.Fatal(err)
	}
	peer, err := pathtest.FreeURL()
	if err != nil {
		t.Fatal(err)
	}
	p := &plainEtcd{url: client}
	args := append([]string{"--data-dir=" + dataDir, "--listen-client-urls=" + p.url,
		"--listen-peer-urls=" + peer, "--heartbeat-interval=10", "--election-timeout=50"}, plainFlags...)
	cmd := exec.Command(etcdBinary(t, "etcd-"+r), append(args, flags...)...)
	cmd.Env = []string{}
	var output tail
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	t.Cleanup(p.stop)
	for ctx := soon(t); ; time.Sleep(5 * time.Millisecond) {
		var v struct {
			Cluster string `json:"etcdcluster"`
		}
		if res, err := httpPlain.Get(p.url + "/version"); err == nil {
			err = json.NewDecoder(res.Body).Decode(&v)
			res.Body.Close()
			if err == nil && strings.HasPrefix(v.Cluster, release(t, r).Minor().String()+".") {
				return p
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("etcd %s is not ready: %s", r, output.bytes())
		}
	}
}

// v3 is a client for the plain etcd.
func (p *plainEtcd) v3(t testing.TB) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{p.url}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// request makes an HTTP request and returns the body and the headers. It fails the test if the answer is no success.
func request(t testing.TB, c *http.Client, method, url, body string) (string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(soon(t), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	kind := "application/x-www-form-urlencoded"
	if strings.HasPrefix(body, "{") {
		kind = "application/json"
	}
	req.Header.Set("Content-Type", kind)
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, res.Body); err != nil {
		t.Fatal(err)
	}
	if res.StatusCode >= 300 {
		t.Fatalf("%s %s: %s %s", method, url, res.Status, b.String())
	}
	return b.String(), res.Header
}

// httpPlain is for plain etcds. It keeps no connection, because they come and go.
var httpPlain = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func writeFiles(t testing.TB, dir string, names ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
