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
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/cluster"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
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
	if converts := slices.ContainsFunc(m.plan.Steps, func(s Step) bool { return s.Kind == StepConvert }); m.st.hasLearner() && (converts || m.plan.Back()) {
		return refuse(errors.New("the cluster has a learner, which cannot agree with the others on what to convert or to bring back"),
			"promote it, or remove it with `etcdctl member remove` and add it anew afterwards, with an empty data dir")
	}
	if slices.ContainsFunc(m.plan.Steps, func(s Step) bool { return s.Kind == StepConvertBack }) {
		return refuse(errors.New("the members of a cluster of several cannot go back to etcd2 together"),
			"make a cluster of one from one member: start its etcd with --force-new-cluster and stop it, roll that data dir back with "+
				"`etcd-migrate rollback`, start the older etcd on it, and add the other members anew with empty data dirs: see docs/ha.md")
	}
	peers, err := cluster.New(m.others(), m.Peers)
	if err != nil {
		return refuse(err, "the peer certificates in etcd's own flags must be readable")
	}
	m.peers = peers
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

// ready waits until the step's etcd has taken the data over: for a member that is alone, see member.Ready.
func (m *Migrator) ready(ctx context.Context, s Step, etcd *member.Etcd) error {
	if !m.st.several() {
		return etcd.Ready(ctx)
	}
	return m.watching(ctx, s, etcd, func() error {
		if s.Kind == StepUpgrade && m.plan.together() {
			return etcd.Ready(ctx)
		}
		return etcd.Joined(ctx)
	})
}

// watching does something that depends on the other members, and tells which ones it waits for meanwhile.
func (m *Migrator) watching(ctx context.Context, s Step, etcd *member.Etcd, do func() error) error {
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

// watchPeers tells, until it is stopped, which members the step waits for: those that are not reachable, and those that
// run an older minor. stop gives the last ones. With a learner among the members it also writes, because a learner gets
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
				older := p.Server.Minor().Less(s.To.Minor()) && (m.plan.together() || s.Kind != StepUpgrade)
				if p.Err != nil || older || s.Kind == StepDowngrade && p.Server.Minor() != s.To.Minor() {
					waiting = append(waiting, p.String())
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

// agree compares the data with the other members', where the step's etcd can: after the first step, in which a member that
// lagged behind has caught up, and after the last one. What has diverged must not be carried on.
func (m *Migrator) agree(ctx context.Context, s Step, etcd *member.Etcd) error {
	if !m.st.several() || s.To.Minor().Less(cluster.HashSince) || m.agreed && m.step < len(m.plan.Steps) {
		return nil
	}
	a, err := m.peers.Agree(ctx, s.To.Minor(), m.plan.together(), func(ctx context.Context) (cluster.Hash, int64, error) {
		if m.st.Member.Learner { // which answers nothing of that kind to clients
			return m.peers.Hash(ctx, clusterMember(m.st.Member), 0)
		}
		hash, compact, revision, err := etcd.HashKV(ctx)
		return cluster.Hash{Hash: hash, Compact: compact}, revision, err
	})
	var diverged *cluster.DivergedError
	if errors.As(err, &diverged) {
		diverged.Self = clusterMember(m.st.Member)
	}
	if err != nil {
		return err
	}
	m.agreed, m.agreement = true, &a
	return nil
}

// mayReplicate reports whether the step can have brought writes of other members: the first one, in which a member catches
// up with the cluster, and the last one, in which members that are done already serve clients.
func (m *Migrator) mayReplicate() bool {
	return m.st.several() && (m.step == 1 || m.step == len(m.plan.Steps) || !m.plan.together())
}

// joinedMarker is a file in the work dir that says as which version this member has joined a cluster whose version was
// still the one before. Until the last member has, the data cannot say so, and each restart would be an upgrade again.
func joinedMarker(l datadir.Layout) string { return filepath.Join(l.WorkDir(), "joined") }

// noteJoined writes the marker after a rolling upgrade, and removes it after everything else.
func (m *Migrator) noteJoined() error {
	if m.st.several() && m.plan.needsBackup() && m.plan.Forward() && !m.plan.together() {
		return datadir.WriteFile(joinedMarker(m.layout), []byte(m.plan.Target.String()+"\n"), 0o600)
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

// divergedHint says what to do about members whose data is not the same.
const divergedHint = "find out which members are right (`etcdctl endpoint hashkv` on each, started alone on a copy of its data dir), restore the " +
	"data dirs from the backups, remove the member that is wrong with `etcdctl member remove` and add it anew with an empty data dir"

// hintForCluster is hintFor for what only happens with several members.
func hintForCluster(err error) string {
	var diverged *cluster.DivergedError
	if errors.As(err, &diverged) {
		return divergedHint
	}
	if errors.Is(err, errMissed) || errors.Is(err, errBeyond) {
		return missedHint
	}
	return ""
}
