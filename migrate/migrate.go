// Package migrate brings a stopped etcd member's data to the version of the etcd that is to run on it.
//
// Four nouns do: a State is what Inspect finds in a data dir, a Plan is the list of Steps from there to the target, a
// Migrator runs it, and a Report says what was done, with the proof that nothing was lost. MakePlan is a pure function;
// Migrator.Run is the story, to be read from top to bottom.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/cluster"
	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Request says what is to be done.
type Request struct {
	DataDir string
	WALDir  string // empty: member/wal in the data dir
	// Name is the member's name, as in etcd's --name. Empty: the one in the data.
	Name   string
	Target versionfile.Version
	// Binaries are the etcds at hand.
	Binaries binaries.Set
	// BackupDir is where the backup goes. Empty: into the data dir's own etcd-migrate/backups, on the same volume.
	BackupDir string
	// KeepBackups is how many backups of this data dir are kept when the migration is done, 0 for all. The newest, which
	// is the one from before its first step, always is.
	KeepBackups int
	// AllowRollback allows a target below the data, BackOnly refuses one above it.
	AllowRollback, BackOnly bool
	// AcceptLoss names what need not be carried over.
	AcceptLoss []convert.Loss
	// V2Leftovers says what becomes of things in the v2 store that are nowhere else, in data whose keys are in the v3
	// store. Empty: LeftoversRefuse.
	V2Leftovers Leftovers
	// TTLDirectory and TTL, if both are set, give keys below that directory a TTL in the conversion from etcd2 to etcd3, if
	// they have none.
	TTLDirectory string
	TTL          time.Duration
	// Peers is how the target etcd meets the other members of its cluster. Data of several members is refused without it.
	// Whoever calls Run then has to start the target etcd afterwards: a member that is gone is missing in the quorum.
	Peers *member.Peers
	// QuotaBytes is the quota that the target etcd runs with, in bytes; 0 for etcd's default of 2 GiB, below 0 for none, as for
	// etcd's own flag.
	QuotaBytes int64
	// StepTimeout is how long one etcd may take for its step; 0 means DefaultStepTimeout. Below 0 no step gets done.
	StepTimeout time.Duration
	// Tool is the program and its version, for the backup's manifest and the report.
	Tool string

	// Observer is told how it goes; nil for none. It is called from one goroutine at a time, and must be quick: the work
	// waits for it.
	Observer func(Event)
	// Log gets details at level debug; nil for none. It never gets keys or values.
	Log *slog.Logger
	// Now is the clock; nil for time.Now.
	Now func() time.Time
}

// DefaultStepTimeout leaves time to a store of several GiB on a slow disk, which etcd indexes before it answers.
const DefaultStepTimeout = 15 * time.Minute

// Migrator does one request.
type Migrator struct {
	Request
	layout datadir.Layout
	st     State
	plan   Plan
	report *Report
	// log is the member's log and v2 store as they are on disk, nil if they have not been read since the last change:
	// reading them can take as long as converting them.
	log     *contents
	backup  string
	begun   bool
	letIn   func() // gives back the locks that keep other etcds out, nil if they are not held
	unrun   bool   // the step under way has made the data one of an older minor, whose etcd has not run on it yet
	leases  bool   // this is AttachLeases, and no migration
	step    int    // the number of the step under way, counted from 1
	telling sync.Mutex
	// etcdMemory is the most that an etcd of the step under way has taken.
	etcdMemory int64

	// Of a cluster of several members: the others, whether the data has been compared with theirs in this run, and how it
	// was in the step under way.
	peers     *cluster.Peers
	together  bool // see Plan.together
	rejoins   bool // the first step was made before, in a rolling upgrade, and only the cluster's version has not risen since
	awaited   awaited
	agreed    bool
	agreement *cluster.Agreement
}

// New gives a Migrator for the request.
func New(r Request) *Migrator {
	if r.StepTimeout == 0 {
		r.StepTimeout = DefaultStepTimeout
	}
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	if r.Now == nil {
		r.Now = time.Now
	}
	return &Migrator{Request: r}
}

