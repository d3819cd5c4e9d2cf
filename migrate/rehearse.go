package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// Rehearsal is what a migration of a copy has shown. Its form as JSON is in docs/formats/rehearse.md.
type Rehearsal struct {
	Report *Report `json:"report"`
	// Bytes is what the data takes on disk, PeakBytes the most that the copy and its backup took together.
	Bytes     int64 `json:"bytes"`
	PeakBytes int64 `json:"peakBytes"`
	// Costs are what each of Report.Steps took.
	Costs []StepCost `json:"costs"`
	// CopySeconds is how long the copy took; it is no part of the real migration.
	CopySeconds float64 `json:"copySeconds"`
	// DowntimeSeconds is how long the real migration will take, on this machine: the backup and all steps. What the
	// target etcd needs to start comes on top.
	DowntimeSeconds float64 `json:"downtimeSeconds"`
	// BackupElsewhere is Request.BackupDir: the rehearsal made its backup beside the copy, so how long it takes there has not
	// been measured.
	BackupElsewhere string `json:"backupElsewhere,omitempty"`
	// PeakMemoryBytes is the most that this process or any of the etcds took.
	PeakMemoryBytes int64 `json:"peakMemoryBytes"`
}

// StepCost is what one step took.
type StepCost struct {
	// BytesBefore and BytesAfter are what the data took on disk, PeakBytes the most that the copy and its backup took together
	// meanwhile.
	BytesBefore int64 `json:"bytesBefore"`
	BytesAfter  int64 `json:"bytesAfter"`
	PeakBytes   int64 `json:"peakBytes"`
	// PeakMemoryBytes is that of the step's StepReport.
	PeakMemoryBytes int64 `json:"peakMemoryBytes"`
}

// Rehearse does on a copy, in a new directory below scratch, all that Run would do, and removes it again. What Run would
// refuse is refused. The data itself is only read, and proven to be what it was. No etcd may run on it.
func Rehearse(ctx context.Context, r Request, scratch string) (rehearsal *Rehearsal, err error) {
	r.Peers = nil // a copy must never meet the real cluster: it would pass for the member itself
	m := New(r)
	if err := m.open(); err != nil {
		return nil, err
	}
	unlock, err := m.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := m.checkForRehearsal(ctx); err != nil {
		return nil, err
	}
	dir, err := m.scratchDir(scratch)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.remove()) }()

	began := m.now()
	copied, before, err := copyMember(ctx, m.layout, dir.path)
	if err != nil {
		return nil, copyError(ctx, err)
	}
	rehearsal = &Rehearsal{CopySeconds: m.now().Sub(began).Seconds(), Bytes: usage(copied), Costs: []StepCost{}, BackupElsewhere: r.BackupDir}
	r.DataDir, r.WALDir, r.BackupDir = copied.DataDir, "", ""
	if copied.SeparateWAL() {
		r.WALDir = copied.WALDir
	}
	disk := watchDisk(dir.path)
	r.Observer = rehearsal.measure(copied, disk, r.Observer)
	rehearsal.Report, err = New(r).Run(ctx)
	rehearsal.PeakBytes = max(rehearsal.PeakBytes, disk.stop())
	rehearsal.PeakMemoryBytes = peakMemory()
	if rehearsal.Report != nil {
		rehearsal.DowntimeSeconds = rehearsal.Report.Seconds
	}
	return rehearsal, errors.Join(proveOriginal(m.layout, before), m.ofCopy(err, dir.path))
}

// checkForRehearsal refuses what Run would refuse, from the data itself: of its owners, its volume and its journal the copy
// would show nothing.
func (m *Migrator) checkForRehearsal(ctx context.Context) error {
	if err := m.layout.LiveEtcd(); err != nil {
		return m.held(err)
	}
	if err := m.inspectAndPlan(ctx); err != nil {
		return err
	}
	if m.st.Presence == Fresh {
		return refuse(fmt.Errorf("%s holds no member's data, so there is nothing to rehearse", m.layout.DataDir),
			"give the data dir of a stopped member; check that its volume is mounted")
	}
	if err := m.checkAllowed(); err != nil {
		return err
	}
	if err := m.checkCluster(); err != nil {
		return err
	}
	return m.preflight(ctx)
}

// copyError says what can be done about a copy that could not be made.
func copyError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return &Error{Kind: Interrupted, Op: "copy the data", Err: context.Cause(ctx), Hint: "give the same command again"}
	}
	if outOfRoom(err) {
		return refuse(err, moreRoom)
	}
	return refuse(err, "put right what it says: all of the data must be readable, and the directory for the copy (--scratch) writable")
}

// moreRoom is what to do about a scratch directory on a volume that is too small.
const moreRoom = "name a directory with more room for the copy, with --scratch"

// outOfRoom reports whether a full volume is the cause. What an etcd says of one is only text.
func outOfRoom(err error) bool {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, errno) || err != nil && strings.Contains(err.Error(), errno.Error()) {
			return true
		}
	}
	return false
}

