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
}

// Diverged is a member whose hash is another than our own.
type Diverged struct {
	Member
	Hash Hash
}

func (e *DivergedError) Error() string {
	var others []string
	for _, o := range e.Others {
		others = append(others, fmt.Sprintf("%s (member %s, hash %x)", o.Member, o.ID, o.Hash.Hash))
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

// Agree compares our own data with that of every peer that runs the same minor. own gives our hash at our newest revision.
//
// With wait set it insists: it waits for a peer that is not reachable or behind, until the context ends. A peer of a newer
// minor has compared itself with us before it went there, and is passed over.
func (p *Peers) Agree(
	ctx context.Context, minor versionfile.Minor, wait bool, own func(context.Context) (Hash, int64, error),
) (Agreement, error) {
	var a Agreement
	left := p.Members()
	for began := time.Now(); ; {
		hash, revision, err := own(ctx)
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
			theirs, err := Hash{}, s.Err
			if err == nil && s.Server.Minor() != minor {
				err = fmt.Errorf("it runs etcd %s", s.Server)
			}
			if err == nil {
				theirs, _, err = p.Hash(ctx, peer, revision)
			}
			if err == nil && theirs.Compact != hash.Compact {
				err = errors.New("its store is compacted at another revision")
			}
			switch {
			case err == nil && theirs == hash:
				a.With = append(a.With, peer.String())
			case err == nil:
				diverged.Others = append(diverged.Others, Diverged{peer, theirs})
			case !wait && time.Since(began) > patience:
				a.Without = append(a.Without, s.String())
			default:
				again, why = append(again, peer), append(why, fmt.Sprintf("%s: %v", peer, err))
			}
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
