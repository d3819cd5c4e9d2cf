package cluster

import (
	"context"
	"slices"
	"time"
)

// Board is where the members of a cluster leave marks for each other. Every mark that is set or cleared is an entry of the
// raft log, so that all members see them in the same order, and find them in their logs afterwards.
type Board interface {
	Has(ctx context.Context, mark string) (bool, error)
	// Set returns when the mark is committed and this member has applied it. A mark that is there already stays.
	Set(ctx context.Context, mark string) error
	// Clear does the same. A mark that is not there is no error.
	Clear(ctx context.Context, mark string) error
}

// The marks of a decision. Decide is the one whose index in the log counts: it is the point at which all members change
// their data offline.
const (
	MarkDecide = "decide"
	MarkGo     = "go"
	markReady  = "ready-" // and a member's ID
	markHere   = "here-"  // and a member's ID
)

// MarkReady is set by a member that has the decision in its log.
func MarkReady(id string) string { return markReady + id }

var pollMarks = 100 * time.Millisecond // shorter in tests

// Decide makes all members agree on one entry of the raft log, and returns when the agreement stands: every member has that
// entry, and each will find the same one, the last Decide before Go.
//
// It is a commit in two phases, after a roll call. The first member in the order of the IDs clears every Here, and waits until
// each of the others has set its own: from then on none of them writes a raft snapshot, and no client writes anything. It does
// what else it has to (prepare), sets Decide, then clears every Ready that is older, waits until each of the others has set its own, and sets Go: nobody leaves
// before that. A Ready that is left is behind Decide in the log, so whoever has set it has Decide, too. Until Go is set, each
// of them can be killed and begin again. Go, once set, stands; the first member looks for it before anything else.
//
// stale says that Go, if it is there, is of an earlier attempt that cannot be gone on with. Then it is cleared first.
func Decide(ctx context.Context, b Board, self string, ids []string, stale bool, prepare func(context.Context) error) error {
	ids = slices.Sorted(slices.Values(ids))
	if self == ids[0] {
		return lead(ctx, b, ids[1:], stale, prepare)
	}
	return follow(ctx, b, self, stale)
}

func lead(ctx context.Context, b Board, others []string, stale bool, prepare func(context.Context) error) error {
	decided, err := b.Has(ctx, MarkGo)
	if err != nil || decided && !stale {
		return err
	}
	for _, id := range others {
		if err := b.Clear(ctx, markHere+id); err != nil {
			return err
		}
	}
	for _, id := range others {
		if err := until(ctx, func() (bool, error) { return b.Has(ctx, markHere+id) }); err != nil {
			return err
		}
	}
	if err := prepare(ctx); err != nil {
		return err
	}
	for _, mark := range []string{MarkGo, MarkDecide} {
		if err := b.Clear(ctx, mark); err != nil {
			return err
		}
	}
	if err := b.Set(ctx, MarkDecide); err != nil {
		return err
	}
	for _, id := range others {
		if err := b.Clear(ctx, MarkReady(id)); err != nil {
			return err
		}
	}
	for _, id := range others {
		if err := until(ctx, func() (bool, error) { return b.Has(ctx, MarkReady(id)) }); err != nil {
			return err
		}
	}
	return b.Set(ctx, MarkGo)
}

func follow(ctx context.Context, b Board, self string, stale bool) error {
	return until(ctx, func() (bool, error) {
		decided, err := b.Has(ctx, MarkGo)
		if err != nil || decided && !stale {
			return decided, err
		}
		if !decided {
			stale = false // a new one cannot come unseen, because it waits for our Ready
		}
		here, err := b.Has(ctx, markHere+self)
		if err == nil && !here {
			err = b.Set(ctx, markHere+self)
		}
		if err != nil || !here {
			return false, err
		}
		if decided {
			return false, nil // it is cleared after the roll call
		}
		for _, mark := range []string{MarkDecide, MarkReady(self)} {
			there, err := b.Has(ctx, mark)
			if err != nil {
				return false, err
			}
			if mark == MarkDecide && !there || mark != MarkDecide && there {
				return false, nil
			}
		}
		return false, b.Set(ctx, MarkReady(self))
	})
}

// until asks until the answer is yes.
func until(ctx context.Context, ask func() (bool, error)) error {
	for {
		yes, err := ask()
		if err != nil || yes {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pollMarks):
		}
	}
}

// Away waits until no member that is left to do it has a reason to hold back: every member has set its mark, or done is true.
func Away(ctx context.Context, b Board, mark func(id string) string, self string, ids []string, done func() (bool, error)) error {
	if yes, err := done(); err != nil || yes {
		return err
	}
	if err := b.Set(ctx, mark(self)); err != nil {
		return err
	}
	for _, id := range ids {
		err := until(ctx, func() (bool, error) {
			if there, err := b.Has(ctx, mark(id)); err != nil || there {
				return there, err
			}
			return done()
		})
		if err != nil {
			return err
		}
	}
	return nil
}
