//go:build amd64

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// material is what scenarios are made of: data dirs of some minors, with the same content.
type material struct {
	set     binaries.Set
	program string // etcd-migrate itself, as it is shipped
	content pathtest.Content
	// old is what etcd 2.2 has written, v2 the same at 3.0, v3 that converted, mid at 3.4 and high at 3.7. All but old have
	// backups from on the way, of 2.2.0/etcd2, 3.0.17/etcd2, and so on.
	old, v2, v3, mid, high string
}

var (
	making sync.Mutex
	made   *material
	known  []*scenario
)

// materials makes the material at the first call.
func materials(t *testing.T) *material {
	t.Helper()
	making.Lock()
	defer making.Unlock()
	if made != nil {
		return made
	}
	var err error
	m := &material{}
	if m.set, err = pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR")); err == nil {
		m.set.Dir, err = filepath.Abs(m.set.Dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	base := workshop.dir(t, quick())
	in := func(name string) string { return filepath.Join(base, name) }
	m.program = in("etcd-migrate")
	build(t, m.program)
	m.old, m.v2, m.v3, m.mid, m.high = in("old"), in("v2"), in("v3"), in("mid"), in("high")
	m.content = fill(t, m.bin(t, "2.2"), m.old)
	m.migrate(t, m.old, m.v2, "3.0", "--target-storage", "etcd2")
	m.migrate(t, m.v2, m.v3, "3.0")
	m.migrate(t, m.v3, m.mid, "3.4")
	m.migrate(t, m.mid, m.high, "3.7")
	made = m
	return m
}

// migrate brings a copy of a data dir to a minor.
func (m *material) migrate(t *testing.T, from, to, target string, more ...string) {
	t.Helper()
	copyDir(t, from, to)
	args := append([]string{"migrate", "--data-dir", to, "--target-version", target, "--bin-dir", m.set.Dir, "--log-format", "text"}, more...)
	if out, err := exec.Command(m.program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func (m *material) bin(t *testing.T, minor string) binaries.Binary {
	t.Helper()
	v, err := versionfile.ParseMinor(minor)
	b, ok := m.set.Newest(v)
	if err != nil || !ok {
		t.Fatalf("there is no etcd %s, %v", minor, err)
	}
	return b
}

// build makes the program as `make build` does. What runs is not this test binary, because that is many times slower with
// the race detector.
func build(t *testing.T, path string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
}

// scenarios gives what is traced, killed and starved. Each is opened once for all tests.
func scenarios(t *testing.T) []*scenario {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	m := materials(t)
	if known != nil {
		return known
	}
	restore := []string{"backup", "restore", "newest"}
	back := func(to string, more ...string) []string {
		return append([]string{"rollback", "--target-version", to, "--accept-loss", "not-json"}, more...)
	}
	up := func(to string, more ...string) []string {
		return append([]string{"migrate", "--target-version", to}, more...)
	}
	known = []*scenario{
		{name: "upgrade 2.2 to 3.7", from: m.old, args: up("3.7"), end: "3.7"},
		{name: "rollback 3.7 to 2.2", from: m.high, args: back("2.2"), end: "2.2"},
		{name: "convert", from: m.v2, args: up("3.0"), end: "3.0"},
		{name: "convert back", from: m.v3, args: back("3.0", "--target-storage", "etcd2"), end: "3.0", v2: true},
		{name: "upgrade with a WAL dir and backups elsewhere", from: m.mid, args: up("3.5"), end: "3.5", elsewhere: true},
		{name: "rollback that prunes backups", from: m.high, args: back("3.6", "--keep-backups", "1"), end: "3.6", prunes: true},
		{name: "restore", from: m.high, args: restore, end: "3.4", brief: true},
		{name: "restore with a WAL dir and backups elsewhere", from: m.mid, before: up("3.5"), args: restore, end: "3.4", elsewhere: true, brief: true},
		{name: "restore, then migrate", from: m.high, args: restore, again: up("2.2", "--allow-rollback", "--accept-loss", "not-json"), end: "2.2", brief: true},
		{name: "restore after a failed proof", from: m.high, failed: true, args: restore, again: up("2.2", "--allow-rollback", "--accept-loss", "not-json"), end: "2.2", brief: true},
		{name: "first start", args: up("3.7"), end: "3.7", brief: true},
	}
	for _, sc := range known {
		sc.material = m
	}
	return known
}

func fill(t *testing.T, bin binaries.Binary, dir string) pathtest.Content {
	t.Helper()
	s, err := pathtest.Start(t.Context(), bin, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.FillV2(t.Context(), 50); err != nil {
		t.Fatal(err)
	}
	content, err := s.ReadV2(t.Context(), pathtest.Hidden...)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	return content
}

// serve gives all that an etcd serves from the data dir, from one of its stores.
func serve(t *testing.T, bin binaries.Binary, dir string, v2 bool, flags ...string) pathtest.Content {
	t.Helper()
	s, err := pathtest.Start(t.Context(), bin, dir, flags...)
	if err != nil {
		t.Fatal(err)
	}
	var content pathtest.Content
	if v2 || bin.Release.Minor().Storage() == versionfile.Etcd2 {
		content, err = s.ReadV2(t.Context(), pathtest.Hidden...)
	} else {
		content, err = s.ReadV3(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	return content
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(to), os.MkdirAll(filepath.Dir(to), 0o700)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
