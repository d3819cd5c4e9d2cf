package migrate_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// TestRehearse: what each step takes is told, and neither is the data changed nor a copy left.
func TestRehearse(t *testing.T) {
	set := etcds(t)
	m := v3Only(t, set, nil, "3.4")
	before, scratch := tree(t, m.dir), t.TempDir()
	r := m.request(t, "3.6")
	r.BackupDir = filepath.Join(t.TempDir(), "backups")
	told := map[migrate.EventKind]int{}
	r.Observer = func(e migrate.Event) { told[e.Kind]++ }
	rehearsal, err := migrate.Rehearse(t.Context(), r, scratch)
	must(t, err)
	if told[migrate.EventInspected] != 1 || told[migrate.EventPlanned] != 1 || told[migrate.EventStepDone] != 2 {
		t.Errorf("the observer was told %v", told)
	}
	if len(rehearsal.Costs) != 2 || len(rehearsal.Report.Steps) != 2 || rehearsal.BackupElsewhere != r.BackupDir {
		t.Fatalf("%d costs of %d steps, backups in %q", len(rehearsal.Costs), len(rehearsal.Report.Steps), rehearsal.BackupElsewhere)
	}
	size := rehearsal.Bytes
	for i, c := range rehearsal.Costs {
		if c.BytesBefore != size || c.PeakBytes < c.BytesAfter || c.PeakBytes > rehearsal.PeakBytes || c.BytesAfter == 0 || c.PeakMemoryBytes < 1<<20 {
			t.Errorf("step %d took %+v, after %d bytes and with %d at most", i+1, c, size, rehearsal.PeakBytes)
		}
		size = c.BytesAfter
	}
	unchanged(t, m.dir, before)
	holdsOnly(t, scratch)
	if _, err := os.Lstat(r.BackupDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the real backup dir was made: %v", err)
	}
}

func holdsOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	if strings.Join(found, " ") != strings.Join(names, " ") {
		t.Errorf("%s holds %v, want %v", dir, found, names)
	}
}

// TestRehearsalRefuses: what a migration of the data would refuse, or cannot be copied, in words that are about that.
func TestRehearsalRefuses(t *testing.T) {
	set := etcds(t)
	made := v3Only(t, set, nil, "3.4")
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, m member)
		kind  migrate.Kind
		says  []string
	}{
		"no room for the backup": {func(t *testing.T, _ member) { t.Cleanup(migrate.SetFreeSpace(1 << 10)) },
			migrate.Refused, []string{"the backup", "--backup-dir"}},
		"files of several owners": {func(t *testing.T, m member) {
			if os.Geteuid() != 0 {
				t.Skip("only root can give files away")
			}
			must(t, os.Chown(filepath.Join(m.dir, "member"), 65534, 65534))
		}, migrate.Refused, []string{"belongs to user 0", "chown"}},
		"no data dir": {func(t *testing.T, m member) { must(t, os.RemoveAll(m.dir)) },
			migrate.Refused, []string{"holds no member's data, so there is nothing to rehearse", "volume is mounted"}},
		"an empty data dir": {func(t *testing.T, m member) { must(t, os.RemoveAll(filepath.Join(m.dir, "member"))) },
			migrate.Refused, []string{"holds no member's data, so there is nothing to rehearse", "volume is mounted"}},
		"a link to the WAL dir": {func(t *testing.T, m member) {
			wal := filepath.Join(t.TempDir(), "wal")
			must(t, os.Rename(filepath.Join(m.dir, "member", "wal"), wal))
			must(t, os.Symlink(wal, filepath.Join(m.dir, "member", "wal")))
		}, migrate.Refused, []string{"member/wal is a symbolic link", "--wal-dir", "put right what it says"}},
		"another etcd-migrate": {func(t *testing.T, m member) {
			l, err := datadir.NewLayout(m.dir, "")
			must(t, err)
			unlock, err := l.Lock()
			must(t, err)
			t.Cleanup(func() { must(t, unlock()) })
		}, migrate.InUse, []string{"is locked by"}},
	} {
		t.Run(name, func(t *testing.T) { // not parallel: see freeSpace
			m, scratch := made.clone(t), t.TempDir()
			tc.spoil(t, m)
			_, err := migrate.Rehearse(t.Context(), m.request(t, "3.7"), scratch)
			if migrate.KindOf(err) != tc.kind {
				t.Fatalf("got %v", err)
			}
			for _, w := range tc.says {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			holdsOnly(t, scratch)
		})
	}
}

