package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Board is where the members of a cluster leave marks for each other. Every mark that is set or cleared is an entry of the
// raft log, so that all members see them in the same order, and find them in their logs afterwards. A mark has a value, the
// attempt that it belongs to. An entry can come late, and twice: who has got no answer says it again.
type Board interface {
	// Get gives a mark's value, 0 if it is not set.
	Get(ctx context.Context, mark string) (int64, error)
	// Set returns when the entry is committed and this member has applied it. A mark that is there already stays as it is,
	// also if it has another value.
	Set(ctx context.Context, mark string, value int64) error
	// Clear does the same. A mark that is not there is no error.
	Clear(ctx context.Context, mark string) error
}

// The marks of a decision. Decide is the one whose index in the log counts: it is the point at which all members change
// their data offline.
const (
	MarkDecide    = "decide"
	markGo        = "go" // and, after an attempt that has become void, its number
	markReady     = "ready-"
	markHere      = "here-"      // these are followed by a member's ID
	markConverted = "converted-" // set by a member that has changed its data
)

// MaxAttempt is the highest number of an attempt. The lowest is 1.
const MaxAttempt = 1<<16 - 1

var pollMarks = 100 * time.Millisecond // shorter in tests

var (
	// ErrMissed says that other members have gone by an attempt that this one cannot go by.
	ErrMissed = errors.New("other members have gone by a decision that this one does not have")
	// ErrAnew says that others doubt the decision that this member has gone by. It has to look into its log again: either
	// it still stands, or the members have to agree anew.
	ErrAnew = errors.New("the members have to look again at what they have agreed on")
)

// Round is one member's part in an agreement.
type Round struct {
	Board
	Self string
	IDs  []string // of all members
	// Void are attempts that cannot be gone on with although the members have agreed on them: this member has caught up with
	// the others, and its log does not have the decision, or has writes behind it.
	Void map[int64]bool
	// Prepare is what the first member does between the roll call and the decision.
	Prepare func(context.Context) error
	// Waiting is told again and again whom this member waits for.
	Waiting func(ids []string)
}

// Decide makes all members agree on one entry of the raft log, and returns when the agreement stands, with the number of the
// attempt that counts: every member has an entry that sets Decide for that attempt, and the first one is what all go by.
//
// It is a commit in two phases, after a roll call. The first member in the order of the IDs clears every Here, and waits until
// each of the others has set its own: from then on none of them writes a raft snapshot, and no client writes anything. It
// prepares, and sets Decide to the number of a new attempt. Each of the others sets its Ready to that number when it sees it,
// so it has the decision in its log. When all are there, the first member sets Go to it: nobody leaves before that. Until then
// each of them can be killed and begin again.
//
// Go is never cleared, and set only once: if an earlier attempt's comes late, it is that one that counts, for all of them. What
// comes after a void attempt has a Go of another name.
func (r *Round) Decide(ctx context.Context) (attempt int64, err error) {
	r.IDs = slices.Sorted(slices.Values(r.IDs))
	if len(r.Void) > 0 {
		// A member that has gone by a void attempt sets its mark again if it still does.
		for _, id := range r.IDs {
			if err := r.Clear(ctx, markConverted+id); err != nil {
				return 0, err
			}
		}
	}
	if r.Self == r.IDs[0] {
		return r.lead(ctx)
	}
	return r.follow(ctx)
}

// going gives the name of the Go that counts, and the attempt that it is set to, 0 for none.
func (r *Round) going(ctx context.Context) (mark string, attempt int64, err error) {
	mark = markGo
	for {
		if attempt, err = r.Get(ctx, mark); err != nil || !r.Void[attempt] {
			return mark, attempt, err
		}
		mark = voided(attempt)
	}
}

func (r *Round) lead(ctx context.Context) (int64, error) {
	others := r.IDs[1:]
	if _, attempt, err := r.going(ctx); err != nil || attempt != 0 {
		return attempt, err
	}
	for _, id := range others {
		if err := r.Clear(ctx, markHere+id); err != nil {
			return 0, err
		}
	}
	attempt, err := r.until(ctx, func() ([]string, error) {
		return missing(others, func(id string) (bool, error) {
			here, err := r.Get(ctx, markHere+id)
			return here != 0, err
		})
	})
	if err != nil || attempt != 0 {
		return attempt, err
	}
	if err := r.Prepare(ctx); err != nil {
		return 0, err
	}
	own := 1 + rand.Int64N(MaxAttempt)
	for r.Void[own] {
		own = 1 + rand.Int64N(MaxAttempt)
	}
	attempt, err = r.until(ctx, func() ([]string, error) {
		if err := r.put(ctx, MarkDecide, own); err != nil { // again if an earlier attempt's entry comes late
			return nil, err
		}
		return missing(others, func(id string) (bool, error) {
			ready, err := r.Get(ctx, markReady+id)
			return ready == own, err
		})
	})
	if err != nil || attempt != 0 {
		return attempt, err
	}
	mark, attempt, err := r.going(ctx)
	if err == nil && attempt == 0 {
		err = r.Set(ctx, mark, own)
	}
	if err != nil {
		return 0, err
	}
	_, attempt, err = r.going(ctx)
	return attempt, err
}

