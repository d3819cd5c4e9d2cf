// Package matrix tries every way from one etcd version to another on real data: for each pair an etcd of the first
// version writes a data dir, package migrate brings it to the second, an etcd of that version is started on it, and all
// that it answers is compared with what the first one answered. The data is a built-in workload, or a copy of a data dir
// of the user's own.
//
// Run does it. Every finished pair is written to a file at once, so that a matrix that was killed can be gone on with.
// A Report can be written as one HTML page and as JUnit XML.
package matrix

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Outcome is how a pair ended.
type Outcome string

const (
	// Passed says that the target's etcd serves all that the source's did, and takes writes.
	Passed Outcome = "passed"
	// Refused says that the migration was refused before anything was changed, with a reason: for example values that the
	// v2 store cannot hold, or an etcd on the way that is not at hand.
	Refused Outcome = "refused"
	// Failed says that a step failed, or that something is lost or changed.
	Failed Outcome = "failed"
)

// Pair is one way through the matrix.
type Pair struct {
	From versionfile.Version `json:"from"`
	To   versionfile.Version `json:"to"`
}

// String gives "2.2.5 to 3.7.3", see Label.
func (p Pair) String() string { return Label(p.From) + " to " + Label(p.To) }

// Label is the short form of a version: the storage is left out where it is the one that the minor uses by default.
func Label(v versionfile.Version) string {
	if v.Storage == v.Minor().Storage() {
		return v.Release.String()
	}
	return v.String()
}

// Result is what has come of a pair.
type Result struct {
	Pair
	Outcome Outcome `json:"outcome"`
	// Reason says why it failed or was refused, and Hint what to do about a refusal.
	Reason string `json:"reason,omitempty"`
	Hint   string `json:"hint,omitempty"`
	// Differences names what the target's etcd serves otherwise than the source's did: keys, but no values.
	Differences []string `json:"differences,omitempty"`
	// Seconds is how long the migration took, its backup included. What the matrix does around it is not in it.
	Seconds float64 `json:"seconds"`
	Steps   []Step  `json:"steps"`
	// Before and After are what the two etcds answered.
	Before Counts `json:"before"`
	After  Counts `json:"after"`
	// DataDir is where the data dir of a failed pair is left for whoever looks into it.
	DataDir string `json:"dataDir,omitempty"`
}

// Step is one step of the migration.
type Step struct {
	Kind    migrate.StepKind    `json:"kind"`
	To      versionfile.Version `json:"to"`
	Seconds float64             `json:"seconds"`
}

// Counts sums up what an etcd answered.
type Counts struct {
	Keys     int   `json:"keys"`
	TTLs     int   `json:"ttls"` // keys that have one; 0 where the etcd cannot tell (3.0)
	Revision int64 `json:"revision"`
}

// Options say what to try. They have no form in JSON; that of a Report is what `etcd-migrate matrix -o json` prints.
type Options struct {
	// Binaries are the etcds at hand.
	Binaries binaries.Set
	// From and To are the versions to try, each with each. See Versions.
	From, To []versionfile.Version
	// DataDir, and WALDir if it has one of its own, is the user's data. It is copied once and never changed. No etcd may run
	// on it. Empty: a built-in workload of Keys plain keys and some fifty special ones.
	DataDir, WALDir string
	Keys            int
	// NameKeys says that the results may name keys of DataDir. Those of the built-in workload always are.
	NameKeys bool
	// WorkDir is where everything is done, and where the results are kept. It must exist. Room for three times the data is
	// needed for each job, and once more for each version that a job starts from.
	WorkDir string
	// Resume allows results of an earlier run in WorkDir. Passed and refused pairs are not tried again.
	Resume bool
	// Jobs is how many pairs are tried at a time; 0 means one.
	Jobs int
	// AcceptLoss, V2Leftovers, QuotaBytes and StepTimeout are as in migrate.Request. The etcds that are read before and after a
	// migration have StepTimeout to start, too.
	AcceptLoss  []convert.Loss
	V2Leftovers migrate.Leftovers
	QuotaBytes  int64
	StepTimeout time.Duration
	// Tool is the program and its version, for the report.
	Tool string
	// Observer is told how it goes; nil for none. It is called from one goroutine at a time.
	Observer func(Event)
}

