package raftlog

import (
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// BenchmarkLog reads a log of a million entries in files of the usual size. Each counts both readings.
func BenchmarkLog(b *testing.B) {
	defer func(size int64) { wal.SegmentSizeBytes = size }(wal.SegmentSizeBytes)
	wal.SegmentSizeBytes = 64 * 1000 * 1000
	key, value := "/registry/pods/default/a-pod-with-a-name", "a value of about fifty bytes, which is not very much"
	for name, request := range map[string]marshaler{
		"V2": &etcdserverpb.Request{ID: 1, Method: "PUT", Path: "/1" + key, Val: value},
		"V3": &etcdserverpb.InternalRaftRequest{
			Header: &etcdserverpb.RequestHeader{ID: 1},
			Put:    &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value)},
		},
	} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			writeMillion(b, filepath.Join(dir, "wal"), marshal(request))
			var l *Log
			open := func() {
				var err error
				if l, err = Open(dir, filepath.Join(dir, "wal")); err != nil {
					b.Fatal(err)
				}
			}
			b.Run("Open", func(b *testing.B) {
				for b.Loop() {
					open()
				}
			})
			b.Run("Each", func(b *testing.B) {
				for b.Loop() {
					open()
					if _, err := l.Each(func(Entry) error { return nil }); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func writeMillion(b *testing.B, dir string, data []byte) {
	w, err := wal.Create(zap.NewNop(), dir, []byte{8, 9})
	if err != nil {
		b.Fatal(err)
	}
	w.SetUnsafeNoFsync()
	batch := make([]raftpb.Entry, 1000)
	for last := uint64(0); last < 1_000_000; last += 1000 {
		for i := range batch {
			batch[i] = raftpb.Entry{Index: last + uint64(i) + 1, Term: 1, Data: data}
		}
		if err := w.Save(raftpb.HardState{Term: 1, Commit: last + 1000}, batch); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
}
