package member

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// tries is how often etcd is started anew because somebody else took the port that was free a moment before.
const tries = 5

// run starts etcd, reports on started whether there is a process, waits for its end and notes how it ended.
func (e *Etcd) run(started chan<- error) {
	// The parent-death signal is sent when the thread that made the child ends, not the process. A goroutine that is
	// locked to its thread keeps that thread for as long as the child lives.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer e.secrets.close()
	defer close(e.exited)

	cmd, err := e.launch()
	started <- err
	for try := 1; err == nil; try++ {
		err = e.wait(cmd)
		if err == nil || try == tries || !e.lostPort() {
			break
		}
		e.cfg.Log.Debug("port of the private etcd was taken by somebody else", "try", try)
		cmd, err = e.launch()
	}
	if !errors.Is(err, errStopped) {
		e.end = err
	}
}

// launch starts one process on a port that is free right now. After Stop it does nothing but say so.
func (e *Etcd) launch() (*exec.Cmd, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopping {
		return nil, errStopped
	}
	port, err := freePort()
	if err != nil {
		return nil, fmt.Errorf("find a free port: %w", err)
	}
	e.port = port
	e.output.reset()

	cmd := exec.Command(e.cfg.Path, e.cfg.args(port)...)
	cmd.Dir = "/"
	cmd.Env = e.cfg.env()
	cmd.Stdout, cmd.Stderr = &e.output, &e.output
	cmd.ExtraFiles = e.secrets.files()
	cmd.WaitDelay = time.Second // should something else still hold the pipe that etcd printed to
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: e.cfg.Credential,
		Setpgid:    true, // a ctrl-C on the terminal is for us, not for the etcd
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := startWithSignals(cmd); err != nil {
		return nil, err
	}
	e.process, e.launched = cmd.Process, time.Now()
	e.cfg.Log.Debug("private etcd started", "release", e.cfg.Release, "pid", cmd.Process.Pid, "dataDir", e.cfg.DataDir)
	return cmd, nil
}

// wait waits for the process to end. It returns nil if it ended as it was asked to.
func (e *Etcd) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	if cmd.ProcessState == nil {
		return fmt.Errorf("wait for etcd %s: %w", e.cfg.Release, err)
	}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok && e.cfg.Ended != nil {
		e.cfg.Ended(usage.Maxrss * 1024)
	}
	e.mu.Lock()
	stopping, killed := e.stopping, e.killed
	e.mu.Unlock()

	// Etcd ends by sending itself the signal that it got. As process 1 of a container it exits with 0 instead.
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	clean := status.Signaled() && status.Signal() == syscall.SIGTERM || status.Exited() && status.ExitStatus() == 0
	if stopping && (clean || e.stoppedInSnapshot()) {
		return nil
	}
	if killed > 0 {
		waited := killed.Round(time.Millisecond)
		f := e.fail(cmd.ProcessState.String(), fmt.Errorf("did not stop within %s after SIGTERM", waited))
		f.Hint = "" // it was us
		return f
	}
	return e.fail(cmd.ProcessState.String(), ErrEnded)
}

// lostPort reports whether etcd ended, before it ever answered, because somebody else has its port.
func (e *Etcd) lostPort() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.answered.IsZero() && bytes.Contains(e.output.bytes(), []byte("address already in use"))
}

// freePort finds a loopback port that nobody listens on now. Somebody else can still take it before etcd does.
func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// peerURL is what etcd stores as the member's peer URL, if it begins a new cluster. On existing data it is of no
// effect: the membership comes from the data.
const peerURL = "https://127.0.0.1:2380"

