package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/cluster"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// checkCluster refuses what cannot be done with one of several members.
func (m *Migrator) checkCluster() error {
	if !m.st.several() || !m.plan.needsBackup() {
		return nil
	}
	if m.Peers == nil || len(m.Peers.ListenURLs) == 0 {
		return refuse(fmt.Errorf("the data is of a cluster of %d members (%s), and nothing says how this one meets the others",
			len(m.st.Members), severalMembers),
			"give `etcd-migrate run … -- etcd …` on every member, with the flags of that member's etcd, --listen-peer-urls among them: "+
				"see docs/ha.md; or make a cluster of one from this member with --force-new-cluster, migrate it and add the others anew")
	}
	if err := m.checkTogether(); err != nil {
		return err
	}
	peers, err := cluster.New(m.others(), m.Peers)
	if err != nil {
		return refuse(err, "the peer certificates in etcd's own flags must be readable")
	}
	m.peers = peers
	return nil
}

// checkTogether refuses what several members cannot do together.
func (m *Migrator) checkTogether() error {
	if !m.st.several() {
		return nil
	}
	if converts := slices.ContainsFunc(m.plan.Steps, func(s Step) bool { return s.Kind == StepConvert }); m.st.hasLearner() && (converts || m.plan.Back()) {
		return refuse(errors.New("the cluster has a learner, which cannot agree with the others on what to convert or to bring back"),
			"promote it, or remove it with `etcdctl member remove` and add it anew afterwards, with an empty data dir")
	}
	if slices.ContainsFunc(m.plan.Steps, func(s Step) bool { return s.Kind == StepConvertBack }) {
		return refuse(errors.New("the members of a cluster of several cannot go back to etcd2 together"),
			"make a cluster of one from one member: start its etcd with --force-new-cluster and stop it, roll that data dir back with "+
				"`etcd-migrate rollback`, start the older etcd on it, and add the other members anew with empty data dirs: see docs/ha.md")
	}
	return nil
}

// others are the other members of the cluster.
func (m *Migrator) others() (others []cluster.Member) {
	for _, v := range m.st.Members {
		if v.ID != m.st.Member.ID {
			others = append(others, clusterMember(v))
		}
	}
	return others
}

func clusterMember(v Member) cluster.Member {
	return cluster.Member{ID: v.ID, Name: v.Name, PeerURLs: v.PeerURLs}
}

// together reports whether the whole cluster is shut down and walks the plan together: then etcd's own cluster version,
// which rises when all members run a minor, is the barrier between two minors. A plan of one minor can be made by one
// member after the other while clients write (a rolling upgrade), and the cluster version rises when the last one is done.
func (p Plan) together() bool {
	upgrades := 0
	for _, s := range p.Steps {
		switch s.Kind {
		case StepUpgrade:
			upgrades++
		case StepConvert:
			return true // for which the members have to agree
		}
	}
	return upgrades > 1
}

// walkTogether reports whether this run is part of a migration that the members walk together. The remaining plan does not
// say so when all but one step were made before a restart, but the journal does. If others have written to the data since,
// that migration was given up, and the members are perhaps being upgraded one after the other.
func (m *Migrator) walkTogether(now *keyspace.Fingerprint) bool {
	j, err := openJournal(m.layout)
	if m.rejoins {
		return false
	}
	if m.plan.together() || err != nil || j == nil || !j.Together || j.Target != m.plan.Target {
		return m.plan.together()
	}
	upgrades := slices.ContainsFunc(m.plan.Steps, func(s Step) bool { return s.Kind == StepUpgrade })
	return !upgrades && !m.plan.Back() || j.Permanent == now.Permanent() || m.converted(j)
}

// ready waits until the step's etcd has taken the data over: for a member that is alone, see member.Ready.
func (m *Migrator) ready(ctx context.Context, s Step, etcd *member.Etcd) error {
	if !m.st.several() {
		return etcd.Ready(ctx)
	}
	return m.watching(ctx, s, etcd, func() error {
		if s.Kind == StepUpgrade && (m.together || m.step < len(m.plan.Steps)) {
			if err := etcd.Ready(ctx); err != nil {
				return err
			}
		}
		return m.joined(ctx, etcd)
	})
}

// joined waits until the etcd takes part in its cluster, and looks who else does now: this member may have missed that others
// have been added or removed.
func (m *Migrator) joined(ctx context.Context, etcd *member.Etcd) error {
	if err := etcd.Joined(ctx); err != nil {
		return err
	}
	members, err := m.peers.List(ctx, clusterMember(m.st.Member))
	others := slices.DeleteFunc(slices.Clone(members), func(v cluster.Member) bool { return v.ID == m.st.Member.ID })
	if err != nil || len(others) == len(members) {
		m.Log.Debug("ask for the members", "error", err) // its own URL can be one that is meant for the others only
		return nil
	}
	m.peers.Update(others)
	return nil
}

