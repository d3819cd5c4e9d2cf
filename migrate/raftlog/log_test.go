package raftlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
)

func TestMain(m *testing.M) {
	wal.SegmentSizeBytes = 16 << 10 // what etcd's code preallocates when it opens a log
	os.Exit(m.Run())
}

// threeFiles is a log of the entries 1 to 30, ten in a file, with a snapshot at 8 and one at 18.
func threeFiles(t *testing.T) (dir string) {
	w := newLog(true)
	for i := uint64(1); i <= 30; i++ {
		w.entry(i, 1, putRequest(i))
		w.commit(i, 1)
		if i == 8 || i == 18 {
			w.snapshot(i, 1)
		}
		if i == 10 || i == 20 {
			w.cut(i + 1)
		}
	}
	dir = w.save(t)
	saveSnap(t, dir, 8, 1)
	saveSnap(t, dir, 18, 1)
	return dir
}

func change(t *testing.T, path string, how func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, how(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 0x10; return b }
}

func empty([]byte) []byte { return nil }

// TestDamage says for each damage either what an error must contain, or which snapshot and which entries are left.
func TestDamage(t *testing.T) {
	const file0, file1, file2 = "wal/0000000000000000-0000000000000000.wal",
		"wal/0000000000000001-000000000000000b.wal", "wal/0000000000000002-0000000000000015.wal"
	const snap8, snap18 = "snap/0000000000000001-0000000000000008.snap", "snap/0000000000000001-0000000000000012.snap"
	type found struct {
		snapshot, last uint64
		skipped        []string
		torn           string
	}
	for name, test := range map[string]struct {
		damage func(t *testing.T, dir string)
		want   found
		errs   []string
	}{
		"none": {func(*testing.T, string) {}, found{18, 30, nil, ""}, nil},
		"other files": {func(t *testing.T, dir string) {
			for _, name := range []string{
				"snap/db", "snap/0000000000000012.snap.db", "snap/db.tmp.1", "snap/tmp1", "snap/x.snap.tmp",
				"wal/0.tmp", "wal/1.tmp", file2 + ".broken",
				"wal/0000000000000003-000000000000001f.wal.tmp", "wal/0000000000000003.wal",
			} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, found{18, 30, nil, ""}, nil},
		"oldest file purged": {func(t *testing.T, dir string) { remove(t, filepath.Join(dir, file0)) },
			found{18, 30, nil, ""}, nil},
		"empty snapshot": {func(t *testing.T, dir string) { change(t, filepath.Join(dir, snap18), empty) },
			found{8, 30, []string{snap18 + ": broken: snap: empty snapshot"}, ""}, nil},
		"snapshot with a flipped bit": {func(t *testing.T, dir string) { change(t, filepath.Join(dir, snap18), flip(20)) },
			found{8, 30, []string{snap18 + ": broken: snap: crc mismatch"}, ""}, nil},
		"snapshot set aside": {func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(dir, snap18), filepath.Join(dir, snap18+".broken")); err != nil {
				t.Fatal(err)
			}
		}, found{8, 30, []string{snap18 + ".broken: broken: set aside"}, ""}, nil},
		"snapshot without a record": {func(t *testing.T, dir string) { saveSnap(t, dir, 25, 1) },
			found{18, 30, []string{"snap/0000000000000001-0000000000000019.snap: not a snapshot"}, ""}, nil},
		"all snapshots broken, the log is whole": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, snap8), empty)
			change(t, filepath.Join(dir, snap18), empty)
		}, found{0, 30, []string{snap18, snap8}, ""}, nil},
		"all snapshots broken, the log is purged": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, snap8), empty)
			change(t, filepath.Join(dir, snap18), empty)
			remove(t, filepath.Join(dir, file0))
		}, found{}, []string{"begins at entry 11", file1, snap8, snap18, "empty snapshot"}},
		"no snapshots, the log is purged": {func(t *testing.T, dir string) {
			remove(t, filepath.Join(dir, file0), filepath.Join(dir, snap8), filepath.Join(dir, snap18))
		}, found{}, []string{"begins at entry 11", file1}},
		"missing file": {func(t *testing.T, dir string) {
			remove(t, filepath.Join(dir, file1), filepath.Join(dir, snap18))
		}, found{}, []string{"missing", file0, filepath.Base(file2)}},
		"torn in the last file": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, file2), func(b []byte) []byte { return b[:len(b)-1] })
		}, found{18, 29, nil, file2 + " at offset "}, nil},
		"torn in an earlier file": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, file1), func(b []byte) []byte { return b[:len(b)-1] })
		}, found{}, []string{file1 + " at offset ", filepath.Base(file2) + " follows"}},
		"earlier file ends early": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, file1), func(b []byte) []byte { return b[:frames(b)[7]] })
		}, found{}, []string{file2 + " at offset 0", "does not continue"}},
		"flipped bit in the last file": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, file2), func(b []byte) []byte { return flip(frames(b)[5] - 12)(b) })
		}, found{}, []string{file2 + " at offset ", "crc mismatch"}},
		"flipped bit in an earlier file": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, file1), func(b []byte) []byte { return flip(frames(b)[5] - 12)(b) })
		}, found{}, []string{file1 + " at offset ", "crc mismatch"}},
		"preallocated": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, file2), func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) })
		}, found{18, 30, nil, ""}, nil},
		"written bytes after the end": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, file2), func(b []byte) []byte {
				at := frames(b)[21]
				copy(b[at:], make([]byte, 8))
				return b
			})
		}, found{18, 29, nil, "written bytes follow"}, nil},
		"last file empty": {func(t *testing.T, dir string) { change(t, filepath.Join(dir, file2), empty) },
			found{18, 20, nil, ""}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := threeFiles(t)
			test.damage(t, dir)
			r, err := compare(t, filepath.Join(dir, "snap"), filepath.Join(dir, "wal"))
			if len(test.errs) > 0 {
				for _, want := range test.errs {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("the error lacks %q: %v", want, err)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.SnapIndex != test.want.snapshot || r.State.Commit != test.want.last {
				t.Errorf("snapshot %d, last %d", r.SnapIndex, r.State.Commit)
			}
			if len(r.snapshot.Skipped) != len(test.want.skipped) {
				t.Fatalf("skipped %q", r.snapshot.Skipped)
			}
			for i, want := range test.want.skipped {
				if !strings.HasPrefix(r.snapshot.Skipped[i], filepath.Join(dir, want)) {
					t.Errorf("skipped %q, want %q", r.snapshot.Skipped[i], want)
				}
			}
			if !strings.Contains(r.summary.Torn, test.want.torn) || (r.summary.Torn == "") != (test.want.torn == "") {
				t.Errorf("torn %q, want %q", r.summary.Torn, test.want.torn)
			}
		})
	}
}

