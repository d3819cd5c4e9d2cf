package migrate

import "time"

// EventKind says what an Event tells.
type EventKind string

const (
	// EventBegun tells that there may be something to do: the look that costs next to nothing did not find the data at the
	// target. Where it did, an Observer is told nothing at all.
	EventBegun EventKind = "begun"
	// EventInspected tells that State is known.
	EventInspected EventKind = "inspected"
	// EventPlanned tells that Plan is known.
	EventPlanned EventKind = "planned"
	// EventBackup tells that the backup at Backup is there, or that an earlier run's is used again (Reused).
	EventBackup EventKind = "backup"
	// EventStepStarted tells that step Step of the plan is begun: Plan.Steps[Step-1].
	EventStepStarted EventKind = "step started"
	// EventStepDone tells that it is done and proven, with its Result.
	EventStepDone EventKind = "step done"
	// EventWaiting tells which other members of the cluster a step waits for, in Waiting. It comes when that changes.
	EventWaiting EventKind = "waiting"
	// EventProgress tells that Done of Total units (see Unit) of what is under way are done. It comes at most some ten times
	// a second, and at the end.
	EventProgress EventKind = "progress"
)

// Event tells an Observer how a migration is going. What State and Plan point to must not be changed.
type Event struct {
	Kind EventKind
	// State and Plan are set from the event on that tells them.
	State *State
	Plan  *Plan
	// Step is the step's number, counted from 1; 0 before the first.
	Step   int
	Result *StepReport // of EventStepDone
	Backup string      // of EventBackup: its path
	Reused bool        // of EventBackup: an earlier run made it
	// Waiting says of each member that is waited for what it does: "m2 (etcd 3.4.31)".
	Waiting []string

	What        string // of EventProgress: "backup", "convert", "prove", "etcd", …
	Unit        string // UnitBytes, UnitRecords or UnitLines
	Done, Total int64  // Total is 0 where it is not known
}

// The units that progress is counted in.
const (
	UnitBytes   = "bytes"
	UnitRecords = "records"
	// UnitLines are what a private etcd prints: a sign of life where nothing else can be counted. Their total is never known.
	UnitLines = "lines"
)

// progress turns a stream of counts into events that are far enough apart.
func (m *Migrator) progress(what, unit string) func(done, total int64) {
	const apart = 100 * time.Millisecond
	last := m.now()
	return func(done, total int64) {
		if now := m.now(); now.Sub(last) >= apart || done == total {
			last = now
			m.tell(Event{Kind: EventProgress, What: what, Unit: unit, Done: done, Total: total})
		}
	}
}
