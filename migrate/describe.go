package migrate

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// describe fills in what the files hold.
func (m *contents) describe(st *State, now time.Time) error {
	st.Log = LogState{
		ClusterID:     id(m.log.ClusterID()),
		SnapshotIndex: m.log.Snapshot().Index,
		Index:         m.summary.HardState.Commit,
		Term:          m.summary.LastTerm,
		Uncommitted:   m.summary.Uncommitted,
		PendingV3:     m.pending,
		Torn:          m.summary.Torn,
		FirstVersion:  m.first,
		V2Entries:     m.entries.v2,
		Foreign:       m.entries.foreign,
		Entries:       m.entries.kinds,
	}
	st.checkpoints = m.entries.checkpoints
	if err := m.describeV2(st, now); err != nil {
		return err
	}
	if m.db != nil {
		if err := m.describeV3(st); err != nil {
			return err
		}
	}
	if err := m.describeMembers(st); err != nil {
		return err
	}
	if st.V2.Keys > 0 {
		return m.compareStores(st, now)
	}
	return nil
}

func (m *contents) describeV2(st *State, now time.Time) error {
	s, auth := m.tree.Stats(now), m.tree.Auth()
	st.V2 = V2State{
		Keys: s.Keys, Bytes: s.Bytes, TTLs: s.TTLs, Hidden: s.Hidden, Expired: s.Expired, EmptyDirs: s.EmptyDirs, NotUTF8: s.NotUTF8,
		Index: m.tree.Index(), Auth: len(auth.Users) + len(auth.Roles), AuthEnabled: auth.Enabled,
		Users: auth.Users, Roles: auth.Roles, TopLevel: len(m.tree.TopLevel()),
	}
	return m.tree.Each(now, func(r keyspace.Record) error {
		st.V2.Values.add(r.Value)
		return nil
	})
}

func (m *contents) describeV3(st *State) error {
	i := m.info
	st.V3 = V3State{
		Present: true, Revision: i.Revision, CompactRevision: i.Compacted, Leases: int(i.Leases),
		ConsistentIndex: i.ConsistentIndex, StorageVersion: i.StorageVersion, ClusterVersion: i.ClusterVersion,
		Alarms: []string{}, AuthEnabled: i.AuthEnabled, Users: i.Users, Roles: i.Roles, Auth: len(i.Users) + len(i.Roles), Downgrade: i.Downgrade, SizeBytes: i.SizeBytes,
	}
	for _, a := range i.Alarms {
		st.V3.Alarms = append(st.V3.Alarms, a.Type)
	}
	inUse, err := m.db.InUse()
	if err != nil {
		return err
	}
	st.V3.FreeBytes = max(0, i.SizeBytes-inUse)
	return m.db.Each(func(r keyspace.Record) error {
		st.V3.Keys++
		st.V3.Values.add(r.Value)
		return nil
	})
}

var kubernetesProtobuf = []byte("k8s\x00")

// add counts a value by its first and last bytes: to look at all of it would take as long as the conversion.
func (e *Encodings) add(value []byte) {
	text := bytes.TrimSpace(value)
	switch n := len(text); {
	case bytes.HasPrefix(value, kubernetesProtobuf):
		e.Protobuf++
	case n > 1 && (text[0] == '{' && text[n-1] == '}' || text[0] == '[' && text[n-1] == ']'):
		e.JSON++
	default:
		e.Other++
	}
}

// compareStores finds the keys of the v2 store that the v3 store does not hold with the same value at the same revision.
func (m *contents) compareStores(st *State, now time.Time) error {
	held := map[[sha256.Size]byte]struct{}{}
	if st.V3.Keys > 0 {
		err := m.tree.Each(now, func(r keyspace.Record) error {
			held[content(r)] = struct{}{}
			return nil
		})
		if err != nil {
			return err
		}
		missing := make(map[[sha256.Size]byte]struct{}, len(held))
		for k := range held {
			missing[k] = struct{}{}
		}
		err = m.db.Each(func(r keyspace.Record) error {
			delete(missing, content(r))
			return nil
		})
		if err != nil {
			return err
		}
		for k := range missing {
			delete(held, k)
		}
	}
	err := m.tree.Each(now, func(r keyspace.Record) error {
		if _, ok := held[content(r)]; ok {
			return nil
		}
		st.V2.Unconverted++
		st.V2.Examples = append(st.V2.Examples, string(r.Key))
		if len(st.V2.Examples) > 10*MaxNames {
			slices.Sort(st.V2.Examples)
			st.V2.Examples = st.V2.Examples[:MaxNames]
		}
		return nil
	})
	slices.Sort(st.V2.Examples)
	st.V2.Examples = st.V2.Examples[:min(MaxNames, len(st.V2.Examples))]
	return err
}

// content is a digest of what a conversion keeps as it is.
func content(r keyspace.Record) [sha256.Size]byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(r.Modified))
	b = binary.BigEndian.AppendUint64(b, uint64(len(r.Key)))
	return sha256.Sum256(append(append(b, r.Key...), r.Value...))
}
