package migrate

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// TestRestoreCommand has what a person on call pastes into a shell.
func TestRestoreCommand(t *testing.T) {
	for want, c := range map[string]struct{ data, wal, dir, backup string }{
		"--data-dir /d newest":                      {"/d", "", "/d/etcd-migrate/backups", ""},
		"--data-dir /d 2026":                        {"/d", "", "", "/d/etcd-migrate/backups/2026"},
		"--data-dir /d --backup-dir /b 2026":        {"/d", "", "", "/b/2026"},
		"--data-dir '/my etcd' --wal-dir /w newest": {"/my etcd", "/w", "/my etcd/etcd-migrate/backups", ""},
	} {
		l, err := datadir.NewLayout(c.data, c.wal)
		if err != nil {
			t.Fatal(err)
		}
		if got := restoreCommand(l, c.dir, c.backup); got != "`etcd-migrate backup restore "+want+"`" {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestNoRight has data that this user may not read: it is neither lost nor damaged, and the hint says whose it is.
func TestNoRight(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	const owner, other = 1234, 65534
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil { // the data dir alone is closed
		t.Fatal(err)
	}
	data := filepath.Join(dir, "etcd")
	for path, mode := range map[string]os.FileMode{data: 0o700, filepath.Join(data, "member"): 0o700} {
		if err := errors.Join(os.MkdirAll(path, mode), os.Chown(path, owner, owner)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := datadir.NewLayout(data, "")
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // what follows is of this thread only
	defer runtime.UnlockOSThread()
	if err := syscall.Setfsuid(other); err != nil {
		t.Fatal(err)
	}
	_, err = Inspect(context.Background(), l, time.Now())
	if err := syscall.Setfsuid(0); err != nil {
		t.Fatal(err)
	}
	var e *Error
	if !errors.As(err, &e) || e.Kind != Refused || !strings.Contains(e.Hint, "run it as the owner, uid 1234 (of a container: --user 1234:1234)") ||
		!strings.Contains(e.Hint, "chown -R 0:0 "+data) {
		t.Errorf("%v", err)
	}
}

// TestLossHints has several losses: what can be done about all of them is said once.
func TestLossHints(t *testing.T) {
	const restore = "restore a backup from before the upgrade"
	got := lossHints([]convert.Problem{{Loss: convert.LossNotJSON}, {Loss: convert.LossOverQuota}, {Loss: convert.LossUnfitKeys}, {}})
	if strings.Count(got, restore) != 1 || !strings.Contains(got, "accept it with --accept-loss=not-json,unfit-keys") {
		t.Error(got)
	}
	if got, want := lossHints([]convert.Problem{{Loss: convert.LossNotJSON}}), "accept it with --accept-loss=not-json, or "+restore; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
