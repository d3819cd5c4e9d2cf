package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// DivergedError says that members hold different data at the same revision.
type DivergedError struct {
	Revision int64
	Self     Member // this one
	Own      Hash
	Others   []Diverged
	Served   bool // a member may have let clients in since the migration began
}

// Diverged is a member whose hash is another than our own, or that has got to a Revision which we do not get to.
type Diverged struct {
	Member
	Hash     Hash
	Revision int64 // 0 if it is the hash
}

func (e *DivergedError) Error() string {
	var others []string
	for _, o := range e.Others {
		what := fmt.Sprintf("hash %x", o.Hash.Hash)
		if o.Revision > 0 {
			what = fmt.Sprintf("which has got to revision %d", o.Revision)
		}
		others = append(others, fmt.Sprintf("%s (member %s, %s)", o.Member, o.ID, what))
	}
	return fmt.Sprintf("the data of this member, %s (member %s, hash %x), and of %s is not the same at revision %d, compacted at %d",
		e.Self, e.Self.ID, e.Own.Hash, strings.Join(others, ", "), e.Revision, e.Own.Compact)
}

// HashSince is the first minor that tells its peers the hash of its store.
var HashSince = versionfile.Minor{Major: 3, Minor: 4}

const (
	agreePause = 200 * time.Millisecond // between two rounds of asking
	// patience is how long it is tried without wait: a peer may be a moment behind, compact right now, or be on its way from
	// its private etcd to the target.
	patience = 5 * time.Second
)

// Agreement is with whom data was compared, and found to be the same.
type Agreement struct {
	Revision int64    `json:"revision"`
	With     []string `json:"with"` // names
	// Without are the members that could not be compared with: they run another minor, whose hash may be another one, or
	// are not reachable.
	Without []string `json:"without,omitempty"`
}

// Own is this member's side of a comparison.
type Own struct {
	Hash func(context.Context) (Hash, int64, error) // at our newest revision, which comes with it
	// CatchUp returns when all that was committed before is applied here. A learner has none.
	CatchUp func(context.Context) error
}

// Agree compares our own data with that of every peer that runs the same minor, at a revision that both have got to and that is
// the newest of either: a store that has lost its last revisions is the same as the others at its own newest one.
//
// With wait set it insists: it waits for a peer that is not reachable or behind, until the context ends. A peer of a newer
// minor has compared itself with us before it went there, and is passed over.
func (p *Peers) Agree(ctx context.Context, minor versionfile.Minor, wait bool, own Own) (Agreement, error) {
	var a Agreement
	left := p.Members()
	ahead := map[string]int64{}     // the revision that a peer had got to when we had not, by ID
	since := map[string]time.Time{} // when a peer was first tried in vain
	for {
		caughtUp := len(ahead) > 0 && own.CatchUp != nil
		if caughtUp {
			if err := own.CatchUp(ctx); err != nil {
				return a, err
			}
		}
		hash, revision, err := own.Hash(ctx)
		if err != nil {
			return a, err
		}
		a.Revision = revision
		diverged := &DivergedError{Revision: revision, Own: hash}
		var again []Member
		var why []string
		for i, s := range p.status(ctx, left) {
			peer := left[i]
			if s.Err == nil && minor.Less(s.Server.Minor()) || s.Err == nil && s.Server.Minor().Less(minor) && !wait {
				a.Without = append(a.Without, s.String())
				continue
			}
			theirs, newest, err := Hash{}, int64(0), s.Err
			if err == nil && s.Server.Minor() != minor {
				err = fmt.Errorf("it runs etcd %s", s.Server)
			}
			if err == nil {
				theirs, newest, err = p.Hash(ctx, peer, revision)
			}
			if err == nil && theirs.Compact != hash.Compact {
				err = errors.New("its store is compacted at another revision")
			}
			must, known := ahead[peer.ID]
			switch {
			case err != nil:
			case theirs != hash:
				diverged.Others = append(diverged.Others, Diverged{Member: peer, Hash: theirs})
				continue
			case revision < newest && !known:
				ahead[peer.ID] = newest
				err = behind(newest, revision)
			case revision < must && !caughtUp:
				err = behind(must, revision)
			case revision < must: // what it had applied was committed, and all that was committed then is applied here by now
				diverged.Others = append(diverged.Others, Diverged{Member: peer, Revision: must})
				continue
			default:
				a.With = append(a.With, peer.String())
				continue
			}
			if _, tried := since[peer.ID]; !tried {
				since[peer.ID] = time.Now()
			}
			if !wait && time.Since(since[peer.ID]) > patience {
				a.Without = append(a.Without, s.String())
				continue
			}
			again, why = append(again, peer), append(why, fmt.Sprintf("%s: %v", peer, err))
		}
		if len(diverged.Others) > 0 {
			return a, diverged
		}
		if left = again; len(left) == 0 {
			return a, nil
		}
		select {
		case <-ctx.Done():
			return a, fmt.Errorf("compare the data with the other members: %w: %s", context.Cause(ctx), strings.Join(why, "; "))
		case <-time.After(agreePause):
		}
	}
}

func behind(theirs, ours int64) error {
	return fmt.Errorf("it has got to revision %d, and this member to %d", theirs, ours)
}
