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
	chunk = 1 << 20 // how much is read, written and hashed at a time, in bytes
	page  = 4 << 10 // the smallest hole that a copy gets, in bytes
)

var zeros [page]byte

// copyContent makes dst's content that of src and tells the prover, if there is one, how far it is.
//
// All of src is read, and what is zero is not written, so that holes stay holes. Asking for the holes with SEEK_HOLE, or
// leaving the copy to copy_file_range(2), would save reading them, but both have given wrong answers for data that was
// just written (OpenZFS 2.2, openzfs/zfs#15526), and a digest over such an answer would not show it.
func (c *copier) copyContent(ctx context.Context, dst, src *os.File, e *entry, p *prover) error {
	cloned := guard("clone", e.dst, func() error { return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) }) == nil
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
		buf = buf[:min(chunk, e.Size-off)]
		if !cloned {
			if err := readAt(src, buf, off); err != nil {
				return err
			}
			if err := writeData(dst, buf, off); err != nil {
				return err
			}
		}
		p.copied(int64(len(buf)))
		if c.done += int64(len(buf)); c.Progress != nil {
			c.Progress(c.done, c.total)
		}
	}
	return nil
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

// prover reads a copy back while it is being made, some way behind the copying. It gets the digest of the copy, and
// compares that with the digest which is known already, or else the copy with the source. A nil prover does nothing.
type prover struct {
	dst, src *os.File
	file     *File
	lengths  chan int64 // of what has been copied; there is room for all, so the copying never waits
	whole    bool       // the copying has come to its end
	result   chan error
}

func newProver(ctx context.Context, dst, src *os.File, file *File) *prover {
	p := &prover{
		dst: dst, src: src, file: file,
		lengths: make(chan int64, file.Size/chunk+1),
		result:  make(chan error, 1),
	}
	go func() { p.result <- p.run(ctx) }()
	return p
}

func (p *prover) copied(n int64) {
	if p != nil {
		p.lengths <- n
	}
}

// end tells that nothing more will be copied, be it all or not.
func (p *prover) end(whole bool) {
	if p != nil {
		p.whole = whole
		close(p.lengths)
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

func (p *prover) run(ctx context.Context) error {
	sum := sha256.New()
	var back, orig []byte
	var off int64
	for n := range p.lengths {
		if err := ctx.Err(); err != nil {
			return err
		}
		if back == nil {
			back, orig = make([]byte, n), make([]byte, n) // the first is the longest
		}
		if err := readAt(p.dst, back[:n], off); err != nil {
			return err
		}
		sum.Write(back[:n])
		if p.file.SHA256 == "" {
			if err := readAt(p.src, orig[:n], off); err != nil {
				return err
			}
			if !bytes.Equal(back[:n], orig[:n]) {
				return fmt.Errorf("%s read back differs from %s near offset %d", p.dst.Name(), p.src.Name(), off)
			}
		}
		off += n
	}
	if !p.whole {
		return nil
	}
	if info, err := p.dst.Stat(); err != nil {
		return err
	} else if info.Size() != p.file.Size {
		return fmt.Errorf("%s has %d bytes and should have %d", p.dst.Name(), info.Size(), p.file.Size)
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	if p.file.SHA256 == "" {
		p.file.SHA256 = digest
		return nil
	}
	return checkDigest(p.src.Name(), digest, p.file.SHA256)
}

func checkDigest(name, got, want string) error {
	if got != want {
		return fmt.Errorf("%s is damaged: its SHA-256 is %s and should be %s", name, got, want)
	}
	return nil
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
		return fmt.Errorf("%s is damaged: it has %d bytes and should have %d", name, info.Size(), want.Size)
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
