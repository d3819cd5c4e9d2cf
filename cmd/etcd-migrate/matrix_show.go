package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/cheggaaa/pb/v3"
	"golang.org/x/term"

	"github.com/etcd-migrate/etcd-migrate/migrate/matrix"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// matrixShow shows how a matrix goes: on a terminal a table that fills up, else a line for each pair.
type matrixShow struct {
	w        io.Writer
	from, to []versionfile.Version
	live     bool

	mu      sync.Mutex // for all below
	results map[matrix.Pair]*matrix.Result
	begun   map[matrix.Pair]time.Time
	last    matrix.Event
	bar     *pb.ProgressBar
	lines   int // that the table takes on the terminal now
	stop    chan struct{}
	stopped chan struct{}
}

// newMatrixShow writes to standard output, or to standard error if that is for JSON.
func newMatrixShow(json bool, from, to []versionfile.Version) *matrixShow {
	s := &matrixShow{w: os.Stdout, from: from, to: to, results: map[matrix.Pair]*matrix.Result{}, begun: map[matrix.Pair]time.Time{}}
	f := os.Stdout
	if json {
		s.w, f = os.Stderr, os.Stderr
	}
	if fd := int(f.Fd()); term.IsTerminal(fd) {
		width, height, err := term.GetSize(fd)
		tableWidth, tableHeight := gridSize(from, to)
		s.live = err == nil && tableWidth <= width && tableHeight+2 <= height
	}
	if s.live {
		const often = 500 * time.Millisecond
		s.bar = pb.New(0).SetTemplateString(`{{bar . }} {{counters . }} {{string . "left"}}`).SetWidth(60)
		s.stop, s.stopped = make(chan struct{}), make(chan struct{})
		go func() {
			defer close(s.stopped)
			for {
				select {
				case <-s.stop:
					return
				case <-time.After(often):
					s.mu.Lock()
					s.draw()
					s.mu.Unlock()
				}
			}
		}()
	}
	return s
}

// observe is called for every event.
func (s *matrixShow) observe(e matrix.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = e
	if e.Result == nil {
		s.begun[e.Pair] = time.Now()
	} else {
		s.results[e.Pair] = e.Result
	}
	switch {
	case s.live:
		s.draw()
	case e.Result != nil:
		fmt.Fprintf(s.w, "%d/%d %s: %s%s\n", e.Done, e.Total, e.Pair, outcomeText(e.Result), left(e))
	}
}

func outcomeText(r *matrix.Result) string {
	text := fmt.Sprintf("%s, %s in %.2f s", r.Outcome, plural(len(r.Steps), "step"), r.Seconds)
	if r.Outcome != matrix.Passed {
		text = fmt.Sprintf("%s: %s", r.Outcome, r.Reason)
	}
	return text
}

func left(e matrix.Event) string {
	if e.Done == e.Total || e.Left == 0 {
		return ""
	}
	return fmt.Sprintf(" (about %s left)", e.Left.Round(time.Second))
}

// end takes the live table away: the final one follows.
func (s *matrixShow) end() {
	if !s.live {
		return
	}
	close(s.stop)
	<-s.stopped
	s.clear()
}

// clear moves to where the table begins, and clears from there on.
func (s *matrixShow) clear() {
	if s.lines > 0 {
		fmt.Fprintf(s.w, "\x1b[%dA\x1b[J", s.lines)
		s.lines = 0
	}
}

func (s *matrixShow) draw() {
	s.clear()
	var b strings.Builder
	fmt.Fprintln(&b, legend)
	writeGrid(&b, s.from, s.to, func(p matrix.Pair) (string, string) {
		if r := s.results[p]; r != nil {
			return cell(r)
		}
		if began, ok := s.begun[p]; ok {
			return fmt.Sprintf("… %3.0fs", time.Since(began).Seconds()), ""
		}
		return "", ""
	})
	s.bar.SetTotal(int64(s.last.Total)).SetCurrent(int64(s.last.Done)).Set("left", strings.TrimSpace(left(s.last)))
	fmt.Fprintf(&b, "%s\n", s.bar.String())
	s.lines = strings.Count(b.String(), "\n")
	fmt.Fprint(s.w, b.String())
}

