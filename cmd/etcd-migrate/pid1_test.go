package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// probe is the name under which this test binary is an etcd: it is the one in $PROBE_ETCD, but for these first arguments:
//
//	--tell=FILE   it writes down what it has inherited, and ends
//	--hang        in place of every etcd of a step: it never answers, and ends with SIGTERM or, with PROBE_DEAF, does not
const probe = "etcd-probe"

func runProbe() {
	args := os.Args[1:]
	for i, arg := range args {
		if file, ok := strings.CutPrefix(arg, "--tell="); ok {
			if err := os.WriteFile(file, []byte(inherited()), 0o600); err != nil {
				panic(err)
			}
			os.Exit(0)
		}
		if strings.HasPrefix(arg, "--listen-client-urls=https://127.0.0.1") && i > 0 {
			settings, _ := os.ReadFile(filepath.Join(filepath.Dir(os.Args[0]), "hang"))
			switch string(settings) { // the environment of a private etcd is empty
			case "deaf":
				signal.Ignore(syscall.SIGTERM)
				select {}
			case "hang":
				time.Sleep(time.Hour)
			}
		}
	}
	etcd, err := os.Readlink(filepath.Join(filepath.Dir(os.Args[0]), "real"))
	if err == nil {
		err = syscall.Exec(etcd, append([]string{etcd}, args...), os.Environ())
	}
	panic(err)
}

// inherited tells what a process gets from the one that became it.
func inherited() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pid %d\n", os.Getpid())
	for fd := 3; fd < 256; fd++ {
		target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err != nil || strings.HasPrefix(target, "anon_inode:[event") || strings.HasPrefix(target, "/sys/") {
			continue // our own Go's: it has waited for a file already, and looks now and then how many CPUs there are
		}
		fmt.Fprintf(&b, "fd %d %s\n", fd, target)
	}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(line, ":"); slices.Contains([]string{"SigBlk", "SigIgn", "ShdPnd", "SigPnd"}, name) {
			b.WriteString(name + value)
		}
	}
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); !errors.Is(err, syscall.ECHILD) {
		fmt.Fprintf(&b, "has children: %d, %v\n", pid, err)
	}
	return b.String()
}

// probeDir makes a directory with the probe in it, which is that etcd.
func probeDir(t *testing.T, etcd binaries.Binary) (path string) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	real, err := filepath.Abs(etcd.Path)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, probe)
	if err := errors.Join(os.Link(self, path), os.Symlink(real, filepath.Join(dir, "real"))); err != nil {
		if b, readErr := os.ReadFile(self); readErr != nil || os.WriteFile(path, b, 0o700) != nil || os.Symlink(real, filepath.Join(dir, "real")) != nil {
			t.Fatal(err, readErr)
		}
	}
	return path
}

func etcdOf(t *testing.T, set binaries.Set, minor string) binaries.Binary {
	t.Helper()
	m, err := versionfile.ParseMinor(minor)
	if err != nil {
		t.Fatal(err)
	}
	b, ok := set.Newest(m)
	if !ok {
		t.Fatalf("no etcd %s; run `make binaries`", minor)
	}
	return b
}

func etcdSet(t *testing.T) binaries.Set {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// filled lets an etcd of that minor write a data dir.
func filled(t *testing.T, set binaries.Set, minor string) (dir string) {
	t.Helper()
	w := secretWriter{set, t.TempDir()}
	w.etcd(t, minor, func(s *pathtest.Server) {
		if strings.HasPrefix(minor, "2") {
			w.v2(t, s)
		} else {
			w.v3(t, s)
		}
	})
	return w.dir()
}

// asTool makes a command of this test binary that is etcd-migrate.
func asTool(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asMain+"=1")
	return cmd
}

