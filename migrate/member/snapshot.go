package member

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.uber.org/zap"
)

// ForceSnapshot makes etcd write a raft snapshot that covers every entry which was committed before the call, and waits
// until it is whole on the disk. It returns the snapshot's index. What makes etcd do so are writes, as many as
// Config.SnapshotCount and a few, so that number must be set and should be small.
//
// Followed by a clean Stop, the snapshot is also recorded in the raft log, which is what the next start goes by, and
// from 3.0 on the db is not behind it.
//
// A learner writes nothing, so its snapshot comes when the other members have written enough.
//
// It does not need Ready. With Config.V2 it works even on an etcd 3.5 that answers every v3 request "etcdserver: not
// capable" and so is never ready, and is the cure: the next start goes by the new snapshot and is capable.
func (e *Etcd) ForceSnapshot(ctx context.Context) (uint64, error) {
	if e.cfg.SnapshotCount == 0 {
		return 0, fmt.Errorf("force a snapshot: etcd %s was started without a snapshot count", e.cfg.Release)
	}
	ctx, done := e.whileRunning(ctx)
	defer done()
	index, err := e.forceSnapshot(ctx)
	if err != nil {
		return 0, e.explain(ctx, "force a snapshot", err)
	}
	e.cfg.Log.Debug("private etcd wrote a snapshot", "release", e.cfg.Release, "index", index)
	return index, nil
}

func (e *Etcd) forceSnapshot(ctx context.Context) (uint64, error) {
	// What is there now is not what this call is about, whatever its index: files can have been put there by hand.
	before, err := snapshots(e.snapDir())
	if err != nil {
		return 0, err
	}
	if err := insist(ctx, e.write); err != nil {
		return 0, err
	}
	// Some minors say the applied index here, which may be one behind that write, but not behind what was before.
	var from uint64
	err = insist(ctx, func(ctx context.Context) (err error) {
		from, err = e.committed(ctx)
		return err
	})
	if err != nil {
		return 0, err
	}
	// Etcd begins a snapshot as soon as more entries than the count have been applied since the last one. So it takes
	// at most count + 1 writes, and each is applied by itself because none is made before the last one was answered.
	for n := uint64(0); n <= e.cfg.SnapshotCount; n++ {
		if path, _, err := e.newSnapshot(before, from); err != nil {
			return 0, err
		} else if path != "" {
			break
		}
		if err := e.writeOnce(ctx); err != nil {
			return 0, err
		}
	}
	return e.awaitSnapshot(ctx, before, from)
}

// writeOnce is write. In a cluster of several it can take more than one try, because the leader may just have left.
func (e *Etcd) writeOnce(ctx context.Context) error {
	if e.cfg.Peers == nil {
		return e.write(ctx)
	}
	return insist(ctx, e.write)
}

// awaitSnapshot waits until there is a whole new snapshot. Up to 3.5 etcd writes it in the background, and all minors
// write it under its final name.
func (e *Etcd) awaitSnapshot(ctx context.Context, before map[string]uint64, from uint64) (uint64, error) {
	var index uint64
	err := insist(ctx, func(context.Context) error {
		path, i, err := e.newSnapshot(before, from)
		switch {
		case err != nil:
			return finalError{err}
		case path == "":
			return fmt.Errorf("there is no new snapshot from raft index %d on in %s", from, e.snapDir())
		}
		if _, err := snap.Read(zap.NewNop(), path); err != nil {
			return fmt.Errorf("read snapshot %s: %w", path, err)
		}
		index = i
		return nil
	})
	return index, err
}

func (e *Etcd) snapDir() string { return filepath.Join(e.cfg.DataDir, "member", "snap") }

// newSnapshot finds the newest snapshot that is not among those from before and has at least the index from.
func (e *Etcd) newSnapshot(before map[string]uint64, from uint64) (path string, index uint64, err error) {
	now, err := snapshots(e.snapDir())
	if err != nil {
		return "", 0, err
	}
	for name, i := range now {
		if _, old := before[name]; !old && i >= from && i >= index {
			path, index = filepath.Join(e.snapDir(), name), i
		}
	}
	return path, index, nil
}

// snapshotName is a raft snapshot's file name: term and index (etcd's api/snap/snapshotter.go).
var snapshotName = regexp.MustCompile(`^[0-9a-f]{16}-([0-9a-f]{16})\.snap$`)

// snapshots gives the raft snapshots in a dir and their indexes.
func snapshots(dir string) (map[string]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // etcd makes it when it begins a new cluster
		return nil, err
	}
	found := make(map[string]uint64)
	for _, entry := range entries {
		if m := snapshotName.FindStringSubmatch(entry.Name()); m != nil {
			if found[entry.Name()], err = strconv.ParseUint(m[1], 16, 64); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// Etcd 2.2 does not wait for a snapshot that is under way when it ends, as 2.3 and newer do. It may then leave a part of
// a file, or end with an error because the log is closed already. Only its output tells that one is under way.
var (
	snapshotStarted = regexp.MustCompile(`start to snapshot \(applied: (\d+),`)
	snapshotSaved   = regexp.MustCompile(`saved snapshot at index (\d+)`)
)

// awaitSnapshotSaved waits until an etcd 2.2 has no snapshot under way.
func (e *Etcd) awaitSnapshotSaved(ctx context.Context) {
	if e.cfg.Release.Minor().AtLeast(2, 3) {
		return
	}
	ctx, done := e.whileRunning(ctx)
	defer done()
	_ = insist(ctx, func(context.Context) error {
		output := e.output.bytes()
		if lastNumber(snapshotSaved, output) < lastNumber(snapshotStarted, output) {
			return errors.New("a snapshot is under way")
		}
		return nil
	})
}

// stoppedInSnapshot reports whether an etcd 2.2 ended with an error only because it began a snapshot at the moment it
// was stopped. All entries are on the disk then, and the snapshot is one that nobody waits for.
func (e *Etcd) stoppedInSnapshot() bool {
	return !e.cfg.Release.Minor().AtLeast(2, 3) &&
		closedLog.Match(e.output.bytes())
}

var closedLog = regexp.MustCompile(`C \| etcdserver: save snapshot error: .*: file already closed\n$`)

func lastNumber(r *regexp.Regexp, output []byte) (n uint64) {
	if all := r.FindAllSubmatch(output, -1); len(all) > 0 {
		n, _ = strconv.ParseUint(string(all[len(all)-1][1]), 10, 64)
	}
	return n
}
