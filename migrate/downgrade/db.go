package downgrade

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/server/v3/lease/leasepb"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// Fields of the db that have come since 3.5, as go.etcd.io/etcd/server/v3/storage/schema/bucket.go names them.
const (
	metaConfState      = "confState"      // 3.5
	metaStorageVersion = "storageVersion" // 3.6
	clusterDowngrade   = "downgrade"      // 3.5
)

// lowerDB writes the fields of the db that depend on the minor, in one transaction: after a crash all of them are as they
// were, or all as they should be. No key is touched.
func (d *data) lowerDB(report *Report) error {
	return convert.UpdateDB(d.dbPath(), func(tx convert.Tx) error {
		for _, lower := range []func(convert.Tx, *Report) error{d.lowerVersion, d.lowerMembers, d.lowerLeases, d.dropLeases} {
			if err := lower(tx, report); err != nil {
				return err
			}
		}
		return nil
	})
}

// lowerVersion makes the db one of the lower minor that contains all of the log.
func (d *data) lowerVersion(tx convert.Tx, _ *Report) error {
	version := []byte(d.To.String() + ".0")
	meta, err := tx.CreateBucketIfNotExists([]byte(keyspace.BucketMeta))
	if err != nil {
		return err
	}
	cluster, err := tx.CreateBucketIfNotExists([]byte(keyspace.BucketCluster))
	if err != nil {
		return err
	}
	errs := []error{
		cluster.Put([]byte(keyspace.ClusterVersionKey), version),
		cluster.Delete([]byte(clusterDowngrade)),
		// Not below the new raft snapshot's, or 3.1 and newer look for another db.
		meta.Put([]byte(keyspace.MetaConsistentIndex), uint64Bytes(d.at.Index)),
	}
	if d.To.AtLeast(3, 6) {
		errs = append(errs, meta.Put([]byte(metaStorageVersion), version))
	} else {
		errs = append(errs, meta.Delete([]byte(metaStorageVersion)))
	}
	if d.To.AtLeast(3, 5) {
		errs = append(errs, meta.Put([]byte(keyspace.MetaTerm), uint64Bytes(d.at.Term)))
	} else {
		errs = append(errs, meta.Delete([]byte(keyspace.MetaTerm)), meta.Delete([]byte(metaConfState)))
	}
	return errors.Join(errs...)
}

// lowerMembers makes the db name the members that the log does. It is the same unless an old etcdctl has restored a
// snapshot, or an old etcd was killed at the wrong moment.
func (d *data) lowerMembers(tx convert.Tx, report *Report) error {
	for _, m := range d.info.Members {
		if !slices.ContainsFunc(d.members, func(v keyspace.V2Member) bool { return v.ID == m.ID }) {
			report.Zombies++
		}
	}
	removed, err := d.Tree.RemovedMembers()
	if err != nil {
		return err
	}
	members, err := emptyBucket(tx, keyspace.BucketMembers)
	if err != nil {
		return err
	}
	for _, m := range d.members {
		raw, err := json.Marshal(keyspace.V3Member(m))
		if err == nil {
			err = members.Put(memberKey(m.ID), raw)
		}
		if err != nil {
			return err
		}
	}
	gone, err := emptyBucket(tx, keyspace.BucketMembersRemoved)
	if err != nil {
		return err
	}
	for _, id := range removed {
		err = errors.Join(err, gone.Put(memberKey(id), []byte("removed")))
	}
	return err
}

// lowerLeases removes the checkpoints of leases: how much of their TTL remained at some time. Up to 3.3 etcd does not
// know them. It would leave them as they are while clients keep the leases alive, and the next 3.4 would end those leases
// long before their time.
func (d *data) lowerLeases(tx convert.Tx, report *Report) error {
	leases := tx.Bucket([]byte(keyspace.BucketLease))
	if d.To.AtLeast(3, 4) || leases == nil {
		return nil
	}
	rewrite := map[string][]byte{}
	err := leases.ForEach(func(k, v []byte) error {
		var l leasepb.Lease
		if err := l.Unmarshal(v); err != nil {
			return fmt.Errorf("decode lease %x: %w", k, err)
		}
		if l.RemainingTTL == 0 {
			return nil
		}
		raw, err := (&leasepb.Lease{ID: l.ID, TTL: l.TTL}).Marshal()
		rewrite[string(k)] = raw
		return err
	})
	for k, v := range rewrite {
		err = errors.Join(err, leases.Put([]byte(k), v))
	}
	report.Checkpoints = len(rewrite)
	return err
}

// dropLeases removes the leases that are to go.
func (d *data) dropLeases(tx convert.Tx, _ *Report) error {
	leases := tx.Bucket([]byte(keyspace.BucketLease))
	if d.DropLeases == nil || leases == nil {
		return nil
	}
	var drop [][]byte
	err := leases.ForEach(func(k, _ []byte) error {
		if len(k) == 8 && d.DropLeases(int64(binary.BigEndian.Uint64(k))) {
			drop = append(drop, bytes.Clone(k))
		}
		return nil
	})
	for _, k := range drop {
		err = errors.Join(err, leases.Delete(k))
	}
	return err
}

func emptyBucket(tx convert.Tx, name string) (*bolt.Bucket, error) {
	if err := tx.DeleteBucket([]byte(name)); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
		return nil, err
	}
	return tx.CreateBucket([]byte(name))
}

func memberKey(id uint64) []byte { return strconv.AppendUint(nil, id, 16) }

func uint64Bytes(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
