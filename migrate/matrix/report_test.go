package matrix

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

func version(t testing.TB, s string) versionfile.Version {
	t.Helper()
	v, err := versionfile.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// hostile is text that must not become markup.
const hostile = `key "</script><script>alert(1)</script>&\x00" is lost`

// sample has a pair for each way to end, and one that was not run.
func sample(t testing.TB) *Report {
	v2, v3, v35 := version(t, "2.3.8/etcd2"), version(t, "3.4.31/etcd3"), version(t, "3.5.35/etcd2")
	versions := []versionfile.Version{v2, v3, v35}
	return &Report{
		Tool: "etcd-migrate test", Machine: "linux/amd64, 2 CPUs", Began: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC), Seconds: 61.2,
		From: versions, To: versions,
		Results: []Result{
			{Pair: Pair{v2, v3}, Outcome: Passed, Seconds: 1.25, Steps: []Step{{migrate.StepConvert, v3, 0.25}, {migrate.StepUpgrade, v3, 0.5}},
				Before: Counts{10, 2, 30}, After: Counts{9, 1, 31}},
			{Pair: Pair{v2, v35}, Outcome: Failed, Reason: "two differ", Differences: []string{hostile}, DataDir: "/w/pairs/x",
				Steps: []Step{{migrate.StepUpgrade, v35, 0.7}}, Before: Counts{10, 2, 30}, After: Counts{9, 1, 30}},
			{Pair: Pair{v3, v2}, Outcome: Refused, Reason: "3 values are not JSON", Hint: "accept it", Steps: []Step{}},
			{Pair: Pair{v35, v2}, Outcome: Refused, Reason: "3 values are not JSON", Hint: "accept it", Steps: []Step{}},
			{Pair: Pair{v35, v3}, Outcome: Passed, Seconds: 0.75, Steps: []Step{{migrate.StepConvert, v3, 0.75}}},
		},
	}
}

