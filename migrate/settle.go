package migrate

import (
	"fmt"
	"strings"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// The minors that are particular about what older ones have left.
var (
	v3_4 = versionfile.Minor{Major: 3, Minor: 4}
	v3_6 = versionfile.Minor{Major: 3, Minor: 6}
)

// settle lets the etcd that the data belongs to run once more, where the next one would not get along with what it has
// left. What else an etcd leaves is settled by the raft snapshot at the end of every step.
func (b *planner) settle(st State, target versionfile.Version) error {
	m := b.at.Minor()
	var why []string
	// Of several members, each one's log ends in entries of which only the others know whether they are committed. They are
	// settled in the first step, whatever etcd makes it; and the member's own etcd could be two minors behind the others'.
	if n := st.Log.Unapplied(); n > 0 && !st.several() {
		why = append(why, fmt.Sprintf("etcd was not stopped cleanly: %d log entries wait to be applied", n))
	}
	must := len(why) > 0 && b.mustConvert(target) // the conversion would miss them
	if st.unrun == m.String() && m == target.Minor() {
		why = append(why, unrun(m))
	}
	if s := b.unsettled(st, target); len(s) > 0 {
		why, must = append(why, s...), true
	}
	if len(why) == 0 {
		return nil
	}
	bin, ok := b.binary(m, target)
	switch {
	case ok:
		b.run(StepReplay, bin, strings.Join(why, "; "))
	case must:
		return b.missing(m, target)
	}
	// Else the next minor's etcd replays the log; it can, but that step's proof is weaker.
	return nil
}

// unrun is why an etcd runs on what a step back has made of the data.
func unrun(m versionfile.Minor) string {
	return fmt.Sprintf("an earlier run ended before etcd %s had run on what the step back had made of the data", m)
}

// unsettled says what only the data's own etcd can put right.
func (b *planner) unsettled(st State, target versionfile.Version) (why []string) {
	m, further := b.at.Minor(), b.at.Minor().Less(target.Minor())
	if m == v3Since && further && st.dbBehind() && !b.mustConvert(target) {
		why = append(why, "the db does not say that it contains the newest raft snapshot, and etcd 3.1.17 and later do not start on that")
	}
	if (m == v3_4 && further || m == v2Until) && st.startsAtV2() {
		why = append(why, "the newest raft snapshot is of a cluster at 2.x, and an etcd 3.5 that starts from it never serves the v3 API")
	}
	if m == v2Until && further && !b.empties(target) {
		if st.Log.Foreign > 0 {
			why = append(why, fmt.Sprintf("%d log entries are in the format of the v2 API, which etcd 3.6 panics on", st.Log.Foreign))
		}
		if d := st.membersDiffer(); d != "" {
			why = append(why, "the db's members are not those of the cluster ("+d+"), and etcd 3.6 would go by them")
		}
	}
	if m == v3_6 && further && len(st.Log.V2Entries) > 0 {
		why = append(why, "etcd 3.7 panics on log entries of etcd 3.5 or older, which no raft snapshot covers yet")
	}
	return why
}

// empties reports whether the data's own etcd will empty the v2 store, which settles the same things.
func (b *planner) empties(target versionfile.Version) bool {
	_, ok := b.binary(b.at.Minor(), target)
	return ok && (b.leftovers || b.mustConvert(target))
}

// startsAtV2 reports whether an etcd that starts on the data first believes that it is in a cluster at 2.x.
func (st State) startsAtV2() bool {
	r, err := versionfile.ParseRelease(st.Log.FirstVersion)
	return err == nil && r.Minor().Less(v3Since)
}

// dbBehind reports whether the db lacks entries that the newest raft snapshot contains.
func (st State) dbBehind() bool {
	return st.V3.Present && st.V3.ConsistentIndex < st.Log.SnapshotIndex
}
