package main

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestSignals ends a migration in the middle of each of its steps, once as an init system does and once as a power loss
// does. No etcd may be left over, and the next run goes on and ends with every key.
func TestSignals(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "etcd")
	bin, _ := set.Newest(versionfile.Minors()[0])
	s, err := pathtest.Start(t.Context(), bin, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.FillV2(t.Context(), 20); err != nil {
		t.Fatal(err)
	}
	before, err := s.ReadV2(t.Context(), pathtest.Hidden...)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}

	migrate := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0], "migrate", "--data-dir", dir, "--bin-dir", set.Dir, "--target-version", "3.7", "--log-format", "json")
		cmd.Env = append(os.Environ(), asMain+"=1")
		return cmd
	}
	signals := []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGINT}
	runs := 0
	for ; runs < 40; runs++ {
		// Each run gets a step further at least, because what is waited for is the start of the second step that it makes.
		sig := signals[runs%len(signals)]
		code, log := interrupt(t, migrate(), 2, sig)
		if orphans := orphansOn(dir); orphans != "" {
			t.Fatalf("left running after %s: %s", sig, orphans)
		}
		if code == exitOK {
			break
		}
		if want := map[syscall.Signal]int{syscall.SIGTERM: 143, syscall.SIGINT: 130, syscall.SIGKILL: -1}[sig]; code != want {
			t.Fatalf("exits with %d after %s, want %d:\n%s", code, sig, want, log)
		}
	}
	if runs < 3 {
		t.Errorf("only %d runs were interrupted", runs)
	}
	backups, err := os.ReadDir(filepath.Join(dir, "etcd-migrate", "backups"))
	if err != nil || len(backups) != 1 {
		t.Errorf("there are %d backups, %v; want the one from before the first step", len(backups), err)
	}
	newest := set.Binaries[len(set.Binaries)-1]
	if s, err = pathtest.Start(t.Context(), newest, dir); err != nil {
		t.Fatal(err)
	}
	after, err := s.ReadV3(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range pathtest.Compare(before, after) {
		t.Error(d)
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

// interrupt runs cmd, sends it the signal when it logs the start of its n-th step, and gives its exit code and its log. It
// may have ended before.
func interrupt(t *testing.T, cmd *exec.Cmd, n int, sig syscall.Signal) (int, string) {
	t.Helper()
	return interruptAt(t, cmd, `"msg":"step started"`, n, sig)
}

// interruptAt does so when it prints the n-th line with that text in it.
func interruptAt(t *testing.T, cmd *exec.Cmd, text string, n int, sig syscall.Signal) (int, string) {
	t.Helper()
	return interruptFn(t, cmd, func(line string) bool {
		if strings.Contains(line, text) {
			n--
			return n == 0
		}
		return false
	}, sig)
}

// interruptFn does so when now is true of a line that it prints.
func interruptFn(t *testing.T, cmd *exec.Cmd, now func(line string) bool, sig syscall.Signal) (int, string) {
	t.Helper()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		log.WriteString(lines.Text() + "\n")
		if now(lines.Text()) {
			_ = cmd.Process.Signal(sig)
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), log.String()
}

// orphansOn gives the etcds that are still running a moment after their etcd-migrate has ended: the kernel kills them with
// it, and that takes them a moment, too.
func orphansOn(dir string) string {
	const moment = 30 * time.Second
	for until := time.Now().Add(moment); ; time.Sleep(5 * time.Millisecond) {
		orphans := processesOn(dir)
		if orphans == "" || time.Now().After(until) {
			return orphans
		}
	}
}

// processesOn gives the command lines of the etcds that run on a data dir.
func processesOn(dir string) string {
	var found []string
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		line, _ := os.ReadFile(name)
		args := strings.ReplaceAll(string(bytes.TrimRight(line, "\x00")), "\x00", " ")
		if strings.Contains(args, "--data-dir="+dir) {
			found = append(found, args)
		}
	}
	return strings.Join(found, "; ")
}