// TestHTML sees that the page needs nothing from elsewhere, that nothing in it can become markup, and that every pair says
// how it ended in words.
func TestHTML(t *testing.T) {
	var b bytes.Buffer
	if err := sample(t).WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, bad := range []string{"<script", "http:", "https:", "src=", "url(", "@import", "<link", "ZgotmplZ", "<no value>"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q in it", bad)
		}
	}
	if !strings.Contains(page, "&lt;/script&gt;") {
		t.Error("the difference is not shown")
	}
	for _, want := range []string{
		"1 upgrade path failed", "2 passed", "2 refused", "1 failed", "1 not run", "3.5.35/<wbr>etcd2",
		`title="2.3.8 to 3.4.31: passed in 1.25 s, 2 steps"`, `title="3.4.31 to 2.3.8: refused: 3 values are not JSON"`,
		`title="2.3.8 to 3.5.35/etcd2: failed: two differ"`, `title="3.4.31 to 3.5.35/etcd2: not run"`,
		"10 keys, 2 with a TTL, revision 30; afterwards 9 keys, 1 with a TTL, revision 31", "/w/pairs/x", "convert to 3.4.31",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	for _, m := range regexp.MustCompile(`popovertarget="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if strings.Count(page, `id="`+m[1]+`"`) != 1 {
			t.Errorf("a field opens %q, which is not there once", m[1])
		}
	}
}

// TestHTMLPart has a page of some pairs only: it must not tell of all of them, nor of a diagonal that is not there.
func TestHTMLPart(t *testing.T) {
	r := sample(t)
	r.From, r.To, r.Results = r.From[:1], r.To[1:], r.Results[:1]
	for square, want := range map[bool]string{
		false: "was migrated\nfrom etcd 2.3.8 to 3.4.31 and 3.5.35/etcd2,",
		true:  "was migrated\nfrom each of the etcd versions 2.3.8, 3.4.31 and 3.5.35/etcd2 to each other one,",
	} {
		if square {
			r = sample(t)
		}
		var b bytes.Buffer
		if err := r.WriteHTML(&b); err != nil {
			t.Fatal(err)
		}
		if page := b.String(); !strings.Contains(page, want) || strings.Contains(page, "the diagonal") != square {
			t.Errorf("square: %v; the page does not have %q, or the wrong words about the diagonal", square, want)
		}
	}
}

// TestJUnit reads the XML back.
func TestJUnit(t *testing.T) {
	var b bytes.Buffer
	if err := sample(t).WriteJUnit(&b); err != nil {
		t.Fatal(err)
	}
	var got junitSuites
	if err := xml.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	s := got.Suite
	if s.Tests != 6 || s.Failures != 1 || s.Skipped != 2 || s.Errors != 1 || s.Time != "61.200" || s.Timestamp != "2026-11-20T12:00:00Z" {
		t.Errorf("the suite is %+v", s)
	}
	var cases []string
	for _, c := range s.Cases {
		how := "passed"
		if c.Failure != nil {
			how = "failure: " + c.Failure.Message
		}
		if c.Skipped != nil {
			how = "skipped: " + c.Skipped.Message
		}
		if c.Error != nil {
			how = "error: " + c.Error.Message
		}
		cases = append(cases, c.Class+" "+c.Name+" "+how)
	}
	want := []string{
		"from 2.3.8 to 3.4.31 passed", "from 2.3.8 to 3.5.35/etcd2 failure: two differ", "from 3.4.31 to 2.3.8 skipped: refused: 3 values are not JSON",
		"from 3.4.31 to 3.5.35/etcd2 error: not run: the matrix was ended before it got here", "from 3.5.35/etcd2 to 2.3.8 skipped: refused: 3 values are not JSON",
		"from 3.5.35/etcd2 to 3.4.31 passed",
	}
	if diff := cmp.Diff(want, cases); diff != "" {
		t.Error(diff)
	}
	if text := s.Cases[1].Failure.Text; !strings.Contains(text, "</script>") {
		t.Errorf("the failure says %q", text)
	}
}

func TestReasonsAndTimes(t *testing.T) {
	r := sample(t)
	groups := r.Reasons(Refused)
	if len(groups) != 1 || len(groups[0].Pairs) != 2 {
		t.Errorf("the refusals are grouped as %+v", groups)
	}
	want := []StepTime{{"upgrade to 3.5.35/etcd2", 1, 0.7, 0.7}, {"convert to 3.4", 2, 0.75, 0.75}, {"upgrade to 3.4.31", 1, 0.5, 0.5}}
	got := r.StepTimes()
	for _, release := range []string{"3.0.0", "3.0.17"} { // without a version.txt, and with one
		if name := (Step{Kind: migrate.StepConvertBack, To: version(t, release+"/etcd2")}).name(); name != "convert-back to 3.0/etcd2" {
			t.Errorf("a step is called %q", name)
		}
	}
	slices.SortFunc(got, func(a, b StepTime) int { return strings.Compare(b.Step, a.Step) })
	slices.SortFunc(want, func(a, b StepTime) int { return strings.Compare(b.Step, a.Step) })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestReason keeps what happened in one line, without what is told elsewhere and differs between pairs.
func TestReason(t *testing.T) {
	err := &migrate.Error{Kind: migrate.Failed, Op: "step 3 of 9, upgrade to 3.5.35/etcd3", Err: errors.Join(errors.New("it ended: panic"), errors.New("panic")),
		Data: "the data is at x", Backup: "/b", Hint: "do it"}
	for want, err := range map[string]error{
		"upgrade to 3.5.35/etcd3: it ended: panic":        err,
		"first: upgrade to 3.5.35/etcd3: it ended: panic": fmt.Errorf("first: %w", err),
		"plain": errors.New("plain"),
	} {
		if got := reason(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestSelect(t *testing.T) {
	all := []versionfile.Version{version(t, "2.3.8/etcd2"), version(t, "3.4.18/etcd3"), version(t, "3.4.31/etcd2"), version(t, "3.4.31/etcd3")}
	for name, want := range map[string][]string{
		"":              {"2.3.8", "3.4.18", "3.4.31/etcd2", "3.4.31"},
		"3.4":           {"3.4.18", "3.4.31/etcd2", "3.4.31"},
		"3.4.31,2.3":    {"2.3.8", "3.4.31/etcd2", "3.4.31"},
		"3.4.31/etcd3":  {"3.4.31"},
		"3.4.31/etcd2":  {"3.4.31/etcd2"},
		"3.4,3.4.18":    {"3.4.18", "3.4.31/etcd2", "3.4.31"},
		"2.3.8/etcd2,3": nil,
		"3.5":           nil,
	} {
		got, err := Select(all, strings.FieldsFunc(name, func(r rune) bool { return r == ',' }))
		if (err != nil) != (want == nil) || err == nil && !slices.Equal(labels(got), want) {
			t.Errorf("%q: %v, %v; want %v", name, labels(got), err, want)
		}
	}
}

// TestStore writes results, cuts the last line off at every place, and reads them again.
func TestStore(t *testing.T) {
	dir, set := t.TempDir(), settings{Tool: "t", Keys: 3}
	s, _, err := openStore(dir, set, false)
	if err != nil {
		t.Fatal(err)
	}
	results := sample(t).Results[:2]
	for _, r := range results {
		if err := s.write(r); err != nil {
			t.Fatal(err)
		}
	}
	s.close()
	path := filepath.Join(dir, resultsFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for cut := last; cut <= len(whole); cut++ {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		s, got, err := openStore(dir, set, true)
		if err != nil {
			t.Fatal(err)
		}
		want := map[Pair]Result{results[0].Pair: results[0]}
		if cut == len(whole) {
			want[results[1].Pair] = results[1]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("cut at %d: %s", cut, diff)
		}
		if err := s.write(results[1]); err != nil { // goes on where the whole lines end
			t.Fatal(err)
		}
		s.close()
		if again, err := os.ReadFile(path); err != nil || cut < len(whole) && !bytes.Equal(again, whole) {
			t.Fatalf("cut at %d: %q, %v", cut, again, err)
		}
	}
	if _, _, err := openStore(dir, set, false); err == nil || err.Error() != path+": it holds the results of an earlier run" {
		t.Errorf("the results of an earlier run, without --resume: %v", err)
	}
	if _, _, err := openStore(dir, settings{Tool: "t", Keys: 4}, true); !errors.Is(err, errOtherSettings) {
		t.Errorf("results with other settings: %v", err)
	}
}

// FuzzResults reads any bytes as a file of results: an error, or whole lines.
func FuzzResults(f *testing.F) {
	f.Add([]byte(`{"tool":"","etcds":null,"keys":0}` + "\n" + `{"from":"2.3.8/etcd2","to":"3.4.31/etcd3","outcome":"passed"}` + "\n"))
	f.Add([]byte("{}\n{\"from\":\"x\"}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, end, err := readResults(file, settings{}); err == nil && end > 0 && b[end-1] != '\n' {
			t.Errorf("a line ends at %d", end)
		}
	})
}
