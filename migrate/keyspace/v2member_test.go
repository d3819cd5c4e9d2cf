package keyspace

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-semver/semver"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/raft/v3/raftpb"
)

// v2Cluster is etcd 3.6's own membership, on its own v2 store and backend.
type v2Cluster struct {
	store   v2store.Store
	cluster *membership.RaftCluster
}

func newV2Cluster(t *testing.T) *v2Cluster {
	lg := zap.NewNop()
	be := backend.NewDefaultBackend(lg, filepath.Join(t.TempDir(), "db"))
	t.Cleanup(func() { be.Close() })
	c := &v2Cluster{v2store.New("/0", "/1"), membership.NewCluster(lg, membership.WithMaxLearners(100))}
	c.cluster.SetStore(c.store)
	c.cluster.SetBackend(schema.NewMembershipBackend(lg, be))
	return c
}

// applyConfChange is EtcdServer.applyConfChange without the raft in it.
func (c *v2Cluster) applyConfChange(t *testing.T, cc raftpb.ConfChange) {
	if c.cluster.ValidateConfigurationChange(cc, membership.ApplyBoth) != nil {
		return
	}
	var change membership.ConfigChangeContext
	if cc.Type != raftpb.ConfChangeRemoveNode {
		if err := json.Unmarshal(cc.Context, &change); err != nil {
			t.Fatal(err)
		}
	}
	switch {
	case cc.Type == raftpb.ConfChangeRemoveNode:
		c.cluster.RemoveMember(types.ID(cc.NodeID), membership.ApplyBoth)
	case cc.Type == raftpb.ConfChangeUpdateNode:
		c.cluster.UpdateRaftAttributes(change.ID, change.RaftAttributes, membership.ApplyBoth)
	case change.IsPromote:
		c.cluster.PromoteMember(change.ID, membership.ApplyBoth)
	default:
		c.cluster.AddMember(&change.Member, membership.ApplyBoth)
	}
}

func v2ConfChange(kind raftpb.ConfChangeType, id uint64, learner, promote bool, urls ...string) raftpb.ConfChange {
	cc := raftpb.ConfChange{Type: kind, NodeID: id}
	if kind != raftpb.ConfChangeRemoveNode {
		m := membership.Member{ID: types.ID(id), RaftAttributes: membership.RaftAttributes{PeerURLs: urls, IsLearner: learner}}
		cc.Context, _ = json.Marshal(membership.ConfigChangeContext{Member: m, IsPromote: promote})
	}
	return cc
}

func TestMembershipAgainstEtcd(t *testing.T) {
	ids := []uint64{1, 0xab, 0x8e9e05c52164694d, 0xffffffffffffffff, 5, 6, 7, 8}
	urls := []string{"http://a:2380", "http://b:2380", "http://<c>:2380", "http://d:2380", "http://e:2380", "http://f:2380"}
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 4))
			tree, etcd := NewTree(), newV2Cluster(t)
			ver := func(v string) {
				etcd.cluster.SetVersion(semver.New(v), func(*zap.Logger, *semver.Version) {}, membership.ApplyBoth)
				r := &etcdserverpb.InternalRaftRequest{V2: &etcdserverpb.Request{Method: "PUT", Path: "/0/version", Val: v}}
				if rnd.IntN(2) == 0 {
					r = &etcdserverpb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: v}}
				}
				if err := tree.ApplyV3(r); err != nil {
					t.Fatal(err)
				}
			}
			ver("3.6.0")
			most := 0
			for range 150 {
				id := ids[rnd.IntN(len(ids))]
				_, removed := tree.value(treeRemovedPath(id))
				switch known := etcd.cluster.IsMemberExist(types.ID(id)); {
				case rnd.IntN(4) == 0 && (known || removed):
					a := membership.Attributes{Name: fmt.Sprintf("<m%x>", id), ClientURLs: []string{urls[rnd.IntN(6)]}}
					etcd.cluster.UpdateAttributes(types.ID(id), a, membership.ApplyBoth)
					val, _ := json.Marshal(a)
					r := &etcdserverpb.InternalRaftRequest{V2: &etcdserverpb.Request{
						Method: "PUT", Path: membership.MemberAttributesStorePath(types.ID(id)), Val: string(val),
					}}
					if rnd.IntN(2) == 0 {
						r = &etcdserverpb.InternalRaftRequest{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{
							Member_ID: id, MemberAttributes: &membershippb.Attributes{Name: a.Name, ClientUrls: a.ClientURLs},
						}}
					}
					if err := tree.ApplyV3(r); err != nil {
						t.Fatal(err)
					}
				default:
					kind := raftpb.ConfChangeType(rnd.IntN(4))
					if kind == raftpb.ConfChangeRemoveNode && rnd.IntN(4) != 0 {
						kind = raftpb.ConfChangeAddLearnerNode
					}
					learner := kind == raftpb.ConfChangeAddLearnerNode
					cc := v2ConfChange(kind, id, learner, rnd.IntN(4) == 0, urls[rnd.IntN(6)], urls[rnd.IntN(6)])
					etcd.applyConfChange(t, cc)
					if err := tree.ApplyConfChange(&cc); err != nil {
						t.Fatal(err)
					}
				}
				if got, want := v2Nodes(tree), v2StoreNodes(etcd.store); !maps.Equal(got, want) {
					t.Fatalf("nodes differ (-etcd +tree)\n%s", cmp.Diff(want, got))
				}
				if got, want := tree.Index(), etcd.store.Index(); got != want {
					t.Fatalf("index %d, etcd has %d", got, want)
				}
				most = max(most, v2CompareMembers(t, tree, etcd.cluster))
			}
			if most < 3 || tree.ClusterVersion() != "3.6.0" {
				t.Fatalf("the script never had more than %d members", most)
			}
		})
	}
}

