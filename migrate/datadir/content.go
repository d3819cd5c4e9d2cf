package datadir

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// How much is read, written and hashed at a time, in bytes. With larger writes the kernel takes larger pieces of memory
	// for its cache, which on a virtual machine are often such as nobody has touched before: three times as slow.
	chunk = 64 << 10
	ahead = 128      // how many chunks the copying may be ahead of the hashing
	page  = 4 << 10  // the smallest hole that a copy gets, in bytes
	flush = 16 << 20 // how much is written before the device is told to begin, in bytes: a multiple of chunk
)

var zeros [page]byte

// copyContent makes dst's content that of src. If there is a hasher, all of it is read back, compared and hashed.
//
// All of src is read, and what is zero is not written, so that holes stay holes. Asking for the holes with SEEK_HOLE,
// or leaving the copy to copy_file_range(2), would save reading them, but both have given wrong answers for data that
// was just written (OpenZFS 2.2, openzfs/zfs#15526), and a digest over such an answer would not show it.
func (c *copier) copyContent(ctx context.Context, dst, src *os.File, e *entry, h *hasher) error {
	cloned := guard("clone", e.dst, func() error { return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) }) == nil
	if cloned && h == nil {
		c.progress(e.Size)
		return nil
	}
	if !cloned {
		if !c.checked {
			if err := checkSpace(filepath.Dir(e.dst), c.need); err != nil {
				return err
			}
			c.checked = true
		}
		if err := dst.Truncate(e.Size); err != nil {
			return err
		}
		// Or reading back makes the kernel read ahead, which fills memory with the zeros of what is not written yet. It is
		// only advice: a file system that does not take it is slower.
		_ = unix.Fadvise(int(dst.Fd()), 0, 0, unix.FADV_RANDOM)
	}
	buf, back := make([]byte, min(chunk, e.Size)), make([]byte, min(chunk, e.Size))
	for off := int64(0); off < e.Size; off += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		if h != nil {
			buf = <-h.free
		}
		n := min(chunk, e.Size-off)
		if err := readAt(src, buf[:n], off); err != nil {
			return err
		}
		if !cloned {
			if err := writeData(dst, buf[:n], off); err != nil {
				return err
			}
		}
		if h != nil {
			if err := readAt(dst, back[:n], off); err != nil {
				return err
			}
			if !bytes.Equal(buf[:n], back[:n]) {
				return fmt.Errorf("%s read back differs from %s near offset %d", dst.Name(), src.Name(), off)
			}
			h.todo <- buf[:n]
		}
		if end := off + chunk; end%flush == 0 {
			// Only so that fsync has less left to do; it is fsync that tells of errors.
			_ = unix.SyncFileRange(int(dst.Fd()), end-flush, flush, unix.SYNC_FILE_RANGE_WRITE)
		}
		c.progress(n)
	}
	if info, err := dst.Stat(); err != nil {
		return err
	} else if info.Size() != e.Size {
		return sizeError(dst.Name(), info.Size(), e.Size)
	}
	return nil
}

func (c *copier) progress(n int64) {
	if c.done += n; c.Progress != nil {
		c.Progress(c.done, c.total)
	}
}

// readAt fills buf.
func readAt(f *os.File, buf []byte, off int64) error {
	if _, err := f.ReadAt(buf, off); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %s at offset %d: %w", f.Name(), off, err)
	}
	return nil
}

// writeData writes buf but for the pages that are zero.
func writeData(f *os.File, buf []byte, off int64) error {
	for start := 0; start < len(buf); {
		end := start
		for end < len(buf) && !isZero(buf[end:min(end+page, len(buf))]) {
			end = min(end+page, len(buf))
		}
		if end > start {
			if err := writeAt(f, buf[start:end], off+int64(start)); err != nil {
				return err
			}
		}
		start = end + page
	}
	return nil
}

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// hasher hashes in a goroutine of its own, because that takes about as long as the copying. Buffers come from free,
// and go into todo with the next piece of the content.
type hasher struct {
	free, todo chan []byte
	digest     chan string
}

func newHasher(size int64) *hasher {
	buffers := min(ahead, size/chunk+1)
	h := &hasher{
		free: make(chan []byte, buffers), todo: make(chan []byte, buffers), digest: make(chan string, 1),
	}
	for range buffers {
		h.free <- make([]byte, min(chunk, size))
	}
	go h.run()
	return h
}

func (h *hasher) run() {
	sum := sha256.New()
	for buf := range h.todo {
		sum.Write(buf)
		h.free <- buf[:cap(buf)]
	}
	h.digest <- hex.EncodeToString(sum.Sum(nil))
}

func checkDigest(name, got, want string) error {
	if got != want {
		return fmt.Errorf("%s is damaged: its SHA-256 is %s and should be %s", name, got, want)
	}
	return nil
}

func sizeError(name string, got, want int64) error {
	return fmt.Errorf("%s is damaged: it has %d bytes and should have %d", name, got, want)
}

// checkFile reports whether a file has the size and the digest of want.
func checkFile(ctx context.Context, name string, want File, progress func(n int64)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != want.Size {
		return sizeError(name, info.Size(), want.Size)
	}
	sum := sha256.New()
	buf := make([]byte, min(chunk, want.Size))
	for off := int64(0); off < want.Size; off += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		buf = buf[:min(chunk, want.Size-off)]
		if err := readAt(f, buf, off); err != nil {
			return err
		}
		sum.Write(buf)
		progress(int64(len(buf)))
	}
	return checkDigest(name, hex.EncodeToString(sum.Sum(nil)), want.SHA256)
}
