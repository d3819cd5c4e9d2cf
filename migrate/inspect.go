package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Inspect finds out what a stopped member's data is. It changes nothing and takes no lock, so it works on a read-only
// file system and without a version.txt. What is wrong with the data is in State.Problems; an error means that the data
// could not be read at all.
func Inspect(ctx context.Context, l datadir.Layout, now time.Time) (State, error) {
	st, data, err := inspect(ctx, l, now)
	if data != nil {
		data.close()
	}
	return st, err
}

// inspect is Inspect, and gives what it has read, for the caller to close; nil if there is none.
func inspect(ctx context.Context, l datadir.Layout, now time.Time) (State, *contents, error) {
	st := State{DataDir: l.DataDir, WALDir: l.WALDir, Presence: Present,
		Evidence: []Evidence{}, Members: []Member{}, Problems: []Problem{}}
	st.V3.Alarms = []string{}
	presence, err := l.Presence()
	if err != nil {
		return st, nil, refuse(err, readHint(l, err, "check the path, and that the volume is mounted"))
	}
	if backup, err := l.InterruptedRestore(); err != nil || backup != "" {
		text := "the restore of a backup was interrupted half way"
		if err != nil {
			text += fmt.Sprintf(", or that cannot be told: %v", err)
		}
		st.block("restore-interrupted", text, "complete it: give "+restoreCommand(l, l.BackupsDir(""), backup)+
			" or any command that migrates on this data dir")
		return st, nil, nil
	}
	fromFile, fileErr := readVersionFile(l)
	fresh := func() (State, *contents, error) {
		st.Presence, st.VersionFile = Fresh, fromFile
		_, err := os.Lstat(freshMarker(l))
		st.firstStart = err == nil
		st.refuseAbsence(l, l.BackupsDir(""), fileErr)
		return st, nil, nil
	}
	if presence != datadir.Present {
		return fresh()
	}

	data, err := readMember(ctx, l)
	if ctx.Err() != nil {
		if data != nil {
			data.close()
		}
		return st, nil, &Error{Kind: Interrupted, Op: "inspect", Err: context.Cause(ctx)}
	}
	if errors.Is(err, raftlog.ErrNoLog) && neverUsed(l) {
		return fresh() // a first start that ended after etcd had made its db and before it made its log
	}
	if errors.Is(err, raftlog.ErrNoLog) || errors.Is(err, raftlog.ErrLostLog) {
		// What is lost may only lie elsewhere, and a backup that is restored over good data loses what is newer.
		return st, nil, refuse(fmt.Errorf("read the data: %w", err), "if etcd runs with --wal-dir, give the same here, and see that its volume is mounted; "+
			"only if there is no log anywhere, restore a backup")
	}
	if err != nil {
		return st, nil, refuse(fmt.Errorf("read the data: %w", err), readHint(l, err, damaged))
	}
	if err := data.describe(&st, now); err != nil {
		data.close()
		if ctx.Err() != nil {
			return st, nil, &Error{Kind: Interrupted, Op: "inspect", Err: context.Cause(ctx)}
		}
		return st, nil, refuse(fmt.Errorf("read the data: %w", err), readHint(l, err, damaged))
	}
	switch j, err := openJournal(l); {
	case err != nil:
		st.block("journal-unreadable", fmt.Sprintf("the journal of an earlier run cannot be read, which may say that a proof has failed: %v", err),
			journalUnreadable(l, l.BackupsDir("")))
	case j != nil:
		if j.Failed != "" {
			st.block("proof-failed", fmt.Sprintf("a proof of an earlier run has failed, which began with the backup %s: %s", j.Backup, j.Failed), j.failedHint(l))
		}
		st.left, st.uncompared, st.unrun = j.Left != nil, j.Uncompared, j.Unrun
		st.converted, st.made = j.Converted > 0, j.Made
		st.convertedBack = j.From.Storage == versionfile.Etcd3 && j.Target.Storage == versionfile.Etcd2
	}
	st.determineVersion(data.readings(), fromFile, fileErr)
	st.checkMember(data)
	return st, data, nil
}

// damaged is what to do about data that can be read and makes no sense.
const damaged = "the files are damaged or are not an etcd member's; restore a backup (of one of several members: remove it and add it anew instead), or see docs/troubleshooting.md"