func v2CompareMembers(t *testing.T, tree *Tree, cluster *membership.RaftCluster) int {
	t.Helper()
	got, err := tree.Members()
	if err != nil {
		t.Fatal(err)
	}
	want := []V2Member{}
	for _, m := range cluster.Members() {
		want = append(want, V2Member{uint64(m.ID), m.Name, m.PeerURLs, m.ClientURLs, m.IsLearner})
	}
	slices.SortFunc(want, func(a, b V2Member) int {
		return strings.Compare(fmt.Sprintf("%016x", a.ID), fmt.Sprintf("%016x", b.ID))
	})
	if diff := cmp.Diff(want, append([]V2Member{}, got...)); diff != "" {
		t.Fatalf("members differ (-etcd +tree)\n%s", diff)
	}
	removed, err := tree.RemovedMembers()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range removed {
		if !cluster.IsIDRemoved(types.ID(id)) {
			t.Fatalf("member %x is not removed in etcd", id)
		}
	}
	return len(want)
}

// TestMembershipByVersion pins what 3.6, with which the tests compare, does unlike earlier minors.
func TestMembershipByVersion(t *testing.T) {
	for _, tt := range []struct {
		version  string
		learners int  // of two that are added
		keeps    bool // a learner whose URLs are updated stays one
	}{
		{"3.4.0", 1, false},
		{"3.5.0", 1, true},
		{"3.6.0", 2, true},
	} {
		t.Run(tt.version, func(t *testing.T) {
			tree := NewTree()
			if err := tree.setClusterVersion(tt.version); err != nil {
				t.Fatal(err)
			}
			apply := func(cc raftpb.ConfChange) {
				if err := tree.ApplyConfChange(&cc); err != nil {
					t.Fatal(err)
				}
			}
			apply(v2ConfChange(raftpb.ConfChangeAddLearnerNode, 1, true, false, "http://a"))
			apply(v2ConfChange(raftpb.ConfChangeAddLearnerNode, 2, true, false, "http://b"))
			members, err := tree.Members()
			if err != nil || len(members) != tt.learners {
				t.Fatalf("members %v, %v", members, err)
			}
			apply(v2ConfChange(raftpb.ConfChangeUpdateNode, 1, false, false, "http://c"))
			members, err = tree.Members()
			want := V2Member{ID: 1, PeerURLs: []string{"http://c"}, IsLearner: tt.keeps}
			if diff := cmp.Diff(want, members[0]); diff != "" || err != nil {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}

func TestMembershipRefuses(t *testing.T) {
	tree := NewTree()
	tree.create("/0/members/ab/attributes", false, "{}", false, false, treeMinExpiry.AddDate(-9, 0, 0))
	if _, err := tree.Members(); err == nil || !strings.Contains(err.Error(), "/0/members/ab: its raftAttributes are missing") {
		t.Errorf("got %v for a member without raftAttributes", err)
	}
	for name, cc := range map[string]raftpb.ConfChange{
		"it holds no member":            {NodeID: 1},
		"it holds another member, 2":    {NodeID: 1, Context: []byte(`{"id":2}`)},
		"etcd knows no type 7":          {NodeID: 1, Type: 7, Context: []byte(`{"id":1}`)},
		"membership change of member 1": {NodeID: 1, Context: []byte(`[]`)},
	} {
		if err := NewTree().ApplyConfChange(&cc); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
}