func (r *Round) follow(ctx context.Context) (int64, error) {
	first := r.IDs[:1]
	return r.until(ctx, func() ([]string, error) {
		here, err := r.Get(ctx, markHere+r.Self)
		if err == nil && here == 0 {
			err = r.Set(ctx, markHere+r.Self, 1)
		}
		if err != nil {
			return nil, err
		}
		absent, err := missing(r.IDs[1:], func(id string) (bool, error) {
			here, err := r.Get(ctx, markHere+id)
			return here != 0, err
		})
		if err != nil {
			return nil, err
		}
		if len(absent) == 0 {
			absent = first
		}
		if here == 0 {
			return absent, nil
		}
		decide, err := r.Get(ctx, MarkDecide)
		if err != nil || decide == 0 {
			return absent, err
		}
		return absent, r.put(ctx, markReady+r.Self, decide)
	})
}

// put sets a mark to a value, whatever it was before.
func (r *Round) put(ctx context.Context, mark string, value int64) error {
	is, err := r.Get(ctx, mark)
	if err != nil || is == value {
		return err
	}
	if is != 0 {
		if err := r.Clear(ctx, mark); err != nil {
			return err
		}
	}
	return r.Set(ctx, mark, value)
}

// missing gives those of whom it is not so.
func missing(ids []string, so func(id string) (bool, error)) (lacking []string, err error) {
	for _, id := range ids {
		yes, err := so(id)
		if err != nil {
			return nil, err
		}
		if !yes {
			lacking = append(lacking, id)
		}
	}
	return lacking, nil
}

// until waits until nobody is waited for, or the members have gone by an attempt.
func (r *Round) until(ctx context.Context, absent func() ([]string, error)) (attempt int64, err error) {
	for {
		if _, attempt, err = r.going(ctx); err != nil || attempt != 0 {
			return attempt, err
		}
		if err := r.missed(ctx); err != nil {
			return 0, err
		}
		ids, err := absent()
		if err != nil {
			return 0, err
		}
		r.Waiting(ids)
		if len(ids) == 0 {
			return 0, nil
		}
		if err := pause(ctx); err != nil {
			return 0, err
		}
	}
}

// missed gives ErrMissed if another member goes by an attempt that is void here.
func (r *Round) missed(ctx context.Context) error {
	if len(r.Void) == 0 {
		return nil
	}
	for _, id := range r.IDs {
		attempt, err := r.Get(ctx, markConverted+id)
		if err != nil {
			return err
		}
		if r.Void[attempt] {
			return ErrMissed
		}
	}
	return nil
}

// Away says that this member has changed its data as agreed in that attempt, and waits until all have, so that it can be
// gone on without what the attempt was about. It ends with ErrAnew if others doubt the decision.
func (r *Round) Away(ctx context.Context, attempt int64) error {
	if gone, err := r.gone(ctx, attempt); err != nil || gone {
		return err
	}
	if err := r.put(ctx, markConverted+r.Self, attempt); err != nil {
		return err
	}
	for {
		if gone, err := r.gone(ctx, attempt); err != nil || gone {
			return err
		}
		own, err := r.Get(ctx, markConverted+r.Self)
		if err != nil {
			return err
		}
		absent, err := missing(r.IDs, func(id string) (bool, error) {
			converted, err := r.Get(ctx, markConverted+id)
			return converted == attempt, err
		})
		if err != nil {
			return err
		}
		r.Waiting(absent)
		if len(absent) == 0 {
			return nil
		}
		if own != attempt {
			gone, err := r.gone(ctx, attempt)
			if err == nil && !gone {
				err = ErrAnew
			}
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// gone reports whether the marks have been removed: a member does that when all have changed their data. The error is ErrAnew
// if that attempt is not the last one that the members have agreed on.
func (r *Round) gone(ctx context.Context, attempt int64) (bool, error) {
	last := int64(0)
	for mark := markGo; ; mark = voided(last) {
		next, err := r.Get(ctx, mark)
		switch {
		case err != nil:
			return false, err
		case next != 0:
			last = next
		case last != 0 && last != attempt:
			return false, ErrAnew
		default:
			return last == 0, nil
		}
	}
}

// voided is the Go that counts after a void attempt.
func voided(attempt int64) string { return fmt.Sprintf("%s-%d", markGo, attempt) }

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pollMarks):
		return nil
	}
}
