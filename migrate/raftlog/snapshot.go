package raftlog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Snapshot is the raft snapshot that a member starts from.
type Snapshot struct {
	// Path is the *.snap file. It is empty, and Index and Term are 0, if the member starts from an empty state.
	Path        string
	Index, Term uint64
	ConfState   raftpb.ConfState
	// Data is the v2 store as its Save wrote it: JSON. The v3 store is not part of it.
	Data []byte
	// Skipped names each newer snapshot file that was passed over, and why: "path: reason".
	Skipped []string
}

const (
	snapSuffix   = ".snap"
	brokenSuffix = ".snap.broken" // what etcd renames a snapshot to that it cannot read
)

// listSnapshots gives the names of the snapshot files, newest first: a name is the term and the index in hexadecimal.
// Other files (db, *.snap.db, tmp*) are no raft snapshots. A directory that does not exist holds none.
func listSnapshots(dir string) ([]string, error) {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list snapshot directory: %w", err)
	}
	var names []string
	for _, f := range files {
		if strings.HasSuffix(f.Name(), snapSuffix) || strings.HasSuffix(f.Name(), brokenSuffix) {
			names = append(names, f.Name())
		}
	}
	slices.Reverse(names)
	return names, nil
}

// errBroken is a snapshot file whose content is no snapshot.
var errBroken = errors.New("broken")

// readSnapshot reads one file. The error is errBroken if etcd would rename the file and try an older one. Etcd does so
// too if the file cannot be read at all; here that is an error to look at, because an older snapshot proves nothing
// while the disk or the permissions are at fault.
func readSnapshot(path string) (*raftpb.Snapshot, error) {
	if strings.HasSuffix(path, brokenSuffix) {
		return nil, fmt.Errorf("%w: set aside by an earlier start of etcd", errBroken)
	}
	s, err := snap.Read(zap.NewNop(), path)
	var unreadable *fs.PathError
	if errors.As(err, &unreadable) {
		return nil, fmt.Errorf("read snapshot: %w", err)
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	return s, nil
}

// choose finds what the member starts from, as etcd does since 3.3: the newest readable snapshot that the WAL has a
// record of and that is not beyond the commit. Of a newer one without a record, 2.x dies and 3.0 to 3.2 take it.
func choose(snapDir string, segs []segment) (Snapshot, *survey, error) {
	names, err := listSnapshots(snapDir)
	if err != nil {
		return Snapshot{}, nil, err
	}
	var skipped []string
	for _, name := range names {
		path := filepath.Join(snapDir, name)
		s, err := readSnapshot(path)
		var sv *survey
		if err == nil {
			sv, err = startingAt(segs, s.Metadata.Index, s.Metadata.Term)
		}
		if errors.Is(err, errBroken) || errors.Is(err, errNoRecord) {
			skipped = append(skipped, fmt.Sprintf("%s: %v", path, err))
			continue
		}
		if err == nil {
			err = sv.complete()
		}
		if err != nil {
			return Snapshot{}, nil, err
		}
		return Snapshot{
			Path: path, Index: s.Metadata.Index, Term: s.Metadata.Term,
			ConfState: s.Metadata.ConfState, Data: s.Data, Skipped: skipped,
		}, sv, nil
	}
	if len(from(segs, 0)) == 0 {
		return Snapshot{}, nil, fmt.Errorf(
			"the wal begins at entry %d (%s), and %s holds no snapshot that it continues%s",
			segs[0].index, segs[0].path, snapDir, list(skipped))
	}
	sv, err := startingAt(segs, 0, 0)
	if err == nil {
		err = sv.complete()
	}
	if err != nil {
		return Snapshot{}, nil, fmt.Errorf("%w%s", err, list(skipped))
	}
	return Snapshot{Skipped: skipped}, sv, nil
}

// list is what an error says of the snapshots that could not be used.
func list(skipped []string) string {
	if len(skipped) == 0 {
		return ""
	}
	return "; snapshots that cannot be used: " + strings.Join(skipped, "; ")
}
