package matrix

import (
	_ "embed" // the page
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize/english"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

//go:embed page.html.tmpl
var pageText string

// pageTemplate is read when a page is written: nothing else has to wait for it.
var pageTemplate = sync.OnceValues(func() (*template.Template, error) {
	return template.New("page").Funcs(template.FuncMap{
		"label": Label,
		"heading": func(v versionfile.Version) template.HTML { // a version cannot hold anything that would need escaping
			return template.HTML(strings.Replace(Label(v), "/", "/<wbr>", 1))
		},
		"seconds": func(s float64) string { return fmt.Sprintf("%.2f", s) },
		"percent": func(part, whole float64) string { return fmt.Sprintf("%.1f", 100*part/max(whole, 0.001)) },
		"plural":  func(n int, what string) string { return english.Plural(n, what, "") },
		"list":    func(versions []versionfile.Version) string { return english.WordSeries(labels(versions), "and") },
	}).Parse(pageText)
})

// page is what the template is given.
type page struct {
	*Report
	Rows    []pageRow
	Groups  []Group
	Times   []StepTime
	Longest float64 // of all Times
	// Square says that rows and columns are the same versions, so that there is a diagonal.
	Square bool
	Passed, Refused,
	Failed, Missing int
	When, Took string
}

type pageRow struct {
	From  versionfile.Version
	Cells []pageCell
}

// pageCell is a field of the grid. Its class says what it looks like; glyph and word say the same to whoever does not see
// colours, or nothing at all.
type pageCell struct {
	Pair
	ID    string
	Class string // "same", "missing", or an Outcome
	Glyph string
	Word  string
	Short string // the time, for a pair that passed
	*Result
}

// WriteHTML writes the report as one HTML page that needs nothing else: no script, no font, no image.
func (r *Report) WriteHTML(w io.Writer) error {
	t, err := pageTemplate()
	if err != nil {
		return err
	}
	p := page{
		Report: r, Groups: slices.Concat(r.Reasons(Failed), r.Reasons(Refused)), Times: r.StepTimes(),
		Square: slices.Equal(r.From, r.To), Passed: r.Count(Passed), Refused: r.Count(Refused), Failed: r.Count(Failed),
		When: r.Began.UTC().Format("2 January 2006, 15:04 UTC"),
		Took: time.Duration(math.Ceil(r.Seconds) * float64(time.Second)).String(),
	}
	p.Missing = r.NotRun()
	for _, t := range p.Times {
		p.Longest = max(p.Longest, t.Longest)
	}
	for _, f := range r.From {
		row := pageRow{From: f}
		for _, t := range r.To {
			row.Cells = append(row.Cells, r.cell(Pair{f, t}))
		}
		p.Rows = append(p.Rows, row)
	}
	return t.Execute(w, p)
}

func (r *Report) cell(p Pair) pageCell {
	c := pageCell{Pair: p, ID: fmt.Sprintf("p-%s-%s", Label(p.From), Label(p.To)), Result: r.Get(p)}
	switch {
	case p.From == p.To:
		c.Class, c.Glyph, c.Word = "same", "", "the same version"
	case c.Result == nil:
		c.Class, c.Glyph, c.Word = "missing", "?", "not run"
	default:
		c.Class, c.Word = string(c.Outcome), string(c.Outcome)
		c.Glyph = map[Outcome]string{Passed: "✓", Refused: "⊘", Failed: "✗"}[c.Outcome]
		if c.Outcome == Passed {
			c.Short = fmt.Sprintf("%.2f", c.Seconds)
		}
	}
	return c
}
