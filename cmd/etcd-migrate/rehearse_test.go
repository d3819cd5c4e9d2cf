//go:build amd64

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// TestRehearsalWithoutRoom has small volumes for the copy: too small for it, for one segment of the log and for two, since the
// copy of a log has holes. All that would not do is refused before a step is begun, as a want of room there. So is a volume that
// others fill meanwhile: it is not taken for a failure of the migration.
func TestRehearsalWithoutRoom(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	if !inMountNamespace(t) {
		return
	}
	set := etcdSet(t)
	w := secretWriter{set, t.TempDir()}
	w.etcd(t, "3.5", func(s *pathtest.Server) {
		if err := s.FillV3(t.Context(), 100); err != nil {
			t.Fatal(err)
		}
	})
	target, err := migrate.ResolveTarget("3.6", "", set)
	if err != nil {
		t.Fatal(err)
	}
	v := newVolume(t, filepath.Join(t.TempDir(), "scratch"), 1)
	rehearse := func(observer func(migrate.Event)) error {
		_, err := migrate.Rehearse(t.Context(),
			migrate.Request{DataDir: w.dir(), Target: target, Binaries: set, Tool: "test", Observer: observer}, v.path)
		return err
	}
	refused := func(where string, err error) {
		t.Helper()
		if err == nil {
			t.Fatalf("%s: not refused", where)
		}
		t.Logf("%s: %v", where, err)
		if migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), "nothing has been changed") ||
			!strings.Contains(err.Error(), "with more room") || !strings.Contains(err.Error(), "--scratch") ||
			!strings.Contains(err.Error(), v.path) {
			t.Errorf("%s: it is not refused for want of room for the copy", where)
		}
		for _, wrong := range []string{"--backup-dir", "the real migration", "etcdserver", "panic"} {
			if strings.Contains(err.Error(), wrong) {
				t.Errorf("%s: the error says %q", where, wrong)
			}
		}
		if left, err := filepath.Glob(filepath.Join(v.path, "etcd-migrate-*")); err != nil || len(left) > 0 {
			t.Errorf("%s: left behind: %v, %v", where, left, err)
		}
	}
	for _, megabytes := range []int{1, 8, 66, 100, 125, 130, 135, 140, 145, 150, 160} {
		v.remount(t, 0, size(megabytes))
		begun := false
		err := rehearse(func(e migrate.Event) { begun = begun || e.Kind == migrate.EventStepStarted })
		switch {
		case megabytes == 160 && err != nil:
			t.Errorf("with room enough: %v", err)
		case err != nil && begun:
			t.Errorf("%s: too little room is not seen before: %v", size(megabytes), err)
		case err != nil || megabytes <= 125:
			refused(size(megabytes), err)
		}
	}
	filled := rehearse(func(e migrate.Event) {
		if e.Kind == migrate.EventStepStarted {
			v.fill(t, 1<<20)
		}
	})
	refused("filled by others", filled)
	if err := os.Remove(v.filler()); err != nil {
		t.Error(err)
	}
}
