package migrate_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// interrupted ends a run after its first step.
func interrupted(t *testing.T, m member, r migrate.Request) *migrate.Report {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	r.Observer = func(e migrate.Event) {
		if e.Kind == migrate.EventStepDone {
			cancel(errors.New("enough"))
		}
	}
	report, err := migrate.New(r).Run(ctx)
	if migrate.KindOf(err) != migrate.Interrupted {
		t.Fatal(err)
	}
	return report
}

// TestUnreadableBackup: a backup from before the first step that cannot be read, for a moment or because it is damaged, is not
// taken for one that is gone, and no backup of data that is half way takes its place.
func TestUnreadableBackup(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "3.4", versionfile.Etcd3)
	r := m.request(t, "3.7")
	report := interrupted(t, m, r)
	manifest := filepath.Join(report.Backup, "manifest.json")
	text, err := os.ReadFile(manifest)
	must(t, err)
	for _, spoil := range []func() error{
		func() error { return os.WriteFile(manifest, text[:len(text)/2], 0o600) },
		func() error { return errors.Join(os.Remove(manifest), os.Mkdir(manifest, 0o700)) },
		func() error { return os.Remove(manifest) },
	} {
		must(t, spoil())
		refusedUnchanged(t, m, m.request(t, "3.7"), "cannot be read", "is given up", report.Backup)
	}
	must(t, os.WriteFile(manifest, text, 0o600))
	again := m.migrate(t, "3.7")
	if again.Backup != report.Backup {
		t.Errorf("the run after it used the backup %s, and not %s", again.Backup, report.Backup)
	}
}

// TestAbsentBackup: a backup from before the first step that is not where it was is not replaced by one of data that is half
// way. Its volume may just not be mounted.
func TestAbsentBackup(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "3.4", versionfile.Etcd3)
	r := m.request(t, "3.7")
	r.BackupDir, r.KeepBackups = filepath.Join(t.TempDir(), "backups"), 1
	report := interrupted(t, m, r)
	must(t, os.Rename(r.BackupDir, r.BackupDir+".unmounted"))
	refusedUnchanged(t, m, r, "is not there", "mount its volume", report.Backup)
	must(t, os.Mkdir(r.BackupDir, 0o700)) // a mount point
	refusedUnchanged(t, m, r, "is not there", "mount its volume", report.Backup)

	must(t, os.Remove(r.BackupDir))
	r.BackupDir += ".unmounted" // which is mounted elsewhere now
	again, err := migrate.New(r).Run(t.Context())
	must(t, err)
	if again.Backup != filepath.Join(r.BackupDir, filepath.Base(report.Backup)) || len(again.Pruned) > 0 {
		t.Errorf("used the backup %s and pruned %v, and not %s", again.Backup, again.Pruned, report.Backup)
	}
}

// TestMovedDataDir: in a container, and on another node, the data dir has another path. Its backups are its own all the same.
func TestMovedDataDir(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "3.4", versionfile.Etcd3)
	report := interrupted(t, m, m.request(t, "3.7"))
	old := m.dir
	m.dir = filepath.Join(t.TempDir(), "elsewhere")
	must(t, os.Rename(old, m.dir))
	again := m.migrate(t, "3.7")
	if want := filepath.Join(m.dir, "etcd-migrate/backups", filepath.Base(report.Backup)); again.Backup != want {
		t.Errorf("the run after it used the backup %s, want %s", again.Backup, want)
	}
	r := m.request(t, "3.6")
	r.AllowRollback, r.KeepBackups = true, 1
	back, err := migrate.New(r).Run(t.Context())
	must(t, err)
	if len(back.Pruned) != 1 || back.Pruned[0] != filepath.Base(report.Backup) {
		t.Errorf("pruned %v, want %s", back.Pruned, report.Backup)
	}
}
