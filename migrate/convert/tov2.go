package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// V2Params says what is converted back.
type V2Params struct {
	// Log and Summary are the stopped member's log, read to its end, and Tree is the v2 store after its last committed
	// entry. ToV2 changes the tree into what the new log holds.
	Log     *raftlog.Log
	Summary raftlog.Summary
	Tree    *keyspace.Tree
	// SnapDir is the directory member/snap, with the db.
	SnapDir string
	// Now is from when on the TTLs of leases count.
	Now time.Time
	// AcceptLoss names what may be lost.
	AcceptLoss []Loss
	// Progress, if set, is called every few thousand records, which are counted once when read and once when proven.
	Progress func(done, total int64)
}

// V2Report is what a conversion back did.
type V2Report struct {
	Records int64 `json:"records"`
	Bytes   int64 `json:"bytes"`  // of all keys and values
	TTLs    int   `json:"ttls"`   // records that had a lease
	Hidden  int   `json:"hidden"` // records that no listing of the v2 API shows, because of a "_" in their path
	// Revision was the v3 store's revision, Index is the v2 store's index. The index is not below it.
	Revision int64  `json:"revision"`
	Index    uint64 `json:"index"`
	// FingerprintBefore is taken of the db's records as the v2 store must have them, FingerprintAfter of the new raft
	// snapshot. They are equal, or ToV2 gives an error.
	FingerprintBefore string `json:"fingerprintBefore"`
	FingerprintAfter  string `json:"fingerprintAfter"`
	// Lost are the accepted losses that there were.
	Lost    []Problem `json:"lost,omitempty"`
	Seconds float64   `json:"seconds"`
}

// ToV2 converts back: etcd3 to etcd2. Every key keeps its name, its value and both of its revisions, which become its
// indexes, and the v2 store's index continues at the v3 store's revision: what a client calls a resource version never
// goes backwards. A key with a lease expires when the lease would if etcd were started now, after the full TTL, which is
// all that a db knows. What is deleted stays deleted. Of what v2 has no room for, only the history of a key and its
// version go without being asked for; see the losses for the rest.
//
// It is a step by itself, from 3.0.x/etcd3 to 3.0.x/etcd2, and the data stays that of the same etcd, 3.0 to 3.5: one that
// serves both stores. Then going from 3.0 to 2.3 is what it is for data that never was in a v3 store: see package
// downgrade. So each step has one thing to do and one to prove, and each ends with data that an etcd starts on.
//
// The new log, which is where a v2 store is, and an empty db are prepared and proven beside the old ones. The log goes
// into place first, then the db. If it is killed in between, both stores hold the keys, and the data is still the v3
// store's. A second call does all of it again and converts the same records, whose TTLs count from its own Now. Once the v2
// store holds keys and the v3 store was never used, there is nothing to do, and the report has no fingerprints.
//
// The error is a *RefusedError if something would be lost that AcceptLoss does not name, wraps ErrUnsettled if etcd was not
// stopped cleanly, and wraps keyspace.ErrInUse if it still runs. After these nothing was changed.
func ToV2(ctx context.Context, p V2Params) (V2Report, error) {
	began := time.Now()
	report, err := toV2(ctx, p)
	if err != nil {
		return V2Report{}, fmt.Errorf("convert back to the v2 store: %w", err)
	}
	report.Seconds = time.Since(began).Seconds()
	return report, nil
}

// CheckV2 gives what would be lost in a conversion back, whether accepted or not, without changing anything but the tree,
// which is of no more use afterwards. The data may be of any 3.x, and log and summary are not needed.
func CheckV2(ctx context.Context, p V2Params) ([]Problem, error) {
	c := reversal{V2Params: p}
	problems, err := c.check(ctx)
	if err != nil {
		return nil, fmt.Errorf("check the conversion back to the v2 store: %w", err)
	}
	return problems, nil
}

func (c *reversal) check(ctx context.Context) ([]Problem, error) {
	if err := c.open(); err != nil {
		return nil, err
	}
	defer c.db.Close()
	if c.isDone() {
		return nil, nil
	}
	return c.collect(ctx, false)
}

// reversal is one conversion back under way.
type reversal struct {
	V2Params
	db     *keyspace.DB
	info   keyspace.V3Info
	leases map[int64]int64 // TTL in seconds by lease ID
	total  int64
	// displaced are keys that are also the directory of another key.
	displaced map[string]bool
}

func (c *reversal) dbPath() string { return filepath.Join(c.SnapDir, "db") }

func (c *reversal) open() (err error) {
	if c.db, err = keyspace.OpenDB(c.dbPath()); err != nil {
		return err
	}
	if c.info, err = c.db.Info(); err == nil {
		c.leases, err = c.db.Leases()
	}
	if err != nil {
		_ = c.db.Close() // opened for reading
	}
	return err
}

func toV2(ctx context.Context, p V2Params) (V2Report, error) {
	c := &reversal{V2Params: p}
	if err := c.checkVersion(); err != nil {
		return V2Report{}, err
	}
	if err := c.open(); err != nil {
		return V2Report{}, err
	}
	if c.isDone() {
		return c.report(), c.db.Close()
	}
	replacement, report, err := c.prepare(ctx)
	err = errors.Join(err, c.db.Close())
	if err != nil {
		return V2Report{}, err
	}
	return report, c.install(replacement)
}

