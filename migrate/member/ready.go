package member

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/sethvargo/go-retry"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// How long one try may take. Etcd itself gives up a write after 5 s.
const (
	askTimeout   = 5 * time.Second
	writeTimeout = 10 * time.Second
)

// poll waits a thirtieth of the time that has already passed, at least 2 ms and at most 200 ms: most etcds are ready in
// 50 ms, those with much data need minutes.
func poll() retry.Backoff {
	started := time.Now()
	return retry.BackoffFunc(func() (time.Duration, bool) {
		return min(max(time.Since(started)/30, 2*time.Millisecond), 200*time.Millisecond), false
	})
}

// finalError is an answer that no further try will change.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// insist tries until it works, the answer is final, or the context ends. In the last case the error is the context's
// cause together with what the last try was answered.
func insist(ctx context.Context, try func(context.Context) error) error {
	var last error
	err := retry.Do(ctx, poll(), func(ctx context.Context) error {
		err := try(ctx)
		var final finalError
		if err == nil || errors.As(err, &final) {
			return err
		}
		// A try that was cut short says less than the one before it.
		if deadline, ok := ctx.Deadline(); last == nil || ctx.Err() == nil && (!ok || time.Now().Before(deadline)) {
			last = err
		}
		return retry.RetryableError(err)
	})
	if err != nil && ctx.Err() != nil && last != nil {
		return fmt.Errorf("%w; last try: %w", err, last)
	}
	return err
}

// Ready waits until the etcd has surely taken the data over: the cluster version is its minor, and a raft write that we
// made was committed. It waits for as long as the context and the etcd live: how long an etcd needs depends on the
// data. If either ends first, the error is an Error, which says what the etcd was still missing.
//
// It never asks /health: up to 3.4, each such request adds an entry to the log, of a kind that 3.6 refuses.
func (e *Etcd) Ready(ctx context.Context) error { return e.await(ctx, e.takenOver) }

// Joined waits until the etcd takes part in its cluster: a raft write that we made was committed, and applied here. The
// cluster version does not count: as long as one member runs an older etcd, it is that one's.
func (e *Etcd) Joined(ctx context.Context) error { return e.await(ctx, e.takesPart) }

func (e *Etcd) await(ctx context.Context, condition func(context.Context) error) error {
	ctx, done := e.whileRunning(ctx)
	defer done()
	started := time.Now()
	err := insist(ctx, condition)
	var ended *Error
	switch cause := context.Cause(ctx); {
	case err == nil:
		e.cfg.Log.Debug("private etcd ready", "release", e.cfg.Release, "took", time.Since(started))
		return nil
	case errors.As(cause, &ended), errors.Is(cause, errStopped):
		return fmt.Errorf("wait until ready: %w", cause)
	}
	return e.fail(running, fmt.Errorf("not ready after %s: %w", time.Since(started).Round(time.Millisecond), err))
}

// takenOver says what is missing until the data belongs to this etcd.
func (e *Etcd) takenOver(ctx context.Context) error {
	cluster, err := e.clusterVersion(ctx)
	if err != nil {
		return err
	}
	r, err := versionfile.ParseRelease(cluster)
	if err != nil || r.Minor() != e.cfg.Release.Minor() {
		if e.missed() {
			return finalError{ErrMissed}
		}
		return fmt.Errorf("cluster version is %q, not yet %s", cluster, e.cfg.Release.Minor())
	}
	return e.proveWrite(ctx)
}

// ErrMissed says that the etcd has not noticed that it has been elected: it waits for the news in a goroutine that it starts beside
// the one that has itself elected, which here takes a few milliseconds. It looks again every 4 s, and then raises the cluster
// version. One that is stopped and started again has hardly ever missed it again.
var ErrMissed = errors.New("it has missed its own election")

// missed reports whether the etcd would have raised the cluster version by now, going by how long it took to answer at all. It answers
// when it has been elected and has written to the log, from 3.0 on. One that took long for that takes as long at another start.
func (e *Etcd) missed() bool {
	const quick, sure = time.Second, 200 * time.Millisecond
	e.mu.Lock()
	defer e.mu.Unlock()
	took := e.answered.Sub(e.launched)
	return e.cfg.Impatient && !e.cfg.Release.Minor().Less(v3Since) && took < quick && time.Since(e.answered) > max(sure, took)
}

// v3Since is the first minor that answers no client before it is ready.
var v3Since = versionfile.Minor{Major: 3, Minor: 0}

// takesPart says what is missing until the etcd takes part in its cluster.
func (e *Etcd) takesPart(ctx context.Context) error {
	if _, err := e.clusterVersion(ctx); err != nil {
		return err
	}
	return e.proveWrite(ctx)
}

// proveWrite makes a write, which is answered when it has been applied here: so all that was written before it has been.
func (e *Etcd) proveWrite(ctx context.Context) error {
	switch {
	case e.cfg.Learner:
		return e.follows(ctx)
	case !e.cfg.hasV3():
		return e.writeV2(ctx)
	}
	return e.writeV3(ctx)
}

// follows is what a learner can prove: it has a leader, and has applied all that it knows to be committed.
func (e *Etcd) follows(ctx context.Context) error {
	c, err := e.V3()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s, err := c.Status(ctx, c.Endpoints()[0])
	switch {
	case err != nil:
		return fmt.Errorf("ask for the status: %w", err)
	case s.Leader == 0:
		return errors.New("the cluster has no leader")
	case s.RaftAppliedIndex < s.RaftIndex:
		return fmt.Errorf("raft entries up to %d of %d are applied", s.RaftAppliedIndex, s.RaftIndex)
	}
	return nil
}