// awaited are the members that an agreement waits for.
type awaited struct {
	mu  sync.Mutex
	ids []string
}

func (a *awaited) set(ids []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ids = ids
}

func (a *awaited) has(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(a.ids, id)
}

// watching does something that depends on the other members, and tells which ones it waits for meanwhile.
func (m *Migrator) watching(ctx context.Context, s Step, etcd *member.Etcd, do func() error) error {
	m.awaited.set(nil)
	stop := m.watchPeers(ctx, s, etcd)
	err := do()
	if waiting := stop(); err != nil && len(waiting) > 0 {
		err = fmt.Errorf("waiting for %s: %w", strings.Join(waiting, ", "), err)
	}
	return err
}

// How often the other members are asked what they do, and how long nothing is said about it.
const (
	watchPeers = time.Second
	watchQuiet = 2 * time.Second
)

// watchPeers tells, until it is stopped, which members the step waits for: those that are not reachable, those that run an
// older minor, and those that an agreement lacks. stop gives the last ones. With a learner among the members it also writes, because a learner gets
// its raft snapshot from what others write.
func (m *Migrator) watchPeers(ctx context.Context, s Step, etcd *member.Etcd) (stop func() []string) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	var waiting, told []string
	began := time.Now()
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-etcd.Exited():
				return
			case <-time.After(watchPeers):
			}
			status := m.peers.Status(ctx)
			if ctx.Err() != nil {
				return
			}
			waiting = nil
			for _, p := range status {
				older := p.Server.Minor().Less(s.To.Minor()) && (m.together || s.Kind != StepUpgrade)
				switch {
				case p.Err != nil, older, s.Kind == StepDowngrade && p.Server.Minor() != s.To.Minor():
					waiting = append(waiting, p.String())
				case m.awaited.has(p.ID): // it may run an etcd that was not started by etcd-migrate
					waiting = append(waiting, fmt.Sprintf("%s (etcd %s, has not joined the agreement)", p.Member, p.Server))
				}
			}
			if len(waiting) > 0 && time.Since(began) > watchQuiet && !slices.Equal(waiting, told) {
				told = waiting
				m.tell(Event{Kind: EventWaiting, Waiting: waiting})
			}
			if m.st.hasLearner() {
				m.writeForLearners(ctx, etcd)
			}
		}
	}()
	return func() []string {
		cancel()
		<-done
		return waiting
	}
}

func (st State) hasLearner() bool {
	return slices.ContainsFunc(st.Members, func(v Member) bool { return v.Learner })
}

func (m *Migrator) writeForLearners(ctx context.Context, etcd *member.Etcd) {
	ctx, cancel := context.WithTimeout(ctx, watchPeers)
	defer cancel()
	if err := etcd.Write(ctx); err != nil {
		m.Log.Debug("write for the learner", "error", err) // without a quorum there is nothing it could follow
	}
}

// compares reports whether the data is compared with the other members' in this step, if its etcd can: in the first one, in
// which a member that lagged behind catches up, and in the last one.
func (m *Migrator) compares(s Step) bool {
	return m.st.several() && !s.To.Minor().Less(cluster.HashSince) && (!m.agreed || m.step == len(m.plan.Steps))
}

// noteCompared notes in the journal whether the comparison is still to be made. That it is must be known before an etcd is
// let at the data: once it has raised the version, a run after this one may find no step left to take.
func (m *Migrator) noteCompared(compared bool) error {
	j, err := m.ownJournal()
	if err != nil || j.Uncompared == !compared {
		return err
	}
	j.Uncompared, j.Agreed = !compared, j.Agreed || compared && m.together
	return datadir.WriteJSON(journalPath(m.layout), j)
}

// lingering is how long a member stays that has found out that its data is not the others'.
const lingering = 5 * time.Second

// agree compares the data with the other members'. What has diverged must not be carried on.
func (m *Migrator) agree(ctx context.Context, s Step, etcd *member.Etcd) error {
	own := cluster.Own{CatchUp: etcd.Joined, Hash: func(ctx context.Context) (cluster.Hash, int64, error) {
		hash, compact, revision, err := etcd.HashKV(ctx)
		return cluster.Hash{Hash: hash, Compact: compact}, revision, err
	}}
	if m.st.Member.Learner { // which answers nothing of that kind to clients
		own = cluster.Own{Hash: func(ctx context.Context) (cluster.Hash, int64, error) {
			return m.peers.Hash(ctx, clusterMember(m.st.Member), 0)
		}}
	}
	a, err := m.peers.Agree(ctx, s.To.Minor(), m.together, own)
	var diverged *cluster.DivergedError
	if errors.As(err, &diverged) {
		diverged.Self = clusterMember(m.st.Member)
		err = m.rememberDiverged(diverged)
		select { // the others must be able to find out, too
		case <-ctx.Done():
		case <-etcd.Exited():
		case <-time.After(lingering):
		}
	}
	if err != nil {
		return err
	}
	m.agreed, m.agreement = true, &a
	return m.noteCompared(true)
}

