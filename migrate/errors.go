package migrate

import (
	"errors"
	"fmt"
	"strings"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
)

// Kind says what an error means for the data, and so for the exit code.
type Kind int

const (
	// Failed says that a step did not succeed. The data is as the last finished step left it, or as Error.Data says, and the
	// same command can be given again.
	Failed Kind = iota + 1
	// Refused says that nothing has been changed, because something must be decided or put right first.
	Refused
	// InUse says that nothing has been changed, because another process holds the data.
	InUse
	// Interrupted says that a signal or the caller's context ended the migration between two changes. Giving the same command again
	// goes on from there.
	Interrupted
)

// HalfRestored is what Error.Data says of a restore that has been begun and could not be completed.
const HalfRestored = "the restore has been begun and is not complete: no etcd may be started on the data until it is"

// Error is what a person on call needs to know. Get it from an error of this package with errors.As.
type Error struct {
	Kind Kind
	Op   string // what was being done: "upgrade to 3.5.35"
	Err  error  // what happened
	// Data says what state the data is in now; empty where nothing has been changed.
	Data string
	// Backup is the path of the untouched copy from before the first step; empty where none has been made.
	Backup string
	// Hint says what to do next.
	Hint string
	// Names are examples of what it is about. They are data: Error leaves them out, and so must logs and reports.
	Names []Names
}

// Names are examples of keys, users or roles that an error or a problem counts. Only a person who asks for them is shown
// them.
type Names struct {
	What  string   // "keys of the v2 store"
	Names []string // at most MaxNames
	Of    int      // how many there are
}

// MaxNames is how many examples there are of anything.
const MaxNames = convert.MaxExamples

// names gives the first few of them, nothing for none.
func names(what string, all []string, of int) []Names {
	if len(all) == 0 {
		return nil
	}
	return []Names{{what, all[:min(len(all), MaxNames)], of}}
}

// showNames is what a hint says where there are names.
const showNames = "; --show-keys names some of them"

// Error gives all of it in one line, for logs.
func (e *Error) Error() string {
	parts := []string{fmt.Sprintf("%s: %v", e.Op, e.Err)}
	if e.Op == "" {
		parts[0] = e.Err.Error()
	}
	if e.Kind == Refused || e.Kind == InUse {
		parts = append(parts, "nothing has been changed")
	}
	if e.Data != "" {
		parts = append(parts, e.Data)
	}
	if e.Backup != "" {
		parts = append(parts, "the untouched copy from before is "+e.Backup)
	}
	if e.Hint != "" {
		parts = append(parts, e.Hint)
	}
	return strings.Join(parts, "; ")
}

func (e *Error) Unwrap() error { return e.Err }

// refuse makes the error for bad input: nothing has been touched.
func refuse(err error, hint string) *Error {
	return &Error{Kind: Refused, Err: err, Hint: hint}
}

// naming adds examples of what the error is about.
func (e *Error) naming(n []Names) *Error {
	if len(n) > 0 {
		e.Names = append(e.Names, n...)
		e.Hint += showNames
	}
	return e
}

// KindOf gives the kind of an error of this package, Failed for all others.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Failed
}
