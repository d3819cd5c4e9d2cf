package migrate

import (
	"errors"
	"fmt"
	"strings"
)

// Kind says what an error means for the data, and so for the exit code.
type Kind int

const (
	// Failed says that a step did not succeed. The data is as the last finished step left it, or as Error.State says, and the same
	// command can be given again.
	Failed Kind = iota + 1
	// Refused says that nothing has been changed, because something must be decided or put right first.
	Refused
	// InUse says that nothing has been changed, because another process holds the data.
	InUse
	// Interrupted says that a signal or the caller's context ended the migration between two changes. Giving the same command again
	// goes on from there.
	Interrupted
)

// Error is what a person on call needs to know.
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
}

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

// KindOf gives the kind of an error of this package, Failed for all others.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Failed
}
