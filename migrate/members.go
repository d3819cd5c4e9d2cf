package migrate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

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
	st.V3.Members = membersIn(m.info)
	if len(members) == 0 {
		st.Members = append(st.Members, st.V3.Members...)
	}
	for _, v := range st.Members {
		if v.ID == st.Member.ID {
			st.Member = v
		}
	}
	return nil
}

func membersIn(info keyspace.V3Info) (members []Member) {
	for _, v := range info.Members {
		members = append(members, Member{id(v.ID), v.Name, v.PeerURLs, v.ClientURLs, v.IsLearner})
	}
	return members
}

// membersDiffer says in what the db's members are others than those of the v2 store, "" if they are the same or one of
// the stores knows none. Names and URLs are left out: every etcd publishes its own again when it starts.
func (st State) membersDiffer() string {
	if len(st.V3.Members) == 0 {
		return ""
	}
	var diffs []string
	find := func(in []Member, id string) int {
		return slices.IndexFunc(in, func(m Member) bool { return m.ID == id })
	}
	for _, d := range st.V3.Members {
		switch i := find(st.Members, d.ID); {
		case i < 0:
			diffs = append(diffs, fmt.Sprintf("%s %q is in the db only", d.ID, d.Name))
		case d.Learner && !st.Members[i].Learner:
			diffs = append(diffs, fmt.Sprintf("%s %q is a learner in the db only", d.ID, d.Name))
		case !d.Learner && st.Members[i].Learner:
			diffs = append(diffs, fmt.Sprintf("%s %q is a learner in the v2 store only", d.ID, d.Name))
		}
	}
	for _, m := range st.Members {
		if find(st.V3.Members, m.ID) < 0 {
			diffs = append(diffs, fmt.Sprintf("%s %q is in the v2 store only", m.ID, m.Name))
		}
	}
	return strings.Join(diffs, ", ")
}

// several reports whether there are other members that have a say in what becomes of the data.
func (st State) several() bool { return st.voters() > 1 }

func (st State) voters() (n int) {
	for _, v := range st.Members {
		if !v.Learner {
			n++
		}
	}
	return n
}

// checkMembers notes that there are several members, refuses a learner's data whose cluster cannot do without it, and notes a
// membership that differs between the stores: up to 3.5 the v2 store is right, and etcd 3.5 mends the db. From 3.6 on the db is what counts, and nothing mends it.
func (st *State) checkMembers() {
	voters := st.voters()
	switch {
	case len(st.Members) > 0 && !slices.ContainsFunc(st.Members, func(m Member) bool { return m.ID == st.Member.ID }):
		st.block("not-a-member", fmt.Sprintf("the raft log is that of member %s, which is not part of the cluster in the data: it has never run, "+
			"as in a backup that `etcdctl backup` made", st.Member.ID),
			fmt.Sprintf("start etcd %s on the data once with --force-new-cluster and stop it again: that makes a cluster of this member", st.Version.Minor()))
	case voters > 1:
		st.note(severalMembers, fmt.Sprintf("the data is of a cluster of %d members", len(st.Members)),
			"give the same command, `etcd-migrate run … -- etcd …`, on every one of them: see docs/ha.md")
	case st.Member.Learner:
		st.block("learner", fmt.Sprintf("member %s is a learner, and holds the data of another member's cluster", st.Member.ID),
			"migrate the member that is no learner, and add this one anew afterwards, with an empty data dir")
	case voters < len(st.Members):
		st.note("learner", "the cluster has a learner beside this member",
			"remove it with `etcdctl member remove` and add it anew after the migration, with an empty data dir")
	}
	d := st.membersDiffer()
	switch {
	case d == "":
	case v2Until.Less(st.Version.Minor()):
		st.block("members-differ", "the two stores differ about the members: "+d,
			fmt.Sprintf("start etcd %s on the data, compare `etcdctl member list` with the cluster as it is, remove with `etcdctl member remove` "+
				"what is not part of it, and stop it after its next raft snapshot (--snapshot-count 3 and a few writes)", st.Version.Minor()))
	default:
		st.note("members-differ", "the two stores differ about the members: "+d,
			"the v2 store is right; etcd 3.5 mends the db on the way to 3.6, and the migration makes sure of it")
	}
}
