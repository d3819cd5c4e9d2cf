// Package pathtest is what a test of etcd upgrade paths needs, in the manner of net/http/httptest: it starts real etcds of
// any minor on a directory, fills them with data that is hard to carry over, and reads back all that they serve, so that
// before and after can be compared. It is for the tests of other projects, too.
//
//	func TestUpgrade(t *testing.T) {
//		dir := t.TempDir()
//		server := pathtest.Serve(t, pathtest.Binary(t, "bin/etcd", "3.4"), dir)
//		if err := server.FillV3(t.Context(), 100); err != nil {
//			t.Fatal(err)
//		}
//		before, err := server.ReadV3(t.Context())
//		…
//		server.Stop()
//
//		upgrade(dir) // what is to be tested
//
//		server = pathtest.Serve(t, pathtest.Binary(t, "bin/etcd", "3.7"), dir)
//		after, err := server.ReadV3(t.Context())
//		…
//		for _, difference := range pathtest.Compare(before, after) {
//			t.Error(difference)
//		}
//	}
//
// The etcds are files named etcd-<version> in one directory. `make binaries` in this project's repository builds all of
// them; those of etcd's releases do as well. What is to be tested can be a program of your own, or package migrate: the
// example shows that. Package matrix tries many paths at once.
//
// This package does not import package testing, nor any other part of package migrate.
package pathtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Name is the name of the member that Start starts.
const Name = "m1"

// Server is a running etcd without any protection, on loopback. It is for tests: anybody on the machine can use it.
type Server struct {
	Release versionfile.Release // of the binary that Start was given
	URL     string              // of its client listener
	cmd     *exec.Cmd
	done    chan struct{}
	err     error
	output  bytes.Buffer
	v3      *clientv3.Client
}

// Start starts an etcd on dataDir and waits until it takes writes and its cluster has a version: until ctx ends, or for a minute
// if ctx has no deadline. After that the etcd runs on, whatever becomes of ctx, until Stop or Kill. Further flags can be given;
// a flag that is given twice counts the second time.
func Start(ctx context.Context, bin binaries.Binary, dataDir string, flags ...string) (*Server, error) {
	client, err := FreeURL()
	if err != nil {
		return nil, err
	}
	peer, err := FreeURL()
	if err != nil {
		return nil, err
	}
	args := append([]string{
		"--name", Name, "--data-dir", dataDir,
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", Name + "=" + peer,
		"--heartbeat-interval", "10", "--election-timeout", "50",
	}, flags...)
	for _, f := range flags {
		if u, ok := strings.CutPrefix(f, "--listen-client-urls="); ok {
			client = u
		}
	}
	s := &Server{Release: bin.Release, URL: client, done: make(chan struct{})}
	s.cmd = exec.Command(bin.Path, args...)
	s.cmd.Env = []string{"GOTRACEBACK=none"} // the last lines are what a panic says
	if runtime.GOARCH != "amd64" {
		s.cmd.Env = append(s.cmd.Env, "ETCD_UNSUPPORTED_ARCH="+runtime.GOARCH) // 2.3 to 3.4 ask for it
	}
	s.cmd.Stdout, s.cmd.Stderr = &s.output, &s.output
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go s.run(started)
	if err := <-started; err != nil {
		return nil, err
	}
	if err := s.ready(ctx); err != nil {
		killErr := s.Kill() // before its output is looked at
		err = fmt.Errorf("etcd %s: %w", bin.Release, err)
		if said := s.lastOutput(); said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return nil, errors.Join(err, killErr)
	}
	return s, nil
}

// run starts the process and waits for its end. Should this process be killed, the etcd goes with it: the signal for that
// is sent when the thread ends that made the child, so the thread is kept for as long as the child lives.
func (s *Server) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := s.cmd.Start()
	started <- err
	if err == nil {
		s.err = s.cmd.Wait()
		close(s.done)
	}
}

// errEnded is how an etcd ends that nobody has ended.
var errEnded = errors.New("it ended by itself")

// FreeURL gives an http URL that nobody listens on, for a client or peer URL of an etcd that the test starts itself. Its
// address is one in 127.0.0.0/8 that nobody else is likely to use: on 127.0.0.1 another process, or a connection that one
// makes, could take the port before the etcd does.
func FreeURL() (string, error) {
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254)))
	if err != nil {
		return "", err
	}
	return "http://" + l.Addr().String(), l.Close()
}

