package member

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// wantError checks that an error is an Error with a status and a hint that contain what is wanted.
func wantError(t *testing.T, err error, status, hint string) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an Error", err)
	}
	if !strings.Contains(e.Status, status) || !strings.Contains(e.Hint, hint) || hint == "" && e.Hint != "" {
		t.Errorf("got %v\nhint %q\nwant status %q, hint %q\n%s", err, e.Hint, status, hint, strings.Join(e.LastLines, "\n"))
	}
	if e.Status != running && errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the end was not noticed: %v", err)
	}
	return e
}

// dies starts an etcd that must die at once with that hint.
func dies(t *testing.T, r string, cfg Config, hint string) {
	t.Helper()
	started := time.Now()
	e := start(t, r, cfg)
	err := e.Ready(soon(t))
	if took := time.Since(started); took > 20*time.Second { // it is tens of milliseconds on an idle machine
		t.Errorf("it took %s to notice", took)
	}
	f := wantError(t, err, "exit status", hint)
	if !errors.Is(err, ErrEnded) || len(f.LastLines) == 0 {
		t.Errorf("got %v with last lines %q, want ErrEnded", err, f.LastLines)
	}
	if err := e.Stop(soon(t)); !errors.Is(err, ErrEnded) {
		t.Errorf("Stop says %v", err)
	}
	if err := e.Write(soon(t)); !errors.Is(err, ErrEnded) && !errors.Is(err, errStopped) {
		t.Errorf("Write says %v", err)
	}
}

// copyDir copies a data dir.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestDeaths(t *testing.T) {
	older := ""
	each(t, "", "", func(t *testing.T, r string) {
		dir := filepath.Join(t.TempDir(), "data")
		e := startReady(t, r, Config{DataDir: dir, SnapshotCount: 3})
		if release(t, r).Minor().Major == 2 { // newer ones wait
			dies(t, r, Config{DataDir: dir}, "another etcd is running")
		}
		forceSnapshot(t, e)
		stop(t, e)

		if older != "" {
			hint := "a newer etcd has already used"
			dies(t, older, Config{DataDir: copyDir(t, dir)}, hint)
		}
		older = r

		damaged := copyDir(t, dir)
		wals, err := filepath.Glob(filepath.Join(damaged, "member", "wal", "*.wal"))
		if err != nil || len(wals) == 0 {
			t.Fatal(wals, err)
		}
		log, err := os.ReadFile(wals[0])
		if err != nil {
			t.Fatal(err)
		}
		log[100] ^= 0xff
		if err := os.WriteFile(wals[0], log, 0o600); err != nil {
			t.Fatal(err)
		}
		dies(t, r, Config{DataDir: damaged}, "raft log is damaged")

		if release(t, r).Minor().Major == 3 {
			lost := copyDir(t, dir)
			if err := os.Remove(filepath.Join(lost, "member", "snap", "db")); err != nil {
				t.Fatal(err)
			}
			dies(t, r, Config{DataDir: lost}, "restore the data dir from a backup")
		}
		if os.Geteuid() == 0 {
			dies(t, r, Config{DataDir: copyDir(t, dir), Credential: &syscall.Credential{Uid: nobody, Gid: nobody}},
				"may not read or write")
		}
	})
}

func TestWaitsForAnotherEtcd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first := startReady(t, "3.3.27", Config{DataDir: dir})
	second := start(t, "3.3.27", Config{DataDir: dir})
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	err := second.Ready(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that it is not ready", err)
	}
	wantError(t, err, running, "") // it says what it waits for after 10 s
	if err := second.Stop(soon(t)); err != nil && !strings.Contains(err.Error(), "signal: terminated") {
		t.Error(err)
	}
	stop(t, first)
}

