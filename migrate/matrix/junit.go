package matrix

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// The elements of JUnit XML that continuous integrations read. There is no standard; these are in the schema of
// Jenkins's xunit plugin (junit-10.xsd), which the others follow.
type (
	junitSuites struct {
		XMLName xml.Name   `xml:"testsuites"`
		Suite   junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name      string      `xml:"name,attr"`
		Tests     int         `xml:"tests,attr"`
		Failures  int         `xml:"failures,attr"`
		Errors    int         `xml:"errors,attr"`
		Skipped   int         `xml:"skipped,attr"`
		Time      string      `xml:"time,attr"`
		Timestamp string      `xml:"timestamp,attr"`
		Cases     []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string        `xml:"classname,attr"`
		Name    string        `xml:"name,attr"`
		Time    string        `xml:"time,attr"`
		Failure *junitMessage `xml:"failure"`
		Error   *junitMessage `xml:"error"`
		Skipped *junitMessage `xml:"skipped"`
		Output  string        `xml:"system-out,omitempty"`
	}
	junitMessage struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// WriteJUnit writes the report as JUnit XML: a test case for each pair. A refused pair is a skipped one. One that the run did
// not get to is an error, so that a matrix that was interrupted does not pass for one without failures.
func (r *Report) WriteJUnit(w io.Writer) error {
	s := junitSuite{
		Name: "etcd-migrate matrix", Failures: r.Count(Failed), Time: seconds(r.Seconds), Timestamp: r.Began.UTC().Format(time.RFC3339),
	}
	for _, p := range Pairs(r.From, r.To) {
		c := junitCase{Class: "from " + Label(p.From), Name: "to " + Label(p.To), Time: "0.000"}
		result := r.Get(p)
		switch {
		case result == nil:
			c.Error = &junitMessage{Message: "not run: the matrix was ended before it got here"}
			s.Errors++
		case result.Outcome == Refused:
			c.Skipped = &junitMessage{Message: "refused: " + result.Reason, Text: result.Hint}
		case result.Outcome == Failed:
			c.Failure = &junitMessage{Message: result.Reason, Text: strings.Join(result.Differences, "\n")}
		}
		if result != nil {
			c.Time = seconds(result.Seconds)
			c.Output = result.account()
		}
		if c.Skipped != nil {
			s.Skipped++
		}
		s.Cases = append(s.Cases, c)
	}
	s.Tests = len(s.Cases)
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(junitSuites{Suite: s}); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func seconds(s float64) string { return fmt.Sprintf("%.3f", s) }

// account tells in a few lines what was done.
func (r *Result) account() string {
	var b strings.Builder
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "%s to %s: %.3f s\n", s.Kind, Label(s.To), s.Seconds)
	}
	if r.Outcome == Passed {
		fmt.Fprintf(&b, "keys: %d before, %d after; revision: %d before, %d after\n", r.Before.Keys, r.After.Keys, r.Before.Revision, r.After.Revision)
	}
	if r.DataDir != "" {
		fmt.Fprintf(&b, "data dir: %s\n", r.DataDir)
	}
	return b.String()
}
