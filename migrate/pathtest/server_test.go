package pathtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
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

// TestStartNotices has an etcd that ends at once, without a word, and one that never answers: the first is noticed long before a
// request to it would time out, the second when the caller's own time is over.
func TestStartNotices(t *testing.T) {
	script := func(text string) binaries.Binary {
		path := filepath.Join(t.TempDir(), "etcd-3.5.35")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		release, err := versionfile.ParseRelease("3.5.35")
		if err != nil {
			t.Fatal(err)
		}
		return binaries.Binary{Path: path, Release: release}
	}
	began := time.Now()
	_, err := Start(t.Context(), script("exit 3"), t.TempDir())
	if !errors.Is(err, errEnded) || !strings.HasSuffix(err.Error(), "(exit status 3)") {
		t.Errorf("it ends at once: %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("that was noticed after %s", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err = Start(ctx, script("exec sleep 60"), t.TempDir()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it never answers: %v", err)
	}
}

// TestEndTwice ends etcds that have ended.
func TestEndTwice(t *testing.T) {
	s := Serve(t, etcd(t, "3.7"), t.TempDir())
	if err := errors.Join(s.Stop(), s.Stop(), s.Kill()); err != nil {
		t.Error(err)
	}
	s = Serve(t, etcd(t, "3.7"), t.TempDir())
	if err := errors.Join(s.Kill(), s.Kill()); err != nil {
		t.Error(err)
	}
	if err := s.Stop(); err == nil {
		t.Error("an etcd that was killed has stopped")
	}
}

// TestNoAPI asks etcds for what they do not serve: that must not look like an empty store.
func TestNoAPI(t *testing.T) {
	for _, minor := range []string{"3.4", "3.5", "3.6", "3.7"} {
		s := Serve(t, etcd(t, minor), t.TempDir())
		if content, err := s.ReadV2(t.Context()); !errors.Is(err, errNoV2) {
			t.Errorf("%s: ReadV2 gives %+v, %v", minor, content, err)
		}
		if err := s.FillV2(t.Context(), 1); !errors.Is(err, errNoV2) {
			t.Errorf("%s: FillV2: %v", minor, err)
		}
	}
	s := Serve(t, etcd(t, "2.3"), t.TempDir())
	if content, err := s.ReadV2(t.Context(), "/none"); err != nil || len(content.Keys) > 0 {
		t.Errorf("a key that is not there: %+v, %v", content, err)
	}
	for name, err := range map[string]error{"FillV3": s.FillV3(t.Context(), 1), "FillJSON": s.FillJSON(t.Context(), 1)} {
		if err == nil || !strings.Contains(err.Error(), "has no v3 API") {
			t.Errorf("%s on 2.3: %v", name, err)
		}
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
