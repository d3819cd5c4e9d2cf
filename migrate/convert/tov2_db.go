package convert

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
)

// ErrUnsettled says that the data may not hold all that was written to it, because etcd was killed: it has to be started
// and stopped once more, at its own minor.
var ErrUnsettled = raftlog.ErrUnsettled

// Unapplied reports with ErrUnsettled whether committed entries of the log can be missing in the db: an etcd that is
// stopped cleanly leaves none.
//
// That an entry is beyond the db's consistent index does not say so. Up to 3.4 etcd notes the index only with a write to
// a key and with a raft snapshot, so what else it has applied since looks as if it were missing. What says that the
// cluster is at some version, or names the members, is no user's write, and neither is how much of a lease is over.
//
// Leases that ignore names do not matter; nil for none.
func Unapplied(log *raftlog.Log, db *keyspace.DB, ignore func(lease int64) bool) error {
	info, err := db.Info()
	if err != nil {
		return err
	}
	leases, err := db.Leases()
	if err != nil {
		return err
	}
	missing, granted := 0, map[int64]bool{}
	_, err = log.Each(func(e raftlog.Entry) error {
		if e.Kind != raftlog.V3 || e.Index <= info.ConsistentIndex {
			return nil
		}
		switch r := e.V3; {
		case ignore != nil && (r.LeaseGrant != nil && ignore(r.LeaseGrant.ID) || r.LeaseRevoke != nil && ignore(r.LeaseRevoke.ID)):
		case r.LeaseGrant != nil:
			if _, there := leases[r.LeaseGrant.ID]; !there {
				granted[r.LeaseGrant.ID] = true
			}
		case r.LeaseRevoke != nil:
			delete(granted, r.LeaseRevoke.ID) // a lease that has come and gone leaves nothing behind
			if _, there := leases[r.LeaseRevoke.ID]; there {
				missing++
			}
		case r.Alarm != nil:
			raised := slices.Contains(info.Alarms, keyspace.V3Alarm{Member: r.Alarm.MemberID, Type: r.Alarm.Alarm.String()})
			if r.Alarm.Action != etcdserverpb.AlarmRequest_GET && raised != (r.Alarm.Action == etcdserverpb.AlarmRequest_ACTIVATE) {
				missing++
			}
		case writes(r):
			missing++
		}
		return nil
	})
	if missing += len(granted); err == nil && missing > 0 {
		err = fmt.Errorf("%w: %d writes in the log may not have reached the db", ErrUnsettled, missing)
	}
	return err
}

// writes reports whether a request writes keys, users or roles.
func writes(r *etcdserverpb.InternalRaftRequest) bool {
	return r.Put != nil || r.DeleteRange != nil || r.Txn != nil || r.Compaction != nil ||
		r.AuthEnable != nil || r.AuthDisable != nil ||
		r.AuthUserAdd != nil || r.AuthUserDelete != nil || r.AuthUserChangePassword != nil ||
		r.AuthUserGrantRole != nil || r.AuthUserRevokeRole != nil ||
		r.AuthRoleAdd != nil || r.AuthRoleDelete != nil ||
		r.AuthRoleGrantPermission != nil || r.AuthRoleRevokePermission != nil
}

// Tx is a transaction that writes to a db.
type Tx = *bolt.Tx

// UpdateDB changes a stopped member's db in its place, in one transaction that a crash leaves done or not done. It reads
// the whole db first, because bbolt trusts it and would not come back from one that is damaged.
//
// It also writes the list of free pages into the file, which etcd does not since 3.3, and without which no etcd up to
// 3.1 can open it. The error wraps keyspace.ErrInUse if an etcd runs on the db.
func UpdateDB(path string, fn func(Tx) error) error {
	if err := checkPages(path); err != nil {
		return err
	}
	if err := updateDB(path, fn); err != nil {
		return fmt.Errorf("write db %s: %w", path, err)
	}
	return nil
}

func checkPages(path string) error {
	db, err := keyspace.OpenDB(path)
	if err != nil {
		return err
	}
	_, err = db.InUse()
	return errors.Join(err, db.Close())
}

func updateDB(path string, fn func(Tx) error) (err error) {
	// What is not part of any bucket can still be damaged, and then bbolt panics or reads beyond the file.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if damage := recover(); damage != nil {
			err = fmt.Errorf("it is damaged: %v", damage)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return keyspace.ErrInUse
	}
	if err != nil {
		return err
	}
	return errors.Join(db.Update(fn), db.Close())
}

// noteIndex makes the db say that it contains that entry of the log and all before it.
func noteIndex(tx Tx, index uint64) error {
	meta, err := tx.CreateBucketIfNotExists([]byte(keyspace.BucketMeta))
	if err != nil {
		return err
	}
	return meta.Put([]byte(keyspace.MetaConsistentIndex), uint64Bytes(index))
}
