package member

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// helper is a program that starts a private etcd. Its arguments are the binary, the release, the data dir and the user
// that the etcd shall run as.
func helper(role string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cfg := Config{Path: os.Args[1], DataDir: os.Args[3]}
	cfg.Release, _ = versionfile.ParseRelease(os.Args[2])
	if uid, _ := strconv.Atoi(os.Args[4]); uid > 0 {
		cfg.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	}
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if role == "ignores-signals" {
		signal.Ignore(syscall.SIGTERM) // and SIGINT was ignored already when we were started
	}
	e, err := Start(ctx, cfg)
	if err != nil {
		return fail(err)
	}
	if err := e.Ready(ctx); err != nil {
		return fail(err)
	}
	fmt.Println(e.process.Pid)
	if role == "ignores-signals" {
		if !signal.Ignored(syscall.SIGINT) || !signal.Ignored(syscall.SIGTERM) {
			return fail(fmt.Errorf("our own signals are no longer ignored"))
		}
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test has looked at the etcd
		if err := e.Stop(ctx); err != nil {
			return fail(err)
		}
		return 0
	}
	<-ctx.Done()
	return 0
}

// startHelper starts a helper and returns it together with the process ID of its etcd.
func startHelper(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("helper said %q: %v", line, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// gone waits until there is no such process any more, or only its exit status.
func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("process %d is still running", pid)
}

// ownedDir makes a data dir's parent that any user can reach and the user owns.
func ownedDir(t *testing.T, uid int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "member-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	return dir
}

const nobody = 65534

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run an etcd as somebody else")
	}
}

func TestDiesWithParent(t *testing.T) {
	for _, uid := range []int{os.Geteuid(), nobody} {
		t.Run(fmt.Sprint("uid ", uid), func(t *testing.T) {
			if uid != os.Geteuid() {
				needRoot(t)
			}
			dir := filepath.Join(ownedDir(t, uid), "data")
			cmd := command("parent", etcdBinary(t, "etcd-3.5.35"), "3.5.35", dir, fmt.Sprint(uid))
			pid := startHelper(t, cmd)
			if stat, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
				t.Fatal(err)
			} else if got := int(stat.Sys().(*syscall.Stat_t).Uid); got != uid {
				t.Errorf("etcd runs as uid %d, want %d", got, uid)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			gone(t, pid)
		})
	}
}

func TestOutlivesTheThreadThatCalledStart(t *testing.T) {
	cfg := Config{
		Path: etcdBinary(t, "etcd-3.5.35"), Release: release(t, "3.5.35"), DataDir: filepath.Join(t.TempDir(), "data"),
	}
	var e *Etcd
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with this goroutine
		var err error
		e, err = Start(context.Background(), cfg)
		started <- err
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if err := e.Ready(soon(t)); err != nil {
		_ = e.Stop(soon(t))
		t.Fatal(err)
	}
	select {
	case <-e.Exited():
		t.Error("etcd ended with the thread")
	case <-time.After(50 * time.Millisecond):
	}
	stop(t, e)
}

const intAndTerm = 1<<(syscall.SIGINT-1) | 1<<(syscall.SIGTERM-1)

