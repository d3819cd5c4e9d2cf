package raftlog

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
)

// readBufferBytes is how much of a WAL file is read at a time; the decoder alone would read 4 KiB.
const readBufferBytes = 256 << 10

// segment is one file of the WAL. index is the first entry that can be in it.
type segment struct {
	path       string
	seq, index uint64
}

// listSegments gives the WAL's files in order. Other files (0.tmp, *.wal.tmp, *.wal.broken) are no part of the log.
func listSegments(dir string) ([]segment, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list wal directory: %w", err)
	}
	var segs []segment
	for _, f := range files {
		s := segment{path: filepath.Join(dir, f.Name())}
		// The format is that of walName in etcd's wal package, the same from 2.0 to 3.7.
		if _, err := fmt.Sscanf(f.Name(), "%016x-%016x.wal", &s.seq, &s.index); err != nil {
			continue
		}
		if f.Name() == fmt.Sprintf("%016x-%016x.wal", s.seq, s.index) {
			segs = append(segs, s)
		}
	}
	return segs, nil // os.ReadDir sorts by name, which is by sequence
}

// from gives the segments that hold every entry after index, as etcd chooses them: the last one that can hold the entry
// itself, and all that follow. It gives none if the log no longer reaches back that far.
func from(segs []segment, index uint64) []segment {
	for i, s := range slices.Backward(segs) {
		if s.index <= index {
			return segs[i:]
		}
	}
	return nil
}

// checkSequence refuses a log with a file missing in the middle. Etcd's own check overlooks a gap after file 0.
func checkSequence(segs []segment) error {
	for i := 1; i < len(segs); i++ {
		if segs[i].seq != segs[i-1].seq+1 {
			return fmt.Errorf("wal files are missing: %s is followed by %s",
				segs[i-1].path, filepath.Base(segs[i].path))
		}
	}
	return nil
}

// walEnd is where the last segment's last whole record ends.
type walEnd struct {
	path   string
	offset int64
	torn   error // why the log was cut there, nil if it simply ends
}

// errStop makes readRecords return early without an error.
var errStop = errors.New("stop")

// readRecords calls fn with every record of the segments except crc records, which it checks. The record is valid only
// during the call. A record that is torn or half written ends the log if it is in the last segment, which is where
// etcd's wal.Repair cuts it; anywhere else it is an error.
func readRecords(segs []segment, fn func(*walpb.Record) error) (walEnd, error) {
	var end walEnd
	var crc uint32
	for i, s := range segs {
		var err error
		if crc, end, err = readSegment(s, crc, fn); errors.Is(err, errStop) {
			return end, nil
		} else if err != nil {
			return end, fmt.Errorf("read wal file %s at offset %d: %w", end.path, end.offset, err)
		}
		if end.torn != nil && i < len(segs)-1 {
			return end, fmt.Errorf("read wal file %s at offset %d: damaged, and %s follows it: %w",
				end.path, end.offset, filepath.Base(segs[i+1].path), end.torn)
		}
	}
	return end, nil
}

// readSegment reads one file. crc is the running checksum at the end of the file before it, 0 for none. The decoder
// gets one file at a time, not the whole log, so that every error can name its file and offset.
func readSegment(s segment, crc uint32, fn func(*walpb.Record) error) (uint32, walEnd, error) {
	end := walEnd{path: s.path}
	f, err := os.Open(s.path)
	if err != nil {
		return 0, end, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, end, err
	}
	dec := wal.NewDecoder(bufferedFile{bufio.NewReaderSize(f, readBufferBytes), info})
	dec.UpdateCRC(crc)
	for rec := new(walpb.Record); ; {
		end.offset = dec.LastOffset()
		err := dec.Decode(rec)
		switch {
		case errors.Is(err, io.EOF): // the end of the file, or of what is written of a preallocated one
			return dec.LastCRC(), end, nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			end.torn = err
			return 0, end, nil
		case err != nil:
			return 0, end, err
		}
		if rec.Type != wal.CrcType {
			if err := fn(rec); err != nil {
				return 0, end, err
			}
			continue
		}
		// 0 is a decoder that has read nothing yet.
		if sum := dec.LastCRC(); sum != 0 && rec.Validate(sum) != nil {
			return 0, end, fmt.Errorf("the file does not continue the one before it: %w", rec.Validate(sum))
		}
		dec.UpdateCRC(rec.Crc)
	}
}

// bufferedFile is the file as etcd's decoder wants it.
type bufferedFile struct {
	io.Reader
	info fs.FileInfo
}

func (f bufferedFile) FileInfo() (fs.FileInfo, error) { return f.info, nil }

// leftover gives the offset of the first byte after the log's end that is not zero, or -1. Etcd takes the first record
// length of zero for the end, but a torn write can leave later sectors on disk and the one with the length not.
func (e walEnd) leftover() (int64, error) {
	f, err := os.Open(e.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf, zero := make([]byte, readBufferBytes), make([]byte, readBufferBytes)
	for at := e.offset; ; {
		n, err := f.ReadAt(buf, at)
		if !bytes.Equal(buf[:n], zero[:n]) {
			return at + int64(slices.IndexFunc(buf[:n], func(b byte) bool { return b != 0 })), nil
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return -1, nil
		} else if err != nil {
			return 0, err
		}
	}
}

// hasLeftovers reports whether dir holds parts of a log that are not the log itself, such as a *.wal.broken.
func hasLeftovers(dir string) bool {
	files, _ := os.ReadDir(dir)
	return slices.ContainsFunc(files, func(f fs.DirEntry) bool { return strings.Contains(f.Name(), ".wal") })
}