func TestFakes(t *testing.T) {
	// awaitReady waits until the fake has set up its signals.
	awaitReady := func(t *testing.T, e *Etcd) {
		for ctx := soon(t); len(e.output.bytes()) == 0; time.Sleep(time.Millisecond) {
			if ctx.Err() != nil {
				t.Fatal("the fake says nothing")
			}
		}
	}
	t.Run("ignores SIGTERM", func(t *testing.T) {
		e := start(t, "3.5.35", Config{Path: fake(t, "ignores-sigterm")})
		awaitReady(t, e)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		err := e.Stop(ctx)
		wantError(t, err, "signal: killed", "")
		if !strings.Contains(err.Error(), "did not stop within") {
			t.Error(err)
		}
		if again := e.Stop(soon(t)); again != err {
			t.Errorf("the second Stop says %v", again)
		}
		gone(t, e.process.Pid)
	})
	t.Run("ends in time for a context that is over", func(t *testing.T) {
		e := startReady(t, "3.5.35", Config{})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := e.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("ends with 0", func(t *testing.T) {
		e := start(t, "3.5.35", Config{Path: fake(t, "ends-with-0")})
		err := e.Ready(soon(t))
		wantError(t, err, "exit status 0", "")
		if !errors.Is(err, ErrEnded) {
			t.Error(err)
		}
	})
	t.Run("fails to stop", func(t *testing.T) {
		e := start(t, "3.5.35", Config{Path: fake(t, "fails-to-stop")})
		awaitReady(t, e)
		err := e.Stop(soon(t))
		wantError(t, err, "exit status 2", "")
		if !strings.Contains(err.Error(), "freeing of the backend failed") {
			t.Error(err)
		}
	})
	t.Run("killed from outside", func(t *testing.T) {
		e := startReady(t, "3.5.35", Config{})
		if err := e.process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-e.Exited()
		wantError(t, e.Write(soon(t)), "signal: killed", "memory ran out")
		wantError(t, e.Stop(soon(t)), "signal: killed", "memory ran out")
	})
	t.Run("is another release", func(t *testing.T) {
		e := start(t, "3.4.30", Config{Path: etcdBinary(t, "etcd-3.4.31")})
		err := e.Ready(soon(t))
		if wantError(t, err, running, ""); !strings.Contains(err.Error(), `it is etcd "3.4.31", not 3.4.30`) {
			t.Error(err)
		}
		stop(t, e)
	})
}

func TestStopEndsWhatIsUnderWay(t *testing.T) {
	e := start(t, "3.5.35", Config{Path: fake(t, "fails-to-stop")}) // never ready, but alive
	result := make(chan error)
	go func() { result <- e.Ready(context.Background()) }()
	time.Sleep(20 * time.Millisecond)
	_ = e.Stop(soon(t))
	if err := <-result; err == nil {
		t.Error("Ready says that an etcd is ready which was stopped")
	}

	e = startReady(t, "3.5.35", Config{})
	stop(t, e)
	for name, call := range map[string]func(context.Context) error{"Ready": e.Ready, "Write": e.Write} {
		if err := call(soon(t)); !errors.Is(err, errStopped) {
			t.Errorf("%s says %v", name, err)
		}
	}
	if _, err := e.V3(); !errors.Is(err, errStopped) {
		t.Errorf("V3 says %v", err)
	}
}

// etcdctl3 writes one key with the v3 API to a plain etcd of any 3.x.
func etcdctl3(t *testing.T, r string, p *plainEtcd) {
	t.Helper()
	cmd := exec.Command(etcdBinary(t, "etcdctl-"+r), "--endpoints="+strings.TrimPrefix(p.url, "http://"), "put", "/k", "v")
	cmd.Env = []string{"ETCDCTL_API=3"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestNotCapable makes the directory on which 3.5 serves no v3 API: a snapshot of 2.3 is the newest one.
func TestNotCapable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	e := startReady(t, "2.3.8", Config{DataDir: dir, SnapshotCount: 3})
	forceSnapshot(t, e)
	stop(t, e)
	each(t, "3.0", "3.4", func(t *testing.T, r string) {
		p := startPlain(t, r, dir)
		etcdctl3(t, r, p)
		p.stop()
	})
	e = start(t, "3.5.35", Config{DataDir: dir})
	if err := insist(soon(t), func(ctx context.Context) error { // until nothing but the v3 API is missing
		_, cluster, err := e.version(ctx)
		if err == nil && cluster != "3.5.0" {
			err = errors.New(cluster)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := e.Ready(ctx)
	wantError(t, err, running, "by quorum reads with the v2 API")
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, rpctypes.ErrNotCapable) {
		t.Error(err)
	}
	stop(t, e)

	e = start(t, "3.5.35", Config{DataDir: dir, SnapshotCount: 3, V2: true})
	forceSnapshot(t, e)
	stop(t, e)
	e = startReady(t, "3.5.35", Config{DataDir: dir, SnapshotCount: 3})
	forceSnapshot(t, e)
	stop(t, e)
	stop(t, startReady(t, "3.6.16", Config{DataDir: dir}))
}

// TestLegacyEntries makes the directories that a start without a snapshot makes 3.1, 3.6 and 3.7 die of.
func TestLegacyEntries(t *testing.T) {
	t.Run("3.1 after 3.0 on a snapshot of 2.3", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		e := startReady(t, "2.3.8", Config{DataDir: dir, SnapshotCount: 3})
		forceSnapshot(t, e)
		stop(t, e)
		startPlain(t, "3.0.17", dir).stop()
		dies(t, "3.1.20", Config{DataDir: dir}, "older than the newest raft snapshot")
	})
	t.Run("3.6 after v2 requests", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		p := startPlain(t, "3.5.35", dir, "--enable-v2")
		request(t, httpPlain, "GET", p.url+"/health", "")
		p.stop()
		dies(t, "3.6.16", Config{DataDir: dir}, "entries in the v2 format")
	})
	t.Run("3.7 after 3.5", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		startPlain(t, "3.5.35", dir).stop()
		startPlain(t, "3.6.16", dir).stop()
		dies(t, "3.7.3", Config{DataDir: dir}, "entries that this etcd cannot read")
	})
}