// TestOddLogs has logs that no etcd writes.
func TestOddLogs(t *testing.T) {
	for name, test := range map[string]struct {
		write func(w *logWriter)
		err   string
	}{
		"new":         {func(w *logWriter) {}, ""},
		"uncommitted": {func(w *logWriter) { w.entry(1, 1, putRequest(1)) }, ""},
		"gap": {func(w *logWriter) { w.entry(1, 1, putRequest(1)); w.entry(3, 1, putRequest(3)) },
			"entry 3 of the wal follows entry 1"},
		"late start": {func(w *logWriter) { w.entry(5, 1, putRequest(1)) }, "entry 5 of the wal follows entry 0"},
		"commit without entries": {func(w *logWriter) { w.entry(1, 1, putRequest(1)); w.commit(4, 1) },
			"4 are committed, but the wal ends with entry 1"},
		"other member": {func(w *logWriter) { w.record(wal.MetadataType, []byte{8, 9}) }, "conflicting metadata"},
		"record type":  {func(w *logWriter) { w.record(9, nil) }, "unknown record type 9"},
		"bad state":    {func(w *logWriter) { w.record(wal.StateType, []byte{0xff}) }, "offset 64: decode a state"},
		"bad entry":    {func(w *logWriter) { w.record(wal.EntryType, []byte{0xff}) }, "offset 64: decode an entry"},
		"bad snapshot": {func(w *logWriter) { w.record(wal.SnapshotType, []byte{0xff}) }, "offset 64: decode a snapshot"},
		"two terms":    {func(w *logWriter) { w.snapshot(0, 3) }, "different terms"},
		"no metadata": {func(w *logWriter) {
			*w = logWriter{padded: true, files: []logFile{{name: w.files[0].name}}}
			w.snapshot(0, 0)
		}, "no metadata"},
		"no snapshot": {func(w *logWriter) {
			*w = logWriter{padded: true, files: []logFile{{name: w.files[0].name}}}
			w.record(wal.MetadataType, []byte{8, 9})
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLog(true)
			test.write(w)
			dir := w.save(t)
			_, err := compare(t, filepath.Join(dir, "snap"), filepath.Join(dir, "wal"))
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("got %v, want %q", err, test.err)
			}
		})
	}
}

