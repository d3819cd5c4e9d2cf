package binaries

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// script writes an executable that answers as given: a stand-in for binaries that lie, which no real etcd does.
func script(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func release(t *testing.T, s string) versionfile.Release {
	t.Helper()
	r, err := versionfile.ParseRelease(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		"etcd-3.4.9", "etcd-3.4.10", "etcd-2.2.5", "etcd-3.6.0-rc.1", "etcd-3.6.0",
		"etcdctl-3.4.10", "etcdutl-3.6.0", "etcd", "etcd-", "etcd-migrate", "etcd-3.4", "etcd-wrapper.sh",
	} {
		script(t, dir, name, "exit 1")
	}
	set, err := Find(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := set.String(), "etcd 2.2.5, 3.4.9, 3.4.10, 3.6.0-rc.1, 3.6.0 in "+dir; got != want {
		t.Errorf("found %s, want %s", got, want)
	}
	for minor, want := range map[versionfile.Minor]string{{Major: 3, Minor: 4}: "3.4.10", {Major: 3, Minor: 6}: "3.6.0"} {
		if b, ok := set.Newest(minor); !ok || b.Release.String() != want || b.Path != filepath.Join(dir, "etcd-"+want) {
			t.Errorf("Newest(%s) = %v, %v; want %s", minor, b, ok, want)
		}
	}
	if b, ok := set.Newest(versionfile.Minor{Major: 3, Minor: 5}); ok {
		t.Errorf("Newest(3.5) = %v though there is none", b)
	}
	if b, ok := set.Get(release(t, "3.4.9")); !ok || filepath.Base(b.Path) != "etcd-3.4.9" {
		t.Errorf("Get(3.4.9) = %v, %v", b, ok)
	}
	if _, ok := set.Get(release(t, "3.4.8")); ok {
		t.Error("Get finds a release that is not there")
	}
}

func TestFindWithoutDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	if _, err := Find(dir); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "--bin-dir") {
		t.Errorf("Find of a missing directory: %v", err)
	}
	empty := t.TempDir()
	set, err := Find(empty)
	if err != nil || !strings.Contains(set.String(), "no etcd-<version> in "+empty) {
		t.Errorf("Find of an empty directory: %v, %v", set, err)
	}
}

func TestVerifyNamesEveryBadBinary(t *testing.T) {
	dir := t.TempDir()
	good := script(t, dir, "etcd-3.4.10", "echo 'etcd Version: 3.4.10'; echo 'Git SHA: x'")
	bad := map[string]string{
		"etcd-3.4.9":  script(t, dir, "etcd-3.4.9", "echo 'etcd Version: 3.4.10'"),
		"etcd-3.5.1":  script(t, dir, "etcd-3.5.1", "echo 'Hello, world'"),
		"etcd-3.5.2":  script(t, dir, "etcd-3.5.2", "echo 'etcd Version: newest'"),
		"etcd-3.5.3":  script(t, dir, "etcd-3.5.3", "echo broken pipe dream >&2; exit 7"),
		"etcd-3.5.4":  filepath.Join(dir, "etcd-3.5.4"), // missing
		"etcd-3.5.5":  script(t, dir, "etcd-3.5.5", ""),
		"etcd-3.5.6":  script(t, dir, "etcd-3.5.6", ""),
		"etcd-3.5.7":  filepath.Join(dir, "etcd-3.5.7"),
		"etcd-3.5.99": script(t, dir, "etcd-3.5.99", "kill -9 $$"),
	}
	if err := os.Chmod(bad["etcd-3.5.6"], 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(bad["etcd-3.5.7"], 0o755); err != nil {
		t.Fatal(err)
	}
	bins := []Binary{{good, release(t, "3.4.10")}}
	for name, path := range bad {
		bins = append(bins, Binary{path, release(t, strings.TrimPrefix(name, Prefix))})
	}
	err := Verify(context.Background(), nil, bins...)
	if err == nil {
		t.Fatal("Verify accepts them all")
	}
	for _, path := range bad {
		if !strings.Contains(err.Error(), path+" ") && !strings.Contains(err.Error(), path+":") {
			t.Errorf("the error does not name %s", path)
		}
	}
	if strings.Contains(err.Error(), good+" ") {
		t.Errorf("the error blames %s", good)
	}
	for _, want := range []string{"says that it is etcd 3.4.10", `"Hello, world"`, "not executable", "broken pipe dream", "not a regular file", "signal: killed"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

func TestAskGivesUpWithItsContext(t *testing.T) {
	path := script(t, t.TempDir(), "etcd-3.4.10", "exec sleep 60")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := Ask(ctx, path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Ask of a binary that never answers: %v", err)
	}
}

// TestVerifyAsAnotherUser: what root can start is out of a user's reach if a directory above it is closed.
func TestVerifyAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	dir := t.TempDir()
	path := script(t, dir, "etcd-3.4.10", "echo 'etcd Version: 3.4.10'")
	bin := Binary{path, release(t, "3.4.10")}
	for above := filepath.Dir(dir); above != os.TempDir() && above != "/"; above = filepath.Dir(above) {
		if err := os.Chmod(above, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	nobody := &syscall.Credential{Uid: 65532, Gid: 65532}
	t.Chdir(dir) // which a user could start it from, by the name alone, whatever is above
	for _, mode := range []os.FileMode{0o700, 0o755} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		for _, b := range []Binary{bin, {filepath.Base(path), bin.Release}} {
			if err := Verify(t.Context(), nil, b); err != nil {
				t.Errorf("%s, mode %o, as we are: %v", b.Path, mode, err)
			}
			switch err := Verify(t.Context(), nobody, b); {
			case mode == 0o755 && err != nil:
				t.Errorf("%s, mode %o: %v", b.Path, mode, err)
			case mode == 0o700 && (!errors.Is(err, syscall.EACCES) || !strings.Contains(err.Error(), b.Path+" --version as uid 65532")):
				t.Errorf("%s, mode %o: %v", b.Path, mode, err)
			}
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("etcd Version: 3.5.35\nGit SHA: abc\n")
	f.Add("etcd Version: \n")
	f.Fuzz(func(t *testing.T, out string) {
		if r, err := parseVersion("etcd", out); err == nil && !strings.Contains(out, "etcd Version: ") {
			t.Fatalf("%q is taken for etcd %s", out, r)
		}
	})
}
