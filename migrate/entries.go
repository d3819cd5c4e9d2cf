package migrate

import (
	"regexp"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// entryCount is what matters of the entries after the newest raft snapshot, whether they are committed or not.
type entryCount struct {
	kinds   map[string]int
	v2      map[string]int // by method
	foreign int            // V2 entries that etcd 3.6 panics on
	// least is the oldest minor that writes such entries as there are, zero for any.
	least versionfile.Minor
	// checkpoints are the least seconds that are noted to be left of a lease.
	checkpoints map[int64]int64
}

func (c *entryCount) add(e raftlog.Entry) {
	if c.kinds == nil {
		c.kinds, c.v2 = map[string]int{}, map[string]int{}
	}
	c.kinds[e.Kind.String()]++
	switch e.Kind {
	case raftlog.V2:
		c.v2[e.V2.Method]++
		if e.V2.Method != "PUT" || !etcdsOwn.MatchString(e.V2.Path) {
			c.foreign++
		}
	case raftlog.V3:
		if m := leastMinor(e.V3); c.least.Less(m) {
			c.least = m
		}
		for _, l := range e.V3.LeaseCheckpoint.GetCheckpoints() {
			if c.checkpoints == nil {
				c.checkpoints = map[int64]int64{}
			}
			if left, ok := c.checkpoints[l.ID]; l.Remaining_TTL > 0 && (!ok || l.Remaining_TTL < left) {
				c.checkpoints[l.ID] = l.Remaining_TTL
			}
		}
	}
}

// etcdsOwn are the paths of the v2 store that etcd itself writes to, up to 3.4 the version and up to 3.5 the attributes.
// Etcd 3.6 still understands these (v2ToV3Request in server/etcdserver/apply_v2.go).
var etcdsOwn = regexp.MustCompile(`^/0/(members/[[:xdigit:]]{1,16}/attributes|version)$`)

// leastMinor is the oldest minor that writes such a request, by the fields of InternalRaftRequest in each minor's
// raft_internal.proto. ClusterVersionSet and its kin came with 3.5, lease checkpoints with 3.4.
func leastMinor(r *etcdserverpb.InternalRaftRequest) versionfile.Minor {
	switch {
	case r.DowngradeVersionTest != nil:
		return v3_6
	case r.ClusterVersionSet != nil, r.ClusterMemberAttrSet != nil, r.DowngradeInfoSet != nil:
		return v2Until
	case r.LeaseCheckpoint != nil:
		return v3_4
	}
	return v3Since
}
