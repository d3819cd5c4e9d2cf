package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// store is one that has got to a revision, and whose hash at a revision is that revision, but from bad on, if that is set.
type store struct {
	newest atomic.Int64
	bad    int64
}

func (s *store) hash(revision int64) uint32 {
	if s.bad > 0 && revision >= s.bad {
		return uint32(revision) + 1000
	}
	return uint32(revision)
}

// serve answers as the peer listener of an etcd 3.6 does.
func (s *store) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/version" {
		_, _ = w.Write([]byte(`{"etcdserver":"3.6.16","etcdcluster":"3.6.0"}`))
		return
	}
	var req etcdserverpb.HashKVRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || r.URL.Path != "/members/hashkv" {
		http.NotFound(w, r)
		return
	}
	newest := s.newest.Load()
	if req.Revision > newest {
		http.Error(w, "mvcc: required revision is a future revision", http.StatusBadRequest)
		return
	}
	_ = json.NewEncoder(w).Encode(&etcdserverpb.HashKVResponse{
		Header: &etcdserverpb.ResponseHeader{Revision: newest}, Hash: s.hash(req.Revision), CompactRevision: -1,
	})
}

// TestAgree compares with one other member, at a revision that both have got to and that is the newest of either.
func TestAgree(t *testing.T) {
	for name, tc := range map[string]struct {
		ours, theirs   int64 // revisions
		oursBad        int64
		caughtUp       int64 // ours, when what was committed is applied
		arrives        int64 // theirs, after a moment
		learner        bool
		diverged, says string
	}{
		"the same":                              {ours: 21, theirs: 21},
		"this one is behind for a moment":       {ours: 21, theirs: 22, caughtUp: 22},
		"this one is ahead by then":             {ours: 21, theirs: 22, caughtUp: 25, arrives: 25},
		"the other one is behind for a moment":  {ours: 22, theirs: 21, arrives: 22},
		"a learner is behind for a moment":      {ours: 21, theirs: 22, caughtUp: 22, learner: true},
		"another value":                         {ours: 21, theirs: 21, oursBad: 5, diverged: "m2", says: "hash"},
		"this one has lost the last revision":   {ours: 21, theirs: 22, caughtUp: 21, diverged: "m2", says: "which has got to revision 22"},
		"what it catches up with is not theirs": {ours: 21, theirs: 22, caughtUp: 22, oursBad: 22, diverged: "m2", says: "hash"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			peer, us := &store{}, &store{bad: tc.oursBad}
			peer.newest.Store(tc.theirs)
			us.newest.Store(tc.ours)
			srv := httptest.NewServer(http.HandlerFunc(peer.serve))
			defer srv.Close()
			if tc.arrives > 0 {
				time.AfterFunc(300*time.Millisecond, func() { peer.newest.Store(tc.arrives) })
			}
			peers, err := New([]Member{{ID: "2", Name: "m2", PeerURLs: []string{srv.URL}}}, &member.Peers{})
			if err != nil {
				t.Fatal(err)
			}
			own := Own{
				Hash: func(context.Context) (Hash, int64, error) {
					revision := us.newest.Load()
					return Hash{Hash: us.hash(revision), Compact: -1}, revision, nil
				},
				CatchUp: func(context.Context) error {
					us.newest.Store(tc.caughtUp)
					return nil
				},
			}
			if tc.learner {
				time.AfterFunc(300*time.Millisecond, func() { us.newest.Store(tc.caughtUp) })
				own.CatchUp = nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			a, err := peers.Agree(ctx, versionfile.Minor{Major: 3, Minor: 6}, true, own)
			var diverged *DivergedError
			switch errors.As(err, &diverged); {
			case tc.diverged == "":
				if err != nil || !slices.Equal(a.With, []string{"m2"}) || a.Revision < max(tc.ours, tc.theirs) {
					t.Errorf("%+v, %v", a, err)
				}
			case diverged == nil || len(diverged.Others) != 1 || diverged.Others[0].Name != tc.diverged:
				t.Errorf("%+v, %v", a, err)
			case !strings.Contains(err.Error(), tc.says):
				t.Errorf("does not say %q: %v", tc.says, err)
			}
		})
	}
}
