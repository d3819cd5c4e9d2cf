// Package convert turns a stopped member's v2 store into a v3 store, without running any etcd: etcd2 to etcd3. And back:
// see ToV2.
//
// ToV3 writes a new member/snap/db with what a keyspace.Tree holds and puts it into place. Every key keeps its name, its
// value and both of its indexes, so that a client that knew a key at modifiedIndex 17 finds it at mod revision 17. The
// v3 store continues at the v2 store's index: no revision that a client remembers comes again, and one that watches from
// an older revision is told that it is compacted and lists anew. A key that expires gets a lease, see records.go.
//
// It replaces `etcdctl migrate` of etcd 3.0 to 3.4, which drops every TTL and every hidden key and writes over what the
// v3 store already holds.
package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// Params says what is converted, and to where.
type Params struct {
	// Tree is the v2 store after the last committed raft entry, whose index is RaftIndex and whose term is RaftTerm. The
	// new db says that it contains that entry and all before it. That is what lets an etcd start on it: 3.1 and newer
	// refuse a db that is older than the newest raft snapshot.
	Tree                *keyspace.Tree
	RaftIndex, RaftTerm uint64
	// LogEnd is the last entry of the log, if that lies beyond RaftIndex because the tree is that of an earlier entry. The
	// entries between them must change nothing in the v3 store. 0 means RaftIndex.
	LogEnd uint64
	// Now is when keys count as expired, and from when on the leases of the others count.
	Now time.Time
	// DB is the path of member/snap/db. What is there is replaced: an etcd 3.x that ran on v2 keys has made one. Of an
	// existing db all is carried over but the keys, the leases, the members and the position in the raft log.
	DB string
	// QuotaBytes is the db size that the etcd will be allowed, 0 for its default of 2 GiB, below 0 for no limit.
	QuotaBytes int64
	// TTLDirectory and TTL, if both are set, give keys below that directory that have no TTL this one, counted from Now:
	// those that an older tool has written without.
	TTLDirectory string
	TTL          time.Duration
	// AcceptLoss names what may be lost.
	AcceptLoss []Loss
	// Earlier is what earlier conversions have put into place, or were about to, before an etcd served the v2 store again. A v3
	// store that nobody has written to since may be replaced.
	Earlier []Made
	// Several says that the other members of a cluster convert the same, and some of them for the first time: then the revision
	// goes on from that of the Earlier one, whatever leases have ended since.
	Several bool
	// Publish, if set, is told what the new db is, and which of Earlier it replaces, if any, when it is proven and before it
	// takes its place, which it does not after an error.
	Publish func(made Made, replaces *Made) error
	// Progress, if set, is called every few thousand records, which are counted once when written and once when proven.
	Progress func(done, total int64)
}

// Made tells a db that a conversion has made.
type Made struct {
	Revision  int64  `json:"revision"`  // of the v3 store
	Permanent string `json:"permanent"` // keyspace.Fingerprint.Permanent of its records
}

// Report is what a conversion did.
type Report struct {
	Records   int64 `json:"records"`
	Bytes     int64 `json:"bytes"`     // of all keys and values
	TTLs      int   `json:"ttls"`      // records with a lease
	Given     int   `json:"given"`     // of these, those that had no TTL and got the one of TTLDirectory
	Leases    int   `json:"leases"`    // which they share
	Hidden    int   `json:"hidden"`    // records that no listing of the v2 API shows
	Expired   int   `json:"expired"`   // keys left out because their time had come
	EmptyDirs int   `json:"emptyDirs"` // left out: the v3 store knows no directories
	// Index is the v2 store's index, Revision the v3 store's revision. They are the same unless the v3 store had already
	// gone further.
	Index    uint64 `json:"index"`
	Revision int64  `json:"revision"`
	// FingerprintBefore is taken of the v2 store's records with their leases, FingerprintAfter of the finished db. They
	// are equal, or ToV3 gives an error.
	FingerprintBefore string `json:"fingerprintBefore"`
	FingerprintAfter  string `json:"fingerprintAfter"`
	// Lost are the accepted losses that there were.
	Lost    []Problem `json:"lost,omitempty"`
	DBBytes int64     `json:"dbBytes"`
	Seconds float64   `json:"seconds"`
}

// ToV3 converts. The db is built beside its place, synced, proven to hold every record, and only then renamed into
// place; if the process is killed at any instant, the old db or the new one is there, whole, and a second call does the
// right thing. What a killed call has left is removed. Equal Params on equal files give the same db, byte by byte.
//
// The error is a *RefusedError if something would be lost that AcceptLoss does not name, and wraps keyspace.ErrInUse if
// an etcd runs on the db. After an error the old db is still in its place, unless all that failed was to make the rename
// durable; Publish may have been told of a new one.
func ToV3(ctx context.Context, p Params) (Report, error) {
	began := time.Now()
	c, err := prepare(p)
	if err != nil {
		return Report{}, fmt.Errorf("convert to %s: %w", p.DB, err)
	}
	defer c.close()
	report, err := c.run(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("convert to %s: %w", p.DB, err)
	}
	report.Seconds = time.Since(began).Seconds()
	return report, nil
}

