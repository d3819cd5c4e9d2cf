package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// JournalName is the file in the work dir that says that a migration has been begun and not been finished.
const JournalName = datadir.MigrationJournal

// journal is what a run leaves for the next one, if it is killed. Its format is in docs/formats/work-dir.md.
type journal struct {
	Format int                 `json:"format"` // 1
	Began  time.Time           `json:"began"`
	From   versionfile.Version `json:"from"`
	Target versionfile.Version `json:"target"`
	Backup string              `json:"backup"` // path
	// Permanent is the digest of the records without a TTL, which a migration never changes. If the data has another one,
	// somebody has written to it since, and the backup is not of this data.
	Permanent string `json:"permanent"`
	// Revision is what the v3 store, or without one in use the v2 store's index, was at when the migration began. It never
	// goes back, and every write raises it.
	Revision int64 `json:"revision"`
	// Converted is the raft entry at which a member of several has converted its v2 store, from then on until the others
	// have, too.
	Converted uint64 `json:"converted,omitempty"`
	// Left is where a member of several leaves its cluster's log in a rollback.
	Left *leaving `json:"left,omitempty"`
	// Failed says what was found missing or changed after a step. Nothing but a restore goes on from there.
	Failed string `json:"failed,omitempty"`
}

func journalPath(l datadir.Layout) string { return filepath.Join(l.WorkDir(), JournalName) }

// backUp copies the data before the first step. A run that was killed has left its backup and its journal: then that
// backup is used, because the data is half way by now.
func (m *Migrator) backUp(ctx context.Context, now *keyspace.Fingerprint) error {
	if !m.plan.needsBackup() {
		return nil
	}
	if j := readJournal(m.layout); j != nil && (j.Permanent == now.Permanent() || m.converted(j)) {
		j.Permanent = now.Permanent()
		j.From, j.Target = m.st.Version, m.plan.Target
		return m.useBackup(*j, Event{Kind: EventBackup, Backup: j.Backup, Reused: true})
	}
	if err := m.checkLost(now); err != nil {
		return err
	}
	// What could not be written down afterwards must not be begun: each start would make one more backup.
	m.foreign = readJournal(m.layout) != nil
	began, dir := m.now(), m.layout.BackupsDir(m.BackupDir)
	j := journal{Format: 1, Began: began, From: m.st.Version, Target: m.plan.Target, Permanent: now.Permanent(), Revision: m.revision()}
	if old := readJournal(m.layout); old != nil && m.st.several() {
		j.Converted, j.Left = old.Converted, old.Left // what the members have agreed on stands
	}
	if old, err := openJournal(m.layout); err == nil && old != nil && old.Backup == "" {
		// Killed while the backup was made, or right after it: then it is whole, and only the journal does not have it.
		b, found, err := m.layout.UnchangedSince(dir)
		if err != nil {
			return refuse(err, "the data dir and the backups must be readable")
		}
		if found {
			j.Backup = b.Path
			return m.useBackup(j, Event{Kind: EventBackup, Backup: b.Path, Reused: true})
		}
	}
	if !m.foreign {
		if err := errors.Join(datadir.MkdirAll(m.layout.WorkDir()), datadir.WriteJSON(journalPath(m.layout), j)); err != nil {
			return refuse(err, "the data dir, and etcd-migrate in it, must be writable")
		}
	}
	b, err := datadir.CreateBackup(ctx, m.layout, dir, datadir.Meta{
		Version: m.st.Version, Member: m.st.Log.ClusterID + "/" + m.st.Member.ID,
		Reason: "before the migration to " + m.plan.Target.String(), Tool: m.Tool,
	}, m.progress("backup", UnitBytes))
	if err != nil {
		if !m.foreign {
			err = errors.Join(err, m.endJournal())
		}
		if ctx.Err() != nil {
			return &Error{Kind: Interrupted, Op: "back up", Err: context.Cause(ctx), Hint: "give the same command again"}
		}
		return &Error{Kind: Refused, Op: "back up", Err: err,
			Hint: fmt.Sprintf("make room in %s, or name a directory on another volume with --backup-dir", dir)}
	}
	j.Backup, m.report.BackupSeconds = b.Path, m.now().Sub(began).Seconds()
	return m.useBackup(j, Event{Kind: EventBackup, Backup: b.Path})
}

// revision is how far the store with the user's keys has come.
func (m *Migrator) revision() int64 {
	if m.st.Version.Storage == versionfile.Etcd3 {
		return m.st.V3.Revision
	}
	return int64(m.st.V2.Index)
}

// converted reports whether the data is what a conversion has just made of it, and the run was killed before it could note
// what the records are now. A write since would have raised the revision.
func (m *Migrator) converted(j *journal) bool {
	return j.From.Storage != j.Target.Storage && m.st.Version.Storage == j.Target.Storage && m.revision() == j.Revision
}