// ofCopy makes an error of the copy's migration one of the rehearsal: there is no backup to restore, and nothing to mend. All that
// it has written is in dir.
func (m *Migrator) ofCopy(err error, dir string) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	const data = "that was a copy, the data itself is as it was"
	of := &Error{Kind: e.Kind, Op: "rehearse", Err: e.Err, Hint: e.Hint}
	if e.Op != "" {
		of.Op += ": " + e.Op
	}
	switch {
	case e.Kind == Interrupted:
		of.Hint = "give the same command again"
	case outOfRoom(e.Err):
		of.Kind, of.Data, of.Hint = Refused, data, moreRoom
		of.Err = fmt.Errorf("the volume of the directory for the copy, %s, is too small or full: %w", filepath.Dir(dir), e.Err)
	case e.Kind == Failed && m.closed(dir) != "":
		of.Kind, of.Data = Refused, data
		of.Err = fmt.Errorf("%s is closed to the user that the data belongs to and etcd runs as: %w", m.closed(dir), e.Err)
		of.Hint = "name a directory for the copy, with --scratch, that is open to that user with all above it, such as /var/tmp"
	case e.Kind == Failed:
		of.Data, of.Hint = data, "do not migrate it before the cause is known; the real migration would stop at the same point"
	case strings.Contains(e.Hint, "--backup-dir"): // the copy's backup is beside it
		of.Data, of.Hint = data, "put right what it says, or name another directory for the copy, with --scratch"
	default:
		return err
	}
	return of
}

// closed names what keeps the etcd of a step from a directory, empty if nothing does.
func (m *Migrator) closed(dir string) string {
	owner, err := m.owner()
	if err != nil || owner == nil {
		return ""
	}
	return barrier(dir, owner)
}

// proveOriginal sees that the data is what it was before.
func proveOriginal(l datadir.Layout, before listing) error {
	after, err := list(l)
	if err != nil {
		return &Error{Kind: Failed, Op: "prove that the data has not been changed", Err: err,
			Data: "the rehearsal has not written to it", Hint: "all of the data must be readable; give the same command again"}
	}
	if changed := before.differs(after); len(changed) > 0 {
		return &Error{Kind: Failed, Op: "prove that the data has not been changed",
			Err:  fmt.Errorf("it was changed while it was rehearsed: %s", strings.Join(changed, ", ")),
			Data: "the rehearsal has not written to it, and what it shows may not be true of the data as it is now",
			Hint: "find out who else uses the data dir, an etcd or a program that copies or restores it, and rehearse again"}
	}
	return nil
}

// rehearsalPrefix begins the name of a directory that holds a copy, with all keys in it.
const rehearsalPrefix = "etcd-migrate-rehearsal-"

// scratchDir is the directory of one rehearsal, locked for as long as its process lives.
type scratchDir struct {
	path   string
	unlock func() error
}

func (d scratchDir) remove() error { return errors.Join(os.RemoveAll(d.path), d.unlock()) }

// scratchDir makes one below scratch, after it has removed those that rehearsals of the same user have left which were killed.
func (m *Migrator) scratchDir(scratch string) (d scratchDir, err error) {
	if scratch == "" {
		scratch = os.TempDir()
	}
	const hint = "name a directory for the copy, with --scratch, that can be written to"
	if err := m.removeLeftCopies(scratch); err != nil {
		return d, refuse(err, "remove what a killed rehearsal has left there, or "+hint)
	}
	if d.path, err = os.MkdirTemp(scratch, rehearsalPrefix); err != nil {
		return d, refuse(err, hint)
	}
	if err := ownLike(d.path, m.layout.DataDir); err != nil {
		return d, refuse(errors.Join(err, os.Remove(d.path)), "the copy must belong to the user that the data belongs to")
	}
	if d.unlock, err = (datadir.Layout{DataDir: d.path}).Lock(); err != nil {
		return d, refuse(errors.Join(err, os.Remove(d.path)), hint)
	}
	return d, nil
}

// youngCopy is how old a copy must be to be taken for left: its process locks it right after it has made it.
const youngCopy = time.Minute

func (m *Migrator) removeLeftCopies(scratch string) error {
	left, err := filepath.Glob(filepath.Join(scratch, rehearsalPrefix+"*"))
	if err != nil {
		return err
	}
	data, err := os.Stat(m.layout.DataDir)
	if err != nil {
		return err
	}
	for _, path := range left {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < youngCopy {
			continue
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; int(uid) != os.Geteuid() && uid != data.Sys().(*syscall.Stat_t).Uid {
			continue
		}
		unlock, err := (datadir.Layout{DataDir: path}).Lock()
		if err != nil {
			continue // a rehearsal that is under way, or nothing of ours
		}
		m.Log.Info("removing the copy that a killed rehearsal has left", "path", path)
		if err := errors.Join(os.RemoveAll(path), unlock()); err != nil {
			return err
		}
	}
	return nil
}
