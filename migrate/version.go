package migrate

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/dustin/go-humanize/english"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// readings are what the data itself says of its version.
type readings struct {
	evidence []Evidence
	// cluster is the cluster version, zero if none has been agreed on.
	cluster versionfile.Release
	// least is the oldest minor that can have written what is there, zero if any can.
	least versionfile.Minor
}

// readings collects them. Up to 3.4 the v2 store alone has the cluster version, 3.5 keeps it in both places, 3.6 and 3.7
// in the db and, in the form of 3.5, in their raft snapshots. It only ever rises, but for a downgrade, which lowers it in
// all places; so the newest is right. It can lag behind: an etcd dies within its first second. What only a newer etcd
// writes then shows that.
func (m *contents) readings() (r readings) {
	for _, e := range []Evidence{
		{"the cluster version in the v2 store", m.tree.ClusterVersion()},
		{"the cluster version in the db", m.info.ClusterVersion},
		{"the cluster version in the raft log", m.fromLog},
		{"the storage version in the db", m.info.StorageVersion},
	} {
		v, err := versionfile.ParseRelease(e.Says)
		if err != nil {
			continue // absent
		}
		r.evidence = append(r.evidence, e)
		if r.cluster.Compare(v) < 0 {
			r.cluster = v
		}
	}
	r.atLeast("the requests in the raft log", m.entries.least)
	if r.cluster.IsZero() && (m.info.ConfState != nil || m.info.Term > 0) {
		// Where the cluster version is known, this says nothing: a db that an older etcdctl has restored still has it.
		r.atLeast("the raft state in the db", v2Until)
	}
	if !r.cluster.IsZero() && r.cluster.Minor().Less(r.least) {
		r.cluster = versionfile.Release{Line: r.least}
	}
	return r
}

func (r *readings) atLeast(source string, m versionfile.Minor) {
	if m == (versionfile.Minor{}) {
		return
	}
	r.evidence = append(r.evidence, Evidence{source, m.String() + " or later"})
	if r.least.Less(m) {
		r.least = m
	}
}

// determineVersion concludes what the data is at from what the data itself says and from what version.txt claims.
//
// The cluster version is the data's own word: etcd raises it, through raft, as soon as a server of that minor leads. It
// has no patch number. version.txt has one, and it can lag by a step (we were killed before writing it) or lie (a file
// copied, restored or edited by hand, or written before the etcd that it names ever ran). So:
//
//   - they name the same minor: version.txt counts, it knows the patch release;
//   - version.txt is older: the data wins, because its minor's etcd has provably run;
//   - version.txt is one minor ahead: the data wins, because that etcd would have raised the cluster version. The
//     Kubernetes tool writes the file like that before its last step;
//   - version.txt is further ahead: neither can be proven; refused;
//   - the data says nothing: version.txt counts; without one, data that only a v2 store can have written is
//     versionfile.Default, and other data is refused.
func (st *State) determineVersion(data readings, fromFile *versionfile.Version, fileErr error) {
	st.Evidence = append(st.Evidence, data.evidence...)
	if fileErr != nil && !errors.Is(fileErr, fs.ErrNotExist) {
		st.block("version-file-invalid", fileErr.Error(), "see docs/formats/version.txt.md")
		return
	}
	st.VersionFile = fromFile
	if fromFile != nil {
		st.Evidence = append([]Evidence{{versionfile.Name, fromFile.String()}}, st.Evidence...)
	}
	known, minor := !data.cluster.IsZero(), data.cluster.Minor()
	switch {
	case fromFile == nil && !known && !st.V3.Present && data.least == versionfile.Minor{}:
		st.Version = versionfile.Default
		st.Evidence = append(st.Evidence, Evidence{"a v2 store and nothing else", versionfile.Default.String()})
		return
	case fromFile == nil && !known:
		st.blockUnknown(data)
		return
	case fromFile == nil, known && fromFile.Minor().Less(minor):
		st.Version.Release = data.cluster
	case known && oneAhead(minor, fromFile.Minor()):
		st.Version.Release = data.cluster
		st.note(versionFileAhead, fmt.Sprintf("version.txt says %s, but no etcd of that minor has taken the data over: it is at %s", fromFile, minor),
			"nothing; the data counts, and version.txt is set right by the migration")
	case known && minor.Less(fromFile.Minor()), !known && fromFile.Minor().Less(data.least):
		st.blockContradiction(data)
		return
	default:
		st.Version.Release = fromFile.Release
	}
	st.determineStorage(fromFile)
}