func (s *Server) ready(ctx context.Context) error {
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Minute)
		defer cancel()
	}
	// A request to an etcd that has ended would be tried again until it times out.
	asking, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-s.done:
			stop()
		case <-asking.Done():
		}
	}()
	for {
		last := s.answers(asking)
		if last == nil {
			last = s.decided(asking)
		}
		if last == nil {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("%w (%s)", errEnded, s.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w (%w)", ctx.Err(), last)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// answers makes a request that goes through raft: of the v2 API before 3.0, else of the v3 API.
func (s *Server) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if s.Release.Line.Less(versionfile.Minor{Major: 3}) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/v2/keys/?quorum=true", nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return errors.New(res.Status)
		}
		return nil
	}
	c, err := s.V3()
	if err != nil {
		return err
	}
	_, err = c.Get(ctx, "/pathtest/ready")
	if errors.Is(err, rpctypes.ErrUserEmpty) || errors.Is(err, rpctypes.ErrPermissionDenied) {
		return nil // authentication is enabled, which is for the caller to know
	}
	return err
}

// decided reports whether the cluster has agreed on a version. Nothing in the data of an etcd that ends before says what it belongs to,
// and on a busy machine that can take 4 s.
func (s *Server) decided(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/version", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && bytes.Contains(answer, []byte("not_decided")) {
		err = errors.New("the cluster has no version yet")
	}
	return err
}

// WriteOnce makes one write that is committed and leaves a key named /pathtest/written in the store of the etcd's minor.
func (s *Server) WriteOnce(ctx context.Context) error {
	if s.Release.Line.Less(versionfile.Minor{Major: 3}) {
		status, body, err := s.V2(ctx, http.MethodPut, "/pathtest/written", url.Values{"value": {"1"}})
		if err == nil && status >= 400 {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	}
	c, err := s.V3()
	if err != nil {
		return err
	}
	_, err = c.Put(ctx, "/pathtest/written", "1")
	return err
}

func (s *Server) lastOutput() string {
	lines := strings.Split(strings.TrimSpace(s.output.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// impatient tries again at once, where gRPC would wait a second because nobody listened yet.
var impatient = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.2, MaxDelay: 100 * time.Millisecond},
	MinConnectTimeout: 5 * time.Second,
}

// V3 gives a client of the v3 API, which Stop and Kill close. An etcd from before 3.0 is an error: it has no v3 API.
func (s *Server) V3() (*clientv3.Client, error) {
	if s.Release.Line.Less(versionfile.Minor{Major: 3}) {
		return nil, fmt.Errorf("etcd %s has no v3 API, which began with 3.0", s.Release)
	}
	if s.v3 == nil {
		c, err := clientv3.New(clientv3.Config{
			Endpoints: []string{s.URL}, Logger: zap.NewNop(), MaxCallRecvMsgSize: 1 << 30,
			DialOptions: []grpc.DialOption{grpc.WithConnectParams(impatient)},
		})
		if err != nil {
			return nil, err
		}
		s.v3 = c
	}
	return s.v3, nil
}

// Stop ends the etcd as an init system does, and waits for it. Of an etcd that has ended already it only says how: nil after
// another Stop, an error if it ended by itself or by Kill.
func (s *Server) Stop() error {
	if err := s.end(syscall.SIGTERM); err != nil {
		return err
	}
	var exit *exec.ExitError
	if errors.As(s.err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM {
		return nil // etcd ends by raising the signal again
	}
	if s.Release.Line.Less(versionfile.Minor{Major: 2, Minor: 3}) && strings.HasSuffix(s.output.String(), "file already closed\n") {
		return nil // etcd 2.2 does not wait for the goroutine that saves a snapshot, which nobody needs
	}
	return s.err
}

// Kill ends the etcd as a power loss does, and waits for it. It does nothing to an etcd that has ended already.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

func (s *Server) end(sig syscall.Signal) error {
	if s.v3 != nil {
		_ = s.v3.Close() // nothing is under way
	}
	_ = s.cmd.Process.Signal(sig) // it may have ended by itself
	select {
	case <-s.done:
		return nil
	case <-time.After(30 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.done
		return fmt.Errorf("etcd %s did not end on %s", s.Release, sig)
	}
}

// Binaries gives the etcds that `make binaries` has built, looked for in dir or, if that is empty, in bin/etcd of the
// directories above the current one.
func Binaries(dir string) (binaries.Set, error) {
	if dir != "" {
		return binaries.Find(dir)
	}
	at, err := os.Getwd()
	if err != nil {
		return binaries.Set{}, err
	}
	for {
		set, err := binaries.Find(filepath.Join(at, "bin", "etcd"))
		if err == nil && len(set.Binaries) > 0 {
			return set, nil
		}
		if at == filepath.Dir(at) {
			return binaries.Set{}, errors.New("no etcd binaries found; run `make binaries`")
		}
		at = filepath.Dir(at)
	}
}