// Check gives what would be lost in a conversion, whether accepted or not, without changing anything.
func Check(p Params) ([]Problem, error) {
	c, err := prepare(p)
	if err == nil {
		defer c.close()
		var problems []Problem
		if problems, err = c.problems(); err == nil {
			return problems, nil
		}
	}
	return nil, fmt.Errorf("check the conversion to %s: %w", p.DB, err)
}

// conversion is one conversion under way.
type conversion struct {
	Params
	stats   keyspace.V2Stats
	records []record
	arena   arena
	leases  map[int64]int64 // TTL in seconds by lease ID
	given   int             // records that got the TTL of TTLDirectory
	// before is the fingerprint of what the new db must hold.
	before keyspace.Fingerprint

	old     *keyspace.DB // nil if there is none; open for as long as the conversion lasts, to keep etcds out
	oldInfo keyspace.V3Info
	again   *Made // the one of Earlier that it is, nil if it is none

	revision int64
}

// prepare reads all that the conversion depends on.
func prepare(p Params) (*conversion, error) {
	c := &conversion{Params: p, stats: p.Tree.Stats(p.Now)}
	if err := c.collect(); err != nil {
		return nil, err
	}
	if len(c.records) != c.stats.Keys {
		return nil, fmt.Errorf("the v2 store gives %d records, but counts %d", len(c.records), c.stats.Keys)
	}
	if err := c.openOld(); err != nil {
		c.close()
		return nil, err
	}
	again, err := c.earlier()
	if err != nil {
		c.close()
		return nil, err
	}
	c.again = again
	was := c.oldInfo.Revision
	if c.again != nil && c.Several {
		was = c.again.Revision
	}
	c.revision = max(int64(p.Tree.Index()), was, 1) // an empty v3 store is at revision 1
	if n := len(c.records); n > 0 {
		c.revision = max(c.revision, c.records[n-1].modified)
	}
	return c, nil
}

func (c *conversion) openOld() (err error) {
	c.old, err = keyspace.OpenDB(c.DB)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if c.oldInfo, err = c.old.Info(); err != nil {
		return err
	}
	if end := max(c.RaftIndex, c.LogEnd); c.oldInfo.ConsistentIndex > end {
		return fmt.Errorf("the existing db contains raft entry %d, but the raft log ends at %d: the log has lost its end",
			c.oldInfo.ConsistentIndex, end)
	}
	return nil
}

// earlier gives the earlier conversion whose records the existing db holds, less what was deleted since, and nothing else.
func (c *conversion) earlier() (*Made, error) {
	if c.old == nil || len(c.Earlier) == 0 {
		return nil, nil
	}
	old, err := keyspace.FingerprintDB(c.old)
	if err != nil {
		return nil, err
	}
	var newest int64
	if err := c.old.Each(func(r keyspace.Record) error {
		newest = max(newest, r.Modified)
		return nil
	}); err != nil {
		return nil, err
	}
	for _, made := range c.Earlier {
		// What a conversion has made is compacted at its revision; a store that users began has its first writes far below that.
		if old.Permanent() == made.Permanent && newest <= made.Revision && made.Revision <= c.oldInfo.ScheduledCompaction {
			return &made, nil
		}
	}
	return nil, nil
}

func (c *conversion) close() {
	if c.old != nil {
		_ = c.old.Close() // opened for reading
	}
}

func (c *conversion) run(ctx context.Context) (Report, error) {
	problems, err := c.problems()
	if err != nil {
		return Report{}, err
	}
	if refused := slices.DeleteFunc(slices.Clone(problems), func(p Problem) bool {
		return slices.Contains(c.AcceptLoss, p.Loss)
	}); len(refused) > 0 {
		return Report{}, &RefusedError{refused}
	}
	small, err := c.smallBuckets()
	if err != nil {
		return Report{}, err
	}

	fresh := c.DB + ".etcd-migrate.tmp"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Report{}, fmt.Errorf("remove what a killed conversion has left: %w", err)
	}
	defer func() { _ = os.Remove(fresh) }() // unless it was renamed
	if err := c.write(ctx, fresh, small); err != nil {
		return Report{}, fmt.Errorf("write %s: %w", fresh, err)
	}
	after, info, err := c.prove(ctx, fresh, small)
	if err != nil {
		return Report{}, fmt.Errorf("check %s: %w", fresh, err)
	}
	if c.Publish != nil {
		if err := c.Publish(Made{c.revision, after.Permanent()}, c.again); err != nil {
			return Report{}, err
		}
	}
	if err := datadir.Rename(fresh, c.DB); err != nil {
		return Report{}, fmt.Errorf("put the new db into place: %w", err)
	}
	return Report{
		Records: after.Records, Bytes: after.Bytes, TTLs: c.stats.TTLs + c.given, Given: c.given, Leases: len(c.leases),
		Hidden: c.stats.Hidden, Expired: c.stats.Expired, EmptyDirs: c.stats.EmptyDirs,
		Index: c.Tree.Index(), Revision: c.revision,
		FingerprintBefore: c.before.String(), FingerprintAfter: after.String(),
		Lost: problems, DBBytes: info.BackendBytes,
	}, nil
}

// RefusedError says that the conversion would lose something that nobody has agreed to lose. Nothing was changed.
type RefusedError struct {
	Problems []Problem
}

func (e *RefusedError) Error() string {
	var texts []string
	for _, p := range e.Problems {
		texts = append(texts, p.Text)
	}
	return strings.Join(texts, "; ")
}
