package migrate

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Inspect finds out what a stopped member's data is. It changes nothing and takes no lock, so it works on a read-only
// file system and without a version.txt. What is wrong with the data is in State.Problems; an error means that the data
// could not be read at all.
func Inspect(ctx context.Context, l datadir.Layout, now time.Time) (State, error) {
	st := State{DataDir: l.DataDir, WALDir: l.WALDir, Presence: Present,
		Evidence: []Evidence{}, Members: []Member{}, Problems: []Problem{}}
	st.V3.Alarms = []string{}
	presence, err := l.Presence()
	if err != nil {
		return st, refuse(err, "check the path, and that the volume is mounted")
	}
	fromFile, fileErr := readVersionFile(l)
	if presence != datadir.Present {
		st.Presence, st.VersionFile = Fresh, fromFile
		st.refuseAbsence(l, fileErr)
		return st, nil
	}

	data, err := readMember(l)
	if err != nil {
		return st, refuse(fmt.Errorf("read the data: %w", err),
			"the files are damaged or are not an etcd member's; restore a backup, or see docs/troubleshooting.md")
	}
	defer data.close()
	if err := ctx.Err(); err != nil {
		return st, &Error{Kind: Interrupted, Op: "inspect", Err: context.Cause(ctx)}
	}
	if err := data.describe(&st, now); err != nil {
		return st, refuse(fmt.Errorf("read the data: %w", err),
			"the files are damaged or are not an etcd member's; restore a backup, or see docs/troubleshooting.md")
	}
	evidence, clusterVersion := data.clusterVersion()
	st.determineVersion(evidence, clusterVersion, fromFile, fileErr)
	st.checkMember(data)
	return st, nil
}

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
func (st *State) refuseAbsence(l datadir.Layout, fileErr error) {
	var invalid *versionfile.InvalidError
	if errors.As(fileErr, &invalid) {
		st.block("version-file-invalid", fileErr.Error(), "see docs/formats/version.txt.md")
	}
	if backups, _ := datadir.ListBackups(l.BackupsDir("")); len(backups) > 0 {
		st.block("member-missing", fmt.Sprintf("%s holds no member's data, but backups of it", l.DataDir),
			fmt.Sprintf("an etcd would begin an empty cluster here: copy the newest backup's member directory and version.txt from %s back, "+
				"or move %s away if a new cluster is what you want", l.BackupsDir(""), l.WorkDir()))
	}
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
	pending int // V3 writes that have not reached the db
}

func readMember(l datadir.Layout) (*contents, error) {
	db, err := keyspace.OpenDB(l.DB())
	if errors.Is(err, fs.ErrNotExist) {
		return readLog(l)
	}
	if err != nil {
		return nil, err
	}
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
	m.tree = keyspace.NewTree()
	if s := m.log.Snapshot(); s.Index > 0 {
		if m.tree, err = keyspace.LoadTree(s.Data); err != nil {
			return fmt.Errorf("%s: %w", s.Path, err)
		}
	}
	m.summary, err = m.log.Each(func(e raftlog.Entry) error {
		switch e.Kind {
		case raftlog.V2:
			return m.tree.ApplyV2(e.V2)
		case raftlog.ConfChange:
			return m.tree.ApplyConfChange(e.ConfChange)
		case raftlog.V3:
			m.tree.ApplyV3(e.V3)
			if set := e.V3.ClusterVersionSet; set != nil {
				m.fromLog = set.Ver
			}
			if e.Index > m.info.ConsistentIndex && m.writesV3(e.V3) {
				m.pending++
			}
		}
		return nil
	})
	return err
}

// writesV3 reports whether a request that is not in the db yet will change keys there. The end of a lease that the db does
// not have changes nothing; up to 3.4 the db's position in the log lags behind such requests even after a clean stop.
func (m *contents) writesV3(r *etcdserverpb.InternalRaftRequest) bool {
	if r.LeaseRevoke != nil {
		_, ok := m.leases[r.LeaseRevoke.ID]
		return ok
	}
	return r.Put != nil || r.DeleteRange != nil || r.Txn != nil || r.Compaction != nil
}

func (m *contents) close() {
	if m.db != nil {
		_ = m.db.Close() // opened for reading
	}
}

// describe fills in what the files hold.
func (m *contents) describe(st *State, now time.Time) error {
	st.Log = LogState{
		ClusterID:     id(m.log.ClusterID()),
		SnapshotIndex: m.log.Snapshot().Index,
		Index:         m.summary.HardState.Commit,
		Term:          m.summary.LastTerm,
		Uncommitted:   m.summary.Uncommitted,
		PendingV3:     m.pending,
		Torn:          m.summary.Torn,
	}
	s, auth := m.tree.Stats(now), m.tree.Auth()
	st.V2 = V2State{
		Keys: s.Keys, Bytes: s.Bytes, TTLs: s.TTLs, Hidden: s.Hidden, Expired: s.Expired, EmptyDirs: s.EmptyDirs,
		Index: m.tree.Index(), Auth: len(auth.Users) + len(auth.Roles), AuthEnabled: auth.Enabled,
		TopLevel: len(m.tree.TopLevel()), Unconverted: s.Keys,
	}
	if err := m.describeMembers(st); err != nil {
		return err
	}
	if m.db == nil {
		return nil
	}
	fp, err := keyspace.FingerprintDB(m.db)
	if err != nil {
		return err
	}
	i := m.info
	st.V3 = V3State{
		Present: true, Keys: int(fp.Records), Revision: i.Revision, CompactRevision: i.Compacted, Leases: int(i.Leases),
		ConsistentIndex: i.ConsistentIndex, StorageVersion: i.StorageVersion, ClusterVersion: i.ClusterVersion,
		Alarms: []string{}, AuthEnabled: i.AuthEnabled, SizeBytes: i.SizeBytes,
	}
	for _, a := range i.Alarms {
		st.V3.Alarms = append(st.V3.Alarms, a.Type)
	}
	if st.V2.Keys > 0 && st.V3.Keys > 0 {
		st.V2.Unconverted, err = m.unconverted(now)
	}
	return err
}