// TestSnapshotChoice has newer snapshots that the log has a record of and that etcd passes over all the same.
func TestSnapshotChoice(t *testing.T) {
	for name, test := range map[string]struct {
		commit, term uint64
		why          string
	}{
		"beyond the commit": {4, 1, "its index 5 is beyond the committed 4"},
		"of another term":   {5, 2, "no record of index 5, term 2"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLog(true)
			for i := uint64(1); i <= 5; i++ {
				w.entry(i, 1, putRequest(i))
			}
			w.commit(test.commit, 1)
			w.snapshot(3, 1)
			w.snapshot(5, 1)
			dir := w.save(t)
			saveSnap(t, dir, 3, 1)
			newest := saveSnap(t, dir, 5, test.term)
			r, err := compare(t, filepath.Join(dir, "snap"), filepath.Join(dir, "wal"))
			if err != nil {
				t.Fatal(err)
			}
			if s := r.snapshot; s.Index != 3 || len(s.Skipped) != 1 ||
				!strings.HasPrefix(s.Skipped[0], newest+": ") || !strings.Contains(s.Skipped[0], test.why) {
				t.Errorf("took %d, skipped %q", s.Index, s.Skipped)
			}
		})
	}
}

// TestBadEntry is a log that etcd reads but cannot apply.
func TestBadEntry(t *testing.T) {
	w := newLog(true)
	w.entry(1, 1, putRequest(1))
	w.rawEntry(raftpb.Entry{Index: 2, Term: 1, Data: []byte("\xff")})
	w.commit(2, 1)
	dir := w.save(t)
	r, err := weRead(t, filepath.Join(dir, "snap"), filepath.Join(dir, "wal"))
	if err == nil || !strings.Contains(err.Error(), "decode entry 2") || !strings.Contains(err.Error(), w.files[0].name) {
		t.Errorf("got %v", err)
	}
	if len(r.entries) != 1 {
		t.Errorf("%d entries before the bad one", len(r.entries))
	}
}

func TestNoLog(t *testing.T) {
	for name, test := range map[string]struct {
		files []string
		noLog bool
	}{
		"nothing":        {nil, true},
		"started once":   {[]string{"snap/db", "wal/0.tmp"}, true},
		"snapshot":       {[]string{"snap/0000000000000001-0000000000000008.snap"}, false},
		"broken segment": {[]string{"wal/0000000000000000-0000000000000000.wal.broken"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range test.files {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Open(filepath.Join(dir, "snap"), filepath.Join(dir, "wal"))
			if err == nil || errors.Is(err, ErrNoLog) != test.noLog {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestEachStops(t *testing.T) {
	dir := threeFiles(t)
	l, err := Open(filepath.Join(dir, "snap"), filepath.Join(dir, "wal"))
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("enough")
	var seen []uint64
	_, err = l.Each(func(e Entry) error {
		if seen = append(seen, e.Index); len(seen) == 3 {
			return stop
		}
		return nil
	})
	if err != stop || !slices.Equal(seen, []uint64{19, 20, 21}) {
		t.Errorf("got %v, entries %v", err, seen)
	}
}

// TestChangedLog has another process cut the log while it is open.
func TestChangedLog(t *testing.T) {
	dir := threeFiles(t)
	l, err := Open(filepath.Join(dir, "snap"), filepath.Join(dir, "wal"))
	if err != nil {
		t.Fatal(err)
	}
	last := l.survey.segs[len(l.survey.segs)-1].path
	change(t, last, func(b []byte) []byte { return b[:len(b)/2] })
	if _, err := l.Each(func(Entry) error { return nil }); err == nil || !strings.Contains(err.Error(), "changed") {
		t.Errorf("got %v", err)
	}
}

// TestMemory reads a log whose only state record is the last one, as etcdctl backup writes it, and whose entries were
// rewritten many times: nothing of it is collected.
func TestMemory(t *testing.T) {
	const entries, size = 2000, 16 << 10
	w := newLog(false)
	value := strings.Repeat("v", size)
	r := putRequest(1)
	for i := uint64(1); i <= entries; i++ {
		w.entry(i, 1, r)
		for n := range uint64(5) {
			w.entry(i, n+2, r)
		}
		w.record(wal.EntryType, marshal(&raftpb.Entry{Index: i, Term: 9, Data: marshal(bigRequest(value))}))
	}
	w.commit(entries, 9)
	dir := w.save(t)
	w = nil
	l, err := Open(filepath.Join(dir, "snap"), filepath.Join(dir, "wal"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(l.survey.rewrites); n > entries {
		t.Errorf("%d rewrites are kept for %d entries", n, entries)
	}
	inUse := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := inUse()
	if _, err := l.Each(func(e Entry) error {
		if e.Term != 9 {
			return fmt.Errorf("entry %d of term %d", e.Index, e.Term)
		}
		if e.Index%500 == 0 && inUse()-before > 4<<20 {
			return fmt.Errorf("%d MB are in use at entry %d", (inUse()-before)>>20, e.Index)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
