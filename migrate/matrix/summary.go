package matrix

import (
	"cmp"
	"slices"
	"strings"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

// Group is the pairs that failed or were refused for the same reason.
type Group struct {
	Outcome     Outcome
	Reason      string
	Hint        string
	Differences []string
	Pairs       []Pair
	DataDirs    []string // of failed pairs
}

// Reasons groups the pairs that ended so by their reasons, the most frequent first.
func (r *Report) Reasons(o Outcome) (groups []Group) {
	for _, result := range r.Results {
		if result.Outcome != o {
			continue
		}
		i := slices.IndexFunc(groups, func(g Group) bool {
			return g.Reason == result.Reason && g.Hint == result.Hint && slices.Equal(g.Differences, result.Differences)
		})
		if i < 0 {
			i = len(groups)
			groups = append(groups, Group{Outcome: o, Reason: result.Reason, Hint: result.Hint, Differences: result.Differences})
		}
		groups[i].Pairs = append(groups[i].Pairs, result.Pair)
		if result.DataDir != "" {
			groups[i].DataDirs = append(groups[i].DataDirs, result.DataDir)
		}
	}
	slices.SortStableFunc(groups, func(a, b Group) int { return cmp.Compare(len(b.Pairs), len(a.Pairs)) })
	return groups
}

// StepTime sums up the steps of one kind to one version, over all pairs.
type StepTime struct {
	Step    string // "upgrade to 3.4.31"
	Times   int
	Median  float64 // seconds, like the rest
	Longest float64
}

// name says what the step did. No etcd makes a conversion, so that it is the same for all patch releases of a minor; data
// without a version.txt is at no patch release at all.
func (s Step) name() string {
	to := Label(s.To)
	if s.Kind == migrate.StepConvert || s.Kind == migrate.StepConvertBack {
		to = strings.Replace(to, s.To.Release.String(), s.To.Minor().String(), 1)
	}
	return string(s.Kind) + " to " + to
}

// StepTimes are the steps of all pairs, those that take longest first.
func (r *Report) StepTimes() (times []StepTime) {
	seconds := map[string][]float64{}
	for _, result := range r.Results {
		for _, s := range result.Steps {
			name := s.name()
			seconds[name] = append(seconds[name], s.Seconds)
		}
	}
	for name, all := range seconds {
		slices.Sort(all)
		times = append(times, StepTime{Step: name, Times: len(all), Median: all[len(all)/2], Longest: all[len(all)-1]})
	}
	slices.SortFunc(times, func(a, b StepTime) int { return cmp.Or(cmp.Compare(b.Median, a.Median), cmp.Compare(a.Step, b.Step)) })
	return times
}