// Plan inspects the data and says what Run would do. It changes nothing, and takes no lock; no etcd may run on the data. Where
// there is a way to the target that Run would refuse to go, it gives both, the plan and the refusal.
func (m *Migrator) Plan(ctx context.Context) (State, Plan, error) {
	if err := m.open(); err != nil {
		return State{}, Plan{}, err
	}
	if err := m.layout.LiveEtcd(); err != nil {
		return State{}, Plan{}, m.held(err) // what its files hold changes all the time
	}
	if err := m.inspectAndPlan(ctx); err != nil {
		return m.st, Plan{From: m.st.Version, Target: m.Target, Steps: []Step{}}, err
	}
	return m.st, m.plan, m.checkPlan(ctx)
}

// Run brings the data to the target. All errors are of type *Error. With an error, the Report has the steps that
// were done; it is nil if none was begun. Run can be killed at any moment: the next one goes on from the last finished
// step. A Migrator runs once: a second Run is refused, and New gives another one.
func (m *Migrator) Run(ctx context.Context) (report *Report, err error) {
	if err := m.begin(); err != nil {
		return nil, err
	}
	m.report = &Report{Tool: m.Tool, Target: m.Target, Began: m.now()}
	defer func() {
		if report != nil { // also after a step that has failed: whoever waited for it wants to know how long
			report.Seconds = m.now().Sub(report.Began).Seconds()
		}
	}()
	m.report.DataDir = m.layout.DataDir
	unlock, err := m.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if m.upToDate() {
		m.report.From = m.Target
		return m.report, nil
	}
	m.tell(Event{Kind: EventBegun})
	if err := m.takeOver(); err != nil {
		return nil, err
	}
	if err := m.inspectAndPlan(ctx); err != nil {
		return nil, err
	}
	if err := m.checkAllowed(); err != nil {
		return nil, err
	}
	if err := m.checkCluster(); err != nil {
		return nil, err
	}
	if err := m.preflight(ctx); err != nil {
		return nil, err
	}
	before, err := m.firstFingerprint(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.backUp(ctx, before); err != nil {
		return nil, err
	}
	if err := m.correctVersionFile(); err != nil {
		return nil, err
	}
	defer m.letEtcdIn()
	for i, s := range m.plan.Steps {
		m.step = i + 1
		after, err := m.take(ctx, s, before)
		if err != nil {
			return m.report, err
		}
		before = after
	}
	if err := m.finish(before); err != nil {
		return m.report, err
	}
	return m.report, nil
}

// begin is what a Migrator does once.
func (m *Migrator) begin() error {
	if m.begun {
		return refuse(errors.New("this Migrator has run already"), "make a new one with New for each run")
	}
	m.begun = true
	return m.open()
}

func (m *Migrator) now() time.Time { return m.Now() }

func (m *Migrator) tell(e Event) {
	if m.Observer == nil {
		return
	}
	m.telling.Lock() // a private etcd's lines come while a step is under way
	defer m.telling.Unlock()
	e.State, e.Plan, e.Step = &m.st, &m.plan, m.step
	m.Observer(e)
}

// open finds out where the data lies.
func (m *Migrator) open() (err error) {
	m.layout, err = OpenLayout(m.DataDir, m.WALDir)
	return err
}

// OpenLayout is datadir.NewLayout with what to do about its errors, which are of type *Error.
func OpenLayout(dataDir, walDir string) (datadir.Layout, error) {
	l, err := datadir.NewLayout(dataDir, walDir)
	if errors.Is(err, unix.ENOTDIR) {
		return l, refuse(err, "a directory is needed, not a file: give etcd's data dir, and its WAL dir if it has one of its own, or move the file away")
	}
	if err != nil {
		return l, refuse(err, fmt.Sprintf("give etcd's data dir, and its WAL dir if it has one of its own; both must be reachable for uid %d, which this runs as", os.Geteuid()))
	}
	return l, nil
}

// lock keeps other etcd-migrates out.
func (m *Migrator) lock() (unlock func(), err error) {
	release, err := m.layout.Lock()
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil // no data dir yet: nobody can hold it
	}
	if err != nil {
		return nil, m.held(err)
	}
	return func() {
		if err := release(); err != nil {
			m.Log.Debug("unlock data dir", "error", err)
		}
	}, nil
}

