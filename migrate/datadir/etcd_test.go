package datadir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// releases are one etcd of every minor, as `make binaries` builds them.
var releases = []string{
	"2.2.5", "2.3.8", "3.0.17", "3.1.20", "3.2.32", "3.3.27", "3.4.31", "3.5.35", "3.6.16", "3.7.3",
}

// binary finds a built program, or fails the test.
func binary(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("ETCD_MIGRATE_BIN_DIR")
	for up, err := os.Getwd(); dir == "" && err == nil && up != "/"; up = filepath.Dir(up) {
		if exists(filepath.Join(up, "bin/etcd")) {
			dir = filepath.Join(up, "bin/etcd")
		}
	}
	path := filepath.Join(dir, name)
	if !exists(path) {
		t.Fatalf("there is no %s: run make binaries", name)
	}
	return path
}

// etcd is a running one.
type etcd struct {
	release, client string
	cmd             *exec.Cmd
	ended           chan error
}

func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "ETCD") })
}

func startEtcd(t *testing.T, release string, l Layout) *etcd {
	t.Helper()
	client, err := pathtest.FreeURL()
	must(t, err)
	peer, err := pathtest.FreeURL()
	must(t, err)
	e := &etcd{release: release, client: client, ended: make(chan error, 1)}
	args := []string{
		"--name", "m", "--data-dir", l.DataDir,
		"--listen-client-urls", e.client, "--advertise-client-urls", e.client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "m=" + peer,
		"--heartbeat-interval", "10", "--election-timeout", "50",
	}
	if l.SeparateWAL() {
		args = append(args, "--wal-dir", l.WALDir)
	}
	var log bytes.Buffer
	e.cmd = exec.Command(binary(t, "etcd-"+release), args...)
	e.cmd.Env, e.cmd.Stdout, e.cmd.Stderr = cleanEnv(), &log, &log
	must(t, e.cmd.Start())
	t.Cleanup(func() { e.cmd.Process.Kill() })
	go func() { e.ended <- e.cmd.Wait() }()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-e.ended:
			t.Fatalf("etcd %s ends at its start with %v:\n%s", release, err, log.String())
		default:
		}
		if err := e.put("ready", "yes"); err == nil {
			return e
		} else if time.Now().After(deadline) {
			t.Fatalf("etcd %s does not start: %v", release, err)
		}
	}
}

func (e *etcd) stop(t *testing.T) {
	t.Helper()
	must(t, e.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-e.ended:
	case <-time.After(60 * time.Second):
		t.Fatalf("etcd %s does not stop", e.release)
	}
}

// put and get use the v2 API as long as it is on by default, because that needs no other program.
func (e *etcd) put(key, value string) error {
	if !e.hasV2() {
		_, err := e.etcdctl("put", key, value)
		return err
	}
	body := strings.NewReader(url.Values{"value": {value}}.Encode())
	req, err := http.NewRequest(http.MethodPut, e.client+"/v2/keys/"+key, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	_, err = e.do(req)
	return err
}

func (e *etcd) get(key string) (string, error) {
	if !e.hasV2() {
		return e.etcdctl("get", "--print-value-only", key)
	}
	req, err := http.NewRequest(http.MethodGet, e.client+"/v2/keys/"+key, nil)
	if err != nil {
		return "", err
	}
	body, err := e.do(req)
	_, value, _ := strings.Cut(body, `"value":"`)
	value, _, _ = strings.Cut(value, `"`)
	return value, err
}

func (e *etcd) hasV2() bool { return e.release < "3.4" }

func (e *etcd) do(req *http.Request) (string, error) {
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

func (e *etcd) etcdctl(args ...string) (string, error) {
	name := filepath.Join(filepath.Dir(e.cmd.Path), "etcdctl-"+e.release)
	cmd := exec.Command(name, append([]string{"--endpoints", e.client, "--dial-timeout", "1s"}, args...)...)
	cmd.Env = append(cleanEnv(), "ETCDCTL_API=3")
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// With every minor, with and without --wal-dir: a running etcd is seen and named, asking does not disturb it, a
// stopped one is not seen, it does not mind our directories, and a restore brings back what was backed up.
func TestRealEtcds(t *testing.T) {
	if testing.Short() {
		t.Skip("starts etcds")
	}
	for _, release := range releases {
		for _, separate := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s separate WAL %v", release, separate), func(t *testing.T) {
				t.Parallel()
				realEtcd(t, release, separate)
			})
		}
	}
}

func realEtcd(t *testing.T, release string, separate bool) {
	root := t.TempDir()
	walDir := ""
	if separate {
		walDir = filepath.Join(root, "wal")
	}
	l, err := NewLayout(filepath.Join(root, "data"), walDir)
	must(t, err)
	must(t, os.Mkdir(l.DataDir, 0o700))

	e := startEtcd(t, release, l)
	must(t, e.put("a", "1"))
	_, err = CreateBackup(context.Background(), l, l.BackupsDir(""), testMeta, nil)
	heldErr := (*HeldError)(nil)
	if !errors.As(err, &heldErr) || heldErr.PID != e.cmd.Process.Pid || heldErr.Command != "etcd-"+release {
		t.Fatalf("with a running etcd a backup gives %v", err)
	}
	if exists(l.WorkDir()) {
		t.Error("asking for a running etcd has made the work dir")
	}
	if separate || release < "3" {
		// The log alone gives it away, too: a db is not everywhere.
		held, err := fileHeld(l.WALDir + "/0000000000000000-0000000000000000.wal")
		if !held || err != nil {
			t.Errorf("the WAL is not held: %v", err)
		}
	}
	if release >= "3" {
		if held, err := fileHeld(l.DB()); !held || err != nil {
			t.Errorf("the db is not held: %v", err)
		}
	}
	must(t, e.put("b", "1")) // being asked has not disturbed it
	e.stop(t)
	must(t, l.LiveEtcd())
	if presence, err := l.Presence(); presence != Present || err != nil {
		t.Errorf("the member is %v, %v", presence, err)
	}

	b := mustBackup(t, l)
	e = startEtcd(t, release, l)
	must(t, e.put("a", "2"))
	e.stop(t)
	replaced, err := b.Restore(context.Background(), l, nil)
	must(t, err)
	if len(replaced) != len(l.roots()) {
		t.Errorf("replaced is in %v", replaced)
	}
	e = startEtcd(t, release, l)
	for _, key := range []string{"a", "b"} {
		if value, err := e.get(key); value != "1" || err != nil {
			t.Errorf("%s is %q after the restore, %v", key, value, err)
		}
	}
	if err := l.LiveEtcd(); !errors.As(err, &heldErr) {
		t.Errorf("the second running etcd gives %v", err)
	}
	e.stop(t)
	must(t, b.Verify(context.Background(), nil))
}
