package pathtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/binaries"
)

func etcd(t *testing.T, minor string) binaries.Binary {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	return Binary(t, os.Getenv("ETCD_MIGRATE_BIN_DIR"), minor)
}

// TestStartFails gives an etcd what it does not start on: the error has its last words, and comes at once.
func TestStartFails(t *testing.T) {
	bin, dir := etcd(t, "3.5"), t.TempDir()
	if _, err := Start(t.Context(), bin, dir, "--logger", "none"); !errors.Is(err, errEnded) || !strings.Contains(err.Error(), "unknown logger option") {
		t.Errorf("a flag that it does not take: %v", err)
	}
	if _, err := Start(t.Context(), binaries.Binary{Path: filepath.Join(dir, "none")}, dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
}

// TestTwo runs two etcds at a time, each with addresses of its own.
func TestTwo(t *testing.T) {
	a, b := Serve(t, etcd(t, "3.7"), t.TempDir()), Serve(t, etcd(t, "3.7"), t.TempDir())
	if a.URL == b.URL {
		t.Error("they have one URL")
	}
	for _, s := range []*Server{a, b} {
		if err := s.WriteOnce(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// fakeTB notes how a test would have failed.
type fakeTB struct {
	*testing.T
	failed string
}

func (f *fakeTB) Fatalf(format string, args ...any) {
	f.failed = fmt.Sprintf(format, args...)
	panic(f)
}

func TestBinaryMissing(t *testing.T) {
	for dir, want := range map[string]string{t.TempDir(): "there is no etcd 3.4", filepath.Join(t.TempDir(), "none"): "does not exist"} {
		f := &fakeTB{T: t}
		func() {
			defer func() { _ = recover() }()
			Binary(f, dir, "3.4")
		}()
		if !strings.Contains(f.failed, want) {
			t.Errorf("%q, want %q", f.failed, want)
		}
	}
}
