package raftlog

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// reseal gives every record of a WAL file the checksum that it should have, so that damage gets past them.
func reseal(segment []byte) []byte {
	w := logWriter{files: make([]logFile, 1)}
	offsets := frames(segment)
	for i, at := range offsets[:len(offsets)-1] {
		var rec walpb.Record
		end := min(offsets[i+1], len(segment))
		size := int(binary.LittleEndian.Uint64(segment[at:]) << 8 >> 8) // without the padding
		switch err := rec.Unmarshal(segment[at+8 : min(at+8+size, end)]); {
		case err != nil:
			w.files[0].data.Write(segment[at:end])
		case rec.Type == wal.CrcType:
			w.crc = rec.Crc
			w.write(rec)
		default:
			w.record(rec.Type, rec.Data)
		}
	}
	return w.files[0].data.Bytes()
}

// FuzzLog has one WAL file and, if it is not empty, one snapshot file with any content, as it is or resealed. What etcd
// reads we must read alike, and what etcd panics at we must refuse.
func FuzzLog(f *testing.F) {
	for _, padded := range []bool{false, true} {
		w := newLog(padded)
		for i := uint64(1); i <= 9; i++ {
			w.entry(i, 1, putRequest(i))
		}
		w.commit(5, 1)
		w.snapshot(5, 1)
		w.entry(7, 2, putRequest(7))
		w.commit(7, 2)
		file := w.files[0].data.Bytes()
		dir := f.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "snap"), 0o700); err != nil {
			f.Fatal(err)
		}
		snapshot, err := os.ReadFile(saveSnap(f, dir, 5, 1))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file, snapshot, false)
		f.Add(append(file[:len(file):len(file)], make([]byte, 100)...), snapshot[:20], false)
		f.Add(file[:len(file)-5], snapshot, false)
		f.Add(file, snapshot, true)
		f.Add(file, []byte(nil), true)
	}
	f.Fuzz(func(t *testing.T, segment, snapshot []byte, sealed bool) {
		dir := t.TempDir()
		if sealed && len(segment) >= 8 {
			segment = reseal(segment)
		}
		if err := os.WriteFile(filepath.Join(dir, "0000000000000000-0000000000000000.wal"), segment, 0o600); err != nil {
			t.Fatal(err)
		}
		if len(snapshot) > 0 {
			if err := os.WriteFile(filepath.Join(dir, "1.snap"), snapshot, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		we, ourErr := weRead(t, dir, dir)
		theirs, theirErr := etcdReads(dir, dir, forReading)
		if ourErr != nil && (strings.Contains(ourErr.Error(), "decode entry") || errors.Is(ourErr, errLost)) {
			return // etcd reads entries without looking into them, and takes a log that ends too early for whole
		}
		if (ourErr == nil) != (theirErr == nil) {
			t.Fatalf("we say: %v\netcd says: %v", ourErr, theirErr)
		}
		if ourErr != nil {
			return
		}
		if len(theirs.Committed) != len(we.Committed) || len(theirs.Uncommitted) != len(we.Uncommitted) ||
			theirs.SnapIndex != we.SnapIndex || theirs.SnapData != we.SnapData {
			t.Fatalf("not what etcd reads (-etcd +ours):\n%s", cmp.Diff(theirs, we.reading))
		}
		for i, e := range theirs.Committed {
			if e.Index != we.entries[i].Index || e.Term != we.entries[i].Term {
				t.Fatalf("entry %d is %d of term %d", e.Index, we.entries[i].Index, we.entries[i].Term)
			}
		}
	})
}

// FuzzDecodeEntry has an entry with any data. What is decoded must come out the same after it is encoded again.
func FuzzDecodeEntry(f *testing.F) {
	for i := range uint64(2) {
		f.Add(int32(0), marshal(putRequest(i)))
	}
	f.Add(int32(0), []byte(nil))
	f.Add(int32(0), marshal(&etcdserverpb.InternalRaftRequest{V2: &etcdserverpb.Request{Method: "PUT"}}))
	f.Add(int32(1), marshal(&raftpb.ConfChange{NodeID: 1}))
	f.Add(int32(2), marshal(&raftpb.ConfChangeV2{}))
	f.Fuzz(func(t *testing.T, kind int32, data []byte) {
		got, err := decode(&raftpb.Entry{Index: 1, Term: 1, Type: raftpb.EntryType(kind), Data: data})
		if err != nil {
			return
		}
		again, err := decode(&raftpb.Entry{Index: 1, Term: 1, Type: raftpb.EntryType(kind), Data: []byte(encode(got).Data)})
		if err != nil {
			t.Fatalf("%+v cannot be decoded again: %v", got, err)
		}
		if got.Kind == V3 && encode(got).Data == "" {
			return // a request that says nothing is an empty entry
		}
		if diff := cmp.Diff(encode(got), encode(again)); diff != "" || got.Kind != again.Kind {
			t.Errorf("kind %v, then %v (-first +second):\n%s", got.Kind, again.Kind, diff)
		}
	})
}
