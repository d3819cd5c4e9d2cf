package raftlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// A log that ends at a torn record is nothing unusual: a power loss takes what was written last and not synced. Etcd goes
// on from there, wherever it is. But if the disk has lost a sector in the middle, all that follows would be gone, too. A
// torn end can be told from that: whatever etcd has answered a client for is synced, and a later record of the log says
// that it is committed. So what lies behind the end is searched for such a record.

// errLost is what etcd itself does not notice.
var errLost = errors.New("the log has lost entries")

// committedBeyond gives the highest commit that records behind the log's end tell of, and the offset of that record; 0 if
// there are none. A record there counts if its checksum continues that of the one right before it.
func (e walEnd) committedBeyond() (commit uint64, offset int64, err error) {
	content, err := os.ReadFile(e.path)
	if err != nil {
		return 0, 0, err
	}
	content = bytes.TrimRight(content[min(e.offset, int64(len(content))):], "\x00")
	for at := 0; at < len(content); {
		before, next, ok := frame(content, at)
		if !ok {
			at++ // in logs of 2.x, records begin anywhere
			continue
		}
		genuine := false
		for {
			rec, end, ok := frame(content, next)
			if !ok || rec.Type != wal.CrcType && crc32.Update(before.Crc, castagnoli, rec.Data) != rec.Crc || rec.Type == wal.CrcType && rec.Crc != before.Crc {
				break
			}
			var state raftpb.HardState
			if rec.Type == wal.StateType && state.Unmarshal(rec.Data) == nil && state.Commit > commit {
				commit, offset = state.Commit, e.offset+int64(next)
			}
			before, next, genuine = rec, end, true
		}
		if genuine {
			at = next
		} else {
			at++
		}
	}
	return commit, offset, nil
}

// frame decodes a record of the log: its length in 8 bytes, which from 3.0 on also tell the padding behind it, and a
// walpb.Record. See wal/decoder.go of etcd.
func frame(b []byte, at int) (rec walpb.Record, end int, ok bool) {
	const lengthSize, recordType, recordCRC = 8, 0x08, 0x10 // the first two are fields of every record
	if at+lengthSize+4 > len(b) || b[at+lengthSize] != recordType || b[at+lengthSize+2] != recordCRC {
		return rec, 0, false
	}
	length := binary.LittleEndian.Uint64(b[at:])
	size, padding := length<<8>>8, uint64(0)
	if length>>63 == 1 {
		padding = length >> 56 & 7
	}
	body := b[at+lengthSize:]
	if size < 4 || size > uint64(len(body)) || rec.Unmarshal(body[:size]) != nil || rec.Type < wal.MetadataType || rec.Type > wal.SnapshotType {
		return rec, 0, false
	}
	return rec, at + lengthSize + int(min(size+padding, uint64(len(body)))), true
}

// lostMiddle refuses a log whose end is no torn end.
func (sv *survey) lostMiddle(end walEnd) error {
	commit, at, err := end.committedBeyond()
	if err != nil {
		return fmt.Errorf("read behind the end of the wal: %w", err)
	}
	if commit > sv.last {
		return fmt.Errorf("read wal file %s at offset %d: %w: it can be read up to entry %d, but what follows at offset %d says that entry %d is committed",
			end.path, end.offset, errLost, sv.last, at, commit)
	}
	return nil
}
