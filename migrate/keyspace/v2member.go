package keyspace

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// V2Member is a member of the cluster as the v2 store knows it. Name and ClientURLs are empty until it has started.
type V2Member struct {
	ID                   uint64
	Name                 string
	PeerURLs, ClientURLs []string
	IsLearner            bool
}

// The JSON of a member's two keys and of a membership change, as in etcd's membership package. IsLearner and IsPromote
// are of 3.4 and later.
type (
	treeRaftAttributes struct {
		PeerURLs  []string `json:"peerURLs"`
		IsLearner bool     `json:"isLearner,omitempty"`
	}
	treeAttributes struct {
		Name       string   `json:"name,omitempty"`
		ClientURLs []string `json:"clientURLs,omitempty"`
	}
	treeConfChange struct {
		ID uint64 `json:"id"`
		treeRaftAttributes
		IsPromote bool `json:"isPromote"`
	}
)

// treeMaxLearners is how many learners 3.4 and 3.5 allow. From 3.6 on it is a setting, --max-learners, and what the
// leader let pass is taken for allowed.
const treeMaxLearners = 1

// ApplyConfChange does what a committed membership change does to the v2 store: like a write it counts the index up,
// once for a new or changed member, twice for a removed one. A change that etcd turns down, such as a member that is
// already there because the log repeats what the snapshot has, is without effect. An error means one that etcd panics on.
func (t *Tree) ApplyConfChange(cc *raftpb.ConfChange) error {
	if err := t.applyConfChange(cc); err != nil {
		return fmt.Errorf("apply membership change of member %x: %w", cc.NodeID, err)
	}
	return nil
}

func (t *Tree) applyConfChange(cc *raftpb.ConfChange) error {
	members, err := t.Members()
	if err != nil {
		return err
	}
	if _, removed := t.value(treeRemovedPath(cc.NodeID)); removed {
		return nil
	}
	at := slices.IndexFunc(members, func(m V2Member) bool { return m.ID == cc.NodeID })

	if cc.Type == raftpb.ConfChangeRemoveNode {
		if at >= 0 {
			t.delete(treeMemberPath(cc.NodeID), true, true)
			t.create(treeRemovedPath(cc.NodeID), false, "", false, false, time.Time{})
		}
		return nil
	}

	var change treeConfChange
	if err := json.Unmarshal(cc.Context, &change); err != nil {
		return fmt.Errorf("it holds no member: %w", err)
	}
	if change.ID != cc.NodeID {
		return fmt.Errorf("it holds another member, %x", change.ID)
	}
	adds := cc.Type == raftpb.ConfChangeAddNode || cc.Type == raftpb.ConfChangeAddLearnerNode
	switch {
	case adds && change.IsPromote:
		if at < 0 || !members[at].IsLearner {
			return nil
		}
		t.updateRaftAttributes(cc.NodeID, treeRaftAttributes{PeerURLs: members[at].PeerURLs})
	case adds:
		if at >= 0 || treeURLsTaken(members, change) || t.refusesLearner(members, change) {
			return nil
		}
		path := treeMemberPath(cc.NodeID) + "/raftAttributes"
		t.create(path, false, treeJSON(change.treeRaftAttributes), false, false, time.Time{})
	case cc.Type == raftpb.ConfChangeUpdateNode:
		if at < 0 || treeURLsTaken(members, change) {
			return nil
		}
		if t.clusterAtLeast(3, 5) { // 3.4 forgets with the old URLs that it is a learner
			change.IsLearner = members[at].IsLearner
		}
		t.updateRaftAttributes(cc.NodeID, change.treeRaftAttributes)
	default:
		return fmt.Errorf("etcd knows no type %d", cc.Type)
	}
	return nil
}

func (t *Tree) updateRaftAttributes(id uint64, a treeRaftAttributes) {
	t.update(treeMemberPath(id)+"/raftAttributes", treeJSON(a), false, time.Time{})
}

// treeURLsTaken says whether another member has one of the peer URLs.
func treeURLsTaken(members []V2Member, change treeConfChange) bool {
	return slices.ContainsFunc(members, func(m V2Member) bool {
		return m.ID != change.ID && slices.ContainsFunc(m.PeerURLs, func(url string) bool {
			return slices.Contains(change.PeerURLs, url)
		})
	})
}

func (t *Tree) refusesLearner(members []V2Member, change treeConfChange) bool {
	if !change.IsLearner || t.clusterAtLeast(3, 6) {
		return false
	}
	learners := 0
	for _, m := range members {
		if m.IsLearner {
			learners++
		}
	}
	return learners >= treeMaxLearners
}

// Members gives the members of the cluster, by ID. An error means that the store holds what etcd panics on at start.
func (t *Tree) Members() ([]V2Member, error) {
	dir, _, _ := t.find("/0/members")
	if dir == nil {
		return nil, nil
	}
	members := make([]V2Member, 0, len(dir.children))
	for name, child := range dir.children {
		m, err := treeMember(name, child)
		if err != nil {
			if errors.Is(err, errTreeMemberID) {
				name = "…"
			}
			return nil, fmt.Errorf("read member /0/members/%s: %w", name, err)
		}
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b V2Member) int { return cmp.Compare(a.ID, b.ID) })
	return members, nil
}

func treeMember(name string, dir *treeNode) (V2Member, error) {
	id, err := treeParseID(name)
	if err != nil {
		return V2Member{}, err
	}
	raft := dir.children["raftAttributes"]
	if raft == nil {
		return V2Member{}, errors.New("its raftAttributes are missing")
	}
	var ra treeRaftAttributes
	if err := json.Unmarshal([]byte(raft.value), &ra); err != nil {
		return V2Member{}, fmt.Errorf("its raftAttributes: %w", err)
	}
	var a treeAttributes
	if attributes := dir.children["attributes"]; attributes != nil {
		if err := json.Unmarshal([]byte(attributes.value), &a); err != nil {
			return V2Member{}, fmt.Errorf("its attributes: %w", err)
		}
	}
	return V2Member{id, a.Name, ra.PeerURLs, a.ClientURLs, ra.IsLearner}, nil
}

// RemovedMembers gives the IDs of all members that ever left the cluster, in order. They can never come back.
func (t *Tree) RemovedMembers() ([]uint64, error) {
	dir, _, _ := t.find("/0/removed_members")
	if dir == nil {
		return nil, nil
	}
	ids := make([]uint64, 0, len(dir.children))
	for name := range dir.children {
		id, err := treeParseID(name)
		if err != nil {
			return nil, fmt.Errorf("read /0/removed_members: %w", err)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

func treeMemberPath(id uint64) string  { return "/0/members/" + strconv.FormatUint(id, 16) }
func treeRemovedPath(id uint64) string { return "/0/removed_members/" + strconv.FormatUint(id, 16) }

func treeParseID(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0, errTreeMemberID // without the name: in a damaged store, it can be anything
	}
	return id, nil
}

var errTreeMemberID = errors.New("it has no member ID")

// treeJSON marshals one of the structs above, which cannot fail.
func treeJSON(v any) string {
	raw, _ := json.Marshal(v)
	return string(raw)
}
