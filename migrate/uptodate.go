package migrate

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// upToDate finds out at next to no cost whether there is nothing to do, which is so at almost every start. It reads
// version.txt and what the db says of its version, and no key. Whatever is unusual makes it false, and then Inspect
// looks properly.
func (m *Migrator) upToDate() bool {
	v, err := versionfile.Read(m.layout.DataDir)
	if err != nil || v != m.Target || v.Storage == versionfile.Etcd2 {
		return false // what a v2 store is at cannot be told without reading it
	}
	if presence, err := m.layout.Presence(); err != nil || presence != datadir.Present {
		return false
	}
	switch err := os.Remove(freshMarker(m.layout)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil || datadir.SyncDir(m.layout.WorkDir()) != nil:
		return false
	}
	if _, err := os.Lstat(journalPath(m.layout)); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	// Without its log, because a volume is not mounted for example, an etcd begins a new cluster.
	if logs, err := filepath.Glob(filepath.Join(m.layout.WALDir, "*.wal")); err != nil || len(logs) == 0 {
		return false
	}
	if backup, err := m.layout.InterruptedRestore(); err != nil || backup != "" {
		return false
	}
	db, err := keyspace.OpenDB(m.layout.DB())
	if err != nil {
		return false
	}
	defer db.Close()
	info, err := db.Info()
	if err != nil || info.Revision <= 1 {
		return false
	}
	data, err := versionfile.ParseRelease(info.ClusterVersion)
	// Up to 3.4 the db does not know. In a rolling upgrade the cluster's version rises when the last member is done. Until then
	// an etcd from 3.6 on must not be let at the log before it has been looked at.
	return err != nil || data.Minor() == v.Minor() || oneAhead(data.Minor(), v.Minor()) && m.joinedAs(v) && v.Minor().Less(v3_6)
}