// TestBecomesEtcd looks at what the etcd inherits that etcd-migrate becomes, after a migration and with nothing to do, in a
// process like any other and as process 1 of a PID namespace, and also if whoever started it ignores signals.
func TestBecomesEtcd(t *testing.T) {
	set := etcdSet(t)
	dir := filled(t, set, "3.6")
	etcd := probeDir(t, etcdOf(t, set, "3.7"))
	// What it gets without us in between: the descriptors of whoever runs the test.
	told := filepath.Join(t.TempDir(), "told")
	if out, err := exec.Command(etcd, "--tell="+told).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(told)
	if err != nil {
		t.Fatal(err)
	}
	_, alone, _ := strings.Cut(string(b), "\n") // without the pid
	_, ignored, _ := strings.Cut(alone, "SigIgn\t")
	mask, err := strconv.ParseUint(strings.TrimSpace(ignored), 16, 64)
	if err != nil || mask&(1<<(syscall.SIGINT-1)|1<<(syscall.SIGTERM-1)) != 0 {
		t.Fatalf("this test is run with SIGINT or SIGTERM ignored (%v): %s", err, alone)
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM) // as a shell does for what it runs in the background
	defer signal.Reset(syscall.SIGINT, syscall.SIGTERM)
	for _, tc := range []struct {
		name  string
		flags uintptr
	}{{"after a migration", 0}, {"with nothing to do", 0}, {"as process 1", syscall.CLONE_NEWPID}} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.flags != 0 && os.Geteuid() != 0 {
				t.Skip("a PID namespace needs root")
			}
			told := filepath.Join(t.TempDir(), "told")
			cmd := asTool("run", "--bin-dir", set.Dir, "--", etcd, "--data-dir="+dir, "--name=m1", "--tell="+told)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: tc.flags}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			pid := cmd.Process.Pid
			if tc.flags != 0 {
				pid = 1
			}
			want := fmt.Sprintf("pid %d\n", pid) + alone
			got, err := os.ReadFile(told)
			if err != nil || string(got) != want {
				t.Errorf("%v, etcd has inherited\n%swant\n%s\n%s", err, got, want, out)
			}
		})
	}
}

// TestProcessOne has a migration as process 1 of a PID namespace ended by SIGTERM, which the kernel keeps from a process 1
// that has no handler for it. The next run becomes etcd, and a SIGTERM then ends that.
func TestProcessOne(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a PID namespace needs root")
	}
	set := etcdSet(t)
	dir := filled(t, set, "3.3")
	etcd := etcdOf(t, set, "3.7").Path
	run := func() *exec.Cmd {
		cmd := asTool("run", "--bin-dir", set.Dir, "--log-format", "json", "--", etcd, "--data-dir="+dir, "--name=m1",
			"--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:1", "--listen-peer-urls=http://127.0.0.1:0")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
		return cmd
	}
	if code, log := interrupt(t, run(), 2, syscall.SIGTERM); code != 143 {
		t.Fatalf("exits with %d, want 143:\n%s", code, log)
	}
	if orphans := orphansOn(dir); orphans != "" {
		t.Fatalf("left running: %s", orphans)
	}
	// Etcd exits with 0 as process 1.
	code, log := interruptAt(t, run(), `"notifying init daemon"`, 1, syscall.SIGTERM)
	if code != 0 || !strings.Contains(log, "migration done") {
		t.Errorf("exits with %d, want 0:\n%s", code, log)
	}
}

