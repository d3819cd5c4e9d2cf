package migrate

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// determineVersion concludes what the data is at from what the data itself says and from what version.txt claims.
//
// The cluster version is the data's own word: etcd raises it, through raft, only when a server of that minor runs. It can
// lag (etcd dies within its first second) and it has no patch number. version.txt has one, and it can lag by a step (we
// were killed before writing it) or lie (a file copied, restored or edited by hand). So:
//
//   - they name the same minor: version.txt counts, it knows the patch release;
//   - version.txt is older: the data wins, because its minor's etcd has provably run;
//   - version.txt is newer: neither can be proven; refused;
//   - the data says nothing: version.txt counts; without one, data that only a v2 store can have written is
//     versionfile.Default, and other data is refused.
func (st *State) determineVersion(inData []Evidence, clusterVersion versionfile.Release, fromFile *versionfile.Version, fileErr error) {
	st.Evidence = append(st.Evidence, inData...)
	if fileErr != nil && !errors.Is(fileErr, fs.ErrNotExist) {
		st.block("version-file-invalid", fileErr.Error(), "see docs/formats/version.txt.md")
		return
	}
	st.VersionFile = fromFile
	if fromFile != nil {
		st.Evidence = append([]Evidence{{versionfile.Name, fromFile.String()}}, st.Evidence...)
	}
	switch data := clusterVersion.Minor(); {
	case fromFile == nil && clusterVersion.IsZero() && !st.V3.Present:
		st.Version = versionfile.Default
		st.Evidence = append(st.Evidence, Evidence{"a v2 store and nothing else", versionfile.Default.String()})
		return
	case fromFile == nil && clusterVersion.IsZero():
		st.block("version-unknown", "nothing in the data says which etcd it belongs to, and there is no version.txt",
			fmt.Sprintf("start the etcd that last ran on it once, or write its version, such as 3.5.35/etcd3, to %s/%s", st.DataDir, versionfile.Name))
		return
	case fromFile == nil, !clusterVersion.IsZero() && fromFile.Minor().Less(data):
		st.Version.Release = clusterVersion
	case !clusterVersion.IsZero() && data.Less(fromFile.Minor()):
		st.block("version-contradicted", fmt.Sprintf("version.txt says %s, but the data is of a cluster at etcd %s", fromFile, data),
			fmt.Sprintf("if the data is what you mean to migrate, remove %s/%s and the data decides; if not, the data dir is not the right one",
				st.DataDir, versionfile.Name))
		st.Version = *fromFile
		return
	default:
		st.Version.Release = fromFile.Release
	}
	st.determineStorage(fromFile)
}

// determineStorage finds the store that holds the user's keys. Where only one store has ever been written to, that one
// does; where both have, version.txt decides, and without it the v3 store counts.
func (st *State) determineStorage(fromFile *versionfile.Version) {
	v3Used := st.V3.Keys > 0 || st.V3.Revision > 1
	v2Used := st.V2.Keys > 0
	contradiction := func(hint string) {
		st.block("storage-contradicted", fmt.Sprintf("version.txt says %s, but the v2 store holds %d keys and the v3 store holds %d, at revision %d",
			fromFile, st.V2.Keys, st.V3.Keys, st.V3.Revision), hint)
	}
	switch {
	case fromFile != nil:
		st.Version.Storage = fromFile.Storage
		if st.Version.Minor().Less(v3Since) && fromFile.Storage == versionfile.Etcd3 {
			contradiction("an etcd before 3.0 has no v3 store; correct version.txt")
		} else if fromFile.Storage == versionfile.Etcd3 && v2Used && !v3Used {
			contradiction(fmt.Sprintf("if the keys were never converted, write %s/etcd2 to version.txt and they will be", st.Version.Release))
		} else if fromFile.Storage == versionfile.Etcd2 && v3Used && !v2Used {
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
