package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// asSandbox makes this test binary build a container around a program and become it: see enterSandbox.
const asSandbox = "ETCD_MIGRATE_TEST_AS_SANDBOX"

// nobody is the user that runs etcd in the sandbox, and owns the data.
const nobody = 65532

// enterSandbox makes a root file system of $ETCD_MIGRATE_TEST_AS_SANDBOX, in which there are only the programs in /bin,
// /data, /proc and /dev/null, makes all but the data read-only, drops every privilege, and becomes the program in its
// arguments, with an empty environment. It runs in a mount namespace of its own.
func enterSandbox() error {
	root, args := os.Getenv(asSandbox), os.Args[1:]
	const readOnly = unix.MS_RDONLY | unix.MS_REMOUNT | unix.MS_BIND
	runtime.LockOSThread() // privileges are those of a thread
	if err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, ""),
		unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, ""),
		unix.Mount("/dev/null", filepath.Join(root, "dev/null"), "", unix.MS_BIND, ""),
		unix.Mount(filepath.Join(root, "data"), filepath.Join(root, "data"), "", unix.MS_BIND, ""),
		unix.Mount("", root, "", readOnly, ""),
		unix.Chroot(root),
		unix.Chdir("/"),
	); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return err
	}
	caps, err := strconv.Atoi(strings.TrimSpace(string(last)))
	if err != nil {
		return err
	}
	for c := range caps + 1 {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := errors.Join(
		unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody), // which gives up what capabilities there are
	); err != nil {
		return fmt.Errorf("give up privileges: %w", err)
	}
	if f, err := os.Create("/x"); err == nil {
		_ = f.Close()
		return errors.New("the root file system can be written to")
	}
	return syscall.Exec(args[0], args, []string{})
}

// TestLeastPrivilege does the whole way from 2.3 to 3.7 and becomes etcd in a container as bare as can be: a user that owns
// nothing but the data, no capability, no new privileges, everything else read-only, no shell, no /tmp, no environment.
func TestLeastPrivilege(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a mount namespace needs root")
	}
	t.Parallel()
	set := etcdSet(t)
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin", "data", "proc", "dev"} {
		must(os.Mkdir(filepath.Join(root, dir), 0o755))
	}
	must(os.WriteFile(filepath.Join(root, "dev/null"), nil, 0o666))
	for dir := root; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(os.Chmod(dir, 0o755))
	}
	// This test binary needs a libc. The flags are those of `make build`, whose cache this uses.
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", filepath.Join(root, "bin/etcd-migrate"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, b := range set.Binaries {
		copied := filepath.Join(root, "bin", filepath.Base(b.Path))
		if path, err := filepath.Abs(b.Path); err != nil || os.Link(path, copied) != nil {
			content, err := os.ReadFile(b.Path)
			must(err)
			must(os.WriteFile(copied, content, 0o755))
		}
	}
	w := secretWriter{set, t.TempDir()}
	w.etcd(t, "2.3", func(s *pathtest.Server) { w.v2(t, s) })
	must(os.CopyFS(filepath.Join(root, "data", "etcd"), os.DirFS(w.dir())))
	all := func(do func(path string, d fs.DirEntry) error) {
		t.Helper()
		must(filepath.WalkDir(filepath.Join(root, "data"), func(path string, d fs.DirEntry, err error) error {
			return errors.Join(err, do(path, d))
		}))
	}
	all(func(path string, _ fs.DirEntry) error { return os.Chown(path, nobody, nobody) })

	newest := filepath.Base(etcdOf(t, set, "3.7").Path)
	cmd := exec.Command(os.Args[0], "/bin/etcd-migrate", "run", "--bin-dir=/bin", "--log-level=debug", "--", "/bin/"+newest,
		"--data-dir=/data/etcd", "--name=m1", "--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:1",
		"--listen-peer-urls=http://127.0.0.1:0")
	cmd.Env = []string{asSandbox + "=" + root}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	var serves, listens bool // to signals, which etcd does not handle before it says the second; either can come first
	code, log := interruptFn(t, cmd, func(line string) bool {
		before := serves && listens
		serves = serves || strings.Contains(line, `"msg":"ready to serve client requests"`)
		listens = listens || strings.Contains(line, `"notifying init daemon"`)
		return serves && listens && !before
	}, syscall.SIGTERM)
	if code != 0 || !strings.Contains(log, "migration done") {
		t.Fatalf("exits with %d:\n%s", code, log)
	}
	all(func(path string, d fs.DirEntry) error {
		info, err := d.Info()
		if st := info.Sys().(*syscall.Stat_t); err == nil && (st.Uid != nobody || st.Gid != nobody) {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
		return err
	})
	if v, err := versionfile.Read(filepath.Join(root, "data/etcd")); err != nil || v.String() != strings.TrimPrefix(newest, "etcd-")+"/etcd3" {
		t.Errorf("version.txt says %s, %v", v, err)
	}
}
