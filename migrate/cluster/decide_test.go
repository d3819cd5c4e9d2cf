package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// raft is the log that all members share: each entry is a mark that was set or cleared.
type raft struct {
	mu  sync.Mutex
	log []entry
}

type entry struct {
	mark string
	set  bool
}

var errKilled = errors.New("killed")

// sim is one member's board: it sees a prefix of the log, which holds at least what it has seen before and its own entries.
// Now and then the member is killed, before or after its entry is committed.
type sim struct {
	raft *raft
	rand *rand.Rand
	seen int // what is in this member's own log for sure
}

func (s *sim) Has(_ context.Context, mark string) (bool, error) {
	s.raft.mu.Lock()
	defer s.raft.mu.Unlock()
	s.seen += s.rand.IntN(len(s.raft.log) - s.seen + 1)
	return last(s.raft.log[:s.seen], mark), nil
}

func last(log []entry, mark string) (set bool) {
	for _, e := range log {
		if e.mark == mark {
			set = e.set
		}
	}
	return set
}

func (s *sim) Set(_ context.Context, mark string) error   { return s.append(entry{mark, true}) }
func (s *sim) Clear(_ context.Context, mark string) error { return s.append(entry{mark, false}) }

func (s *sim) append(e entry) error {
	time.Sleep(time.Duration(s.rand.IntN(100)) * time.Microsecond) // between what was seen and what is done about it
	s.raft.mu.Lock()
	defer s.raft.mu.Unlock()
	kill := s.rand.IntN(8)
	if kill == 0 {
		return errKilled
	}
	if last(s.raft.log, e.mark) != e.set { // a mark that is there is not set again
		s.raft.log = append(s.raft.log, e)
	}
	s.seen = len(s.raft.log)
	if kill == 1 {
		return errKilled
	}
	return nil
}

// decided gives the index of the entry that a member finds in the first n entries.
func decided(log []entry) int {
	at := -1
	for i, e := range log {
		if e == (entry{MarkDecide, true}) {
			at = i
		}
	}
	return at
}

// TestDecide kills members at random moments of the agreement and lets them begin again. All must find the same entry, have
// it in their logs when the first one leaves, and nobody may set another one after that.
func TestDecide(t *testing.T) {
	pollMarks = time.Microsecond
	t.Cleanup(func() { pollMarks = 100 * time.Millisecond })
	kills := 0
	for seed := range uint64(80) {
		n := 2 + int(seed%4)
		var ids []string
		for i := range n {
			ids = append(ids, fmt.Sprintf("%c", 'a'+i))
		}
		r := &raft{}
		sims := make([]*sim, n)
		var mu sync.Mutex // guards what follows
		first := -1       // the entry that the first one to leave goes by
		var wg sync.WaitGroup
		for i := range n {
			sims[i] = &sim{raft: r, rand: rand.New(rand.NewPCG(seed, uint64(i)))}
		}
		for i, s := range sims {
			wg.Go(func() {
				for {
					// A member that starts catches up with the cluster before it does anything: see Etcd.Joined.
					r.mu.Lock()
					s.seen = len(r.log)
					r.mu.Unlock()
					err := Decide(t.Context(), s, ids[i], ids, false, func(context.Context) error { return nil })
					if errors.Is(err, errKilled) {
						mu.Lock()
						kills++
						mu.Unlock()
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					break
				}
				r.mu.Lock()
				defer r.mu.Unlock()
				mu.Lock()
				defer mu.Unlock()
				own := decided(r.log[:s.seen])
				if first < 0 {
					first = own
					for j, other := range sims {
						if decided(r.log[:other.seen]) != own {
							t.Errorf("seed %d: %s leaves at entry %d, which %s does not have", seed, ids[i], own, ids[j])
						}
					}
				}
				if own < 0 || own != first {
					t.Errorf("seed %d: %s leaves at entry %d, and another at %d", seed, ids[i], own, first)
				}
			})
		}
		wg.Wait()
		if got := decided(r.log); got != first {
			t.Errorf("seed %d: entry %d was decided on after the members had left at %d", seed, got, first)
		}
		if t.Failed() {
			t.Fatalf("the log: %v", r.log)
		}
	}
	if kills < 80 {
		t.Errorf("only %d kills: this tests too little", kills)
	}
}

// TestDecideStale: what an earlier attempt has left behind, and cannot be gone on with, is replaced.
func TestDecideStale(t *testing.T) {
	pollMarks = time.Microsecond
	t.Cleanup(func() { pollMarks = 100 * time.Millisecond })
	r := &raft{log: []entry{{MarkDecide, true}, {MarkReady("b"), true}, {MarkGo, true}, {"a user's write", true}}}
	var wg sync.WaitGroup
	for i, id := range []string{"a", "b"} {
		wg.Go(func() {
			s := &sim{raft: r, rand: rand.New(rand.NewPCG(1, uint64(i)))}
			s.seen = 4
			for {
				r.mu.Lock()
				stale := decided(r.log[:s.seen]) == 0 // a member goes by what is in its own log
				r.mu.Unlock()
				err := Decide(t.Context(), s, id, []string{"a", "b"}, stale, func(context.Context) error { return nil })
				if !errors.Is(err, errKilled) {
					return
				}
			}
		})
	}
	wg.Wait()
	if at := decided(r.log); at < 4 {
		t.Errorf("the members went by entry %d", at)
	}
}
