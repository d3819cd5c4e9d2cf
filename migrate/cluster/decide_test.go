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

// raft is the log that all members share: each entry sets a mark, or clears it with the value 0.
type raft struct {
	mu   sync.Mutex
	log  []entry
	late []entry // said twice, or by a member that was killed meanwhile, and still on their way
}

type entry struct {
	mark  string
	value int64
}

var errKilled = errors.New("killed")

// sim is one member's board: it sees a prefix of the log, which holds at least what it has seen before and its own entries.
// Now and then the member is killed, before or after its entry is committed, and an entry comes late, or twice.
type sim struct {
	raft *raft
	rand *rand.Rand
	seen int // what is in this member's own log for sure
}

func (s *sim) Get(_ context.Context, mark string) (int64, error) {
	s.raft.mu.Lock()
	defer s.raft.mu.Unlock()
	s.seen += s.rand.IntN(len(s.raft.log) - s.seen + 1)
	return last(s.raft.log[:s.seen], mark), nil
}

// last applies a log as a board does: a mark that is there is not set again.
func last(log []entry, mark string) (value int64) {
	for _, e := range log {
		if e.mark == mark && (e.value == 0 || value == 0) {
			value = e.value
		}
	}
	return value
}

func (s *sim) Set(_ context.Context, mark string, value int64) error {
	return s.append(entry{mark, value})
}
func (s *sim) Clear(_ context.Context, mark string) error { return s.append(entry{mark, 0}) }

func (s *sim) append(e entry) error {
	time.Sleep(time.Duration(s.rand.IntN(100)) * time.Microsecond) // between what was seen and what is done about it
	s.raft.mu.Lock()
	defer s.raft.mu.Unlock()
	if n := len(s.raft.late); n > 0 && s.rand.IntN(3) == 0 {
		i := s.rand.IntN(n)
		s.raft.log = append(s.raft.log, s.raft.late[i])
		s.raft.late = append(s.raft.late[:i], s.raft.late[i+1:]...)
	}
	// A roll call is of members that run: none of them is started again within the time that an entry can take.
	if s.rand.IntN(6) == 0 && e.mark[:2] != markHere[:2] {
		s.raft.late = append(s.raft.late, e)
	}
	kill := s.rand.IntN(8)
	if kill == 0 {
		return errKilled
	}
	s.raft.log = append(s.raft.log, e)
	s.seen = len(s.raft.log)
	if kill == 1 {
		return errKilled
	}
	return nil
}

// member is what one of them does until it leaves: it gives the index of the entry that it goes by.
func (s *sim) member(t *testing.T, self string, ids []string, from int, killed func()) (int, error) {
	void := map[int64]bool{}
	for {
		// A member that starts catches up with the cluster before it does anything: see Etcd.Joined.
		s.raft.mu.Lock()
		s.seen = len(s.raft.log)
		s.raft.mu.Unlock()
		r := Round{Board: s, Self: self, IDs: ids, Void: void, Prepare: func(context.Context) error { return nil }, Waiting: func([]string) {}}
		attempt, err := r.Decide(t.Context())
		if errors.Is(err, errKilled) {
			killed()
			continue
		}
		if err != nil {
			return 0, err
		}
		s.raft.mu.Lock()
		d := trail(s.raft.log[:s.seen], from).Decision(attempt)
		s.raft.mu.Unlock()
		if d.Index > 0 && d.Writes == 0 {
			return int(d.Index), nil
		}
		void[attempt] = true
	}
}

// trail reads a member's log, of which a snapshot has taken the entries before from.
func trail(log []entry, from int) *Trail {
	t := &Trail{}
	for i, e := range log[from:] {
		switch {
		case e.mark == "a user's write":
			t.Write()
		case e.mark == MarkDecide && e.value != 0:
			t.Decide(Decision{Attempt: e.value, Index: uint64(from + i + 1)})
		}
	}
	return t
}