// checkLost finds what a run did not live to see: keys are not what they were when the migration began, and yet nobody has
// written since. A conversion is not looked at, because it changes what is counted.
func (m *Migrator) checkLost(now *keyspace.Fingerprint) error {
	j := readJournal(m.layout)
	if j == nil || j.Permanent == now.Permanent() || m.revision() != j.Revision ||
		j.From.Storage != j.Target.Storage || j.From.Storage != m.st.Version.Storage || j.Target.Storage != m.plan.Target.Storage {
		return nil
	}
	j.Failed = fmt.Sprintf("the keys are not what they were when the migration to %s began, though the store is still at revision %d: "+
		"a step has lost or changed some, and was killed before its proof", j.Target, m.revision())
	refusal := journalRefusal(j)
	refusal.Err = errors.Join(refusal.Err, datadir.WriteJSON(journalPath(m.layout), j))
	return refusal
}

// journalRefusal is the error for a journal with a failed proof.
func journalRefusal(j *journal) *Error {
	return &Error{Kind: Refused, Op: "look at the earlier run", Err: errors.New(j.Failed), Backup: j.Backup,
		Hint: "restore the backup with `etcd-migrate backup restore`, and report this with the message; " +
			"nothing else may be done with the data until then"}
}

// useBackup notes in the journal which backup is the one from before the first step. Before that, version.txt is corrected:
// the journal of the run before may be all that tells why it contradicts the data.
func (m *Migrator) useBackup(j journal, e Event) error {
	m.backup = j.Backup
	if err := m.correctVersionFile(); err != nil {
		return err
	}
	if err := datadir.WriteJSON(journalPath(m.layout), j); err != nil {
		return &Error{Kind: Failed, Op: "note the backup", Err: err, Backup: m.backup, Data: fmt.Sprintf("the data is at %s", m.st.Version),
			Hint: "the data dir must be writable; give the same command again"}
	}
	m.report.Backup = j.Backup
	m.tell(e)
	return nil
}

// openJournal gives nil if no migration has been begun.
func openJournal(l datadir.Layout) (*journal, error) {
	var j journal
	err := datadir.ReadJSON(journalPath(l), &j)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case j.Format != 1:
		return nil, fmt.Errorf("read %s: its format is %d, and this program knows format 1 only", journalPath(l), j.Format)
	}
	return &j, nil
}

// readJournal is openJournal, and gives nil as well if the journal cannot be read or the backup is not there.
func readJournal(l datadir.Layout) *journal {
	j, err := openJournal(l)
	if err != nil || j == nil || j.Backup == "" || datadir.OpenBackup(j.Backup).Err != nil {
		return nil
	}
	return j
}

// rememberFailure makes every later run refuse: a failed proof must not be lost with the process.
func (m *Migrator) rememberFailure(s Step, proof error) error {
	j, err := openJournal(m.layout) // also if somebody has removed the backup meanwhile
	if err != nil || j == nil {
		return errors.Join(proof, err)
	}
	j.Failed = fmt.Sprintf("the step %s to %s failed its proof: %v", s.Kind, s.To, proof)
	return errors.Join(proof, datadir.WriteJSON(journalPath(m.layout), j))
}

// continueJournal notes what the records are after a step that has changed what the v2 store does not know: how often a key
// was written.
func (m *Migrator) continueJournal(now *keyspace.Fingerprint) error {
	j := readJournal(m.layout)
	if j == nil || j.Permanent == now.Permanent() {
		return nil
	}
	j.Permanent = now.Permanent()
	return datadir.WriteJSON(journalPath(m.layout), j)
}

// finish ends the migration: the data is at the target, so the journal goes.
func (m *Migrator) finish(last *keyspace.Fingerprint) error {
	m.report.KeysAfter = int(last.Records)
	m.report.PeakMemoryBytes = ownPeakMemory()
	m.report.Seconds = m.now().Sub(m.report.Began).Seconds()
	if err := errors.Join(m.noteJoined(), m.endJournal()); err != nil {
		return &Error{Kind: Failed, Op: "finish", Err: err, Backup: m.backup,
			Data: fmt.Sprintf("the data is at %s and complete", m.plan.Target), Hint: "give the same command again"}
	}
	// Where an earlier run's journal did not fit the data, its backup can be the one from before everything.
	if m.KeepBackups > 0 && m.backup != "" && !m.foreign {
		removed, err := m.layout.Prune(m.layout.BackupsDir(m.BackupDir), m.KeepBackups)
		m.report.Pruned = removed
		if err != nil {
			m.Log.Warn("not all old backups could be removed", "error", err) // which is no reason not to start etcd
		}
	}
	return nil
}

func (m *Migrator) endJournal() error {
	if err := m.layout.RemoveUnwritten(); err != nil {
		return err
	}
	err := os.Remove(journalPath(m.layout))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return datadir.SyncDir(m.layout.WorkDir())
}
