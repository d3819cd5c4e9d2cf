package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// frames gives the offset at which each record of a WAL file begins, and the end of the last one.
func frames(b []byte) (offsets []int) {
	at := 0
	for at+8 <= len(b) {
		offsets = append(offsets, at)
		length := binary.LittleEndian.Uint64(b[at:])
		size := int(length << 8 >> 8)
		if length == 0 || size > len(b) {
			return offsets
		}
		at += 8 + size
		if length>>63 == 1 {
			at += int(length >> 56 & 7)
		}
	}
	return append(offsets, at)
}

// TestTornTail cuts a log at each of its last bytes, or has zeros from there on. Etcd decides what is left of it.
func TestTornTail(t *testing.T) {
	t.Parallel()
	logs := map[string]string{}
	for _, padded := range []bool{false, true} {
		w := newLog(padded)
		for i := uint64(1); i <= 30; i++ {
			w.entry(i, 1, putRequest(i))
			w.commit(i, 1)
		}
		logs[fmt.Sprintf("padded %v", padded)] = filepath.Join(w.save(t), "wal")
	}
	if !testing.Short() {
		e := start(t, "2.3.8", t.TempDir())
		e.put("a", 12)
		e.stop()
		logs["2.3.8"] = e.wal
	}
	for name, dir := range logs {
		const file = "0000000000000000-0000000000000000.wal"
		whole, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		ends := frames(whole)
		end := ends[len(ends)-1]
		for _, zeros := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/zeros %v", name, zeros), func(t *testing.T) {
				t.Parallel()
				for n := end - 200; n <= end; n++ {
					cut := slices.Clone(whole[:n])
					if zeros {
						cut = append(cut, make([]byte, end-n+4096)...)
					}
					torn := filepath.Join(t.TempDir(), "wal")
					if err := os.Mkdir(torn, 0o700); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(filepath.Join(torn, file), cut, 0o600); err != nil {
						t.Fatal(err)
					}
					readAll := forReading
					if n%20 == 0 {
						readAll = forWriting // and repair, which waits for the disk
					}
					r, err := compareWith(t, filepath.Join(torn, "no snap"), torn, readAll)
					if zeros && err != nil {
						continue // what looks like a damaged record to etcd, it refuses as we do
					}
					if err != nil {
						t.Fatalf("cut at %d: %v", n, err)
					}
					if !zeros && (r.summary.Torn == "") != slices.Contains(ends, n) {
						t.Fatalf("cut at %d: torn %q", n, r.summary.Torn)
					}
				}
			})
		}
	}
}

// TestRandomLogs writes logs as raft might, with leaders that rewrite what is not committed, snapshots made here or
// sent by a leader, some of them broken or unknown to the log, with old files purged, and with a torn or damaged end.
func TestRandomLogs(t *testing.T) {
	t.Parallel()
	var read, refused, rewritten int
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		dir := randomLog(t, r)
		got, err := compare(t, filepath.Join(dir, "snap"), filepath.Join(dir, "wal"))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		if err != nil {
			refused++
			continue
		}
		read++
		if terms := got.Committed; len(terms) > 1 && terms[0].Term != terms[len(terms)-1].Term {
			rewritten++
		}
	}
	if read < 200 || refused < 10 || rewritten < 40 {
		t.Errorf("%d logs are read, %d of them with several terms, and %d refused: this tests too little",
			read, rewritten, refused)
	}
}

func randomLog(t *testing.T, r *rand.Rand) (dir string) {
	w := newLog(r.IntN(2) == 0)
	type snapshot struct{ index, term uint64 }
	var snaps []snapshot
	term, last, commit := uint64(1), uint64(0), uint64(0)
	terms := map[uint64]uint64{}
	appendTo := func(n uint64) {
		for range n {
			last++
			terms[last] = term
			w.entry(last, term, putRequest(r.Uint64N(100)))
		}
	}
	for range 5 + r.IntN(60) {
		switch r.IntN(8) {
		case 0, 1, 2:
			appendTo(1 + r.Uint64N(4))
		case 3, 4:
			commit += r.Uint64N(last - commit + 1)
			w.commit(commit, term)
		case 5:
			term++
			last = commit + r.Uint64N(last-commit+1)
			appendTo(1 + r.Uint64N(3))
		case 6:
			if r.IntN(8) == 0 { // a leader's
				commit += 1 + r.Uint64N(last+10)
				last = max(last, commit)
				terms[commit] = term
				w.commit(commit, term)
			}
			snaps = append(snaps, snapshot{commit, terms[commit]})
			if r.IntN(4) > 0 {
				w.snapshot(commit, terms[commit])
			}
		case 7:
			w.cut(last + 1)
		}
	}
	dir = w.save(t)
	for _, s := range snaps {
		if s.index == 0 {
			continue
		}
		path := saveSnap(t, dir, s.index, s.term)
		switch r.IntN(6) {
		case 0:
			remove(t, path)
		case 1:
			change(t, path, empty)
		}
	}
	if r.IntN(3) == 0 {
		for i := range r.IntN(len(w.files)) {
			remove(t, filepath.Join(dir, "wal", w.files[i].name))
		}
	}
	tail := filepath.Join(dir, "wal", w.files[len(w.files)-1].name)
	switch r.IntN(6) {
	case 0:
		change(t, tail, func(b []byte) []byte { return b[:r.IntN(len(b))] })
	case 1:
		change(t, tail, func(b []byte) []byte { return flip(r.IntN(len(b)))(b) })
	}
	return dir
}

// TestLostMiddle takes a sector out of the middle of a log, as a bad disk does. Etcd takes that for a torn end, and goes on
// without all that follows. Of the last sectors it cannot be told.
func TestLostMiddle(t *testing.T) {
	t.Parallel()
	for _, padded := range []bool{false, true} {
		w := newLog(padded)
		for i := uint64(1); i <= 60; i++ {
			w.entry(i, 1, putRequest(i))
			w.commit(i, 1)
		}
		dir := w.save(t)
		file := filepath.Join(dir, "wal", w.files[0].name)
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lost, torn := 0, 0
		for at := 512; at < len(whole); at += 512 {
			damaged := slices.Clone(whole)
			clear(damaged[at:min(at+512, len(whole))])
			damaged = append(damaged, make([]byte, 8192)...)
			if err := os.WriteFile(file, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := compare(t, filepath.Join(dir, "snap"), filepath.Join(dir, "wal"))
			switch {
			case err == nil:
				torn++
			case errors.Is(err, errLost):
				lost++
			}
		}
		if lost < 5 || torn > 2 {
			t.Errorf("padded %v: of %d sectors, %d were missed, and %d were taken for a torn end", padded, len(whole)/512, lost, torn)
		}
	}
}

// TestLostEnd cuts entries off that a snapshot was made of.
func TestLostEnd(t *testing.T) {
	w := newLog(true)
	for i := uint64(1); i <= 20; i++ {
		w.entry(i, 1, putRequest(i))
		w.commit(i, 1)
		if i%10 == 0 {
			w.snapshot(i, 1)
		}
	}
	dir := w.save(t)
	saveSnap(t, dir, 10, 1)
	newest := saveSnap(t, dir, 20, 1)
	change(t, filepath.Join(dir, "wal", w.files[0].name), func(b []byte) []byte { return b[:len(b)*8/10] })
	if _, err := Open(filepath.Join(dir, "snap"), filepath.Join(dir, "wal")); !errors.Is(err, errLost) || !strings.Contains(err.Error(), newest) {
		t.Errorf("got %v", err)
	}
}