// args are the flags of this etcd. Every minor knows them, except for the ones that depend on the minor here.
func (c *Config) args(port int) []string {
	listen := fmt.Sprintf("https://127.0.0.1:%d", port)
	advertise := listen
	if len(c.AdvertiseClientURLs) > 0 {
		advertise = strings.Join(c.AdvertiseClientURLs, ",")
	}
	name := c.Name
	if name == "" {
		name = "default"
	}
	args := []string{
		"--name=" + name,
		"--data-dir=" + c.DataDir,
		"--listen-client-urls=" + listen,
		"--advertise-client-urls=" + advertise,
		"--cert-file=" + certPath, "--key-file=" + keyPath, "--trusted-ca-file=" + caPath, "--client-cert-auth",
	}
	if c.Peers != nil {
		args = append(args, c.Peers.args(name, c.Release.Minor())...)
	} else {
		args = append(args,
			// A single member needs no peer listener, but cannot be without. Nobody has to know its port.
			"--listen-peer-urls=https://127.0.0.1:0",
			"--initial-advertise-peer-urls="+peerURL,
			"--initial-cluster="+name+"="+peerURL,
			// Milliseconds. There is nobody to wait for at an election.
			"--heartbeat-interval=2",
			"--election-timeout=10",
			"--peer-cert-file="+certPath, "--peer-key-file="+keyPath, "--peer-trusted-ca-file="+caPath,
			"--peer-client-cert-auth",
		)
	}
	if c.WALDir != "" {
		args = append(args, "--wal-dir="+c.WALDir)
	}
	if c.SnapshotCount > 0 {
		args = append(args, fmt.Sprintf("--snapshot-count=%d", c.SnapshotCount))
	}
	if c.QuotaBytes != 0 && c.Release.Minor().AtLeast(3, 0) {
		args = append(args, fmt.Sprintf("--quota-backend-bytes=%d", c.QuotaBytes))
	}
	if c.V2 && c.Release.Minor().AtLeast(3, 4) {
		args = append(args, "--enable-v2")
	}
	return args
}

// env is the whole environment of this etcd. Nothing of ours is inherited: etcd takes ETCD_NAME and the like from it,
// and dies of some of them.
func (c *Config) env() []string {
	env := []string{"GOTRACEBACK=none"} // the message of a panic says it all, and stacks would push it out of our view
	m := c.Release.Minor()
	if runtime.GOARCH != "amd64" && m.AtLeast(2, 3) && m.Less(versionfile.Minor{Major: 3, Minor: 5}) {
		env = append(env, "ETCD_UNSUPPORTED_ARCH="+runtime.GOARCH) // or it refuses to run there
	}
	return env
}

var startMu sync.Mutex // guards the signal dispositions of the process in startWithSignals

// startWithSignals starts the command with SIGINT and SIGTERM not ignored. A child inherits ignored signals, as programs
// that a shell runs in the background do, and an etcd that ignores one of these two never ends. Signals with a handler
// come to the child without, so ours are given one for the moment of the start.
func startWithSignals(cmd *exec.Cmd) error {
	startMu.Lock()
	defer startMu.Unlock()
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		if signal.Ignored(sig) {
			nobody := make(chan os.Signal, 1)
			signal.Notify(nobody, sig)
			defer signal.Ignore(sig)
		}
	}
	return cmd.Start()
}

// tail keeps the last part of what etcd prints, in whole lines: half a line could hide that it holds keys.
type tail struct {
	mu      sync.Mutex
	buf     []byte
	lines   int64
	printed func(lines int64) // Config.Printed
}

// tailSize is what is kept at least, if there was so much. Up to twice as much is.
const tailSize = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := bytes.Count(p, []byte{'\n'}); n > 0 && t.printed != nil {
		t.lines += int64(n)
		t.printed(t.lines)
	}
	if len(t.buf) > 2*tailSize {
		old := len(t.buf) - tailSize
		if i := bytes.IndexByte(t.buf[old:], '\n'); i >= 0 {
			old += i + 1
		} else {
			old = len(t.buf)
		}
		t.buf = append(t.buf[:0], t.buf[old:]...)
	}
	return len(p), nil
}

func (t *tail) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.buf)
}
