package raftlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap/snappb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// marshaler is any message of etcd's.
type marshaler interface{ Marshal() ([]byte, error) }

func marshal(m marshaler) []byte {
	data, err := m.Marshal()
	if err != nil {
		panic(err)
	}
	return data
}

// logWriter writes logs that no etcd would, which etcd's own writer refuses to do. It writes 2.x framing, and pads the
// records as 3.0 and newer do if padded is set.
type logWriter struct {
	padded   bool
	files    []logFile
	crc      uint32
	metadata []byte
	state    raftpb.HardState
}

type logFile struct {
	name string
	data bytes.Buffer
}

// newLog begins a log as wal.Create does.
func newLog(padded bool) *logWriter {
	w := &logWriter{padded: padded, metadata: marshal(&etcdserverpb.Metadata{NodeID: 7, ClusterID: 8})}
	w.cut(0)
	w.snapshot(0, 0)
	return w
}

// cut begins a new file, whose first entry is index.
func (w *logWriter) cut(index uint64) {
	w.files = append(w.files, logFile{name: fmt.Sprintf("%016x-%016x.wal", len(w.files), index)})
	w.write(walpb.Record{Type: wal.CrcType, Crc: w.crc})
	w.record(wal.MetadataType, w.metadata)
	if w.state.Term != 0 {
		w.record(wal.StateType, marshal(&w.state))
	}
}

func (w *logWriter) record(kind int64, data []byte) {
	w.crc = crc32.Update(w.crc, castagnoli, data)
	w.write(walpb.Record{Type: kind, Crc: w.crc, Data: data})
}

func (w *logWriter) write(rec walpb.Record) {
	data := marshal(&rec)
	length := uint64(len(data))
	if pad := -len(data) & 7; w.padded && pad > 0 {
		data = append(data, make([]byte, pad)...)
		length |= uint64(0x80|pad) << 56
	}
	out := &w.files[len(w.files)-1].data
	out.Write(binary.LittleEndian.AppendUint64(nil, length))
	out.Write(data)
}

func (w *logWriter) entry(index, term uint64, m marshaler) {
	w.rawEntry(raftpb.Entry{Index: index, Term: term, Data: marshal(m)})
}

func (w *logWriter) rawEntry(e raftpb.Entry) { w.record(wal.EntryType, marshal(&e)) }

func (w *logWriter) commit(index, term uint64) {
	w.state = raftpb.HardState{Term: term, Vote: 7, Commit: index}
	w.record(wal.StateType, marshal(&w.state))
}

func (w *logWriter) snapshot(index, term uint64) {
	w.record(wal.SnapshotType, marshal(&walpb.Snapshot{Index: index, Term: term}))
}

// save writes the log into the directory wal of a new directory, and gives the new one.
func (w *logWriter) save(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, sub := range []string{"snap", "wal"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i := range w.files {
		if err := os.WriteFile(filepath.Join(dir, "wal", w.files[i].name), w.files[i].data.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// saveSnap writes a snapshot file into the directory snap of dir.
func saveSnap(t testing.TB, dir string, index, term uint64) (path string) {
	t.Helper()
	s := raftpb.Snapshot{Data: fmt.Appendf(nil, "the store at %d", index)}
	s.Metadata.Index, s.Metadata.Term = index, term
	data := marshal(&s)
	path = filepath.Join(dir, "snap", fmt.Sprintf("%016x-%016x.snap", term, index))
	file := marshal(&snappb.Snapshot{Crc: crc32.Checksum(data, castagnoli), Data: data})
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// putRequest is a request to the v2 store for odd n, to the v3 store for even n.
func putRequest(n uint64) marshaler {
	if n%2 == 1 {
		return &etcdserverpb.Request{ID: n, Method: "PUT", Path: fmt.Sprintf("/1/%d", n), Val: "v"}
	}
	return &etcdserverpb.InternalRaftRequest{
		Header: &etcdserverpb.RequestHeader{ID: n},
		Put:    &etcdserverpb.PutRequest{Key: fmt.Appendf(nil, "%d", n), Value: []byte("v")},
	}
}

func bigRequest(value string) marshaler {
	return &etcdserverpb.Request{ID: 1, Method: "PUT", Path: "/1/a", Val: value}
}
