//go:build amd64

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// material is what scenarios are made of, made once.
type material struct {
	set     binaries.Set
	program string // etcd-migrate itself, as it is shipped
	first   string // version.txt of the data that a scenario begins with
}

// scenarios gives what is killed, starved and traced.
func scenarios(t *testing.T) []*scenario {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	if set.Dir, err = filepath.Abs(set.Dir); err != nil {
		t.Fatal(err)
	}
	program := build(t)
	minor := func(s string) versionfile.Minor {
		m, err := versionfile.ParseMinor(s)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	bin := func(s string) binaries.Binary {
		b, ok := set.Newest(minor(s))
		if !ok {
			t.Fatalf("there is no etcd %s", s)
		}
		return b
	}
	base := resolved(t, t.TempDir())
	in := func(name string) string { return filepath.Join(base, name) }
	version := func(dir string) string {
		v, _ := os.ReadFile(filepath.Join(dir, "version.txt"))
		return string(v)
	}
	with := func(sc scenario) *scenario {
		sc.material = &material{set: set, program: program, first: version(sc.from)}
		return &sc
	}

	// What etcd 2.2 has written, the same converted and brought up with its backup from before, and on the way there.
	old, v30, high, mid := in("old"), in("v30"), in("high"), in("mid")
	content := fill(t, bin("2.2"), old)
	copyDir(t, old, v30)
	migrateTo := func(dir string, args ...string) {
		cmd := exec.Command(program, append(args, "--data-dir", dir, "--bin-dir", set.Dir, "--log-format", "text")...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	migrateTo(v30, "migrate", "--target-version", "3.0", "--target-storage", "etcd2")
	copyDir(t, v30, mid)
	migrateTo(mid, "migrate", "--target-version", "3.4")
	copyDir(t, mid, high)
	migrateTo(high, "migrate", "--target-version", "3.7")
	back := []string{"rollback", "--target-version", "2.2", "--accept-loss", "not-json"}
	restored := []string{"migrate", "--allow-rollback", "--target-version", "2.2", "--accept-loss", "not-json"}
	return []*scenario{
		with(scenario{name: "upgrade 2.2 to 3.7", from: old, args: []string{"migrate", "--target-version", "3.7"}, content: content, end: minor("3.7")}),
		with(scenario{name: "rollback 3.7 to 2.2", from: high, args: back, content: content, end: minor("2.2")}),
		with(scenario{name: "restore", from: high, args: []string{"backup", "restore", "newest"}, content: content, end: minor("3.4"), brief: true}),
		with(scenario{name: "restore, then migrate", from: high, args: []string{"backup", "restore", "newest"}, again: restored, content: content, end: minor("2.2"), brief: true}),
	}
}

// build makes the program as `make build` does. What runs is not this test binary, because that is many times slower with
// the race detector.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "etcd-migrate")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
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

// serve gives all that an etcd serves from the data dir.
func serve(t *testing.T, bin binaries.Binary, dir string, flags ...string) pathtest.Content {
	t.Helper()
	s, err := pathtest.Start(t.Context(), bin, dir, flags...)
	if err != nil {
		t.Fatal(err)
	}
	var content pathtest.Content
	if bin.Release.Minor().Storage() == versionfile.Etcd2 {
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
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