// rememberDiverged makes every later run refuse before it starts an etcd: where a leader's log does not reach back far enough, it
// would put its db in the place of another member's, the wrong as well as the right. In a rolling upgrade clients write, and after
// an agreement with all of them the others may have become the target. Then no backup may be restored, and each start compares anew.
func (m *Migrator) rememberDiverged(diverged *cluster.DivergedError) error {
	j, err := m.ownJournal()
	if err != nil {
		return errors.Join(diverged, err)
	}
	if diverged.Served = !m.together || j.Agreed; diverged.Served {
		return diverged
	}
	j.Failed, j.Diverged = diverged.Error(), true
	return errors.Join(diverged, datadir.WriteJSON(journalPath(m.layout), j))
}

// mayReplicate reports whether the step is likely to have brought writes of other members: the first one, in which a member
// catches up with the cluster, and the last one, in which members that are done already serve clients. In any other, too, keys
// may be others than before if the store has gone on, because the others decide what is in it.
func (m *Migrator) mayReplicate() bool {
	return m.st.several() && (m.step == 1 || m.step == len(m.plan.Steps) || !m.together)
}

// joinedMarker is a file in the work dir that says as which version this member has joined a cluster whose version was
// still the one before. Until the last member has, the data cannot say so, and each restart would be an upgrade again.
func joinedMarker(l datadir.Layout) string { return filepath.Join(l.WorkDir(), "joined") }

// noteJoined writes the marker after a rolling upgrade, and removes it after everything else.
func (m *Migrator) noteJoined() error {
	if m.st.several() && m.plan.needsBackup() && m.plan.Forward() && !m.together {
		return datadir.WriteFile(joinedMarker(m.layout), []byte(m.plan.Target.String()+"\n"), 0o600)
	}
	if len(m.plan.Steps) == 0 && m.joinedAs(m.Target) {
		return nil // the others are not done yet
	}
	if err := os.Remove(joinedMarker(m.layout)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (m *Migrator) joinedAs(v versionfile.Version) bool {
	content, err := os.ReadFile(joinedMarker(m.layout))
	return err == nil && strings.TrimSpace(string(content)) == v.String()
}

// noteJoinedBefore takes the word of version.txt, which the cluster's version is one minor behind, for what this member has done
// in a rolling upgrade. Mostly it is upToDate that does so. From 3.6 on the log must be such that this etcd gets along with it:
// a late member can have written to it since, and so can an older etcd that was started in between. If the target is a later
// version, the step is made again, until the cluster's version has risen, and is none that the members make together.
func (m *Migrator) noteJoinedBefore() {
	f := m.st.VersionFile
	if !m.st.several() || f == nil || !oneAhead(m.st.Version.Minor(), f.Minor()) || !m.joinedAs(*f) {
		return
	}
	m.rejoins = *f != m.Target && m.Target.Storage == f.Storage && oneAhead(f.Minor(), m.Target.Minor())
	if *f == m.Target && (m.st.Log.Foreign == 0 || f.Minor().Less(v3_6)) {
		m.st.Version = *f
		m.st.Problems = slices.DeleteFunc(m.st.Problems, func(p Problem) bool { return p.Code == versionFileAhead })
	}
}

// What to do about members whose data is not the same.
const (
	divergedHint = "find out which members are right (" + hashes + " in each one's backup); if none has become the target, restore the backups of all of " +
		"them that are from right before this migration with `etcd-migrate backup restore`, start the etcds of those that are right, " + replaceWrong + ": see docs/ha.md"
	divergedServedHint = "restore no backup, since clients may have written meanwhile; find out which members are right (" + hashes + " of each one), " +
		replaceWrong + ", and give the same command again on the others: see docs/ha.md"
	hashes       = "`etcdutl hashkv --rev` of 3.6 or later, with a revision that all have, on a copy of the db"
	replaceWrong = "remove the member that is wrong with `etcdctl member remove`, move its data dir away and add it anew"
)

// severalFailedHint is for a failed proof: one member of several must not go back by itself.
const severalFailedHint = "remove this member with `etcdctl member remove` and add it anew with an empty data dir, if the others are well; or stop all " +
	"members and restore the backups of all of them with `etcd-migrate backup restore`, never that of one alone; report this with the message"

// hintForCluster is hintFor for what only happens with several members.
func hintForCluster(err error) string {
	var diverged *cluster.DivergedError
	switch errors.As(err, &diverged); {
	case diverged != nil && diverged.Served:
		return divergedServedHint
	case diverged != nil:
		return divergedHint
	}
	if errors.Is(err, errMissed) {
		return missedHint
	}
	if errors.Is(err, errBeyond) {
		return beyondHint
	}
	return ""
}
