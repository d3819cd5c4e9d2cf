package datadir

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	chunk = 256 << 10 // how much is read, written and hashed at a time, in bytes: it stays in the processor's cache
	ahead = 32        // how many chunks the copying may be ahead of the reading back
	page  = 4 << 10   // the smallest hole that a copy gets, in bytes
)

var zeros [page]byte

// copyContent makes dst's content that of src and hands all of it to the prover, if there is one.
//
// All of src is read, and what is zero is not written, so that holes stay holes. Asking for the holes with SEEK_HOLE, or
// leaving the copy to copy_file_range(2), would save reading them, but both have given wrong answers for data that was
// just written (OpenZFS 2.2, openzfs/zfs#15526), and a digest over such an answer would not show it.
func (c *copier) copyContent(ctx context.Context, dst, src *os.File, e *entry, p *prover) error {
	cloned := guard("clone", e.dst, func() error { return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) }) == nil
	if cloned && p == nil {
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
	}
	buf := make([]byte, min(chunk, e.Size))
	for off := int64(0); off < e.Size; off += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		if p != nil {
			buf = p.buffer()
		}
		buf = buf[:min(chunk, e.Size-off)]
		if err := readAt(src, buf, off); err != nil {
			return err
		}
		if !cloned {
			if err := writeData(dst, buf, off); err != nil {
				return err
			}
		}
		if p != nil {
			p.todo <- buf
		}
		c.progress(int64(len(buf)))
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
		if err == io.EOF {
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

// prover reads a copy back while it is being made, some way behind the copying. It compares the copy with what was
// written, and its digest with the one that is known already; otherwise it sets that.
type prover struct {
	dst, src *os.File
	file     *File
	free     chan []byte // buffers that the prover does not need any more
	todo     chan []byte // buffers with what was copied, in order
	whole    bool        // the copying has come to its end
	result   chan error
}

func newProver(dst, src *os.File, file *File) *prover {
	buffers := min(ahead, file.Size/chunk+1)
	p := &prover{
		dst: dst, src: src, file: file,
		free: make(chan []byte, buffers), todo: make(chan []byte, buffers), result: make(chan error, 1),
	}
	for range buffers {
		p.free <- make([]byte, min(chunk, file.Size))
	}
	go func() { p.result <- p.run() }()
	return p
}

// buffer gives one that may be written until it is put into todo.
func (p *prover) buffer() []byte { return <-p.free }

// end tells that nothing more will be copied, be it all or not.
func (p *prover) end(whole bool) {
	if p != nil {
		p.whole = whole
		close(p.todo)
	}
}

// wait returns when the files are not needed any more. If all was copied and the error is nil, the copy is proven and
// file.SHA256 is set.
func (p *prover) wait() error {
	if p == nil {
		return nil
	}
	return <-p.result
}

func (p *prover) run() (err error) {
	sum := sha256.New()
	back := make([]byte, min(chunk, p.file.Size))
	var off int64
	for buf := range p.todo {
		if err == nil { // else only give the buffers back, so that the copying does not wait for ever
			err = p.compare(back[:len(buf)], buf, off)
			sum.Write(buf)
		}
		off += int64(len(buf))
		p.free <- buf[:cap(buf)]
	}
	if err != nil || !p.whole {
		return err
	}
	if info, err := p.dst.Stat(); err != nil {
		return err
	} else if info.Size() != p.file.Size {
		return sizeError(p.dst.Name(), info.Size(), p.file.Size)
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	if p.file.SHA256 == "" {
		p.file.SHA256 = digest
		return nil
	}
	return checkDigest(p.src.Name(), digest, p.file.SHA256)
}

func (p *prover) compare(back, buf []byte, off int64) error {
	if err := readAt(p.dst, back, off); err != nil {
		return err
	}
	if !bytes.Equal(back, buf) {
		return fmt.Errorf("%s read back differs from %s near offset %d", p.dst.Name(), p.src.Name(), off)
	}
	return nil
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
