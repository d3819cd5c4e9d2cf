package migrate

import (
	"fmt"

	"github.com/dustin/go-humanize/english"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/cluster"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// StepKind says what a step does.
type StepKind string

const (
	// StepRecord writes version.txt and touches nothing else: a fresh data dir, or another patch release of the minor
	// that the data already has, whose files are the same.
	StepRecord StepKind = "record"
	// StepReplay runs the etcd of the minor that the data already has, because the next minor's would not get along with
	// what it has left: writes that have not been applied, or things that a raft snapshot of its own does away with.
	StepReplay StepKind = "replay"
	// StepUpgrade runs the etcd of the next minor until it has taken the data over.
	StepUpgrade StepKind = "upgrade"
	// StepConvert writes the keys of the v2 store into the v3 store, offline.
	StepConvert StepKind = "convert"
	// StepDowngrade makes the data that of the minor before, offline, and lets the etcd of that minor show that it is.
	StepDowngrade StepKind = "downgrade"
	// StepConvertBack writes the keys of the v3 store into the v2 store, offline.
	StepConvertBack StepKind = "convert-back"
	// StepEmptyV2 deletes from the v2 store, through etcd itself, what the v3 store now holds: etcd 3.6 refuses a data dir
	// with user keys in the v2 store.
	StepEmptyV2 StepKind = "empty-v2"
)

// Step is one move that ends with version.txt at To.
type Step struct {
	Kind StepKind            `json:"kind"`
	From versionfile.Version `json:"from"`
	To   versionfile.Version `json:"to"`
	// Binary is the etcd that makes the step; empty for the offline steps.
	Binary string `json:"binary,omitempty"`
	Why    string `json:"why"`
	// Discards is what an empty-v2 step deletes that is nowhere else, nil for nothing.
	Discards *Discards `json:"discards,omitempty"`
}

// Plan is the list of steps from the current version to the target. An empty one means that there is nothing to do.
type Plan struct {
	From   versionfile.Version `json:"from"` // zero for a fresh data dir
	Target versionfile.Version `json:"target"`
	Steps  []Step              `json:"steps"`
}

// Binaries are the etcds that the plan starts.
func (p Plan) Binaries() []string {
	var paths []string
	seen := map[string]bool{}
	for _, s := range p.Steps {
		if s.Binary != "" && !seen[s.Binary] {
			seen[s.Binary] = true
			paths = append(paths, s.Binary)
		}
	}
	return paths
}

// needsBackup reports whether a step changes more than version.txt.
func (p Plan) needsBackup() bool {
	for _, s := range p.Steps {
		if s.Kind != StepRecord {
			return true
		}
	}
	return false
}

// forcesSnapshot reports whether an etcd that makes step i has to write a raft snapshot: all from 3.0 on, but for the one right
// before the conversion, which reads the log itself.
func (p Plan) forcesSnapshot(i int) bool {
	return snapshotCount > 0 && !p.Steps[i].To.Minor().Less(v3Since) && (i+1 == len(p.Steps) || p.Steps[i+1].Kind != StepConvert)
}

// The minors at which the rules change.
var (
	v3Since    = versionfile.Minor{Major: 3, Minor: 0} // the first minor with a v3 store
	v2Until    = versionfile.Minor{Major: 3, Minor: 5} // the last one that serves the v2 store
	oldestData = versionfile.Minors()[0]
)

// MakePlan decides how data in that state gets to the target with those etcds. It is a pure function: it looks at no
// file and starts no process, so that the same plan is shown, rehearsed and run. A plan that can't be made is refused
// with a *Error of kind Refused that says what to do. A rollback is planned, too: whether it is allowed is for Run to ask.
func MakePlan(st State, target versionfile.Version, have binaries.Set, leftovers Leftovers) (Plan, error) {
	p := Plan{From: st.Version, Target: target, Steps: []Step{}}
	if problem := st.blocking(); problem != nil {
		return Plan{}, &Error{Kind: Refused, Op: "plan", Err: problem, Hint: problem.Hint, Names: problem.Names}
	}
	if err := checkTarget(st, target); err != nil {
		return Plan{}, err
	}
	if st.Presence == Fresh {
		return planFresh(p, st)
	}
	if err := checkLeftovers(st, target, leftovers); err != nil {
		return Plan{}, err
	}
	b := planner{plan: p, at: st.Version, have: have, discard: leftovers == LeftoversDiscard}
	if st.Version.Storage == versionfile.Etcd3 {
		// What v3 does not hold as well is left where it is, unless it is to go: below 3.6 it does no harm.
		b.leftovers = st.V2.TopLevel > 0 && st.V2.Unconverted == 0 || b.discard && st.V2.TopLevel+st.V2.Auth > 0
	}
	if err := b.walk(st, target); err != nil {
		return Plan{}, err
	}
	if err := b.plan.checkUTF8(st); err != nil {
		return Plan{}, err
	}
	if err := b.plan.checkReleases(have); err != nil {
		return Plan{}, err
	}
	return b.plan, nil
}

// checkUTF8 refuses to write a raft snapshot of a v2 store that holds what no snapshot can. Of several members, some may have
// started from a snapshot already, and hold other bytes than the others.
func (p Plan) checkUTF8(st State) error {
	if st.V2.NotUTF8 == 0 || st.Version.Storage == versionfile.Etcd3 {
		return nil
	}
	for i, s := range p.Steps {
		if s.Kind == StepRecord {
			continue
		}
		if st.several() {
			return refuse(fmt.Errorf("keys of the v2 store are not valid UTF-8, in their path or their value (%s): a member that has started from a raft "+
				"snapshot has other bytes in their place, so the members may not hold the same", english.Plural(st.V2.NotUTF8, "key", "")),
				"write these keys anew without such bytes, with the etcd that the data belongs to")
		}
		inSnapshot := s.Kind == StepDowngrade || s.Binary != "" && (p.forcesSnapshot(i) || s.Kind == StepReplay && st.startsAtV2())
		if s.To.Storage == versionfile.Etcd2 && inSnapshot {
			return refuse(fmt.Errorf("keys of the v2 store are not valid UTF-8, in their path or their value (%s): they are in the raft log only, and a raft snapshot "+
				"of etcd %s, which the way to %s needs, would replace those bytes", english.Plural(st.V2.NotUTF8, "key", ""), s.To.Minor(), p.Target),
				"convert to etcd3 on the way (--target-storage etcd3), which keeps them; or write these keys anew without such bytes")
		}
	}
	return nil
}

// severalMembers is the code of the note that the plan has to be walked by every member.
const severalMembers = "several-members"

func checkTarget(st State, target versionfile.Version) error {
	switch m := target.Minor(); {
	case !m.Known():
		return refuse(fmt.Errorf("etcd %s is not a target this program knows", target.Release),
			fmt.Sprintf("choose a version of the minors %s to %s", oldestData, versionfile.Minors()[len(versionfile.Minors())-1]))
	case target.Storage == versionfile.Etcd3 && m.Less(v3Since):
		return refuse(fmt.Errorf("etcd %s has no v3 store, so its storage cannot be etcd3", target.Release),
			"leave --target-storage out, or set it to etcd2")
	case target.Storage == versionfile.Etcd2 && v2Until.Less(m):
		return refuse(fmt.Errorf("etcd %s no longer serves the v2 store, so its storage cannot be etcd2", target.Release),
			"leave --target-storage out, or set it to etcd3")
	}
	if st.Presence == Fresh {
		return nil
	}
	if at := st.Version; !at.Minor().Known() {
		return refuse(fmt.Errorf("the data is at etcd %s, which this program does not know", at.Release),
			fmt.Sprintf("data from before %s must first be brought to %s by the etcds of its own time", oldestData, oldestData))
	}
	return nil
}

// planFresh allows a start from nothing only where nothing says that there has been something.
func planFresh(p Plan, st State) (Plan, error) {
	switch {
	case st.VersionFile == nil:
		p.Steps = append(p.Steps, Step{Kind: StepRecord, To: p.Target, Why: "the data dir holds no member yet"})
	case !st.firstStart:
		return Plan{}, refuse(fmt.Errorf("%s holds no member's data, but its version.txt says %s", st.DataDir, st.VersionFile),
			"if there was data, find it: an etcd would begin an empty cluster here; if a new cluster is what you want, remove version.txt")
	case *st.VersionFile != p.Target:
		p.Steps = append(p.Steps, Step{Kind: StepRecord, From: *st.VersionFile, To: p.Target, Why: "the data dir holds no member yet"})
	}
	return p, nil
}

// planner walks from one version to the next and notes the steps.
type planner struct {
	plan      Plan
	at        versionfile.Version
	have      binaries.Set
	leftovers bool // the v2 store holds user keys though the v3 store is the one in use
	discard   bool // and what is nowhere else is to go, too
}

func (b *planner) walk(st State, target versionfile.Version) error {
	if isBack(b.at, target) {
		b.leftovers = false // they are in nobody's way below 3.6, and a conversion back that was killed has put them there
		if err := b.back(st, target); err != nil {
			return err
		}
	} else if err := b.settle(st, target); err != nil {
		return err
	}
	for {
		if b.mustConvert(target) {
			to, path := versionfile.Version{Release: b.at.Release, Storage: versionfile.Etcd3}, ""
			if st.several() { // they agree through raft on what to convert
				bin, ok := b.binary(b.at.Minor(), target)
				if !ok {
					return b.missing(b.at.Minor(), target)
				}
				to.Release, path = bin.Release, bin.Path
			}
			b.add(StepConvert, to, path, fmt.Sprintf("the keys of the v2 store become keys of the v3 store, TTLs as leases: %s", english.Plural(st.V2.Keys, "key", "")))
			b.leftovers = true
		}
		if b.leftovers && b.at.Storage == versionfile.Etcd3 {
			if bin, ok := b.binary(b.at.Minor(), target); ok && !v2Until.Less(b.at.Minor()) {
				b.emptyV2(st, bin)
			}
		}
		if b.at.Minor() == target.Minor() {
			break
		}
		next, _ := b.at.Minor().Next()
		if b.leftovers && v2Until.Less(next) {
			return b.missing(b.at.Minor(), target)
		}
		bin, ok := b.binary(next, target)
		if !ok {
			return b.missing(next, target)
		}
		b.run(StepUpgrade, bin, fmt.Sprintf("etcd data moves one minor at a time, and %s follows %s", next, b.at.Minor()))
	}
	if b.leftovers && !v2Until.Less(b.at.Minor()) {
		return b.missing(b.at.Minor(), target)
	}
	if len(b.plan.Steps) == 0 && st.several() && st.uncompared && !b.at.Minor().Less(cluster.HashSince) {
		bin, ok := b.binary(b.at.Minor(), target)
		if !ok {
			return b.missing(b.at.Minor(), target)
		}
		b.run(StepReplay, bin, "an earlier run ended before the data was found to be the same as the other members'")
	}
	if b.at.Release != target.Release {
		b.add(StepRecord, target, "", fmt.Sprintf("the files of all patch releases of %s are the same", target.Minor()))
	}
	return nil
}

// mustConvert reports whether the keys are to be converted now: as soon as the data belongs to an etcd with a v3 store.
func (b *planner) mustConvert(target versionfile.Version) bool {
	return b.at.Storage == versionfile.Etcd2 && target.Storage == versionfile.Etcd3 && !b.at.Minor().Less(v3Since)
}

// binary finds the etcd for a minor: exactly the target's release where that is the minor, else the newest patch.
func (b *planner) binary(m versionfile.Minor, target versionfile.Version) (binaries.Binary, bool) {
	if m == target.Minor() {
		return b.have.Get(target.Release)
	}
	return b.have.Newest(m)
}

// run adds a step that an etcd makes, after which the data belongs to that etcd's release.
func (b *planner) run(kind StepKind, bin binaries.Binary, why string) {
	b.add(kind, versionfile.Version{Release: bin.Release, Storage: b.at.Storage}, bin.Path, why)
}

func (b *planner) add(kind StepKind, to versionfile.Version, binary, why string) {
	b.plan.Steps = append(b.plan.Steps, Step{Kind: kind, From: b.at, To: to, Binary: binary, Why: why})
	b.at = to
}

func (b *planner) missing(m versionfile.Minor, target versionfile.Version) error {
	want := "an etcd " + m.String()
	if m == target.Minor() {
		want = "etcd " + target.Release.String()
	}
	return refuse(fmt.Errorf("the way from %s to %s needs %s, and there is none among %s", b.plan.From, target, want, b.have),
		fmt.Sprintf("put %s<version> for %s into %s, or name another directory with --bin-dir", binaries.Prefix, want, b.have.Dir))
}