// versionFileAhead is the code of the note that an etcd has not got to what version.txt says.
const versionFileAhead = "version-file-ahead"

func oneAhead(data, file versionfile.Minor) bool {
	next, ok := data.Next()
	return ok && file == next
}

func (st *State) blockUnknown(data readings) {
	text := "nothing in the data says which etcd it belongs to, and there is no version.txt"
	if data.least != (versionfile.Minor{}) {
		text = fmt.Sprintf("the data only says that it belongs to an etcd %s or later, and there is no version.txt", data.least)
	}
	st.block("version-unknown", text,
		fmt.Sprintf("start the etcd that last ran on it once, or write its version, such as 3.5.35/etcd3, to %s/%s", st.DataDir, versionfile.Name))
}

func (st *State) blockContradiction(data readings) {
	says := "of a cluster at etcd " + data.cluster.Minor().String()
	if data.cluster.IsZero() {
		says = "written by etcd " + data.least.String() + " or later"
	}
	st.block("version-contradicted", fmt.Sprintf("version.txt says %s, but the data is %s", st.VersionFile, says),
		fmt.Sprintf("if the data is what you mean to migrate, remove %s/%s and the data decides; if not, the data dir is not the right one",
			st.DataDir, versionfile.Name))
	st.Version = *st.VersionFile
}

// determineStorage finds the store that holds the user's keys. Where only one store has ever been written to, that one
// does; where both have, version.txt decides. Without it the v3 store counts, and checkLeftovers asks if that may be wrong.
func (st *State) determineStorage(fromFile *versionfile.Version) {
	v3Used := st.V3.Keys > 0 || st.V3.Revision > 1
	v2Used := st.V2.Keys > 0
	contradiction := func(hint string) {
		st.block("storage-contradicted", fmt.Sprintf("version.txt says %s, but the v2 store holds %s and the v3 store holds %d, at revision %d",
			fromFile, english.Plural(st.V2.Keys, "key", ""), st.V3.Keys, st.V3.Revision), hint)
	}
	switch {
	case fromFile != nil:
		st.Version.Storage = fromFile.Storage
		switch {
		case st.Version.Minor().Less(v3Since) && fromFile.Storage == versionfile.Etcd3:
			contradiction("an etcd before 3.0 has no v3 store; correct version.txt")
		case fromFile.Storage == versionfile.Etcd3 && v2Used && !v3Used && st.convertedBack:
			// Killed between the end of the conversion and version.txt.
			st.Version.Storage = versionfile.Etcd2
			st.Evidence = append(st.Evidence, Evidence{"the journal of a rollback to the v2 store", string(versionfile.Etcd2)})
		case fromFile.Storage == versionfile.Etcd3 && v2Used && !v3Used:
			contradiction(fmt.Sprintf("if the keys were never converted, write %s/etcd2 to version.txt and they will be", st.Version.Release))
		case fromFile.Storage == versionfile.Etcd2 && v3Used && !v2Used && st.converted:
			// Killed before version.txt, and the others have gone on and emptied the v2 store since.
			st.Version.Storage = versionfile.Etcd3
			st.Evidence = append(st.Evidence, Evidence{"the journal of a conversion together with others", string(versionfile.Etcd3)})
		case fromFile.Storage == versionfile.Etcd2 && v3Used && !v2Used:
			contradiction(fmt.Sprintf("if the keys are in the v3 store, write %s/etcd3 to version.txt", st.Version.Release))
		}
	case v3Used:
		st.Version.Storage = versionfile.Etcd3
	case v2Used:
		st.Version.Storage = versionfile.Etcd2
	default:
		st.Version.Storage = st.Version.Minor().Storage()
	}
}

func (st *State) block(code, text, hint string) {
	st.Problems = append(st.Problems, Problem{Code: code, Text: text, Hint: hint, Blocking: true})
}
