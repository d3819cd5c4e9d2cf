package matrix

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// try takes one pair's way on a copy of the source's data.
func (m *runner) try(ctx context.Context, s *source, p Pair) (r Result) {
	r = Result{Pair: p, Steps: []Step{}}
	s.once.Do(func() { s.err = m.make(ctx, s) })
	if s.err != nil {
		r.end(s.err)
		return r
	}
	r.Before = count(*s.content)
	dir := filepath.Join(m.dirs.pairs, strings.ReplaceAll(p.From.String()+"-"+p.To.String(), "/", "-"))
	if err := m.migrate(ctx, s, p, dir, &r); err != nil {
		r.end(err)
	} else {
		r.Outcome = Passed
	}
	if r.Outcome == Failed {
		r.DataDir = dir
	} else if err := os.RemoveAll(dir); err != nil {
		r.end(err)
	}
	return r
}

// end notes why a pair has come to nothing.
func (r *Result) end(err error) {
	r.Outcome = Failed
	var e *migrate.Error
	if errors.As(err, &e) {
		if e.Kind == migrate.Refused {
			r.Outcome, r.Hint = Refused, e.Hint
		}
	}
	r.Reason = reason(err)
}

var stepNumber = regexp.MustCompile(`^step \d+ of \d+, `)

// reason is an error's text in one line, without what has a field of its own, and without what differs between pairs that
// fail for the same reason.
func reason(err error) string {
	text := err.Error()
	var e *migrate.Error
	if errors.As(err, &e) {
		what := e.Err.Error()
		if e.Op != "" {
			what = stepNumber.ReplaceAllString(e.Op, "") + ": " + what
		}
		text = strings.Replace(text, e.Error(), what, 1)
	}
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); !strings.Contains(strings.Join(lines, "\n"), line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

func (m *runner) migrate(ctx context.Context, s *source, p Pair, dir string, r *Result) error {
	from, err := datadir.NewLayout(s.dir, "")
	if err != nil {
		return err
	}
	if err := copyData(ctx, from, dir); err != nil {
		return err
	}
	report, err := migrate.New(m.request(dir, p.To)).Run(ctx)
	if report != nil {
		r.Seconds = report.Seconds
		for _, s := range report.Steps {
			r.Steps = append(r.Steps, Step{s.Kind, s.To, s.Seconds})
		}
	}
	if err != nil {
		return err
	}
	if got, err := versionfile.Read(dir); err != nil {
		return err
	} else if got != p.To {
		return fmt.Errorf("version.txt says %s after the migration", got)
	}
	return m.prove(ctx, s, p, dir, r)
}

// prove starts the target's etcd, compares what it serves with what the source's has served, and has it take a write.
func (m *runner) prove(ctx context.Context, s *source, p Pair, dir string, r *Result) error {
	etcd, err := m.start(ctx, p.To, dir)
	if err != nil {
		return fmt.Errorf("start the target after the migration: %w", err)
	}
	hidden := append([]string(nil), s.hidden...)
	if p.From.Storage == versionfile.Etcd3 {
		hidden = hidden[:0]
		for k := range s.content.Keys {
			if isHidden(k) {
				hidden = append(hidden, k)
			}
		}
	}
	after, err := read(ctx, etcd, p.To.Storage, hidden)
	if err == nil {
		r.After = count(after)
		if r.Differences = pathtest.Compare(*s.content, after); len(r.Differences) > 0 {
			if m.user != nil && !m.NameKeys {
				r.Differences = []string{fmt.Sprintf("differences: %d", len(r.Differences))}
			}
			err = errors.New("the target's etcd does not serve what the source's did")
		}
	}
	if err == nil && (m.user == nil || len(m.user.state.V3.Alarms) == 0) {
		err = write(ctx, etcd, p.To.Storage)
	}
	return errors.Join(err, etcd.Stop())
}

// write makes a write to the store that holds the keys.
func write(ctx context.Context, etcd *pathtest.Server, storage versionfile.Storage) error {
	if storage == versionfile.Etcd3 {
		if err := etcd.WriteOnce(ctx); err != nil {
			return fmt.Errorf("the target's etcd takes no writes: %w", err)
		}
		return nil
	}
	status, _, err := etcd.V2(ctx, http.MethodPut, "/pathtest/written", url.Values{"value": {"1"}})
	if err == nil && status >= http.StatusBadRequest {
		err = fmt.Errorf("status %d", status)
	}
	if err != nil {
		return fmt.Errorf("the target's etcd takes no writes: %w", err)
	}
	return nil
}

func count(content pathtest.Content) Counts {
	c := Counts{Keys: len(content.Keys), Revision: content.Revision}
	for _, k := range content.Keys {
		if !k.Expiry.IsZero() {
			c.TTLs++
		}
	}
	return c
}
