package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
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
	// Permanent is the digest of the records without a TTL in the store that Storage names, which no step but a conversion
	// changes. If the data has another one, somebody has written to it since, and the backup is not of this data.
	Permanent string              `json:"permanent"`
	Storage   versionfile.Storage `json:"storage,omitempty"`
	// Revision is what that store was at when the migration began, or when it was converted: the revision of the v3 store, the
	// index of the v2 store. It never goes back, and every write raises it.
	Revision int64 `json:"revision"`
	// Converted is the raft entry at which a member of several has converted its v2 store, from then on until the others
	// have, too.
	Converted uint64 `json:"converted,omitempty"`
	// Made tells the dbs that conversions have put into place, or were about to. While no record is newer, they hold nothing but
	// what was converted.
	Made []convert.Made `json:"made,omitempty"`
	// Left is where a member of several leaves its cluster's log in a rollback.
	Left *leaving `json:"left,omitempty"`
	// Several says that the member is one of several.
	Several bool `json:"several,omitempty"`
	// Together says that the members of a cluster walk this migration together, also when only one step is left of it.
	Together bool `json:"together,omitempty"`
	// Uncompared says that an etcd has been let at a member's data, and that this has not been compared with the other
	// members' since.
	Uncompared bool `json:"uncompared,omitempty"`
	// Agreed says that it was the same as all other members' once in this migration, after which a member may have become the target.
	Agreed bool `json:"agreed,omitempty"`
	// Unrun is the minor that a step of a rollback has begun to make the data one of, until that minor's etcd has run on it.
	Unrun string `json:"unrun,omitempty"`
	// Foreign says that there was another journal, and that the data was not what it had been then.
	Foreign bool `json:"foreign,omitempty"`
	// Leases says that this is no migration: leases are being attached to keys, which writes them again.
	Leases bool `json:"leases,omitempty"`
	// Failed says what was found missing or changed after a step. Nothing but a restore goes on from there.
	Failed string `json:"failed,omitempty"`
	// Diverged says that it is another member's data that is not the same.
	Diverged bool `json:"diverged,omitempty"`
}

func journalPath(l datadir.Layout) string { return filepath.Join(l.WorkDir(), JournalName) }