// Event tells an Observer that a pair has been begun, or that it is done.
type Event struct {
	Pair   Pair
	Result *Result // nil at its beginning
	// Done and Total count the pairs, those of an earlier run included.
	Done, Total int
	// Left is an estimate of how long the rest takes; 0 as long as there is none.
	Left time.Duration
}

// Report is what a matrix has shown.
type Report struct {
	Tool string `json:"tool"`
	// Machine is the operating system, the architecture and the number of CPUs.
	Machine string    `json:"machine"`
	Began   time.Time `json:"began"`
	// Seconds is how long this run took. Resumed counts the results that are an earlier run's.
	Seconds float64 `json:"seconds"`
	Resumed int     `json:"resumed"`
	// DataDir is the user's; empty for the built-in workload.
	DataDir string                `json:"dataDir,omitempty"`
	From    []versionfile.Version `json:"from"`
	To      []versionfile.Version `json:"to"`
	// Results are in the order of Pairs. Those that a run did not get to are missing.
	Results []Result `json:"results"`
}

// Count counts the pairs that ended so.
func (r *Report) Count(o Outcome) (n int) {
	for _, result := range r.Results {
		if result.Outcome == o {
			n++
		}
	}
	return n
}

// NotRun counts the pairs that the run did not get to.
func (r *Report) NotRun() int { return len(Pairs(r.From, r.To)) - len(r.Results) }

// Get gives the result of a pair, nil if there is none.
func (r *Report) Get(p Pair) *Result {
	i := slices.IndexFunc(r.Results, func(result Result) bool { return result.Pair == p })
	if i < 0 {
		return nil
	}
	return &r.Results[i]
}

// Pairs are all pairs of the two lists but those of a version with itself.
func Pairs(from, to []versionfile.Version) (pairs []Pair) {
	for _, f := range from {
		for _, t := range to {
			if f != t {
				pairs = append(pairs, Pair{f, t})
			}
		}
	}
	return pairs
}

// Versions are the versions that the binaries can run, oldest first: 2.x with the v2 store, 3.x with the v3 store and, if
// etcd2 is set, up to 3.5 also with the keys in the v2 store.
func Versions(have binaries.Set, etcd2 bool) (versions []versionfile.Version) {
	for _, b := range have.Binaries {
		m := b.Release.Minor()
		if !m.Known() {
			continue
		}
		if etcd2 && m.AtLeast(3, 0) && !m.AtLeast(3, 6) {
			versions = append(versions, versionfile.Version{Release: b.Release, Storage: versionfile.Etcd2})
		}
		versions = append(versions, versionfile.Version{Release: b.Release, Storage: m.Storage()})
	}
	return versions
}

// Select keeps the versions that one of the names means: "3.4" all of that minor, "3.4.31" that release, "3.4.31/etcd2"
// that version. Without names all are kept. A name that means none of them is an error.
func Select(versions []versionfile.Version, names []string) ([]versionfile.Version, error) {
	if len(names) == 0 {
		return versions, nil
	}
	keep := map[versionfile.Version]bool{}
	for _, name := range names {
		found := false
		for _, v := range versions {
			if name == v.Minor().String() || name == v.Release.String() || name == v.String() {
				keep[v], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("%q is none of the versions at hand, which are %s", name, strings.Join(labels(versions), ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(versions), func(v versionfile.Version) bool { return !keep[v] }), nil
}

func labels(versions []versionfile.Version) (names []string) {
	for _, v := range versions {
		names = append(names, Label(v))
	}
	return names
}
