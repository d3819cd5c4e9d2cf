package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cheggaaa/pb/v3"
	"golang.org/x/term"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

// output gives the account of a migration: for people on a terminal, or as one structured line per event.
type output struct {
	log    *slog.Logger // always there; discards on a terminal
	people bool
	w      io.Writer
	bar    *pb.ProgressBar
	began  time.Time
}

func newOutput(o outputFlags) *output {
	out := &output{w: os.Stderr, began: time.Now()}
	format := o.LogFormat
	if format == "auto" {
		format = "json"
		if term.IsTerminal(int(os.Stderr.Fd())) {
			format = "terminal"
		}
	}
	opts := &slog.HandlerOptions{Level: slog.Level(o.LogLevel)}
	switch format {
	case "json":
		out.log = slog.New(slog.NewJSONHandler(out.w, opts))
	case "text":
		out.log = slog.New(slog.NewTextHandler(out.w, opts))
	case "terminal":
		out.people, out.log = true, slog.New(slog.DiscardHandler)
	}
	return out
}

// warn tells of something that stops nothing.
func (o *output) warn(text string) {
	if o.people {
		fmt.Fprintf(o.w, "note: %s\n", text)
		return
	}
	o.log.Warn(text)
}

// observe is called for every event, in order.
func (o *output) observe(e migrate.Event) {
	if e.Kind != migrate.EventProgress {
		o.endBar()
	}
	if o.people {
		o.show(e)
		return
	}
	switch e.Kind {
	case migrate.EventInspected:
		o.log.Info("data dir inspected", "dataDir", e.State.DataDir, "version", e.State.Version.String(), "presence", e.State.Presence,
			"v2Keys", e.State.V2.Keys, "v3Keys", e.State.V3.Keys, "v3Revision", e.State.V3.Revision)
		for _, p := range e.State.Problems {
			o.log.Warn(p.Text, "code", p.Code, "hint", p.Hint)
		}
	case migrate.EventPlanned:
		o.log.Info("planned", "steps", len(e.Plan.Steps), "target", e.Plan.Target.String())
	case migrate.EventBackup:
		o.log.Info("backup is in place", "path", e.Backup, "reused", e.Reused)
	case migrate.EventStepStarted:
		s := e.Plan.Steps[e.Step-1]
		o.log.Info("step started", "step", e.Step, "of", len(e.Plan.Steps), "kind", s.Kind, "from", s.From.String(), "to", s.To.String(), "etcd", s.Binary)
	case migrate.EventStepDone:
		o.log.Info("step done", "step", e.Step, "of", len(e.Plan.Steps), "kind", e.Result.Kind, "versionTxt", e.Result.To.String(),
			"seconds", e.Result.Seconds, "keys", e.Result.Keys, "fingerprint", e.Result.Fingerprint, "ttlsEnded", e.Result.TTLsEnded)
	case migrate.EventBegun: // the next one says more
	case migrate.EventWaiting:
		o.log.Info("waiting for other members", "step", e.Step, "members", e.Waiting)
	case migrate.EventProgress:
		o.log.Debug("progress", "what", e.What, "unit", e.Unit, "done", e.Done, "total", e.Total)
	}
}

func (o *output) show(e migrate.Event) {
	switch e.Kind {
	case migrate.EventInspected:
		if e.State.Presence == migrate.Fresh {
			fmt.Fprintf(o.w, "%s holds no member's data\n", e.State.DataDir)
			return
		}
		fmt.Fprintf(o.w, "%s is at %s\n", e.State.DataDir, e.State.Version)
		for _, p := range e.State.Problems {
			fmt.Fprintf(o.w, "note: %s; %s\n", p.Text, p.Hint)
		}
	case migrate.EventPlanned:
		fmt.Fprintf(o.w, "%s to %s\n", plural(len(e.Plan.Steps), "step"), e.Plan.Target)
	case migrate.EventBackup:
		word := "backup"
		if e.Reused {
			word = "backup of the earlier run"
		}
		fmt.Fprintf(o.w, "%s: %s\n", word, e.Backup)
	case migrate.EventStepStarted:
		s := e.Plan.Steps[e.Step-1]
		by := ""
		if s.Binary != "" {
			by = " with " + filepath.Base(s.Binary)
		}
		fmt.Fprintf(o.w, "  %2d/%d %-8s to %-13s%s … ", e.Step, len(e.Plan.Steps), s.Kind, s.To, by)
	case migrate.EventStepDone:
		fmt.Fprintf(o.w, "%.2f s\n", e.Result.Seconds)
	case migrate.EventWaiting:
		fmt.Fprintf(o.w, "waiting for %s … ", strings.Join(e.Waiting, ", "))
	case migrate.EventProgress:
		o.showBar(e)
	}
}

func (o *output) showBar(e migrate.Event) {
	if e.Unit == migrate.UnitLines || o.bar == nil && e.Done >= e.Total {
		return // what has no end, or is over before there was anything to see
	}
	if o.bar == nil {
		fmt.Fprintln(o.w)
		o.bar = pb.New64(e.Total).SetWriter(o.w).Set("prefix", e.What+" ").Set(pb.Bytes, e.Unit == migrate.UnitBytes).Start()
	}
	o.bar.SetTotal(e.Total).SetCurrent(e.Done)
}

func (o *output) endBar() {
	if o.bar != nil {
		o.bar.Finish()
		o.bar = nil
	}
}

// finish tells how it ended, with everything that the person on call needs if it did not end well.
func (o *output) finish(r *migrate.Report, err error) {
	o.endBar()
	if err != nil {
		o.fail(err)
		return
	}
	seconds := time.Since(o.began).Seconds()
	switch {
	case !o.people && r.Changed():
		o.log.Info("migration done", "versionTxt", r.Target.String(), "steps", len(r.Steps), "seconds", seconds, "keys", r.KeysAfter,
			"backup", r.Backup)
	case !o.people:
		o.log.Info("nothing to do", "versionTxt", r.Target.String())
	case r.Changed():
		fmt.Fprintf(o.w, "done in %.2f s: %s is at %s, %s\n", seconds, r.DataDir, r.Target, plural(r.KeysAfter, "key"))
	default:
		fmt.Fprintf(o.w, "nothing to do: %s is at %s\n", r.DataDir, r.Target)
	}
}

func (o *output) fail(err error) {
	var e *migrate.Error
	if !errors.As(err, &e) {
		e = &migrate.Error{Err: err}
	}
	untouched := e.Kind == migrate.Refused || e.Kind == migrate.InUse
	if !o.people {
		attrs := []any{"changed", !untouched}
		for _, a := range [][2]string{{"op", e.Op}, {"data", e.Data}, {"backup", e.Backup}, {"hint", e.Hint}} {
			if a[1] != "" {
				attrs = append(attrs, a[0], a[1])
			}
		}
		o.log.Error(e.Err.Error(), attrs...)
		return
	}
	fmt.Fprintln(o.w)
	what := "error"
	if untouched {
		what = "refused, and nothing has been changed"
	}
	fmt.Fprintf(o.w, "%s: ", what)
	if e.Op != "" {
		fmt.Fprintf(o.w, "%s: ", e.Op)
	}
	fmt.Fprintf(o.w, "%v\n", e.Err)
	for _, line := range []struct{ name, text string }{{"the data", e.Data}, {"backup", e.Backup}, {"what to do", e.Hint}} {
		if line.text != "" {
			fmt.Fprintf(o.w, "  %-11s %s\n", line.name+":", line.text)
		}
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
