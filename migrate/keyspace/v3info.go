package keyspace

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Keys within the buckets, as go.etcd.io/etcd/server/v3/storage/schema/bucket.go names them.
const (
	MetaConsistentIndex  = "consistent_index"    // 8 bytes big-endian
	MetaTerm             = "term"                // 8 bytes big-endian, since 3.5
	MetaScheduledCompact = "scheduledCompactRev" // a revision as a key of bucket key
	MetaFinishedCompact  = "finishedCompactRev"  // a revision as a key of bucket key
	ClusterVersionKey    = "clusterVersion"      // "3.4.0", in bucket cluster
)

// V3Info is what a db says about itself and its cluster, without looking at every key. Fingerprint counts the keys.
type V3Info struct {
	// Revision is the store's revision, which a client sees in every answer: 1 for a store that was never written to.
	// It is the newest of all keys and of both compactions, as 3.5 and newer determine it.
	Revision int64 `json:"revision"`
	// Compacted is the revision up to which history was compacted, 0 for never. ScheduledCompaction is newer if a
	// compaction was interrupted; etcd then finishes it at its next start.
	Compacted           int64 `json:"compacted"`
	ScheduledCompaction int64 `json:"scheduledCompaction"`
	// ConsistentIndex is the last raft entry that the db contains, 0 if none was ever noted. Term is that entry's
	// term, noted by 3.5 and newer.
	ConsistentIndex uint64 `json:"consistentIndex"`
	Term            uint64 `json:"term,omitempty"`
	// StorageVersion is noted by 3.6 and newer, "3.6.0".
	StorageVersion string `json:"storageVersion,omitempty"`
	// ClusterVersion and Downgrade are what 3.5 and newer go by; up to 3.4 the v2 store has the last word.
	ClusterVersion string       `json:"clusterVersion,omitempty"`
	Downgrade      string       `json:"downgrade,omitempty"` // the version that a downgrade was enabled for
	ConfState      *V3ConfState `json:"confState,omitempty"` // noted by 3.5 and newer
	// Members are those that 3.6 and newer go by; up to 3.5 the v2 store has the last word.
	Members        []V3Member `json:"members"`
	RemovedMembers []uint64   `json:"removedMembers,omitempty"`
	Alarms         []V3Alarm  `json:"alarms,omitempty"`
	AuthEnabled    bool       `json:"authEnabled"`
	Users          []string   `json:"users,omitempty"`
	Roles          []string   `json:"roles,omitempty"`
	Leases         int64      `json:"leases"`
	// SizeBytes is the size of the file, BackendBytes the part of it that etcd counts against its quota.
	SizeBytes    int64 `json:"sizeBytes"`
	BackendBytes int64 `json:"backendBytes"`
}

// V3Member is a member as bucket members has it.
type V3Member struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs,omitempty"`
	IsLearner  bool     `json:"isLearner,omitempty"`
}

// V3Alarm is an alarm that was raised for a member, such as "NOSPACE".
type V3Alarm struct {
	Member uint64 `json:"member"`
	Type   string `json:"type"`
}

// V3ConfState is the part of raftpb.ConfState that etcd makes use of, in its JSON.
type V3ConfState struct {
	Voters   []uint64 `json:"voters,omitempty"`
	Learners []uint64 `json:"learners,omitempty"`
}