// TestDecide kills members at random moments of the agreement and lets them begin again, while entries come late and twice. All
// must find the same entry, and have it in their logs when the first one leaves: also if an earlier attempt has been given up
// after they had agreed, and users have written since, or raft snapshots have passed it.
func TestDecide(t *testing.T) {
	pollMarks = time.Microsecond
	t.Cleanup(func() { pollMarks = 100 * time.Millisecond })
	kills := 0
	for seed := range uint64(120) {
		n := 2 + int(seed%4)
		var ids []string
		for i := range n {
			ids = append(ids, fmt.Sprintf("%c", 'a'+i))
		}
		r := &raft{}
		from := 0
		if seed%3 > 0 {
			r.log = []entry{{MarkDecide, 7}, {markReady + "b", 7}, {markHere + "b", 1}, {markConverted + "b", 7}, {markGo, 7}, {"a user's write", 1}}
		}
		if seed%3 > 1 {
			from = len(r.log)
		}
		given := len(r.log)
		sims := make([]*sim, n)
		var mu sync.Mutex // guards what follows
		first := 0        // the entry that the first one to leave goes by
		var wg sync.WaitGroup
		for i := range n {
			sims[i] = &sim{raft: r, rand: rand.New(rand.NewPCG(seed, uint64(i)))}
		}
		for i, s := range sims {
			wg.Go(func() {
				own, err := s.member(t, ids[i], ids, from, func() {
					mu.Lock()
					kills++
					mu.Unlock()
				})
				if err != nil {
					t.Errorf("seed %d: %s: %v", seed, ids[i], err)
					return
				}
				r.mu.Lock()
				defer r.mu.Unlock()
				mu.Lock()
				defer mu.Unlock()
				if first == 0 {
					first = own
					for j, other := range sims {
						if other.seen < own {
							t.Errorf("seed %d: %s leaves at entry %d, which %s does not have", seed, ids[i], own, ids[j])
						}
					}
				}
				if own != first || own <= given {
					t.Errorf("seed %d: %s leaves at entry %d, and another at %d", seed, ids[i], own, first)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.Fatalf("the log: %v", r.log)
		}
	}
	if kills < 80 {
		t.Errorf("only %d kills: this tests too little", kills)
	}
}

// TestMissed: a member that has missed what another one has gone by does not wait for it, and does not take what is left of an
// attempt that was given up for such a one.
func TestMissed(t *testing.T) {
	pollMarks = time.Millisecond
	t.Cleanup(func() { pollMarks = 100 * time.Millisecond })
	ids := []string{"a", "b"}
	for _, missing := range ids {
		r := &raft{log: []entry{{MarkDecide, 7}, {markGo, 7}, {markConverted + "a", 7}, {markConverted + "b", 7}}}
		board := func(i uint64) *sim { return &sim{raft: r, rand: rand.New(rand.NewPCG(9, i))} }
		round := func(self string, s *sim) *Round {
			return &Round{Board: s, Self: self, IDs: ids, Void: map[int64]bool{}, Prepare: func(context.Context) error { return nil }, Waiting: func([]string) {}}
		}
		other := ids[0]
		if missing == other {
			other = ids[1]
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			s := board(1)
			for ctx.Err() == nil {
				r.mu.Lock()
				s.seen = len(r.log)
				r.mu.Unlock()
				_ = round(other, s).Away(ctx, 7) // ErrAnew makes it look into its log and come back
			}
		})
		s := board(2)
		m := round(missing, s)
		m.Void[7] = true
		var err error
		for err = errKilled; errors.Is(err, errKilled); {
			_, err = m.Decide(ctx)
		}
		if !errors.Is(err, ErrMissed) {
			t.Errorf("%s: got %v", missing, err)
		}
		cancel()
		wg.Wait()
	}
}

// TestAwaited: whoever waits says for whom.
func TestAwaited(t *testing.T) {
	pollMarks = time.Millisecond
	t.Cleanup(func() { pollMarks = 100 * time.Millisecond })
	for _, self := range []string{"a", "b"} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		var waiting []string
		s := &quiet{raft: map[string]int64{markHere + "a": 1, markHere + "b": 1}}
		r := Round{Board: s, Self: self, IDs: []string{"c", "b", "a"}, Waiting: func(ids []string) { waiting = ids }}
		if self == "a" {
			go func() {
				time.Sleep(20 * time.Millisecond)
				_ = s.Set(ctx, markHere+"b", 1)
			}()
		}
		if _, err := r.Decide(ctx); !errors.Is(err, context.DeadlineExceeded) || fmt.Sprint(waiting) != "[c]" {
			t.Errorf("%s: %v, waiting for %v", self, err, waiting)
		}
		cancel()
	}
}

// quiet is a board without others.
type quiet struct {
	mu   sync.Mutex
	raft map[string]int64
}

func (q *quiet) Get(_ context.Context, mark string) (int64, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.raft[mark], nil
}

func (q *quiet) Set(_ context.Context, mark string, value int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.raft[mark] == 0 {
		q.raft[mark] = value
	}
	return nil
}

func (q *quiet) Clear(_ context.Context, mark string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.raft, mark)
	return nil
}