// readVersionFile gives nil for a file that is not there, with fs.ErrNotExist.
func readVersionFile(l datadir.Layout) (*versionfile.Version, error) {
	v, err := versionfile.Read(l.DataDir)
	if err != nil {
		return nil, err
	}
	return &v, nil
}

// refuseAbsence tells a data dir that never held a member from one that has lost it. An etcd started on the latter would
// begin an empty cluster.
func (st *State) refuseAbsence(l datadir.Layout, backupsDir string, fileErr error) {
	var invalid *versionfile.InvalidError
	if errors.As(fileErr, &invalid) {
		st.block("version-file-invalid", fileErr.Error(), "see docs/formats/version.txt.md")
	}
	own := backupsDir == l.BackupsDir("")
	if _, err := os.Lstat(journalPath(l)); err == nil && own {
		st.block("member-missing", fmt.Sprintf("%s holds no member's data, but the journal of a migration", l.DataDir),
			"an etcd would begin an empty cluster here: find the data, or restore the backup that "+journalPath(l)+" names")
		return
	}
	backups, err := datadir.ListBackups(backupsDir)
	if err != nil {
		st.block("member-missing", fmt.Sprintf("%s holds no member's data, and whether there are backups of it cannot be told: %v", l.DataDir, err),
			"an etcd would begin an empty cluster here: make the backup directory readable")
		return
	}
	for _, b := range backups {
		if !own && b.Err == nil && b.Manifest.DataDir != l.DataDir {
			continue // of another member
		}
		st.block("member-missing", fmt.Sprintf("%s holds no member's data, but there are backups of it in %s", l.DataDir, backupsDir),
			"an etcd would begin an empty cluster here: restore one with "+restoreCommand(l, backupsDir, "")+", "+
				"or move the backups away if a new cluster is what you want")
		return
	}
}

// freshMarker is a file in the work dir that stands from the first start on a fresh data dir until a member's data is
// there. Without it, a version.txt without a member means that the data has been lost.
func freshMarker(l datadir.Layout) string { return filepath.Join(l.WorkDir(), "fresh") }

// neverUsed reports whether there is no db, or one that no etcd has ever written anything to.
func neverUsed(l datadir.Layout) bool {
	db, err := keyspace.OpenDB(l.DB())
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer db.Close()
	info, err := db.Info()
	return err == nil && info.Revision <= 1 && info.ConsistentIndex == 0 && info.Leases == 0 && len(info.Users) == 0
}

// contents is what a stopped member's files hold, open for reading.
type contents struct {
	log     *raftlog.Log
	summary raftlog.Summary
	tree    *keyspace.Tree
	db      *keyspace.DB // nil without a db
	info    keyspace.V3Info
	leases  map[int64]int64 // TTLs by ID
	// fromLog is the newest cluster version that an entry of the log sets for the db; it may not have reached the db.
	fromLog string
	// snapshotVersion is the cluster version in the newest raft snapshot, first is LogState.FirstVersion.
	snapshotVersion, first string
	pending                int                // V3 writes that have not reached the db
	granted                map[int64]struct{} // leases that have not, either
	entries                entryCount
	until                  uint64 // the last entry that counts for the v2 store, 0 for the last committed one
	joining                bool   // a member was being added when etcd ended
}