// TestSignalWhileWaiting sends a signal while a private etcd does not get ready: one that stops when asked, and one that
// does not, which must not keep us until the container is killed.
func TestSignalWhileWaiting(t *testing.T) {
	set := etcdSet(t)
	for _, tc := range []struct {
		how  string
		sig  syscall.Signal
		code int
		most time.Duration
	}{{"hang", syscall.SIGTERM, 143, 10 * time.Second}, {"hang", syscall.SIGINT, 130, 10 * time.Second}, {"deaf", syscall.SIGTERM, 143, 28 * time.Second}} {
		t.Run(tc.how+" "+tc.sig.String(), func(t *testing.T) {
			t.Parallel()
			dir := filled(t, set, "3.6")
			etcd := probeDir(t, etcdOf(t, set, "3.7"))
			if err := os.WriteFile(filepath.Join(filepath.Dir(etcd), "hang"), []byte(tc.how), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := asTool("run", "--bin-dir", set.Dir, "--log-format", "json", "--log-level", "debug", "--", etcd, "--data-dir="+dir, "--name=m1")
			var sent time.Time
			code, log := interruptFn(t, cmd, func(line string) bool {
				if !strings.Contains(line, `"msg":"private etcd started"`) {
					return false
				}
				time.Sleep(200 * time.Millisecond) // for it to be deaf
				sent = time.Now()
				return true
			}, tc.sig)
			if took := time.Since(sent); code != tc.code || took > tc.most {
				t.Errorf("exits with %d after %s, want %d within %s:\n%s", code, took, tc.code, tc.most, log)
			}
			if orphans := orphansOn(dir); orphans != "" {
				t.Errorf("left running: %s", orphans)
			}
			if err := os.Remove(filepath.Join(filepath.Dir(etcd), "hang")); err != nil {
				t.Fatal(err)
			}
			told := filepath.Join(t.TempDir(), "told")
			if out, err := asTool("run", "--bin-dir", set.Dir, "--", etcd, "--data-dir="+dir, "--name=m1", "--tell="+told).CombinedOutput(); err != nil {
				t.Errorf("the next run: %v\n%s", err, out)
			}
		})
	}
}

// TestExecFails: 127 if there is no such etcd, 126 if it cannot be executed.
func TestExecFails(t *testing.T) {
	dir := t.TempDir()
	notExecutable, wrongFormat := filepath.Join(dir, "mode"), filepath.Join(dir, "format")
	if err := errors.Join(os.WriteFile(notExecutable, []byte("#!/bin/sh\n"), 0o600), os.WriteFile(wrongFormat, []byte("\x00"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{filepath.Join(dir, "none"): 127, "no-such-etcd-in-path": 127, notExecutable: 126, wrongFormat: 126} {
		cmd := asTool("run", "--bin-dir", dir, "--", path, "--data-dir="+filepath.Join(dir, "d"))
		out, _ := cmd.CombinedOutput() // the exit code says it
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%s: exits with %d, want %d: %s", path, got, want, out)
		}
	}
}

// TestSignalsOnTheWayBack ends a rollback in its backup and in the middle of each of its steps. The next run goes on, and
// the oldest etcd has the keys in the end.
func TestSignalsOnTheWayBack(t *testing.T) {
	t.Parallel()
	set := etcdSet(t)
	dir := filled(t, set, "3.7")
	rollback := func() *exec.Cmd {
		return asTool("rollback", "--data-dir", dir, "--bin-dir", set.Dir, "--target-version", "2.2", "--log-format", "json",
			"--accept-loss=unfit-keys,not-utf8,not-json")
	}
	signals := []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}
	for run := range 40 {
		sig, text, n := signals[run%2], `"msg":"step started"`, 2
		if run == 0 {
			text, n = `"msg":"planned"`, 1
		}
		code, log := interruptAt(t, rollback(), text, n, sig)
		if orphans := orphansOn(dir); orphans != "" {
			t.Fatalf("left running after %s: %s", sig, orphans)
		}
		if code == exitOK {
			if run < 3 {
				t.Errorf("only %d runs were interrupted", run)
			}
			break
		}
		if want := exitSignalBase + int(sig); code != want {
			t.Fatalf("run %d exits with %d after %s, want %d:\n%s", run, code, sig, want, log)
		}
	}
	s, err := pathtest.Start(t.Context(), etcdOf(t, set, "2.2"), dir)
	if err != nil {
		t.Fatal(err)
	}
	content, err := s.ReadV2(t.Context())
	if err != nil || len(content.Keys) != 3 { // of those that secretWriter.v3 puts, the v2 store can have these
		t.Errorf("%d keys, %v", len(content.Keys), err)
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}
