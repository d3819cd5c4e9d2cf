// Package golden keeps data dirs that real etcds have written in small archives, each with a list of what it holds. They
// are in testdata/golden; `make testdata` makes them anew.
//
// An archive is a tar file of the member's directory, compressed with gzip. Etcd allocates 64 MB for each file of its log
// in advance: what is zero at the end of a file is left out, and the file's size is kept in the PAX record "GOLDEN.size".
// Names are sorted, and times and owners left out, so that the same files always make the same archive.
package golden

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

const sizeRecord = "GOLDEN.size"

// Pack writes the files below dir as an archive.
func Pack(w io.Writer, dir string) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o700, Format: tar.FormatPAX})
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		size := len(b)
		b = bytes.TrimRight(b, "\x00")
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(b)), Format: tar.FormatPAX,
			PAXRecords: map[string]string{sizeRecord: strconv.Itoa(size)},
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err = t.Write(b)
		return err
	})
	if err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return err
	}
	return z.Close()
}

// Unpack puts the files of an archive into dir, which must exist.
func Unpack(r io.Reader, dir string) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // it has only been read
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeDir {
			if err := root.MkdirAll(h.Name, 0o700); err != nil {
				return err
			}
			continue
		}
		if err := unpackFile(root, h, t); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func unpackFile(root *os.Root, h *tar.Header, r io.Reader) error {
	size, err := strconv.ParseInt(h.PAXRecords[sizeRecord], 10, 64)
	if err != nil {
		return err
	}
	f, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Close()
}
