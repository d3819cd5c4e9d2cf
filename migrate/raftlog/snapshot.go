package raftlog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
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
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	s, err := decodeSnapshot(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	return s, nil
}

// castagnoli is the polynomial of all of etcd's checksums.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// decodeSnapshot does what api/snap.Read of etcd does, without its two copies of the whole v2 store: the snapshot's data
// is part of b. The file is a snappb.Snapshot {1: crc, 2: data}, whose data is a raftpb.Snapshot {1: data, 2: metadata}.
func decodeSnapshot(b []byte) (*raftpb.Snapshot, error) {
	if len(b) == 0 {
		return nil, snap.ErrEmptySnapshot
	}
	var crc uint64
	var inner []byte
	if err := fields(b, func(n protowire.Number, number uint64, bytes []byte) (bool, error) {
		switch {
		case n == 1 && bytes == nil:
			crc = number
		case n == 2 && bytes != nil:
			inner = bytes
		default:
			return n > 2, nil
		}
		return true, nil
	}); err != nil {
		return nil, err
	}
	if len(inner) == 0 || uint32(crc) == 0 {
		return nil, snap.ErrEmptySnapshot
	}
	if crc32.Checksum(inner, castagnoli) != uint32(crc) {
		return nil, snap.ErrCRCMismatch
	}
	s := &raftpb.Snapshot{}
	err := fields(inner, func(n protowire.Number, _ uint64, bytes []byte) (bool, error) {
		switch {
		case n == 1 && bytes != nil:
			s.Data = bytes
		case n == 2 && bytes != nil:
			return true, s.Metadata.Unmarshal(bytes)
		default:
			return n > 2, nil
		}
		return true, nil
	})
	return s, err
}

// fields calls fn with each field of a protobuf message: bytes is nil for a number and not nil for bytes. What fn does not
// take makes the message invalid.
func fields(b []byte, fn func(n protowire.Number, number uint64, bytes []byte) (taken bool, err error)) error {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		var number uint64
		var bytes []byte
		switch kind {
		case protowire.VarintType:
			number, size = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			bytes, size = protowire.ConsumeBytes(b)
		default:
			size = protowire.ConsumeFieldValue(n, kind, b)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		taken, err := fn(n, number, bytes)
		if err != nil {
			return err
		}
		if !taken {
			return fmt.Errorf("field %d has wire type %d", n, kind)
		}
		b = b[size:]
	}
	return nil
}

// choose finds what the member starts from, as etcd does since 3.3: the newest readable snapshot that the WAL has a
// record of and that is not beyond the commit. Of a newer one without a record, 2.x dies and 3.0 to 3.2 take it.
func choose(snapDir string, segs []segment) (Snapshot, *survey, error) {
	names, err := listSnapshots(snapDir)
	if err != nil {
		return Snapshot{}, nil, err
	}
	var skipped []string
	var newest uint64 // of the snapshots that can be read
	var newestPath string
	// A snapshot is of entries that were applied, and so were in the log before.
	whole := func(sv *survey) error {
		if newest > sv.last {
			return fmt.Errorf("read the wal in %s: %w: %s is of entry %d, but the wal ends with entry %d%s",
				filepath.Dir(sv.segs[0].path), errLost, newestPath, newest, sv.last, tornNote(sv.torn))
		}
		return sv.complete()
	}
	for _, name := range names {
		path := filepath.Join(snapDir, name)
		s, err := readSnapshot(path)
		var sv *survey
		if err == nil {
			if s.Metadata.Index > newest {
				newest, newestPath = s.Metadata.Index, path
			}
			sv, err = startingAt(segs, s.Metadata.Index, s.Metadata.Term)
		}
		if errors.Is(err, errBroken) || errors.Is(err, errNoRecord) {
			skipped = append(skipped, fmt.Sprintf("%s: %v", path, err))
			continue
		}
		if err == nil {
			err = whole(sv)
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
		err = whole(sv)
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
