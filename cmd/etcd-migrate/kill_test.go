package main

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestKilled kills etcd-migrate at random moments of an upgrade, a rollback and a restore. At every one of them there is a
// whole backup or nothing has been changed yet, no etcd is left over, and the same command then ends as if nothing had
// happened. ETCD_MIGRATE_KILLS says how often each; `make crash` does it a hundred times.
func TestKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	kills, err := strconv.Atoi(os.Getenv("ETCD_MIGRATE_KILLS"))
	if err != nil {
		kills = 4
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	minors := versionfile.Minors()
	oldest, _ := set.Newest(minors[0])
	newest, _ := set.Newest(minors[len(minors)-1])

	old := filepath.Join(t.TempDir(), "etcd") // what etcd 2.2 has written
	content := fill(t, oldest, old)
	high := filepath.Join(t.TempDir(), "etcd") // the same, migrated, with the backup from before
	copyDir(t, old, high)
	finish(t, set, high, "migrate", "--target-version", "3.7")

	for _, scenario := range []struct {
		name string
		dir  string
		args []string
		end  binaries.Binary
	}{
		{"upgrade", old, []string{"migrate", "--target-version", "3.7"}, newest},
		{"rollback", high, []string{"rollback", "--target-version", "2.2", "--accept-loss", "not-json"}, oldest},
		{"restore", high, []string{"backup", "restore", "newest"}, oldest},
	} {
		t.Run(scenario.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "etcd")
			copyDir(t, scenario.dir, dir)
			began := time.Now()
			finish(t, set, dir, scenario.args...)
			whole := time.Since(began)
			served := 0
			for range kills {
				copyDir(t, scenario.dir, dir)
				cmd := command(set, dir, scenario.args...)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				after := time.Duration(rand.Int64N(int64(whole)))
				time.Sleep(after)
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				if orphans := orphansOn(dir); orphans != "" {
					t.Fatalf("left running when killed after %s: %s", after, orphans)
				}
				wholeBackupOrUntouched(t, dir, after)
				finish(t, set, dir, scenario.args...)
				for _, d := range pathtest.Compare(content, serve(t, scenario.end, dir)) {
					t.Errorf("killed after %s: %s", after, d)
				}
				served++
			}
			t.Logf("%s: %d kills, %d reruns, %d keys each, 0 lost", scenario.name, kills, served, len(content.Keys))
		})
	}
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
func serve(t *testing.T, bin binaries.Binary, dir string) pathtest.Content {
	t.Helper()
	s, err := pathtest.Start(t.Context(), bin, dir)
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

func command(set binaries.Set, dir string, args ...string) *exec.Cmd {
	args = append(args, "--data-dir", dir)
	if args[0] != "backup" {
		args = append(args, "--bin-dir", set.Dir, "--log-format", "text")
	}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asMain+"=1")
	return cmd
}

func finish(t *testing.T, set binaries.Set, dir string, args ...string) {
	t.Helper()
	if out, err := command(set, dir, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// wholeBackupOrUntouched: before the first change there is the data, from then on a whole backup.
func wholeBackupOrUntouched(t *testing.T, dir string, after time.Duration) {
	t.Helper()
	l, err := datadir.NewLayout(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	backups, err := datadir.ListBackups(l.BackupsDir(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backups {
		if err := b.Verify(t.Context(), nil); err != nil {
			t.Errorf("killed after %s: backup: %v", after, err)
		}
	}
	if _, err := versionfile.Read(dir); err == nil && len(backups) == 0 {
		t.Errorf("killed after %s: a step has been made, and there is no backup", after)
	}
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