// checkVersion refuses what no etcd could serve from the v2 store.
func (c *reversal) checkVersion() error {
	v, err := versionfile.ParseRelease(c.Tree.ClusterVersion())
	if err != nil {
		return fmt.Errorf("the cluster's version: %w", err)
	}
	if m := v.Minor(); !m.AtLeast(3, 0) || m.AtLeast(3, 6) {
		return fmt.Errorf("the data is of a cluster at etcd %s, which does not serve both stores", m)
	}
	members, err := c.Tree.Members()
	if err == nil && (len(members) != 1 || members[0].ID != c.Log.NodeID()) {
		err = fmt.Errorf("the data is of a cluster of %d members, and only a sole member can be converted", len(members))
	}
	return err
}

// isDone reports whether there is nothing in the v3 store and never was, but in the v2 store there is: an earlier call came
// to its end, and what should have noted that was killed.
func (c *reversal) isDone() bool {
	return c.info.Revision <= 1 && len(c.leases) == 0 && len(c.info.Users) == 0 && c.Tree.Stats(c.Now).Keys > 0
}

// report says what there is in the v2 store.
func (c *reversal) report() V2Report {
	s := c.Tree.Stats(c.Now)
	return V2Report{
		Records: int64(s.Keys), Bytes: s.Bytes, TTLs: s.TTLs, Hidden: s.Hidden,
		Revision: c.info.Revision, Index: c.Tree.Index(),
	}
}

// prepared is all that has to be put into place.
type prepared struct {
	log *raftlog.Replacement
	db  string // a path
}

// prepare makes and proves the new log and the new db.
func (c *reversal) prepare(ctx context.Context) (r prepared, report V2Report, err error) {
	last := c.Summary.HardState.Commit + uint64(c.Summary.Uncommitted)
	if c.info.ConsistentIndex > last {
		return r, report, fmt.Errorf("the db contains raft entry %d, but the raft log ends at %d: the log has lost its end",
			c.info.ConsistentIndex, last)
	}
	if err := Unapplied(c.Log, c.db, nil); err != nil {
		return r, report, err
	}
	problems, err := c.collect(ctx, true)
	if err != nil {
		return r, report, err
	}
	if refused := slices.DeleteFunc(slices.Clone(problems), func(p Problem) bool {
		return slices.Contains(c.AcceptLoss, p.Loss)
	}); len(refused) > 0 {
		return r, report, &RefusedError{refused}
	}
	if err := context.Cause(ctx); err != nil {
		return r, report, err
	}
	c.Tree.RaiseIndex(uint64(c.info.Revision))
	defer func() {
		if err != nil {
			err = errors.Join(err, r.discard())
		}
	}()
	r.log, err = raftlog.PrepareReplacement(c.Log, c.Summary, c.SnapDir, raftlog.Padded, c.Tree.Save)
	if err != nil {
		return r, report, err
	}
	before, after, err := c.prove(ctx, r.log.Store())
	if err != nil {
		return r, report, fmt.Errorf("check the new raft snapshot: %w", err)
	}
	if r.db, err = c.writeEmptyDB(ctx); err != nil {
		return r, report, err
	}
	report = c.report()
	report.FingerprintBefore, report.FingerprintAfter, report.Lost = before.String(), after.String(), problems
	return r, report, nil
}

func (r *prepared) discard() error {
	var errs []error
	if r.log != nil {
		errs = append(errs, r.log.Discard())
	}
	if r.db != "" {
		errs = append(errs, os.Remove(r.db))
	}
	return errors.Join(errs...)
}

// install puts everything into place.
func (c *reversal) install(r prepared) error {
	// From here on the old db may be taken for one that is older than the new log's snapshot, which 3.1 and newer refuse.
	// It is not, and says so.
	if err := UpdateDB(c.dbPath(), func(tx Tx) error { return noteIndex(tx, c.Summary.HardState.Commit) }); err != nil {
		return errors.Join(err, r.discard())
	}
	if err := r.log.Install(); err != nil {
		return err
	}
	if err := datadir.Rename(r.db, c.dbPath()); err != nil {
		return fmt.Errorf("put the empty db into place: %w", err)
	}
	return nil
}

// writeEmptyDB makes the db of an etcd 3.x whose clients use the v2 API. It contains the whole log, and no trace of the
// v3 store's revision: that lives on in the v2 store's index, and a v3 store with a revision would look like one in use.
func (c *reversal) writeEmptyDB(ctx context.Context) (path string, err error) {
	empty := conversion{Params: Params{Tree: c.Tree, DB: c.dbPath()}}
	members, removed, err := empty.members()
	if err != nil {
		return "", err
	}
	index := element{[]byte(keyspace.MetaConsistentIndex), uint64Bytes(c.Summary.HardState.Commit)}
	version := element{[]byte(keyspace.ClusterVersionKey), []byte(c.Tree.ClusterVersion())}
	path = c.dbPath() + ".etcd-migrate.tmp"
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("remove what a killed conversion has left: %w", err)
	}
	buckets := []bucket{
		{keyspace.BucketAlarm, nil}, {keyspace.BucketAuth, nil}, {keyspace.BucketAuthRoles, nil}, {keyspace.BucketAuthUsers, nil},
		{keyspace.BucketCluster, []element{version}}, {keyspace.BucketLease, nil}, {keyspace.BucketMembers, members},
		{keyspace.BucketMembersRemoved, removed}, {keyspace.BucketMeta, []element{index}},
	}
	err = empty.write(ctx, path, buckets)
	if err == nil {
		err = proveEmpty(path, buckets)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(path))
	}
	return path, nil
}

func proveEmpty(path string, buckets []bucket) error {
	db, err := keyspace.OpenDB(path)
	if err != nil {
		return err
	}
	defer db.Close()
	for _, b := range append(buckets, bucket{keyspace.BucketKey, nil}) {
		if err := proveBucket(db, b); err != nil {
			return err
		}
	}
	return nil
}
