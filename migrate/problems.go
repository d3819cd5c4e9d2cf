package migrate

import (
	"fmt"
	"path/filepath"

	"github.com/dustin/go-humanize/english"

	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// checkMember notes what a migration of this member has to know or cannot do.
func (st *State) checkMember(m *contents) {
	st.checkDB(m)
	st.checkMembers()
	if st.voters() == 1 && m.joining {
		// This member alone will commit it when it starts, and from then on wait for the other.
		st.block("member-joining", "a member was being added to the cluster of this one when etcd was killed, and is part of it as soon as etcd starts",
			fmt.Sprintf("start etcd %s on the data and the other member with it, or this one with --force-new-cluster if there is none; "+
				"stop them, and migrate then", st.Version.Minor()))
	}
	if st.V3.Downgrade != "" {
		st.block("downgrade-pending", fmt.Sprintf("a downgrade to etcd %s has been enabled and is neither done nor cancelled", st.V3.Downgrade),
			fmt.Sprintf("start etcd %s on the data and give `etcdctl downgrade cancel`, or finish the downgrade first: "+
				"until then no other etcd starts on it", st.Version.Minor()))
	}
	for _, a := range st.V3.Alarms {
		st.note("alarm", fmt.Sprintf("alarm %s is set", a), "it does not stop the migration and is still set afterwards; "+
			"compact, defragment and disarm it once the target etcd runs")
	}
	if st.Version.Storage == versionfile.Etcd3 && st.V2.Unconverted > 0 {
		st.note("v2-leftovers", fmt.Sprintf("the v2 store holds %s beside the v3 data, %d of them not in the v3 store",
			english.Plural(st.V2.Keys, "key", ""), st.V2.Unconverted),
			"etcd 3.6 and later refuse such data: discard them with --v2-leftovers=discard, or copy them first", st.leftoverKeys()...)
	}
	if st.V2.Auth > 0 || st.V2.AuthEnabled {
		st.note("v2-auth", fmt.Sprintf("the v2 API has %s and %s", english.Plural(len(st.V2.Users), "user", ""), english.Plural(len(st.V2.Roles), "role", "")),
			"they have no counterpart in v3, and etcd 3.6 and later refuse such data: note them down, discard them with "+
				"--v2-leftovers=discard, and create users and roles anew in v3", st.leftoverAuth()...)
	}
	if st.Log.Torn != "" {
		st.note("log-torn", "the end of the raft log was cut off by a crash: "+st.Log.Torn, "etcd mends that itself when it starts")
	}
	for _, s := range m.log.Snapshot().Skipped {
		st.note("snapshot-broken", fmt.Sprintf("raft snapshot %s cannot be read", s), "an older one and the log hold all of the data")
	}
}

// checkDB tells a db that belongs to the log from one that was lost, and made anew or restored from an older copy.
func (st *State) checkDB(m *contents) {
	db := filepath.Join(st.DataDir, "member", "snap", "db")
	ran := st.Version.Minor()
	if ran.Less(m.entries.least) {
		ran = m.entries.least
	}
	switch {
	case !st.V3.Present && !ran.Less(v3Since):
		st.block("db-missing", fmt.Sprintf("%s is missing, though the cluster ran etcd %s", db, ran),
			"an etcd would begin with an empty v3 store here: restore a backup (of one of several members: remove it and add it anew instead)")
	case st.V3.Present && st.V3.ConsistentIndex > st.Log.Index+uint64(st.Log.Uncommitted):
		// An etcd would take the entries that it writes next for such as are in the db already.
		st.block("log-behind", fmt.Sprintf("%s contains raft entry %d, but the raft log in %s ends with entry %d: the log has lost its end, "+
			"or it is an older copy", db, st.V3.ConsistentIndex, st.WALDir, st.Log.Index+uint64(st.Log.Uncommitted)),
			"an etcd that starts on it loses what is written next: restore a backup of the whole data dir (of one of several members: remove it and add it anew instead)")
	case st.V3.Present && st.dbBehind() && !m.snapshotIsOlder():
		// From 3.0 on, an etcd notes the raft index in the db before it writes a snapshot.
		st.block("db-behind", fmt.Sprintf("%s contains raft entry %d, but the newest raft snapshot is at entry %d: the db was lost and made anew, "+
			"or it is an older copy", db, st.V3.ConsistentIndex, st.Log.SnapshotIndex),
			"no etcd starts on it without losing what lies between: restore a backup of the whole data dir (of one of several members: remove it and add it anew instead)")
	case st.V3.Present && st.dbBehind() && v3Since.Less(ran) && st.Version.Storage == versionfile.Etcd3:
		st.block("db-behind", fmt.Sprintf("%s does not say that it contains the newest raft snapshot, and etcd 3.1.17 and later do not start on that", db),
			fmt.Sprintf("start the etcd %s on the data that last ran on it, 3.1.16 or older, write one key with the v3 API, and stop it", ran))
	case st.V3.Present && st.V3.Keys == 0 && st.V3.Revision <= 1 && m.summary.Kinds[raftlog.V3] > 0 && m.pending == 0 &&
		st.Version.Storage == versionfile.Etcd3 && st.V3.ConsistentIndex == 0:
		st.note("db-empty", "the v3 store holds nothing at all", "if it should hold keys, restore a backup instead of going on")
	}
}

// snapshotIsOlder reports whether an etcd before 3.0 wrote the newest raft snapshot, as the v2 store in it says. That
// knows nothing of a db.
func (m *contents) snapshotIsOlder() bool {
	r, err := versionfile.ParseRelease(m.snapshotVersion)
	return err != nil || r.Minor().Less(v3Since)
}

func (st *State) note(code, text, hint string, about ...Names) {
	if len(about) > 0 {
		hint += showNames
	}
	st.Problems = append(st.Problems, Problem{Code: code, Text: text, Hint: hint, Names: about})
}