// Info reads what the db says about itself. It reads every small bucket, and of the keys only the newest.
func (d *DB) Info() (V3Info, error) {
	info := V3Info{
		Revision:     1,
		SizeBytes:    d.size,
		BackendBytes: int64(d.pages.used * d.pages.pageSize),
	}
	err := d.walk(BucketKey, true, func(k, _ []byte) (err error) {
		if info.Revision, _, err = v3Revision(k); err != nil {
			return d.damaged(BucketKey, err)
		}
		return errV3Stop
	})
	for _, b := range []struct {
		name   string
		decode func(info *V3Info, k, v []byte) error
	}{
		{BucketMeta, (*V3Info).v3Meta},
		{BucketCluster, (*V3Info).v3Cluster},
		{BucketMembers, (*V3Info).v3Member},
		{BucketMembersRemoved, (*V3Info).v3Removed},
		{BucketAlarm, (*V3Info).v3Alarm},
		{BucketAuth, (*V3Info).v3Auth},
		{BucketAuthUsers, func(info *V3Info, k, _ []byte) error { info.Users = append(info.Users, string(k)); return nil }},
		{BucketAuthRoles, func(info *V3Info, k, _ []byte) error { info.Roles = append(info.Roles, string(k)); return nil }},
		{BucketLease, func(info *V3Info, _, _ []byte) error { info.Leases++; return nil }},
	} {
		if err != nil {
			return V3Info{}, err
		}
		n := 0
		err = d.walk(b.name, false, func(k, v []byte) error {
			n++
			if err := b.decode(&info, k, v); err != nil {
				return d.damaged(b.name, fmt.Errorf("decode element %d: %w", n, err))
			}
			return nil
		})
	}
	info.Revision = max(info.Revision, info.Compacted, info.ScheduledCompaction)
	return info, err
}

func (info *V3Info) v3Meta(k, v []byte) (err error) {
	switch name := string(k); name {
	case MetaConsistentIndex:
		info.ConsistentIndex, err = v3Number(v)
	case MetaTerm:
		info.Term, err = v3Number(v)
	case MetaScheduledCompact:
		info.ScheduledCompaction, _, err = v3Revision(v)
	case MetaFinishedCompact:
		info.Compacted, _, err = v3Revision(v)
	case "storageVersion":
		info.StorageVersion = string(v)
	case "confState":
		err = json.Unmarshal(v, &info.ConfState)
	}
	return err
}

func (info *V3Info) v3Cluster(k, v []byte) error {
	switch string(k) {
	case ClusterVersionKey:
		info.ClusterVersion = string(v)
	case "downgrade":
		// version.DowngradeInfo of go.etcd.io/etcd/api/v3
		var downgrade struct {
			Target  string `json:"target-version"`
			Enabled bool   `json:"enabled"`
		}
		if err := json.Unmarshal(v, &downgrade); err != nil {
			return err
		}
		if downgrade.Enabled {
			info.Downgrade = downgrade.Target
		}
	}
	return nil
}

func (info *V3Info) v3Member(_, v []byte) error {
	var m V3Member
	if err := json.Unmarshal(v, &m); err != nil {
		return err
	}
	info.Members = append(info.Members, m)
	return nil
}

func (info *V3Info) v3Removed(k, _ []byte) error {
	id, err := treeParseID(string(k))
	info.RemovedMembers = append(info.RemovedMembers, id)
	return err
}

func (info *V3Info) v3Alarm(k, _ []byte) error {
	var a etcdserverpb.AlarmMember
	if err := a.Unmarshal(k); err != nil {
		return err
	}
	info.Alarms = append(info.Alarms, V3Alarm{Member: a.MemberID, Type: a.Alarm.String()})
	return nil
}

func (info *V3Info) v3Auth(k, v []byte) error {
	if string(k) == "authEnabled" {
		info.AuthEnabled = len(v) == 1 && v[0] == 1
	}
	return nil
}

func v3Number(v []byte) (uint64, error) {
	if len(v) != 8 {
		return 0, fmt.Errorf("it has %d bytes, not 8", len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// InUse gives the bytes that the buckets occupy; the rest of V3Info.BackendBytes is free and would go in a
// defragmentation. It reads the whole file, and so finds out whether a page is part of two buckets.
func (d *DB) InUse() (int64, error) {
	used := uint64(2) // the meta pages
	seen := make([]uint64, d.pages.used/64+1)
	for _, name := range d.Buckets() {
		pages, err := d.pages.walkUnseen(d.buckets[name], seen, 0, false, func(_, _ []byte) error { return nil })
		if err != nil {
			return 0, d.damaged(name, err)
		}
		used += pages
	}
	return int64(used * d.pages.pageSize), nil
}
