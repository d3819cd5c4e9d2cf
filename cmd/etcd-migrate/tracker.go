package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

// tracker knows how far a migration is, and whether it still gets on. Its methods may be called from several goroutines.
type tracker struct {
	// stall is how long nothing may happen while we do the work ourselves. While a private etcd does it, stepTimeout comes
	// on top: it says nothing while it reads its store, and Migrator stops it after that time by itself, with an error that
	// says more than a killed container.
	stall, stepTimeout time.Duration
	now                func() time.Time

	mu sync.Mutex
	progress
	reached map[string]int64 // Done of the last event in this step, by What
}

// progress is what there is to tell.
type progress struct {
	began, last time.Time // of the migration, and of the last event
	steps       int       // of the plan
	done        int       // of them, finished in this run
	number      int       // of the step under way, counted from 1; 0 for none
	step        migrate.Step
	work        map[string]int64 // done since the start, by unit
}

func newTracker(stall, stepTimeout time.Duration) *tracker {
	t := &tracker{stall: stall, stepTimeout: stepTimeout, now: time.Now, reached: map[string]int64{}}
	t.work = map[string]int64{migrate.UnitBytes: 0, migrate.UnitRecords: 0, migrate.UnitLines: 0}
	t.began = t.now()
	t.last = t.began
	return t
}

// observe takes an event of the migration.
func (t *tracker) observe(e migrate.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = t.now()
	switch e.Kind {
	case migrate.EventPlanned:
		t.steps = len(e.Plan.Steps)
	case migrate.EventStepStarted:
		t.number, t.step = e.Step, e.Plan.Steps[e.Step-1]
		clear(t.reached)
	case migrate.EventStepDone:
		t.number, t.done = 0, t.done+1
	case migrate.EventProgress:
		before := t.reached[e.What]
		if e.Done < before {
			before = 0 // it is another one
		}
		t.work[e.Unit] += e.Done - before
		t.reached[e.What] = e.Done
	}
}

// look gives how far the migration is.
func (t *tracker) look() progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.progress
	p.work = make(map[string]int64, len(t.work))
	for unit, n := range t.work {
		p.work[unit] = n
	}
	return p
}

// alive says whether there has been progress lately, and what is under way, without any name of the data.
func (t *tracker) alive() (bool, string) {
	p := t.look()
	limit, what := t.stall, "preparing"
	switch {
	case p.number > 0:
		what = fmt.Sprintf("step %d of %d, %s to %s", p.number, p.steps, p.step.Kind, p.step.To)
		if p.step.Binary != "" {
			limit += t.stepTimeout
		}
	case p.steps > 0 && p.done == p.steps:
		what = "migrated"
	}
	if idle := t.now().Sub(p.last); idle > limit {
		return false, fmt.Sprintf("no progress for %s: %s", idle.Round(time.Second), what)
	}
	return true, "migrating: " + what
}
