package migrate

import (
	"fmt"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// badReleases are the patch releases that damage or refuse data: no step may be made by one, since a newer one of the same minor is
// to be had. The same list is in CONTRIBUTING.md.
var badReleases = []struct {
	line       versionfile.Minor
	from, to   int
	instead    int // the first good one from there on
	whatItDoes string
}{
	{versionfile.Minor{Major: 3, Minor: 3}, 21, 21, 25, "cannot read its own raft log after it has removed an old part of it (etcd#11918)"},
	{versionfile.Minor{Major: 3, Minor: 3}, 23, 24, 25, "refuses a data dir that others may read (etcd#12144)"},
	{v3_4, 8, 8, 13, "cannot read its own raft log after it has removed an old part of it (etcd#11918)"},
	{v3_4, 10, 11, 13, "refuses a data dir that others may read (etcd#12144)"},
	{v2Until, 0, 2, 26, "can lose a write when it is killed (etcd#13766)"},
	{v2Until, 3, 25, 26, "does not mend what the db holds of members that were removed or promoted, which etcd 3.6 goes by (etcd#20967)"},
	{v3_6, 0, 4, 5, "does not note the storage version, and replays wrongly what became of learners (etcd#20496)"},
}

// badRelease says what is wrong with a release, "" for nothing, and which one is good.
func badRelease(r versionfile.Release) (whatItDoes string, instead versionfile.Release) {
	for _, b := range badReleases {
		if r.Line == b.line && b.from <= r.Patch && r.Patch <= b.to {
			return b.whatItDoes, versionfile.Release{Line: b.line, Patch: b.instead}
		}
	}
	return "", versionfile.Release{}
}

// checkReleases refuses a way that leads through a bad release. The target itself is the user's own choice: see noteTarget.
func (p Plan) checkReleases(have binaries.Set) error {
	for _, s := range p.Steps {
		if s.Binary == "" || s.To.Release == p.Target.Release {
			continue
		}
		if does, instead := badRelease(s.To.Release); does != "" {
			return refuse(fmt.Errorf("the way from %s to %s goes through etcd %s, which %s", p.From, p.Target, s.To.Release, does),
				fmt.Sprintf("put %s%s or a newer one of that minor into %s: the newest counts", binaries.Prefix, instead, have.Dir))
		}
	}
	return nil
}

// noteTarget warns of a target that is a bad release.
func (st *State) noteTarget(target versionfile.Version) {
	if does, instead := badRelease(target.Release); does != "" {
		st.note("bad-release", fmt.Sprintf("the target, etcd %s, %s", target.Release, does), fmt.Sprintf("run etcd %s or a newer one of that minor instead", instead))
	}
}
