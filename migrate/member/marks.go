package member

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// MarksV2 is the hidden directory of the v2 store in which a V2Board keeps its marks.
const MarksV2 = "_etcd-migrate"

// V2Board keeps marks as keys of the v2 store, for which etcd 3.4 and 3.5 need Config.V2. What such a key holds is the time at
// which it was set, in RFC 3339, and the mark's value.
type V2Board struct{ Etcd *Etcd }

// ParseMarkV2 reads what a V2Board has written.
func ParseMarkV2(content string) (at time.Time, value int64, err error) {
	first, second, _ := strings.Cut(content, " ")
	if at, err = time.Parse(time.RFC3339Nano, first); err == nil {
		value, err = strconv.ParseInt(second, 10, 64)
	}
	return at, value, err
}

// Get asks this member, which may be a moment behind the others.
func (b V2Board) Get(ctx context.Context, mark string) (value int64, err error) {
	var content string
	err = b.do(ctx, http.MethodGet, mark, nil, func(a *answer) bool {
		content = a.Node.Value
		return a.status == http.StatusOK || a.notFound()
	})
	if err == nil && content != "" {
		_, value, err = ParseMarkV2(content)
	}
	return value, err
}

// Set keeps a mark that is there as it is.
func (b V2Board) Set(ctx context.Context, mark string, value int64) error {
	content := fmt.Sprintf("%s %d", time.Now().UTC().Format(time.RFC3339Nano), value)
	query := url.Values{"value": {content}, "prevExist": {"false"}}
	return b.do(ctx, http.MethodPut, mark, query, func(a *answer) bool {
		return a.status == http.StatusCreated || a.status == http.StatusPreconditionFailed
	})
}

// Clear removes a mark.
func (b V2Board) Clear(ctx context.Context, mark string) error {
	return b.do(ctx, http.MethodDelete, mark, nil, func(a *answer) bool { return a.status == http.StatusOK || a.notFound() })
}

func (b V2Board) do(ctx context.Context, method, mark string, query url.Values, fine func(*answer) bool) error {
	ctx, done := b.Etcd.whileRunning(ctx)
	defer done()
	err := insist(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		a, err := b.Etcd.v2(ctx, method, MarksV2+"/"+mark, query)
		switch {
		case err != nil:
			return err
		case fine(a):
			return nil
		case a.status < http.StatusInternalServerError:
			return finalError{a.err()}
		}
		return a.err()
	})
	if err != nil {
		return b.Etcd.explain(ctx, fmt.Sprintf("%s the mark %s", method, mark), err)
	}
	return nil
}

// LeaseBoard keeps marks as leases without keys, which leave no trace in the keys or in their revisions. A mark's value is how
// many seconds more than marksTTL its lease is granted for. Etcd 3.0 has no v3 API here.
type LeaseBoard struct {
	Etcd *Etcd
	// ID gives a mark's lease.
	ID func(mark string) int64
}

// marksTTL is how long a mark stands at least, in seconds: longer than members wait for each other. An attempt that is given up
// must not leave them for good.
const marksTTL = 7 * 24 * 3600

// MarkOfLease gives the value of the mark whose lease was granted for so many seconds.
func MarkOfLease(ttl int64) int64 { return ttl - marksTTL }

// Get asks the leader, through this member.
func (b LeaseBoard) Get(ctx context.Context, mark string) (value int64, err error) {
	err = b.do(ctx, "ask for the mark "+mark, func(ctx context.Context, c *clientv3.Client) error {
		res, err := c.TimeToLive(ctx, clientv3.LeaseID(b.ID(mark)))
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			value = 0
			return nil
		}
		if err == nil && res.TTL > 0 {
			value = MarkOfLease(res.GrantedTTL)
		}
		return err
	})
	return value, err
}

// Set grants the mark's lease.
func (b LeaseBoard) Set(ctx context.Context, mark string, value int64) error {
	return b.do(ctx, "set the mark "+mark, func(ctx context.Context, c *clientv3.Client) error {
		_, err := etcdserverpb.NewLeaseClient(c.ActiveConnection()).LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{ID: b.ID(mark), TTL: marksTTL + value})
		switch {
		case err == nil, strings.Contains(err.Error(), "lease already exists"):
			return nil
		case strings.Contains(err.Error(), "database space exceeded"):
			return finalError{fmt.Errorf("the NOSPACE alarm is set, and the members cannot agree: %w", err)}
		}
		return err
	})
}

// Clear revokes it.
func (b LeaseBoard) Clear(ctx context.Context, mark string) error {
	return b.do(ctx, "clear the mark "+mark, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Revoke(ctx, clientv3.LeaseID(b.ID(mark)))
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil
		}
		return err
	})
}

func (b LeaseBoard) do(ctx context.Context, what string, try func(context.Context, *clientv3.Client) error) error {
	ctx, done := b.Etcd.whileRunning(ctx)
	defer done()
	c, err := b.Etcd.V3()
	if err != nil {
		return err
	}
	err = insist(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		return try(ctx, c)
	})
	if err != nil {
		return b.Etcd.explain(ctx, what, err)
	}
	return nil
}

// QuietLeases sees that no lease ends for a while: those that are granted for less than that are let end, and the others
// are renewed, which is no write; those with the longest time first, so that the others have more of it left. The leases are
// those that etcd knows, from 3.3 on, and those of known. skip says which ones do not matter.
func (e *Etcd) QuietLeases(ctx context.Context, while time.Duration, known []int64, skip func(int64) bool) error {
	ctx, done := e.whileRunning(ctx)
	defer done()
	c, err := e.V3()
	if err != nil {
		return err
	}
	var long []lease
	err = insist(ctx, func(ctx context.Context) (err error) {
		var short int
		if long, short, err = leases(ctx, c, while, known, skip); err == nil && short > 0 {
			err = fmt.Errorf("%d leases are about to end", short)
		}
		return err
	})
	slices.SortFunc(long, func(a, b lease) int { return cmp.Compare(b.ttl, a.ttl) })
	for _, l := range long {
		if err == nil {
			if _, err = c.KeepAliveOnce(ctx, l.id); errors.Is(err, rpctypes.ErrLeaseNotFound) {
				err = nil
			}
		}
	}
	if err != nil {
		return e.explain(ctx, "wait for leases", err)
	}
	return nil
}

type lease struct {
	id  clientv3.LeaseID
	ttl int64
}

// leases gives those that are granted for longer than that, and counts the others.
func leases(ctx context.Context, c *clientv3.Client, than time.Duration, known []int64, skip func(int64) bool) (long []lease, short int, err error) {
	ids := map[clientv3.LeaseID]bool{}
	for _, id := range known {
		ids[clientv3.LeaseID(id)] = true
	}
	all, err := c.Leases(ctx)
	if err != nil && status.Code(err) != codes.Unimplemented { // before 3.3
		return nil, 0, err
	}
	if err == nil {
		for _, l := range all.Leases {
			ids[l.ID] = true
		}
	}
	for id := range ids {
		if skip(int64(id)) {
			continue
		}
		res, err := c.TimeToLive(ctx, id)
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
		case err != nil:
			return nil, 0, err
		case res.GrantedTTL <= 0: // gone
		case time.Duration(res.GrantedTTL)*time.Second <= than:
			short++
		default:
			long = append(long, lease{id, res.GrantedTTL})
		}
	}
	return long, short, nil
}
