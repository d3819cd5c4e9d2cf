package convert

import (
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// program gives the path of a program that `make binaries` has built, such as etcd-3.0.17.
func program(t testing.TB, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real etcds")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	must(t, err)
	bin := filepath.Join(set.Dir, name)
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("%v: run make binaries", err)
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
	release, err := versionfile.ParseRelease(version)
	must(t, err)
	s := pathtest.Serve(t, binaries.Binary{Path: program(t, "etcd-"+version), Release: release}, dir, args...)
	e := &etcd{t: t, url: s.URL, stop: func() { must(t, s.Stop()) }}
	if release.Minor().AtLeast(3, 0) {
		e.v3, err = s.V3()
		must(t, err)
	}
	return e
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
