package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// atOnce is what a command may take that has nothing to wait for, on a machine that has other things to do.
const atOnce = 20 * time.Second

// TestLiveEtcd: on a data dir that an etcd of any age runs on, every command that reads or changes the data says who does,
// and ends at once; the etcd does not notice. Those of 2.x lock their log only, and in another way than those of 3.x.
func TestLiveEtcd(t *testing.T) {
	set := etcdSet(t)
	for _, minor := range versionfile.Minors() {
		t.Run(minor.String(), func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "etcd")
			bin, _ := set.Newest(minor)
			s, err := pathtest.Start(t.Context(), bin, dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{
				{"migrate", "--data-dir", dir, "--bin-dir", set.Dir, "--target-version", "3.7"},
				{"rehearse", "--data-dir", dir, "--bin-dir", set.Dir, "--target-version", "3.7"},
				{"inspect", "--data-dir", dir},
			} {
				pids := holders(dir)
				refuses(t, args, pids, filepath.Base(bin.Path))
			}
			if err := s.WriteOnce(t.Context()); err != nil {
				t.Error(err)
			}
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTwoOfUs: while one etcd-migrate is at work on a data dir, a second one says which, and ends at once.
func TestTwoOfUs(t *testing.T) {
	set := etcdSet(t)
	t.Parallel()
	dir := filled(t, set, "3.6")
	etcd := probeDir(t, etcdOf(t, set, "3.7"))
	if err := os.WriteFile(filepath.Join(filepath.Dir(etcd), "hang"), []byte("hang"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := asTool("run", "--bin-dir", set.Dir, "--log-format", "json", "--log-level", "debug", "--", etcd, "--data-dir="+dir, "--name=m1")
	code, log := interruptFn(t, first, func(line string) bool {
		if !strings.Contains(line, `"msg":"private etcd started"`) {
			return false
		}
		for _, args := range [][]string{
			{"migrate", "--data-dir", dir, "--bin-dir", set.Dir, "--target-version", "3.7"},
			{"run", "--bin-dir", set.Dir, "--", etcdOf(t, set, "3.7").Path, "--data-dir=" + dir},
			{"backup", "restore", "--data-dir", dir, "newest"},
			{"backup", "prune", "--data-dir", dir, "--keep", "1"},
		} {
			refuses(t, args, []string{fmt.Sprint(first.Process.Pid)}, "etcd-migrate")
		}
		return true
	}, syscall.SIGTERM)
	if code != 143 {
		t.Errorf("exits with %d\n%s", code, log)
	}
}

// refuses runs a command that must exit with 4, naming one of the processes and the command.
func refuses(t *testing.T, args, pids []string, command string) {
	t.Helper()
	cmd := asTool(args...)
	began := time.Now()
	out, _ := cmd.CombinedOutput() // the exit code says it
	if took := time.Since(began); took > atOnce {
		t.Errorf("%q takes %s", args, took)
	}
	named := false
	for _, pid := range pids {
		named = named || strings.Contains(string(out), "(pid "+pid+")")
	}
	if code := cmd.ProcessState.ExitCode(); code != exitInUse || !named || !strings.Contains(string(out), command) {
		t.Errorf("%q exits with %d, want %d, and one of %q and %q:\n%s", args, code, exitInUse, pids, command, out)
	}
}

// holders gives the process ids of the etcds on a data dir.
func holders(dir string) (pids []string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		if args, _ := os.ReadFile(name); strings.Contains(string(args), "--data-dir\x00"+dir+"\x00") {
			pids = append(pids, filepath.Base(filepath.Dir(name)))
		}
	}
	return pids
}