// clusterVersion asks for the cluster's version, and makes sure that it is the right etcd that answers.
func (e *Etcd) clusterVersion(ctx context.Context) (string, error) {
	server, cluster, err := e.version(ctx)
	if err == nil && server != e.cfg.Release.String() {
		err = finalError{fmt.Errorf("%s says that it is etcd %q, not %s", e.cfg.Path, server, e.cfg.Release)}
	}
	return cluster, err
}

// version asks for the versions of server and cluster. The cluster's is "not_decided" at first in a new cluster.
func (e *Etcd) version(ctx context.Context) (server, cluster string, err error) {
	var v struct {
		Server  string `json:"etcdserver"`
		Cluster string `json:"etcdcluster"`
	}
	if err := e.getJSON(ctx, "/version", &v); err != nil {
		return "", "", err
	}
	e.mu.Lock()
	if e.answered.IsZero() {
		e.answered = time.Now()
	}
	e.mu.Unlock()
	return v.Server, v.Cluster, nil
}

func (e *Etcd) getJSON(ctx context.Context, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url()+path, nil)
	if err != nil {
		return err
	}
	res, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(v); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

// Write appends one entry to the raft log and returns when it is committed and applied. The entry changes no key, no
// index, no revision and no lease in either store: on 3.1 and newer it revokes lease 0, which cannot exist, on older
// ones it is a quorum read of a key that does not exist.
//
// A learner writes nothing: what the other members write comes to it.
//
// It needs no rights if auth is enabled, and no space if the NOSPACE alarm is set. A raised CORRUPT alarm is an error.
func (e *Etcd) Write(ctx context.Context) error {
	ctx, done := e.whileRunning(ctx)
	defer done()
	if err := e.write(ctx); err != nil {
		return e.explain(ctx, "write", err)
	}
	return nil
}

// explain replaces the error of a call that failed because the etcd ended.
func (e *Etcd) explain(ctx context.Context, what string, err error) error {
	// An etcd that dies closes its connections a moment before we are told of its end.
	select {
	case <-ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
	var ended *Error
	if cause := context.Cause(ctx); errors.As(cause, &ended) || errors.Is(cause, errStopped) {
		return fmt.Errorf("%s: %w", what, cause)
	}
	return e.fail(running, fmt.Errorf("%s: %w", what, err))
}

// write is Write, also on an etcd with a v3 API that it refuses to serve, if it serves the v2 API.
func (e *Etcd) write(ctx context.Context) error {
	if e.cfg.Learner {
		return e.follows(ctx)
	}
	if !e.cfg.hasV3() {
		return e.writeV2(ctx)
	}
	err := e.writeV3(ctx)
	if e.cfg.V2 && errors.Is(err, rpctypes.ErrNotCapable) {
		return e.writeV2(ctx)
	}
	return err
}

func (e *Etcd) writeV3(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	c, err := e.V3()
	if err != nil {
		return err
	}
	_, err = c.Revoke(ctx, clientv3.NoLease)
	switch {
	case err == nil, errors.Is(err, rpctypes.ErrLeaseNotFound):
		return nil // only the applier knows the leases, so the entry was committed
	case errors.Is(err, rpctypes.ErrCorrupt):
		return finalError{fmt.Errorf("the CORRUPT alarm is set: %w", err)}
	}
	return fmt.Errorf("raft write: %w", err)
}

// committed gives the index of the last committed raft entry. It can be one behind the last write.
func (e *Etcd) committed(ctx context.Context) (uint64, error) {
	if !e.cfg.hasV3() {
		return e.committedV2(ctx)
	}
	c, err := e.V3()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	res, err := c.Status(ctx, c.Endpoints()[0])
	if e.cfg.V2 && errors.Is(err, rpctypes.ErrNotCapable) {
		return e.committedV2(ctx)
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the raft index: %w", err)
	}
	return res.RaftIndex, nil
}

// HashKV gives etcd's own digest of the v3 store at its newest revision, and the revision at which it is compacted. It is
// there from 3.3 on.
func (e *Etcd) HashKV(ctx context.Context) (hash uint32, compact, revision int64, err error) {
	ctx, done := e.whileRunning(ctx)
	defer done()
	c, err := e.V3()
	if err != nil {
		return 0, 0, 0, err
	}
	err = insist(ctx, func(ctx context.Context) error {
		res, err := c.HashKV(ctx, c.Endpoints()[0], 0)
		if err == nil {
			hash, compact, revision = res.Hash, res.CompactRevision, res.Header.Revision
		}
		return err
	})
	if err != nil {
		return 0, 0, 0, e.explain(ctx, "hash the v3 store", err)
	}
	return hash, compact, revision, nil
}

func newV3(address string, config *tls.Config) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + address},
		TLS:       config.Clone(),
		Logger:    zap.NewNop(),
		// One try, not 100: those who call know better what is worth another.
		MaxUnaryRetries: 1,
		DialOptions: []grpc.DialOption{
			grpc.WithNoProxy(),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 2, MaxDelay: 200 * time.Millisecond},
				// As long as a write has, since what is behind the address is on this machine.
				MinConnectTimeout: writeTimeout,
			}),
		},
	})
}
