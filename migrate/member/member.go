// Package member runs one private etcd process on a stopped member's data dir, to make one step of a migration: start
// it, wait until it has surely taken the data over, write, force a raft snapshot, empty the v2 store, stop it.
//
// Private means: the etcd listens on loopback only, behind mutual TLS with certificates that are made for this one
// process and live in memory only, so that nobody else can reach it; it inherits nothing from the environment; it runs
// in a process group of its own; and the kernel kills it when this program dies.
//
// An etcd leaves traces of its own at every start: the member publishes its name and client URLs again (the same as
// before, if Config says so), and the leader raises the cluster version. What this package adds, changes no key, no
// index and no revision of either store: see [Etcd.Write]. Leases and v2 expiry times run on, as with any running etcd.
//
// It needs Linux: memfd_create(2), /proc and the parent-death signal.
package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Config says which etcd to run on which data. Path, Release and DataDir are required.
type Config struct {
	Path    string              // the etcd binary
	Release versionfile.Release // what the binary is; Ready finds out if it is something else

	DataDir string // may be absent or empty: then etcd begins a new cluster in it
	WALDir  string // empty: DataDir/member/wal

	// Name and AdvertiseClientURLs are what the data says of this member. Etcd publishes them again at every start, so
	// other values would change the membership. Empty: etcd's default name, and the URL of the private listener.
	Name                string
	AdvertiseClientURLs []string

	// Peers is the side towards the other members of the member's cluster, nil for a member that is alone: then nobody can
	// reach the peer listener. Clients are kept out in both cases.
	Peers *Peers
	// Learner says that the member has no vote, and so can write nothing through its own listener: see Joined.
	Learner bool

	// SnapshotCount is the number of log entries after which etcd writes a raft snapshot, 0 for etcd's default of
	// 10,000 or 100,000. ForceSnapshot needs one more write than this number. Small numbers also make etcd write
	// snapshots while it starts, each of them as large as the v2 store.
	SnapshotCount uint64
	// QuotaBytes is the db size from which on etcd 3.0 and newer refuses writes, 0 for etcd's default of 2 GiB, below 0 for
	// none. 2.x has no such limit.
	QuotaBytes int64
	// V2 says that the v2 API is needed: see EmptyV2. Without it, 3.4 and 3.5 do not serve it; 3.6 and 3.7 never do.
	V2 bool

	// Impatient makes Ready give ErrMissed where it would wait 4 s for what a new start brings at once.
	Impatient bool

	// Credential is the user and groups that etcd runs as, nil for our own.
	Credential *syscall.Credential
	// Log gets the facts of starts and stops at debug level, nil for none. What etcd prints is never logged, because
	// it can hold keys.
	Log *slog.Logger
	// Printed, if set, is called with the number of lines that etcd has printed, each time it has printed more: a sign of
	// life. It is called from a goroutine of its own, and for the last time before Stop returns or Start gives an error.
	Printed func(lines int64)
	// Ended, if set, is called with the most memory that etcd has taken, in bytes, when it has ended. It is called as Printed is.
	Ended func(peakMemory int64)
}

func (c *Config) check() error {
	switch {
	case c.Path == "" || c.DataDir == "":
		return errors.New("no etcd binary or no data dir given")
	case !c.Release.Minor().Known():
		return fmt.Errorf("etcd %s is of no known minor", c.Release)
	case c.V2 && c.Release.Minor().AtLeast(3, 6):
		return fmt.Errorf("etcd %s has no v2 API", c.Release)
	}
	for _, path := range []*string{&c.Path, &c.DataDir, &c.WALDir} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path) // because etcd runs in the root directory
		if err != nil {
			return err
		}
		*path = abs
	}
	if c.Peers != nil {
		if err := c.Peers.check(); err != nil {
			return err
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if cred := c.Credential; cred != nil && len(cred.Groups) == 0 &&
		int(cred.Uid) == os.Geteuid() && int(cred.Gid) == os.Getegid() {
		c.Credential = nil // what we are anyway can be had without the right to change it
	}
	return nil
}

// Etcd is a running private etcd. Its methods may be called from several goroutines. Whoever starts one must stop it.
type Etcd struct {
	cfg     Config
	secrets *secrets
	client  *http.Client
	output  tail
	exited  chan struct{}
	end     error // how it ended, nil for as asked; set before exited is closed

	mu       sync.Mutex // guards what follows
	port     int        // of the client listener
	process  *os.Process
	launched time.Time
	answered time.Time // when it first did, the port is its own; zero before
	stopping bool
	killed   time.Duration // how long Stop waited before it killed, 0 if it did not
	v3       *clientv3.Client
}

// Start starts etcd and returns as soon as there is a process: follow it up with Ready. The context is for the start
// only; when it ends later, that does not end the etcd.
func Start(ctx context.Context, cfg Config) (*Etcd, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start etcd %s: %w", cfg.Release, err)
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("start etcd %s: %w", cfg.Release, err)
	}
	// The gateway of 3.0 cannot reach its own listener (see V3) and is kept from trying without a pause.
	s, err := newSecrets(cfg.Credential, cfg.hasV3())
	if err != nil {
		return nil, fmt.Errorf("start etcd %s: %w", cfg.Release, err)
	}
	e := &Etcd{cfg: cfg, secrets: s, output: tail{printed: cfg.Printed}, exited: make(chan struct{})}
	e.client = &http.Client{
		// No proxy, whatever the environment says, and no redirect: neither leads to our etcd.
		Transport: &http.Transport{TLSClientConfig: s.client.Clone(), MaxIdleConnsPerHost: 1},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	started := make(chan error, 1)
	go e.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start etcd %s: %w", cfg.Release, err)
	}
	return e, nil
}