func readMember(ctx context.Context, l datadir.Layout) (*contents, error) {
	db, err := keyspace.OpenDB(l.DB())
	if errors.Is(err, fs.ErrNotExist) {
		return readLog(l)
	}
	if err != nil {
		return nil, err
	}
	db.EndWith(ctx)
	m := &contents{db: db}
	if m.info, err = db.Info(); err == nil {
		m.leases, err = db.Leases()
	}
	if err == nil {
		err = m.replay(l)
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// readLog is readMember without the db.
func readLog(l datadir.Layout) (*contents, error) {
	m := &contents{}
	return m, m.replay(l)
}

// replay rebuilds the v2 store from the snapshot and the committed entries after it.
func (m *contents) replay(l datadir.Layout) (err error) {
	if m.log, err = raftlog.Open(l.SnapDir(), l.WALDir); err != nil {
		return err
	}
	m.tree, m.granted = keyspace.NewTree(), map[int64]struct{}{}
	if s := m.log.Snapshot(); s.Index > 0 {
		if m.tree, err = keyspace.LoadTree(s.Data); err != nil {
			return fmt.Errorf("%s: %w", s.Path, err)
		}
	}
	m.snapshotVersion = m.tree.ClusterVersion()
	m.first = m.snapshotVersion
	m.summary, err = m.log.Each(func(e raftlog.Entry) error {
		m.entries.add(e)
		if m.until > 0 && e.Index > m.until {
			return nil
		}
		switch e.Kind {
		case raftlog.V2:
			return m.applied(m.tree.ApplyV2(e.V2))
		case raftlog.ConfChange:
			return m.tree.ApplyConfChange(e.ConfChange)
		case raftlog.V3:
			if err := m.applied(m.tree.ApplyV3(e.V3)); err != nil {
				return err
			}
			m.fromLog = cmp.Or(setsVersion(e), m.fromLog)
			if e.Index > m.info.ConsistentIndex && m.writesV3(e.V3) {
				m.pending++
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.pending += len(m.granted)
	members, err := m.tree.Members()
	alone := err == nil && len(members) == 1
	if err == nil && len(members) > 1 {
		m.tree.Forget(member.MarksV2) // what members tell each other is none of the users' keys
	}
	return m.log.EachUncommitted(func(e raftlog.Entry) error {
		if c := e.ConfChange; c != nil && c.Type == raftpb.ConfChangeAddNode && c.NodeID != m.log.NodeID() {
			m.joining = true
		}
		if alone { // it commits whatever is in its log, and an older etcd does not survive a newer version there
			m.fromLog = cmp.Or(setsVersion(e), m.fromLog)
		}
		m.entries.add(e)
		return nil
	})
}

// setsVersion gives the cluster version that an entry sets, in the form of 3.5 and later or in that of those before, "" if it
// sets none.
func setsVersion(e raftlog.Entry) string {
	switch {
	case e.V3 != nil && e.V3.ClusterVersionSet != nil:
		return e.V3.ClusterVersionSet.Ver
	case e.V2 != nil && e.V2.Method == "PUT" && e.V2.Path == "/0/version":
		return e.V2.Val
	}
	return ""
}

// applied notes the first cluster version that there is.
func (m *contents) applied(err error) error {
	if m.first == "" && err == nil {
		m.snapshotVersion = m.tree.ClusterVersion()
		m.first = m.snapshotVersion
	}
	return err
}

// writesV3 reports whether a request that is not in the db yet will change something there. A lease that ends before it
// is there changes nothing; up to 3.4 the db's position in the log lags behind such requests even after a clean stop.
func (m *contents) writesV3(r *etcdserverpb.InternalRaftRequest) bool {
	switch {
	case r.LeaseGrant != nil:
		if _, ok := m.leases[r.LeaseGrant.ID]; !ok {
			m.granted[r.LeaseGrant.ID] = struct{}{}
		}
		return false
	case r.LeaseRevoke != nil:
		delete(m.granted, r.LeaseRevoke.ID)
		_, ok := m.leases[r.LeaseRevoke.ID]
		return ok
	case r.Alarm != nil:
		on := slices.ContainsFunc(m.info.Alarms, func(a keyspace.V3Alarm) bool {
			return a.Member == r.Alarm.MemberID && a.Type == r.Alarm.Alarm.String()
		})
		return r.Alarm.Action == etcdserverpb.AlarmRequest_ACTIVATE && !on || r.Alarm.Action == etcdserverpb.AlarmRequest_DEACTIVATE && on
	}
	return r.Put != nil || r.DeleteRange != nil || r.Txn != nil || r.Compaction != nil || r.AuthEnable != nil || r.AuthDisable != nil ||
		r.AuthUserAdd != nil || r.AuthUserDelete != nil || r.AuthUserChangePassword != nil || r.AuthUserGrantRole != nil ||
		r.AuthUserRevokeRole != nil || r.AuthRoleAdd != nil || r.AuthRoleDelete != nil || r.AuthRoleGrantPermission != nil ||
		r.AuthRoleRevokePermission != nil
}

func (m *contents) close() {
	if m.db != nil {
		_ = m.db.Close() // opened for reading
		m.db = nil
	}
}

// id writes a member or cluster ID as etcd does.
func id(n uint64) string { return strconv.FormatUint(n, 16) }

func parseID(s string) (uint64, error) { return strconv.ParseUint(s, 16, 64) }