// cell is what the table shows of a result, and its colour. The signs are those of the HTML page.
func cell(r *matrix.Result) (text, colour string) {
	switch r.Outcome {
	case matrix.Passed:
		digits := 2
		if r.Seconds >= 100 {
			digits = 0
		}
		return fmt.Sprintf("✓%5.*f", digits, r.Seconds), "\x1b[32m"
	case matrix.Refused:
		return "⊘     ", "\x1b[33m"
	default:
		return "✗ FAIL", "\x1b[1;31m"
	}
}

const (
	cellWidth = 6 // so that ten versions are less than 80 characters
	legend    = "from (down) to (across): ✓ passed in so many seconds, ⊘ refused, ✗ failed"
)

// gridSize is what the table takes on a terminal, with its legend.
func gridSize(from, to []versionfile.Version) (width, height int) {
	_, rowLabel := versionsOf(from)
	_, column := versionsOf(to)
	return max(rowLabel+len(to)*(max(column, cellWidth)+1), utf8.RuneCountInString(legend)), len(from) + 2
}

// writeGrid writes the table: a row for each version to start from, a column for each to go to.
func writeGrid(w io.Writer, from, to []versionfile.Version, cell func(matrix.Pair) (text, colour string)) {
	rows, rowLabel := versionsOf(from)
	columns, width := versionsOf(to)
	width = max(width, cellWidth)
	fmt.Fprintf(w, "%*s", rowLabel, "")
	for _, label := range columns {
		fmt.Fprintf(w, " %*s", width, label)
	}
	for i, f := range from {
		fmt.Fprintf(w, "\n%-*s", rowLabel, rows[i])
		for _, t := range to {
			text, colour := "–", ""
			if f != t {
				text, colour = cell(matrix.Pair{From: f, To: t})
			}
			fmt.Fprintf(w, " %*s%s%s", width-len([]rune(text)), "", colour, text)
			if colour != "" {
				fmt.Fprint(w, "\x1b[0m")
			}
		}
	}
	fmt.Fprintln(w)
}

// printMatrix prints the final table, and below it what has not passed and why.
func printMatrix(f *os.File, r *matrix.Report) error {
	colours := term.IsTerminal(int(f.Fd()))
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n\n", legend)
	writeGrid(&b, r.From, r.To, func(p matrix.Pair) (string, string) {
		result := r.Get(p)
		if result == nil {
			return "", ""
		}
		text, colour := cell(result)
		if !colours {
			colour = ""
		}
		return text, colour
	})
	for _, o := range []matrix.Outcome{matrix.Failed, matrix.Refused} {
		for _, g := range r.Reasons(o) {
			fmt.Fprintf(&b, "\n%s: %s\n  %s\n", o, pairList(g.Pairs), g.Reason)
			for _, d := range g.Differences {
				fmt.Fprintf(&b, "    %s\n", d)
			}
			if g.Hint != "" {
				fmt.Fprintf(&b, "  what to do: %s\n", g.Hint)
			}
			for _, dir := range g.DataDirs {
				fmt.Fprintf(&b, "  data dir: %s\n", dir)
			}
		}
	}
	fmt.Fprintf(&b, "\n%s in %.0f s: %d passed, %d refused, %d failed", plural(len(matrix.Pairs(r.From, r.To)), "pair"), r.Seconds,
		r.Count(matrix.Passed), r.Count(matrix.Refused), r.Count(matrix.Failed))
	if n := r.NotRun(); n > 0 {
		fmt.Fprintf(&b, ", %d not run", n)
	}
	if r.Resumed > 0 {
		fmt.Fprintf(&b, "; %d of an earlier run", r.Resumed)
	}
	_, err := fmt.Fprintln(f, b.String())
	return err
}

func pairList(pairs []matrix.Pair) string {
	const most = 6
	var names []string
	for _, p := range pairs[:min(len(pairs), most)] {
		names = append(names, p.String())
	}
	if len(pairs) > most {
		names = append(names, fmt.Sprintf("and %d more", len(pairs)-most))
	}
	return strings.Join(names, ", ")
}
