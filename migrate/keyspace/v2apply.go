package keyspace

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// ApplyV2 does to the tree what a committed request of the v2 API does to the store of a member. A request whose
// condition does not hold, or whose path is in the way of another node, is without effect, as in etcd. An error means a
// request that no etcd gets past: an unknown method, or a member's attributes or a cluster version that make it panic.
//
// The tree keeps the request's value, so it must not be changed later.
//
// The minors differ in three points only. A directory's expiry: see update. The attributes of a removed member are
// written by 2.2, which then panics at its next start, and ignored by all others and here. And 2.x stores attributes and
// cluster versions as the request has them, 3.x as it would write them itself, which for what etcd sends is the same.
func (t *Tree) ApplyV2(r *etcdserverpb.Request) error {
	var expiry time.Time
	if r.Expiration != 0 {
		expiry = time.Unix(0, r.Expiration).UTC()
	}
	conditional := r.PrevIndex > 0 || r.PrevValue != ""
	refresh := r.Refresh != nil && *r.Refresh

	switch r.Method {
	case "POST":
		t.create(r.Path, r.Dir, r.Val, true, false, expiry)
	case "PUT":
		switch {
		case r.PrevExist != nil && !*r.PrevExist:
			t.create(r.Path, r.Dir, r.Val, false, false, expiry)
		case conditional:
			t.compareAndSwap(r.Path, r.PrevValue, r.PrevIndex, r.Val, refresh, expiry)
		case r.PrevExist != nil:
			t.update(r.Path, r.Val, refresh, expiry)
		case treeAttributesPath.MatchString(r.Path):
			return t.applyAttributes(r)
		case r.Path == treeVersionPath:
			return t.setClusterVersion(r.Val)
		default:
			t.set(r.Path, r.Dir, r.Val, refresh, expiry)
		}
	case "DELETE":
		if conditional {
			t.compareAndDelete(r.Path, r.PrevValue, r.PrevIndex)
		} else {
			t.delete(r.Path, r.Dir, r.Recursive)
		}
	case "QGET":
	case "SYNC":
		t.expire(time.Unix(0, r.Time))
	default:
		return fmt.Errorf("apply v2 request: etcd knows no such method")
	}
	return nil
}

// ApplyV3 does what a committed request of etcd 3.x does to the v2 store: that of a v2 request inside, or of the
// cluster version and the members' attributes that 3.5 and later also send in their own form. All others leave the v2
// store alone. Errors are those of ApplyV2.
func (t *Tree) ApplyV3(r *etcdserverpb.InternalRaftRequest) error {
	switch {
	case r.V2 != nil:
		return t.ApplyV2(r.V2)
	case r.ClusterVersionSet != nil:
		return t.setClusterVersion(r.ClusterVersionSet.Ver)
	case r.ClusterMemberAttrSet != nil:
		var a treeAttributes
		if from := r.ClusterMemberAttrSet.MemberAttributes; from != nil {
			a = treeAttributes{Name: from.Name, ClientURLs: from.ClientUrls}
		}
		return t.setAttributes(r.ClusterMemberAttrSet.Member_ID, a)
	}
	return nil
}

const treeVersionPath = "/0/version"

// treeAttributesPath is what etcd takes for the path of a member's attributes (storeMemberAttributeRegexp). That it
// matches anywhere in a path is etcd's doing: a user's key below /1 whose path has such a piece in it stops every etcd.
var treeAttributesPath = regexp.MustCompile("/0/members/[[:xdigit:]]{1,16}/attributes")

func (t *Tree) applyAttributes(r *etcdserverpb.Request) error {
	id, err := treeParseID(path.Base(path.Dir(r.Path)))
	if err != nil {
		return fmt.Errorf("apply v2 request PUT of a member's attributes: %w", err)
	}
	var a treeAttributes
	if err := json.Unmarshal([]byte(r.Val), &a); err != nil {
		return fmt.Errorf("apply v2 request PUT of the attributes of member %x: the value is none", id)
	}
	return t.setAttributes(id, a)
}

func (t *Tree) setAttributes(id uint64, a treeAttributes) error {
	if _, known := t.value(treeMemberPath(id) + "/raftAttributes"); !known {
		if _, removed := t.value(treeRemovedPath(id)); removed {
			return nil
		}
		return fmt.Errorf("apply attributes of member %x: the log and its snapshot know no such member", id)
	}
	t.set(treeMemberPath(id)+"/attributes", false, treeJSON(a), false, time.Time{})
	return nil
}

func (t *Tree) setClusterVersion(v string) error {
	if _, err := versionfile.ParseRelease(v); err != nil {
		return fmt.Errorf("apply cluster version: %w", err)
	}
	t.set(treeVersionPath, false, v, false, time.Time{})
	return nil
}

// ClusterVersion is the version that the cluster has agreed on, for example "3.4.0": "" before it has.
func (t *Tree) ClusterVersion() string {
	v, _ := t.value(treeVersionPath)
	return v
}

func (t *Tree) clusterAtLeast(major, minor int) bool {
	r, err := versionfile.ParseRelease(t.ClusterVersion())
	return err == nil && r.Minor().AtLeast(major, minor)
}