// TestRehearsalProvesTheOriginal: whoever changes the data meanwhile is noticed, by each file.
func TestRehearsalProvesTheOriginal(t *testing.T) {
	set := etcds(t)
	made := v3Only(t, set, nil, "3.6")
	for name, tc := range map[string]struct {
		change func(t *testing.T, m member)
		says   string
	}{
		"a byte": {func(t *testing.T, m member) { overwrite("member/snap/db", 20_000)(t, m) }, "member/snap/db is another"},
		"one more file": {func(t *testing.T, m member) {
			must(t, os.WriteFile(filepath.Join(m.dir, "member/wal/1.wal"), nil, 0o600))
		}, "1.wal is new"},
		"one file less":  {remove("member/snap/db"), "member/snap/db is gone"},
		"a version.txt":  {versionTxt("3.6.16/etcd3"), "version.txt is new"},
		"nothing at all": {func(*testing.T, member) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := made.clone(t)
			r := m.request(t, "3.7")
			r.Observer = func(e migrate.Event) {
				if e.Kind == migrate.EventStepDone {
					tc.change(t, m)
				}
			}
			_, err := migrate.Rehearse(t.Context(), r, t.TempDir())
			if tc.says == "" {
				must(t, err)
				return
			}
			if migrate.KindOf(err) != migrate.Failed || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "%!") || !strings.Contains(err.Error(), "who else uses") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestRehearsalLeavesNoCopy: it is removed after a signal, and what a killed one has left by the next one.
func TestRehearsalLeavesNoCopy(t *testing.T) {
	set := etcds(t)
	m := v3Only(t, set, nil, "3.6")
	scratch := t.TempDir()
	const left, young, locked, other = "etcd-migrate-rehearsal-1", "etcd-migrate-rehearsal-2", "etcd-migrate-rehearsal-3", "something-else"
	for _, name := range []string{left, young, locked, other} {
		dir := filepath.Join(scratch, name)
		must(t, os.MkdirAll(filepath.Join(dir, "data", "member"), 0o700))
		if name != young {
			must(t, os.Chtimes(dir, time.Time{}, time.Now().Add(-time.Hour)))
		}
	}
	unlock, err := (datadir.Layout{DataDir: filepath.Join(scratch, locked)}).Lock()
	must(t, err)
	defer unlock()

	ctx, cancel := context.WithCancelCause(t.Context())
	r := m.request(t, "3.7")
	r.Observer = func(e migrate.Event) {
		if e.Kind == migrate.EventStepStarted {
			cancel(errors.New("SIGTERM"))
		}
	}
	_, err = migrate.Rehearse(ctx, r, scratch)
	if migrate.KindOf(err) != migrate.Interrupted || strings.Contains(err.Error(), scratch) { // where there is no backup any more
		t.Errorf("got %v", err)
	}
	holdsOnly(t, scratch, young, locked, other)
}

// TestRehearsalWithoutBackup: what the copy's migration refuses is told of the copy, and without flags that would not help it.
func TestRehearsalWithoutBackup(t *testing.T) {
	set := etcds(t)
	m := v3Only(t, set, nil, "3.6")
	before, scratch := tree(t, m.dir), t.TempDir()
	r := m.request(t, "3.7")
	r.Observer = func(e migrate.Event) {
		if e.Kind == migrate.EventProgress && e.What == "backup" {
			dbs, err := filepath.Glob(filepath.Join(scratch, "*", "data", "member", "snap", "db"))
			must(t, err)
			for _, db := range dbs {
				must(t, os.Chtimes(db, time.Time{}, time.Now()))
			}
		}
	}
	_, err := migrate.Rehearse(t.Context(), r, scratch)
	if migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), "changed while it was copied") ||
		!strings.Contains(err.Error(), "that was a copy") || !strings.Contains(err.Error(), "--scratch") ||
		strings.Contains(err.Error(), "--backup-dir") {
		t.Errorf("got %v", err)
	}
	unchanged(t, m.dir, before)
	holdsOnly(t, scratch)
}

// TestFailedRehearsal: nothing is to be mended or restored after it, since it was a copy.
func TestFailedRehearsal(t *testing.T) {
	set := etcds(t)
	m := ofAllSorts(t, set)
	before := tree(t, m.dir)
	r := m.request(t, "3.7")
	r.Binaries = set.With(spoiling(t, "key", newest(t, set, "3.6")))
	_, err := migrate.Rehearse(t.Context(), r, t.TempDir())
	var e *migrate.Error
	if !errors.As(err, &e) || e.Kind != migrate.Failed || e.Backup != "" || !strings.Contains(e.Data, "that was a copy") ||
		!strings.Contains(err.Error(), "the keys are not what they were") || strings.Contains(err.Error(), "backup restore") {
		t.Errorf("got %v", err)
	}
	unchanged(t, m.dir, before)
}
