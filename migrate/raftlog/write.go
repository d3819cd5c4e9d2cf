package raftlog

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
)

// Framing is how records lie in a WAL file.
type Framing int

// The framings. Etcd 3.x reads both, 2.x only its own.
const (
	// Padded is that of 3.0 and newer: each record is padded to a multiple of 8 bytes, and the number of bytes of padding
	// is in the highest byte of its length (encodeFrameSize in server/v3/storage/wal/encoder.go).
	Padded Framing = iota
	// Unpadded is that of 2.x.
	Unpadded
)

// encoder writes the records of a WAL file. Etcd's own writer is not used for this: it allocates two files of 64 MB for
// the handful of records, and it knows one framing only.
type encoder struct {
	out     bytes.Buffer
	framing Framing
	crc     uint32
}

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// message is any message of etcd's.
type message interface{ Marshal() ([]byte, error) }

func (e *encoder) encode(kind int64, data []byte) error {
	e.crc = crc32.Update(e.crc, crcTable, data)
	rec := walpb.Record{Type: kind, Crc: e.crc, Data: data}
	raw, err := rec.Marshal()
	if err != nil {
		return err
	}
	length := uint64(len(raw))
	if pad := -len(raw) & 7; e.framing == Padded && pad > 0 {
		raw = append(raw, make([]byte, pad)...)
		length |= uint64(0x80|pad) << 56
	}
	e.out.Write(binary.LittleEndian.AppendUint64(nil, length))
	e.out.Write(raw)
	return nil
}

func (e *encoder) message(kind int64, m message) error {
	data, err := m.Marshal()
	if err != nil {
		return err
	}
	return e.encode(kind, data)
}

// encodeSegment gives the content of a WAL file without entries, which follows a file with that running checksum, and
// whose entries will follow the snapshot. It has what etcd itself puts at the head of a file and then the snapshot.
func encodeSegment(
	f Framing, crc uint32, metadata message, state raftpb.HardState, s raftpb.SnapshotMetadata,
) ([]byte, error) {
	e := encoder{framing: f, crc: crc}
	record := walpb.Snapshot{Index: s.Index, Term: s.Term}
	if f == Padded {
		record.ConfState = &s.ConfState // of 3.5 and newer; older ones pass over it
	}
	err := errors.Join(
		e.encode(wal.CrcType, nil),
		e.message(wal.MetadataType, metadata),
		e.message(wal.StateType, &state),
		e.message(wal.SnapshotType, &record),
	)
	return e.out.Bytes(), err
}

// The fields of a snapshot file, which is a snappb.Snapshot with a raftpb.Snapshot in it. The file is written here and not
// by etcd's code, which takes three times its size of memory: it can be gigabytes.
const (
	fileCRC, fileData              = 1, 2 // of snappb.Snapshot
	snapshotData, snapshotMetadata = 1, 2 // of raftpb.Snapshot
)

// writeSnapshot writes a snapshot file. The store is asked for its bytes twice, because their number comes before them.
// The checksum over them comes after them, where etcd has it before; to a decoder that makes no difference.
func writeSnapshot(w io.Writer, meta raftpb.SnapshotMetadata, store func(io.Writer) error) error {
	metadata, err := meta.Marshal()
	if err != nil {
		return err
	}
	var size meter
	if err := store(&size); err != nil {
		return err
	}
	head := protowire.AppendTag(nil, snapshotData, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(size.n))
	tail := protowire.AppendBytes(protowire.AppendTag(nil, snapshotMetadata, protowire.BytesType), metadata)

	out := bufio.NewWriterSize(w, 256<<10)
	length := uint64(len(head)) + uint64(size.n) + uint64(len(tail))
	frame := protowire.AppendVarint(protowire.AppendTag(nil, fileData, protowire.BytesType), length)
	out.Write(frame) // a bufio.Writer remembers the first error
	var sum meter
	both := io.MultiWriter(out, &sum)
	for _, part := range []func(io.Writer) error{write(head), store, write(tail)} {
		if err := part(both); err != nil {
			return err
		}
	}
	out.Write(protowire.AppendVarint(protowire.AppendTag(nil, fileCRC, protowire.VarintType), uint64(sum.crc)))
	return out.Flush()
}

// readBack reads a snapshot file that writeSnapshot has written, and gives the store in it.
func readBack(path string, want raftpb.SnapshotMetadata) ([]byte, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read back: %w", err)
	}
	s, err := decodeSnapshot(file)
	if err == nil && (s.Metadata.Index != want.Index || s.Metadata.Term != want.Term) {
		err = fmt.Errorf("it is of index %d, term %d", s.Metadata.Index, s.Metadata.Term)
	}
	if err != nil {
		return nil, fmt.Errorf("read back %s: %w", path, err)
	}
	return s.Data, nil
}

func write(b []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

// meter counts and sums what is written to it.
type meter struct {
	n   int64
	crc uint32
}

func (m *meter) Write(b []byte) (int, error) {
	m.n += int64(len(b))
	m.crc = crc32.Update(m.crc, crcTable, b)
	return len(b), nil
}

// tempSuffix ends the names of files that are not finished. No etcd looks at a name that ends neither in .snap nor .wal.
const tempSuffix = ".etcd-migrate.tmp"

// removeTemps removes what a killed process has left in a directory.
func removeTemps(dir string) error {
	temps, err := filepath.Glob(filepath.Join(dir, "*.snap"+tempSuffix))
	more, moreErr := filepath.Glob(filepath.Join(dir, "*.wal"+tempSuffix))
	errs := []error{err, moreErr}
	for _, path := range append(temps, more...) {
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}

// createBeside makes a file that will be renamed to path, syncs and closes it. It belongs to the owner of its directory
// if we are root.
func createBeside(path string, fill func(io.Writer) error) (temp string, err error) {
	temp = path + tempSuffix
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	err = fill(f)
	if err == nil {
		err = ownAsDir(f, filepath.Dir(path))
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("write %s: %w", temp, err), os.Remove(temp))
	}
	return temp, nil
}

func ownAsDir(f *os.File, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	return f.Chown(int(st.Uid), int(st.Gid))
}