// describeMembers gives the members as the v2 store has them, which all etcds up to 3.5 go by, else as the db does.
func (m *contents) describeMembers(st *State) error {
	st.Member.ID = id(m.log.NodeID())
	members, err := m.tree.Members()
	if err != nil {
		return err
	}
	for _, v := range members {
		st.Members = append(st.Members, Member{id(v.ID), v.Name, v.PeerURLs, v.ClientURLs, v.IsLearner})
	}
	if len(members) == 0 {
		for _, v := range m.info.Members {
			st.Members = append(st.Members, Member{id(v.ID), v.Name, v.PeerURLs, v.ClientURLs, v.IsLearner})
		}
	}
	for _, v := range st.Members {
		if v.ID == st.Member.ID {
			st.Member = v
		}
	}
	return nil
}

// unconverted counts the keys of the v2 store that the v3 store does not hold with the same value at the same revision.
func (m *contents) unconverted(now time.Time) (int, error) {
	missing := map[[sha256.Size]byte]struct{}{}
	err := m.tree.Each(now, func(r keyspace.Record) error {
		missing[content(r)] = struct{}{}
		return nil
	})
	if err != nil {
		return 0, err
	}
	err = m.db.Each(func(r keyspace.Record) error {
		delete(missing, content(r))
		return nil
	})
	return len(missing), err
}

// content is a digest of what a conversion keeps as it is.
func content(r keyspace.Record) [sha256.Size]byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(r.Modified))
	b = binary.BigEndian.AppendUint64(b, uint64(len(r.Key)))
	return sha256.Sum256(append(append(b, r.Key...), r.Value...))
}

// clusterVersion is what the data says of its version, and the reading that counts. Up to 3.4 the v2 store alone has it,
// 3.5 keeps it in both places, 3.6 and 3.7 in the db and, in the form of 3.5, in their raft snapshots. It only ever
// rises, but for a downgrade, which lowers it in all places; so the newest is right.
func (m *contents) clusterVersion() (evidence []Evidence, newest versionfile.Release) {
	for _, e := range []Evidence{
		{"the cluster version in the v2 store", m.tree.ClusterVersion()},
		{"the cluster version in the db", m.info.ClusterVersion},
		{"the cluster version in the raft log", m.fromLog},
		{"the storage version in the db", m.info.StorageVersion},
	} {
		r, err := versionfile.ParseRelease(e.Says)
		if err != nil {
			continue // absent
		}
		evidence = append(evidence, e)
		if newest.Compare(r) < 0 {
			newest = r
		}
	}
	return evidence, newest
}

// checkMember notes what a migration of this member has to know or cannot do.
func (st *State) checkMember(m *contents) {
	if !st.V3.Present && !st.Version.Minor().Less(v3Since) {
		st.block("db-missing", fmt.Sprintf("%s is missing, though the cluster ran etcd %s",
			filepath.Join(st.DataDir, "member", "snap", "db"), st.Version.Minor()),
			"an etcd would begin with an empty v3 store here: restore a backup")
	}
	if st.V3.Present && st.V3.Keys == 0 && st.V3.Revision <= 1 && m.summary.Kinds[raftlog.V3] > 0 && m.pending == 0 &&
		st.Version.Storage == versionfile.Etcd3 && st.V3.ConsistentIndex == 0 {
		st.note("db-empty", "the v3 store holds nothing at all", "if it should hold keys, restore a backup instead of going on")
	}
	voters := 0
	for _, v := range st.Members {
		if !v.Learner {
			voters++
		}
	}
	if voters > 1 {
		st.block("several-members", fmt.Sprintf("the data is of a cluster of %d members", len(st.Members)),
			"migrating several members is not supported yet: upgrade them with etcd's own rolling upgrade, or make a cluster of one "+
				"from this member with --force-new-cluster, migrate it and add the others anew")
	}
	for _, a := range st.V3.Alarms {
		st.note("alarm", fmt.Sprintf("alarm %s is set", a), "it does not stop the migration and is still set afterwards; "+
			"compact, defragment and disarm it once the target etcd runs")
	}
	if st.Log.Torn != "" {
		st.note("log-torn", "the end of the raft log was cut off by a crash: "+st.Log.Torn, "etcd mends that itself when it starts")
	}
	for _, s := range m.log.Snapshot().Skipped {
		st.note("snapshot-broken", fmt.Sprintf("raft snapshot %s cannot be read", s), "an older one and the log hold all of the data")
	}
}

func (st *State) note(code, text, hint string) {
	st.Problems = append(st.Problems, Problem{Code: code, Text: text, Hint: hint})
}

// id writes a member or cluster ID as etcd does.
func id(n uint64) string { return strconv.FormatUint(n, 16) }