// takeOver sees that the data is at rest, and that nothing stands in the way of changing it.
func (m *Migrator) takeOver() error {
	if err := m.layout.LiveEtcd(); err != nil {
		return m.held(err)
	}
	// A restore that was killed half way has to be completed before anything in the data dir means anything.
	backup, _, err := m.layout.ResumeRestore()
	if err != nil {
		hint := "mend the cause, or restore a backup again with " + restoreCommand(m.layout, m.layout.BackupsDir(m.BackupDir), "")
		var unfinished *datadir.UnfinishedError
		if errors.As(err, &unfinished) {
			return &Error{Kind: Failed, Err: err, Data: HalfRestored, Hint: hint}
		}
		return refuse(err, hint)
	}
	if backup != "" {
		m.Log.Info("completed an interrupted restore", "backup", backup)
	}
	return m.checkJournal()
}

// checkJournal refuses to go on where a proof has failed: that is not forgotten because the container was started again.
func (m *Migrator) checkJournal() error {
	j, err := openJournal(m.layout)
	if err != nil {
		return refuse(fmt.Errorf("the journal of an earlier run cannot be read, which may say that a proof has failed: %w", err),
			journalUnreadable(m.layout, m.layout.BackupsDir(m.BackupDir)))
	}
	if j != nil && j.Failed != "" {
		return m.journalRefusal(j)
	}
	return nil
}

func (m *Migrator) held(err error) error {
	var inUse *datadir.HeldError
	if errors.As(err, &inUse) {
		return &Error{Kind: InUse, Op: "lock", Err: err, Hint: "stop that process, or wait until it is done, and give the same command again"}
	}
	return refuse(err, readHint(m.layout, err, fmt.Sprintf("the data dir must be readable and writable for uid %d, which this runs as", os.Geteuid())))
}

func (m *Migrator) inspectAndPlan(ctx context.Context) (err error) {
	if m.st, m.log, err = inspect(ctx, m.layout, m.now()); err != nil {
		return err
	}
	if m.log != nil {
		m.log.close()
	}
	if m.st.Presence == Fresh && m.BackupDir != "" {
		m.st.refuseAbsence(m.layout, m.BackupDir, nil)
	}
	if m.Name != "" {
		m.st.Member.Name = m.Name
	}
	m.st.noteTarget(m.Target)
	m.noteJoinedBefore()
	m.tell(Event{Kind: EventInspected})
	if m.plan, err = MakePlan(m.st, m.Target, m.Binaries, m.V2Leftovers); err != nil {
		return err
	}
	if m.report != nil {
		m.report.begin(m.st, m.plan)
	}
	m.tell(Event{Kind: EventPlanned})
	return nil
}

// fail makes the error of a step that has been begun.
func (m *Migrator) fail(ctx context.Context, s Step, err error) error {
	says, at := "as version.txt says", s.From
	v, readErr := versionfile.Read(m.layout.DataDir)
	switch {
	case readErr == nil && v == s.To:
		at = s.To // it was written, and then the disk failed to sync the directory
	case m.st.Presence == Fresh:
		return refuse(err, fmt.Sprintf("the data dir must be writable for uid %d, which this runs as", os.Geteuid()))
	case m.step <= 1 && m.st.VersionFile == nil:
		says = "and has no version.txt yet"
	}
	e := &Error{Kind: Failed, Op: fmt.Sprintf("step %d of %d, %s to %s", m.step, len(m.plan.Steps), s.Kind, s.To), Err: err, Backup: m.backup}
	e.Data = fmt.Sprintf("the data is at %s, %s", at, says)
	if m.unrun && at == s.From {
		e.Data = fmt.Sprintf("the files are those of etcd %s by now, and version.txt says %s", s.To.Minor(), s.From)
	}
	e.Hint = hintFor(err, m.st.several())
	var proof *proofError
	if errors.As(err, &proof) {
		e.Data = fmt.Sprintf("the step to %s has changed the data, which was at %s before, %s", s.To, s.From, says)
		e.Hint = failedHint(m.layout, m.backup, m.st.several())
	}
	if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
		e.Kind, e.Err, e.Hint = Interrupted, context.Cause(ctx), "give the same command again to go on from there"
	}
	return e
}
