package raftlog

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

const newStore = "the new store"

// openAll opens a log and reads it to its end.
func openAll(t testing.TB, dir string) (*Log, Summary, []uint64) {
	t.Helper()
	l, err := Open(filepath.Join(dir, "snap"), filepath.Join(dir, "wal"))
	if err != nil {
		t.Fatal(err)
	}
	var indexes []uint64
	sum, err := l.Each(func(e Entry) error { indexes = append(indexes, e.Index); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return l, sum, indexes
}

func prepare(t testing.TB, dir string, f Framing) (*Replacement, error) {
	t.Helper()
	l, sum, _ := openAll(t, dir)
	return PrepareReplacement(l, sum, filepath.Join(dir, "snap"), f, write([]byte(newStore)))
}

// checkNew sees that the log is the new one, by our reader and by etcd's code for a start: bootstrap.go of 3.6.
func checkNew(t *testing.T, dir string) {
	t.Helper()
	l, sum, indexes := openAll(t, dir)
	if s := l.Snapshot(); string(s.Data) != newStore || s.Index != 30 || s.Term != 1 || len(indexes) > 0 ||
		!slices.Equal(s.ConfState.Voters, []uint64{7}) {
		t.Errorf("the snapshot is %+v, and %d entries follow it", s, len(indexes))
	}
	if l.NodeID() != 7 || l.ClusterID() != 8 || sum.HardState != (raftpb.HardState{Term: 1, Vote: 7, Commit: 30}) ||
		sum.LastTerm != 1 || sum.Torn != "" || sum.Uncommitted != 0 {
		t.Errorf("member %x of cluster %x: %+v", l.NodeID(), l.ClusterID(), sum)
	}
	walSnaps, err := wal.ValidSnapshotEntries(zap.NewNop(), filepath.Join(dir, "wal"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := snap.New(zap.NewNop(), filepath.Join(dir, "snap")).LoadNewestAvailable(walSnaps)
	if err != nil || string(s.Data) != newStore || s.Metadata.Index != 30 {
		t.Fatalf("etcd starts from %v, %v", s, err)
	}
	w, err := wal.Open(zap.NewNop(), filepath.Join(dir, "wal"), walpb.Snapshot{Index: 30, Term: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	metadata, state, entries, err := w.ReadAll()
	if err != nil || len(entries) > 0 || state.Commit != 30 || !bytes.Equal(metadata, newLog(true).metadata) {
		t.Fatalf("etcd reads %d entries, %+v, %v", len(entries), state, err)
	}
	// And etcd goes on from it.
	if err := w.Save(raftpb.HardState{Term: 2, Vote: 7, Commit: 31}, []raftpb.Entry{{Index: 31, Term: 2}}); err != nil {
		t.Fatal(err)
	}
}

func TestReplace(t *testing.T) {
	for name, f := range map[string]Framing{"padded": Padded, "unpadded": Unpadded} {
		t.Run(name, func(t *testing.T) {
			dir := threeFiles(t)
			left := filepath.Join(dir, "wal", "0000000000000009-0000000000000000.wal"+tempSuffix) // by a killed process
			if err := os.WriteFile(left, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := prepare(t, dir, f)
			if err != nil {
				t.Fatal(err)
			}
			if _, sum, _ := openAll(t, dir); string(r.Store()) != newStore || sum.HardState.Commit != 30 {
				t.Errorf("read back %q", r.Store())
			}
			if err := r.Install(); err != nil {
				t.Fatal(err)
			}
			if got, want := names(t, dir), []string{
				"snap/0000000000000001-000000000000001e.snap", "wal/0000000000000003-000000000000001e.wal",
			}; !slices.Equal(got, want) {
				t.Errorf("left: %q", got)
			}
			file, err := os.ReadFile(filepath.Join(dir, "wal", "0000000000000003-000000000000001e.wal"))
			if err != nil {
				t.Fatal(err)
			}
			checkFraming(t, file, f)
			checkNew(t, dir)
			if _, _, indexes := openAll(t, dir); !slices.Equal(indexes, []uint64{31}) {
				t.Errorf("after etcd went on: entries %v", indexes)
			}
		})
	}
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	for _, sub := range []string{"snap", "wal"} {
		files, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			all = append(all, sub+"/"+f.Name())
		}
	}
	return all
}

// checkFraming sees that a file is as etcd 2.x reads it: a length and a record, nothing else. Or that it is not.
func checkFraming(t *testing.T, file []byte, f Framing) {
	t.Helper()
	plain := true
	for at := 0; at < len(file); {
		var length uint64
		for i := range 8 {
			length |= uint64(file[at+i]) << (8 * i)
		}
		plain = plain && length>>56 == 0
		at += 8 + int(length<<8>>8) + int(length>>56&7)
		if f == Padded && at%8 != 0 {
			t.Fatalf("a record ends at %d", at)
		}
	}
	if plain != (f == Unpadded) {
		t.Errorf("framing: plain is %v", plain)
	}
}

// TestReplaceInterrupted stops Install where it can be stopped, sees which log there is, and begins anew.
func TestReplaceInterrupted(t *testing.T) {
	for name, test := range map[string]struct {
		obstacle  string // a directory with something in it, where Install wants to rename or remove
		committed bool
	}{
		"before the wal":        {"wal/0000000000000003-000000000000001e.wal", false},
		"before the snapshot":   {"snap/0000000000000001-000000000000001e.snap", false},
		"before the first void": {"wal/0000000000000000-0000000000000000.wal", true},
		"before the last void":  {"snap/0000000000000001-0000000000000002.snap.broken", true},
	} {
		for _, f := range []Framing{Padded, Unpadded} {
			dir := threeFiles(t)
			r, err := prepare(t, dir, f)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, test.obstacle)
			original, readErr := os.ReadFile(path)
			if readErr == nil {
				remove(t, path)
			}
			if strings.HasSuffix(path, ".broken") {
				r.voidSnaps = append(r.voidSnaps, path)
			}
			if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := r.Install(); err == nil {
				t.Fatalf("%s: no error", name)
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if readErr == nil {
				if err := os.WriteFile(path, original, 0o600); err != nil {
					t.Fatal(err)
				}
			}

			l, _, indexes := openAll(t, dir)
			if got := l.Snapshot().Index == 30; got != test.committed || !test.committed && len(indexes) != 12 {
				t.Errorf("%s: snapshot %d and %d entries", name, l.Snapshot().Index, len(indexes))
			}
			walSnaps, err := wal.ValidSnapshotEntries(zap.NewNop(), filepath.Join(dir, "wal"))
			if err != nil {
				t.Errorf("%s: etcd: %v", name, err)
			}
			if s, err := snap.New(zap.NewNop(), filepath.Join(dir, "snap")).LoadNewestAvailable(walSnaps); err != nil ||
				(s.Metadata.Index == 30) != test.committed {
				t.Errorf("%s: etcd would start from %d, %v", name, s.Metadata.Index, err)
			}

			if r, err = prepare(t, dir, f); err != nil {
				t.Fatal(err)
			}
			if err := r.Install(); err != nil {
				t.Fatal(err)
			}
			if got := names(t, dir); len(got) != 2 {
				t.Errorf("%s: left: %q", name, got)
			}
			checkNew(t, dir)
		}
	}
}

// TestReplaceSameIndex replaces a log that ends with a snapshot, which then has the new one's name.
func TestReplaceSameIndex(t *testing.T) {
	w := newLog(true)
	for i := uint64(1); i <= 30; i++ {
		w.entry(i, 1, putRequest(i))
	}
	w.commit(30, 1)
	w.snapshot(30, 1)
	dir := w.save(t)
	saveSnap(t, dir, 30, 1)
	for range 2 { // the second time it is its own
		r, err := prepare(t, dir, Padded)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Install(); err != nil {
			t.Fatal(err)
		}
		if got := names(t, dir); len(got) != 2 {
			t.Errorf("left: %q", got)
		}
	}
	checkNew(t, dir)
}

func TestReplaceRefuses(t *testing.T) {
	uncommitted := newLog(true)
	uncommitted.entry(1, 1, putRequest(1))
	uncommitted.commit(1, 1)
	uncommitted.entry(2, 1, putRequest(2))
	nothing := newLog(true)
	torn := threeFiles(t)
	change(t, filepath.Join(torn, "wal", "0000000000000002-0000000000000015.wal"), func(b []byte) []byte { return b[:len(b)-5] })
	for name, test := range map[string]struct {
		dir       string
		store     func(io.Writer) error
		unsettled bool
		want      string
	}{
		"uncommitted": {uncommitted.save(t), nil, true, "1 entries lie beyond the commit"},
		"torn":        {torn, nil, true, "0000000000000002-0000000000000015.wal at offset"},
		"empty":       {nothing.save(t), nil, false, "nothing was ever committed"},
		"store fails": {threeFiles(t), func(io.Writer) error { return errors.New("no store") }, false, "no store"},
		"store fails later": {threeFiles(t), func(w io.Writer) error {
			if _, counting := w.(*meter); counting {
				return nil
			}
			return errors.New("disk full")
		}, false, "disk full"},
		"store changes": {threeFiles(t), func(w io.Writer) error {
			if _, counting := w.(*meter); counting {
				return nil
			}
			_, err := w.Write([]byte("more"))
			return err
		}, false, "read back"},
	} {
		t.Run(name, func(t *testing.T) {
			before := names(t, test.dir)
			l, sum, _ := openAll(t, test.dir)
			_, err := PrepareReplacement(l, sum, filepath.Join(test.dir, "snap"), Padded, test.store)
			if err == nil || errors.Is(err, ErrUnsettled) != test.unsettled || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v", err)
			}
			if after := names(t, test.dir); !slices.Equal(before, after) {
				t.Errorf("left: %q", after)
			}
		})
	}
}

// FuzzSnapshotFile has etcd read what is written, and compares it with what is read back here.
func FuzzSnapshotFile(f *testing.F) {
	f.Add([]byte(newStore), uint64(7), uint64(2))
	f.Add([]byte{}, uint64(1), uint64(1))
	f.Add(bytes.Repeat([]byte("x"), 300_000), uint64(1)<<63, uint64(1)<<40)
	f.Fuzz(func(t *testing.T, store []byte, index, term uint64) {
		meta := raftpb.SnapshotMetadata{Index: index, Term: term, ConfState: raftpb.ConfState{Voters: []uint64{index}}}
		path := filepath.Join(t.TempDir(), "x.snap")
		temp, err := createBeside(path, func(w io.Writer) error { return writeSnapshot(w, meta, write(store)) })
		if err != nil {
			t.Fatal(err)
		}
		ours, err := readBack(temp, meta)
		if err != nil || !bytes.Equal(ours, store) {
			t.Errorf("read back %d of %d bytes, %v", len(ours), len(store), err)
		}
		etcds, err := snap.Read(zap.NewNop(), temp)
		if err != nil || !bytes.Equal(etcds.Data, store) || etcds.Metadata.Index != index || etcds.Metadata.Term != term ||
			!slices.Equal(etcds.Metadata.ConfState.Voters, []uint64{index}) {
			t.Errorf("etcd reads %v, %v", etcds, err)
		}
	})
}

// FuzzReadBack never panics, and takes no file that etcd does not take.
func FuzzReadBack(f *testing.F) {
	var file bytes.Buffer
	meta := raftpb.SnapshotMetadata{Index: 7, Term: 2}
	if err := writeSnapshot(&file, meta, write([]byte(newStore))); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	f.Add([]byte{})
	f.Add([]byte{0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		store, err := readBack(path, meta)
		if err != nil {
			return
		}
		s, err := snap.Read(zap.NewNop(), path)
		if err != nil || !bytes.Equal(s.Data, store) || s.Metadata.Index != 7 {
			t.Errorf("etcd reads %v, %v", s, err)
		}
	})
}

// FuzzSegment has etcd's decoder read what is written.
func FuzzSegment(f *testing.F) {
	f.Add(uint32(0), uint64(7), uint64(8), uint64(1), uint64(1), true)
	f.Add(uint32(1<<31), uint64(1)<<63, uint64(1)<<62, uint64(5), uint64(1)<<50, false)
	f.Fuzz(func(t *testing.T, crc uint32, node, cluster, term, index uint64, padded bool) {
		framing := Unpadded
		if padded {
			framing = Padded
		}
		state := raftpb.HardState{Term: term, Vote: node, Commit: index}
		meta := raftpb.SnapshotMetadata{Index: index, Term: term, ConfState: raftpb.ConfState{Voters: []uint64{node}}}
		member := etcdserverpb.Metadata{NodeID: node, ClusterID: cluster}
		content, err := encodeSegment(framing, crc, &member, state, meta)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "0000000000000000-0000000000000000.wal")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		sv, err := startingAt([]segment{{path: path}}, index, term)
		if err != nil || sv.member.NodeID != node || sv.member.ClusterID != cluster || sv.state != state || sv.torn != "" {
			t.Fatalf("read %+v, %v", sv, err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		dec := wal.NewDecoder(bufferedFile{file, info})
		var kinds []int64
		for rec := new(walpb.Record); ; {
			if err := dec.Decode(rec); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if kinds = append(kinds, rec.Type); rec.Type == wal.CrcType {
				dec.UpdateCRC(rec.Crc)
			}
		}
		if want := []int64{wal.CrcType, wal.MetadataType, wal.StateType, wal.SnapshotType}; !slices.Equal(kinds, want) {
			t.Errorf("records %v", kinds)
		}
	})
}
