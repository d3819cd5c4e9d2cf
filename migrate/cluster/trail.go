package cluster

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Trail is what agreements have left in a member's log, read from its first entry to its last.
type Trail struct {
	decides map[int64]Decision
	writes  int
}

// Decision is the entry of the raft log at which the members change their data offline, in one attempt to agree.
type Decision struct {
	Attempt     int64
	Index, Term uint64
	At          time.Time // when it was proposed, by the clock of the member that did, where the mark has it
	// Writes counts the entries behind it that change what users have stored.
	Writes int
}

// Decide notes an entry that sets MarkDecide. The first one of an attempt is what counts, also if the mark was set when it was
// applied: it can be in the log twice, because whoever has got no answer says it again.
func (t *Trail) Decide(d Decision) {
	if _, there := t.decides[d.Attempt]; there {
		return
	}
	if t.decides == nil {
		t.decides = map[int64]Decision{}
	}
	d.Writes = t.writes
	t.decides[d.Attempt] = d
}

// Write notes an entry that changes what users have stored.
func (t *Trail) Write() { t.writes++ }

// Decision gives that of an attempt, the zero one if it is not in the log.
func (t *Trail) Decision(attempt int64) Decision {
	d, there := t.decides[attempt]
	if there {
		d.Writes = t.writes - d.Writes
	}
	return d
}

// At gives the one with that index, the zero one if there is none.
func (t *Trail) At(index uint64) Decision {
	for _, d := range t.decides {
		if d.Index == index {
			return t.Decision(d.Attempt)
		}
	}
	return Decision{}
}

// All gives them, the newest first.
func (t *Trail) All() (all []Decision) {
	for attempt := range maps.Keys(t.decides) {
		all = append(all, t.Decision(attempt))
	}
	slices.SortFunc(all, func(a, b Decision) int { return cmp.Compare(b.Index, a.Index) })
	return all
}
