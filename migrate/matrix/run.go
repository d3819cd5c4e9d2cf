package matrix

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// runner is one run of a matrix.
type runner struct {
	Options
	dirs    dirs
	user    *original // nil for the built-in workload
	store   *store
	began   time.Time
	sources map[versionfile.Version]*source

	mu      sync.Mutex // for all below
	results map[Pair]Result
	total   int
	// doneWeight and leftWeight are of the pairs of this run.
	doneWeight, leftWeight int
}

// dirs are the directories in the work dir.
type dirs struct{ original, from, pairs string }

// Run tries all pairs. Its error is nil however the pairs ended, as the Report tells. With an error the Report holds what
// was finished until then; it is nil if nothing was begun. Errors are of type *migrate.Error.
func Run(ctx context.Context, o Options) (report *Report, err error) {
	if o.WorkDir, err = filepath.Abs(o.WorkDir); err != nil {
		return nil, refuse(err, "name another directory with --work-dir")
	}
	unlock, err := lockWorkDir(o.WorkDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	pairs := Pairs(o.From, o.To)
	if len(pairs) == 0 {
		return nil, refuse(errors.New("there is no pair of two different versions to try"), "give more etcds, or less to choose from them")
	}
	m := &runner{
		Options: o, began: time.Now(), sources: map[versionfile.Version]*source{}, total: len(pairs),
		dirs: dirs{filepath.Join(o.WorkDir, "original"), filepath.Join(o.WorkDir, "from"), filepath.Join(o.WorkDir, "pairs")},
	}
	store, results, err := openStore(o.WorkDir, o.settings(), o.Resume)
	if err != nil {
		return nil, refuse(err, "to go on with it give --resume and the same settings, else another --work-dir")
	}
	defer func() { _ = store.close() }() // every line has been synced
	m.store, m.results = store, results
	todo := m.todo(pairs)
	resumed := len(pairs) - len(todo)
	if err := m.prepare(ctx, len(todo) > 0); err != nil {
		return nil, err
	}
	err = m.all(ctx, todo)
	report = m.report(pairs)
	report.Resumed = resumed
	if ctx.Err() != nil {
		err = &migrate.Error{Kind: migrate.Interrupted, Op: "matrix", Err: context.Cause(ctx),
			Hint: "give the same command with --work-dir and --resume to go on from there"}
	}
	return report, err
}

func lockWorkDir(dir string) (unlock func(), err error) {
	l, err := datadir.NewLayout(dir, "")
	if err != nil {
		return nil, refuse(err, "name another directory with --work-dir")
	}
	release, err := l.Lock()
	if err != nil {
		return nil, &migrate.Error{Kind: migrate.InUse, Op: "matrix", Err: err, Hint: "wait for the other matrix, or name another --work-dir"}
	}
	return func() { _ = release() }, nil // the kernel drops it anyway
}

func refuse(err error, hint string) error {
	return &migrate.Error{Kind: migrate.Refused, Op: "matrix", Err: err, Hint: hint}
}

// todo are the pairs without a result, or with a failure that may be mended by now.
func (m *runner) todo(pairs []Pair) (todo []Pair) {
	for _, p := range pairs {
		if r, ok := m.results[p]; ok && r.Outcome != Failed {
			continue
		}
		delete(m.results, p)
		todo = append(todo, p)
		m.leftWeight += weight(p)
		s := m.sources[p.From]
		if s == nil {
			s = &source{version: p.From}
			m.sources[p.From] = s
		}
		s.left++
	}
	return todo
}

// weight is about how much work a pair is: its steps, the start of the target, and the copy.
func weight(p Pair) int {
	minors := versionfile.Minors()
	steps := slices.Index(minors, p.To.Minor()) - slices.Index(minors, p.From.Minor())
	if p.From.Storage != p.To.Storage {
		steps += 2
	}
	return max(steps, -steps) + 2
}

// prepare removes what a killed run has left, and copies the user's data.
func (m *runner) prepare(ctx context.Context, any bool) error {
	for _, dir := range []string{m.dirs.original, m.dirs.from, m.dirs.pairs} {
		if err := os.RemoveAll(dir); err != nil {
			return refuse(err, "name another --work-dir")
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return refuse(err, "name another --work-dir")
		}
	}
	if m.DataDir == "" || !any {
		return nil
	}
	user, err := copyOriginal(ctx, m.Options, m.dirs.original)
	m.user = user
	return err
}

// all tries the pairs, Jobs at a time.
func (m *runner) all(ctx context.Context, pairs []Pair) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(m.Jobs, 1))
	for _, p := range pairs {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			m.tell(p, nil)
			s := m.sources[p.From]
			result := m.try(ctx, s, p)
			if ctx.Err() != nil {
				return ctx.Err() // it has failed for that reason
			}
			if err := m.done(result); err != nil {
				return fmt.Errorf("write down the result of %s: %w", p, err)
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), os.RemoveAll(m.dirs.from), os.RemoveAll(m.dirs.original))
}

// done keeps a result, and removes the source's data after its last pair.
func (m *runner) done(r Result) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.store.write(r); err != nil {
		return err
	}
	m.results[r.Pair] = r
	m.doneWeight += weight(r.Pair)
	m.leftWeight -= weight(r.Pair)
	s := m.sources[r.From]
	if s.left--; s.left == 0 {
		s.content = nil
		if err := os.RemoveAll(s.dir); err != nil {
			return err
		}
	}
	m.tellLocked(r.Pair, &r)
	return nil
}

func (m *runner) tell(p Pair, r *Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tellLocked(p, r)
}

func (m *runner) tellLocked(p Pair, r *Result) {
	if m.Observer == nil {
		return
	}
	e := Event{Pair: p, Result: r, Done: len(m.results), Total: m.total}
	if m.doneWeight > 0 {
		e.Left = time.Since(m.began) / time.Duration(m.doneWeight) * time.Duration(m.leftWeight)
	}
	m.Observer(e)
}

func (m *runner) report(pairs []Pair) *Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &Report{
		Tool: m.Tool, Machine: fmt.Sprintf("%s/%s, %d CPUs", runtime.GOOS, runtime.GOARCH, runtime.NumCPU()),
		Began: m.began, Seconds: time.Since(m.began).Seconds(), DataDir: m.DataDir, From: m.From, To: m.To, Results: []Result{},
	}
	for _, p := range pairs {
		if result, ok := m.results[p]; ok {
			r.Results = append(r.Results, result)
		}
	}
	return r
}