// backUp copies the data before the first step. A run that was killed has left its backup and its journal: then that
// backup is used, because the data is half way by now.
func (m *Migrator) backUp(ctx context.Context, now *keyspace.Fingerprint) error {
	if !m.plan.needsBackup() {
		j, err := openJournal(m.layout) // the last step may have been killed before its proof
		if err != nil {
			return refuse(err, "mend the cause and give the same command again")
		}
		return m.checkLost(j, now)
	}
	earlier, err := m.earlierRun()
	if err != nil {
		return err
	}
	half := earlier != nil && earlier.Backup == "" // killed while the backup was made, or right after it
	if half {
		earlier = nil
	}
	m.together = m.walkTogether(now)
	if earlier != nil && (earlier.Permanent == now.Permanent() || m.converted(earlier)) {
		earlier.Permanent, earlier.Storage = now.Permanent(), m.st.Version.Storage
		earlier.From, earlier.Target, earlier.Together = m.st.Version, m.plan.Target, m.together
		earlier.Leases = m.leases // it may have been one of AttachLeases, and is this run's now
		return m.useBackup(*earlier, Event{Kind: EventBackup, Backup: earlier.Backup, Reused: true})
	}
	if err := m.checkLost(earlier, now); err != nil {
		return err
	}
	// What could not be written down afterwards must not be begun: each start would make one more backup.
	foreign := earlier != nil
	began, dir := m.now(), m.layout.BackupsDir(m.BackupDir)
	j := journal{Format: 1, Began: began, From: m.st.Version, Target: m.plan.Target, Permanent: now.Permanent(),
		Storage: m.st.Version.Storage, Revision: m.revision(), Leases: m.leases, Foreign: foreign,
		Several: m.st.several(), Together: m.together, Uncompared: m.st.uncompared}
	if earlier != nil && m.st.several() {
		j.Converted, j.Left, j.Agreed = earlier.Converted, earlier.Left, earlier.Agreed // what the members have agreed on stands
	}
	if earlier != nil {
		j.Unrun, j.Made = earlier.Unrun, earlier.Made
	}
	if half { // then the backup may be whole, and only the journal does not have it
		b, found, err := m.layout.UnchangedSince(dir)
		if err != nil {
			return refuse(err, "the data dir and the backups must be readable")
		}
		if err := datadir.RemoveUnfinished(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return refuse(err, "the data dir and the backups must be writable")
		}
		if found {
			j.Backup = b.Path
			return m.useBackup(j, Event{Kind: EventBackup, Backup: b.Path, Reused: true})
		}
	}
	if !foreign {
		if err := errors.Join(datadir.MkdirAll(m.layout.WorkDir()), datadir.WriteJSON(journalPath(m.layout), j)); err != nil {
			return refuse(err, "the data dir, and etcd-migrate in it, must be writable")
		}
	}
	reason := "before the migration to " + m.plan.Target.String()
	if m.leases {
		reason = "before leases are attached to keys"
	}
	b, err := datadir.CreateBackup(ctx, m.layout, dir, datadir.Meta{
		Version: m.st.Version, Member: m.st.Log.ClusterID + "/" + m.st.Member.ID,
		Reason: reason, Tool: m.Tool,
	}, m.progress("backup", UnitBytes))
	if err != nil {
		if !foreign {
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
	return j.From.Storage != j.Target.Storage && m.st.Version.Storage == j.Target.Storage && m.revision() == j.Revision &&
		j.Storage != m.st.Version.Storage
}

// checkLost finds what a run did not live to see: keys are not what they were after the last step that was proven, and yet
// nobody has written since.
func (m *Migrator) checkLost(j *journal, now *keyspace.Fingerprint) error {
	if j == nil || j.Permanent == now.Permanent() || m.revision() != j.Revision || j.Storage != m.st.Version.Storage {
		return nil
	}
	j.Failed = fmt.Sprintf("the keys are not what they were when the migration to %s was last proven, though the store is still at revision %d: "+
		"a step has lost or changed some, and was killed before its proof", j.Target, m.revision())
	refusal := m.journalRefusal(j)
	refusal.Err = errors.Join(refusal.Err, datadir.WriteJSON(journalPath(m.layout), j))
	return refusal
}

// journalRefusal is the error for a journal with a failed proof.
func (m *Migrator) journalRefusal(j *journal) *Error {
	return &Error{Kind: Refused, Op: "look at the earlier run", Err: errors.New(j.Failed), Backup: j.Backup,
		Hint: j.failedHint(m.layout)}
}

// failedHint is what to do about Failed.
func (j *journal) failedHint(l datadir.Layout) string {
	if j.Diverged {
		return divergedHint
	}
	return failedHint(l, j.Backup, j.Several)
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

// ownJournal is the journal of this very run.
func (m *Migrator) ownJournal() (*journal, error) {
	j, err := openJournal(m.layout)
	if err == nil && j == nil {
		err = errors.New("the journal is gone")
	}
	return j, err
}

// earlierRun gives the journal of a run that was killed, nil if there is none. A backup that it names and that cannot be read, or
// is not where it was, is a refusal: what would be backed up in its stead is half way.
func (m *Migrator) earlierRun() (*journal, error) {
	j, err := openJournal(m.layout)
	if err != nil {
		return nil, refuse(err, "mend the cause and give the same command again")
	}
	if j == nil || j.Backup == "" {
		return j, nil
	}
	const given = "; if that backup is given up, move the journal %s away, and a new backup is made of the data as it is now"
	refuseBackup := func(err error, hint string) error {
		return refuse(err, hint+fmt.Sprintf(given, journalPath(m.layout)))
	}
	path := j.Backup
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		// The data dir may have another path by now, in a container for example.
		path = filepath.Join(m.layout.BackupsDir(m.BackupDir), filepath.Base(path))
	}
	switch err := datadir.OpenBackup(path).Err; {
	case errors.Is(err, fs.ErrNotExist) && !exists(path):
		return nil, refuseBackup(fmt.Errorf("the backup from before the first step of an earlier run is not there: %s", j.Backup),
			"mount its volume, or name the directory that it is in with --backup-dir, and give the same command again")
	case err != nil:
		return nil, refuseBackup(fmt.Errorf("the backup from before the first step of an earlier run is there, and cannot be read: %w", err),
			"mend the cause and give the same command again")
	}
	j.Backup = path
	return j, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// rememberFailure makes every later run refuse: a failed proof must not be lost with the process.
func (m *Migrator) rememberFailure(s Step, proof error) error {
	j, err := openJournal(m.layout) // also if somebody has removed the backup meanwhile
	if err != nil || j == nil {
		return &proofError{errors.Join(proof, err)}
	}
	j.Failed = fmt.Sprintf("the step %s to %s failed its proof: %v", s.Kind, s.To, proof)
	return &proofError{errors.Join(proof, datadir.WriteJSON(journalPath(m.layout), j))}
}

// proofError is a proof that has failed: nothing goes on from there.
type proofError struct{ err error }

func (e *proofError) Error() string { return e.err.Error() }
func (e *proofError) Unwrap() error { return e.err }

// continueJournal notes what the records are after a step that was proven, so that the next run knows of each step that is
// killed before its proof whether it has lost any.
func (m *Migrator) continueJournal(s Step, now *keyspace.Fingerprint, side *sideData) error {
	j, err := openJournal(m.layout)
	if err != nil || j == nil {
		return err
	}
	next := *j
	next.Permanent, next.Storage, next.Unrun = now.Permanent(), s.To.Storage, ""
	switch {
	case s.Kind == StepConvert && m.report.Conversion != nil: // else an earlier run of one of several members has converted
		next.Revision = m.report.Conversion.Revision
	case side != nil && s.To.Storage == versionfile.Etcd3:
		next.Revision = side.info.Revision
	}
	if reflect.DeepEqual(next, *j) {
		return nil
	}
	return datadir.WriteJSON(journalPath(m.layout), next)
}

// finish ends the migration: the data is at the target, so the journal goes.
func (m *Migrator) finish(last *keyspace.Fingerprint) error {
	m.report.KeysAfter = int(last.Records)
	m.report.PeakMemoryBytes = ownPeakMemory()
	// Killed here, the next run finds the journal and prunes again.
	if err := errors.Join(m.noteJoined(), m.prune(), m.endJournal()); err != nil {
		return &Error{Kind: Failed, Op: "finish", Err: err, Backup: m.backup,
			Data: fmt.Sprintf("the data is at %s and complete", m.plan.Target), Hint: "give the same command again"}
	}
	return nil
}

// prune removes old backups once the migration is done. Where an earlier run's journal did not fit the data, its backup can be
// the one from before everything.
func (m *Migrator) prune() error {
	j, err := openJournal(m.layout)
	if err != nil || m.KeepBackups <= 0 || j == nil || j.Backup == "" || j.Foreign {
		return err
	}
	if m.report.Pruned, err = m.layout.Prune(m.layout.BackupsDir(m.BackupDir), m.KeepBackups); err != nil {
		m.Log.Warn("not all old backups could be removed", "error", err) // which is no reason not to start etcd
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