func TestSignalsIgnoredByParent(t *testing.T) {
	each(t, "", "", func(t *testing.T, r string) {
		c := command("ignores-signals", etcdBinary(t, "etcd-"+r), r, filepath.Join(t.TempDir(), "data"), "0")
		cmd := exec.Command("/bin/sh", append([]string{"-c", `trap "" INT; exec "$0" "$@"`}, c.Args...)...)
		cmd.Env, cmd.Stderr = c.Env, c.Stderr
		look, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		pid := startHelper(t, cmd)
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		if ignored := signalMask(t, status, "SigIgn"); ignored&intAndTerm != 0 {
			t.Errorf("etcd ignores the signals %x", ignored)
		}
		if pgid, err := syscall.Getpgid(pid); err != nil || pgid != pid {
			t.Errorf("etcd is in process group %d (%v), want its own, %d", pgid, err, pid)
		}
		look.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// TestSignalsAreReset looks at what the child begins with: a Go program soon sets handlers of its own.
func TestSignalsAreReset(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etcd")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexec cat /proc/self/status\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM)
	defer signal.Reset(syscall.SIGINT, syscall.SIGTERM)
	e := start(t, "3.5.35", Config{Path: path})
	<-e.Exited()
	if ignored := signalMask(t, e.output.bytes(), "SigIgn"); ignored&intAndTerm != 0 {
		t.Errorf("the child begins with the signals %x ignored", ignored)
	}
	if !signal.Ignored(syscall.SIGINT) || !signal.Ignored(syscall.SIGTERM) {
		t.Error("our own signals are no longer ignored")
	}
}

func TestEnvironmentIsNotInherited(t *testing.T) {
	elsewhere := t.TempDir()
	for name, value := range map[string]string{
		"ETCD_NAME": "other", "ETCD_DATA_DIR": elsewhere, "ETCD_LISTEN_CLIENT_URLS": "http://0.0.0.0:23790",
		"ETCD_CLIENT_CERT_AUTH": "false", "ETCD_SNAPSHOT_COUNT": "1", "ETCD_DISCOVERY": "http://127.0.0.1:1/x",
		"ETCD_UNSUPPORTED_ARCH": "vax", "ETCDCTL_API": "2",
		"HTTPS_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1",
		"GODEBUG": "http2debug=2", "GOMEMLIMIT": "1",
	} {
		t.Setenv(name, value)
	}
	each(t, "", "", func(t *testing.T, r string) {
		e := startReady(t, r, Config{Name: "m-1"})
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", e.process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Trim(string(env), "\x00"), "GOTRACEBACK=none"; got != want {
			t.Errorf("environment is %q, want %q", got, want)
		}
		stop(t, e)
		if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
			t.Errorf("etcd wrote %v in ETCD_DATA_DIR, or %v", left, err)
		}
	})
}

func TestUnsupportedArchitecture(t *testing.T) {
	var got []string
	for _, r := range releases {
		cfg := Config{Release: release(t, r)}
		if slices.Contains(cfg.env(), "ETCD_UNSUPPORTED_ARCH="+runtime.GOARCH) {
			got = append(got, cfg.Release.Minor().String())
		}
	}
	want := []string{"2.3", "3.0", "3.1", "3.2", "3.3", "3.4"}
	if runtime.GOARCH == "amd64" {
		want = nil
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPortTaken(t *testing.T) {
	// What the fake says is what the real ones say.
	each(t, "", "", func(t *testing.T, r string) {
		e := startReady(t, r, Config{})
		out, err := exec.Command(etcdBinary(t, "etcd-"+r), "--data-dir="+t.TempDir(),
			"--listen-peer-urls=http://127.0.0.1:0", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=default=http://127.0.0.1:2380",
			"--listen-client-urls=http://"+e.address(), "--advertise-client-urls=http://"+e.address()).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "address already in use") {
			t.Errorf("etcd ends with %v and says %s", err, out)
		}
		stop(t, e)
	})

	e := &Etcd{}
	fmt.Fprintln(&e.output, "bind: address already in use")
	if !e.lostPort() {
		t.Error("it did not lose its port")
	}
	if e.answered = time.Now(); e.lostPort() {
		t.Error("it lost a port that it already had")
	}

	path := fake(t, "finds-port-taken")
	if err := os.WriteFile(path+".real", []byte(etcdBinary(t, "etcd-3.5.35")), 0o600); err != nil {
		t.Fatal(err)
	}
	e = startReady(t, "3.5.35", Config{Path: path})
	if runs, err := os.ReadFile(path + ".runs"); err != nil || len(runs) != 3 {
		t.Errorf("etcd was started %d times (%v), want 3", len(runs), err)
	}
	stop(t, e)

	t.Run("always", func(t *testing.T) {
		path := fake(t, "finds-port-taken") // without a file that names a real one
		e := start(t, "3.5.35", Config{Path: path})
		err := e.Ready(soon(t))
		wantError(t, err, "exit status 1", "no port could be had")
		if runs, err := os.ReadFile(path + ".runs"); err != nil || len(runs) != tries {
			t.Errorf("etcd was started %d times (%v), want %d", len(runs), err, tries)
		}
	})
}

func TestOtherUser(t *testing.T) {
	needRoot(t)
	each(t, "", "", func(t *testing.T, r string) {
		dir := ownedDir(t, nobody)
		e := startReady(t, r, Config{
			DataDir: filepath.Join(dir, "data"), WALDir: filepath.Join(dir, "wal"), SnapshotCount: 3,
			Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
		})
		forceSnapshot(t, e)
		stop(t, e)
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Sys().(*syscall.Stat_t).Uid != nobody {
				t.Errorf("%s does not belong to the user", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if wals, _ := filepath.Glob(filepath.Join(dir, "wal", "*.wal")); len(wals) == 0 {
			t.Error("no log in the WAL dir")
		}
	})
}

func TestOwnUserNeedsNoRights(t *testing.T) {
	cfg := Config{Path: "/etcd", DataDir: "/data", Release: release(t, "3.5.35"),
		Credential: &syscall.Credential{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}}
	if err := cfg.check(); err != nil || cfg.Credential != nil {
		t.Errorf("credential is %v (%v), want none", cfg.Credential, err)
	}
}

func TestStartRefuses(t *testing.T) {
	good := Config{Path: "/does/not/exist", Release: release(t, "3.5.35"), DataDir: "/does/not/exist/either"}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for _, test := range []struct {
		name   string
		ctx    context.Context
		change func(*Config)
		want   string
	}{
		{"no binary", nil, func(c *Config) { c.Path = "" }, "no etcd binary"},
		{"no data dir", nil, func(c *Config) { c.DataDir = "" }, "no data dir"},
		{"unknown minor", nil, func(c *Config) { c.Release.Line.Minor = 8 }, "no known minor"},
		{"v2 API of 3.6", nil, func(c *Config) { c.V2, c.Release.Line.Minor = true, 6 }, "no v2 API"},
		{"binary is not there", nil, func(*Config) {}, "/does/not/exist: no such file"},
		{"context is over", over, func(*Config) {}, "context canceled"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.ctx == nil {
				test.ctx = soon(t)
			}
			cfg := good
			test.change(&cfg)
			if e, err := Start(test.ctx, cfg); err == nil || e != nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}