// Exited is closed when the etcd has ended, for whatever reason. From then on Stop says how.
func (e *Etcd) Exited() <-chan struct{} { return e.exited }

// How long Stop waits for a clean end, at most and at least, and then for the kernel to kill. Etcd needs milliseconds,
// unless a large v2 store is being written to a snapshot.
const (
	stopGrace = 2 * time.Minute
	stopLeast = 2 * time.Second
	killGrace = 10 * time.Second
)

// Stop asks etcd to end (SIGTERM) and waits for it. If it has not ended when the context ends, or after two minutes, it
// is killed, and that is an error. It gets two seconds in any case, so the context may be one that is over already.
// Every other end than the one that was asked for is an error, too, also if it came before the call: see Error. Stop can
// be called again and then says the same.
func (e *Etcd) Stop(ctx context.Context) error {
	e.mu.Lock()
	e.stopping = true
	process, v3 := e.process, e.v3
	e.v3 = nil
	e.mu.Unlock()

	if v3 != nil {
		_ = v3.Close() // its calls are over; what it says is of no use to anybody
	}
	defer e.client.CloseIdleConnections()
	started := time.Now()
	hurry := ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	defer context.AfterFunc(hurry, func() {
		select {
		case <-time.After(stopLeast - time.Since(started)):
			cancel()
		case <-ctx.Done():
		}
	})()
	e.awaitSnapshotSaved(ctx)
	_ = process.Signal(syscall.SIGTERM) // fails only if it has ended, which is seen below
	select {
	case <-e.exited:
		e.cfg.Log.Debug("private etcd stopped", "release", e.cfg.Release, "took", time.Since(started))
		return e.end
	case <-ctx.Done():
	}
	e.mu.Lock()
	e.killed = time.Since(started)
	e.mu.Unlock()
	_ = process.Kill()
	select {
	case <-e.exited:
		return e.end
	case <-time.After(killGrace):
		return e.fail(running, fmt.Errorf("process %d cannot be killed: its disk may hang", process.Pid))
	}
}

// V3 gives a client of the v3 API of a 3.1 or newer etcd. It is closed by Stop, not by the caller. With auth enabled it
// acts as the user root, from 3.2 on.
//
// 3.0 has no v3 API here: its TLS listener does not speak HTTP/2 when it is built with a Go that today's etcd client
// can talk to.
func (e *Etcd) V3() (*clientv3.Client, error) {
	if !e.cfg.hasV3() {
		return nil, fmt.Errorf("etcd %s cannot be reached with the v3 API", e.cfg.Release)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.stopping:
		return nil, errStopped
	case e.v3 == nil:
		c, err := newV3(e.address(), e.secrets.client)
		if err != nil {
			return nil, fmt.Errorf("connect to etcd %s: %w", e.cfg.Release, err)
		}
		e.v3 = c
	}
	return e.v3, nil
}

func (c *Config) hasV3() bool { return c.Release.Minor().AtLeast(3, 1) }

// address is where the client listener is or will be. Callers hold e.mu.
func (e *Etcd) address() string { return fmt.Sprintf("127.0.0.1:%d", e.port) }

// url is the address of a path on the client listener.
func (e *Etcd) url() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return "https://" + e.address()
}

// errStopped is what calls get that are under way while Stop is called, or come after it.
var errStopped = errors.New("the etcd was stopped")

// whileRunning gives a context that also ends when the etcd does; its cause then says how.
func (e *Etcd) whileRunning(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-ctx.Done():
		case <-e.exited:
			if e.end != nil {
				cancel(e.end)
			} else {
				cancel(errStopped)
			}
		}
	}()
	return ctx, func() { cancel(context.Canceled) }
}
