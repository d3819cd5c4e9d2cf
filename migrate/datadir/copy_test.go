package datadir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCopyTree(t *testing.T) {
	l := makeMember(t, t.TempDir(), false)
	// Pages of data and of zeros in all ways around the bounds of pages and chunks.
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1, page - 1, page, page + 1, chunk - 1, chunk, chunk + 1, 2*chunk + page + 5} {
		data := make([]byte, size)
		for off := 0; off < size; off += page {
			if random.IntN(3) > 0 {
				data[min(size-1, off+random.IntN(page))] = 1
			}
		}
		must(t, os.WriteFile(filepath.Join(l.SnapDir(), fmt.Sprint(size)), data, 0o600))
	}
	want := tree(t, l.MemberDir())
	fill(t, l.SnapDir(), "", "lost+found/of/the/volume")
	must(t, os.Chtimes(l.SnapDir(), time.Time{}, time.Unix(0, want["snap"].ModTime)))
	for _, hash := range []bool{false, true} {
		dst := filepath.Join(t.TempDir(), "copy")
		var done, total int64
		list, err := CopyTree(context.Background(), dst, l.MemberDir(), CopyOptions{Hash: hash, Progress: func(d, n int64) {
			if d <= done || d > n || total != 0 && total != n {
				t.Errorf("progress goes from %d of %d to %d of %d", done, total, d, n)
			}
			done, total = d, n
		}})
		must(t, err)
		if diff := cmp.Diff(want, tree(t, dst)); diff != "" {
			t.Error(diff)
		}
		var size int64
		for _, f := range list {
			s, ok := want[filepath.Join(".", f.Path)]
			if !ok || f.Size != s.Size && !f.Dir || hash != strings.HasPrefix(f.SHA256, s.Digest) && !f.Dir {
				t.Errorf("%+v is listed for %+v", f, s)
			}
			size += f.Size
		}
		if len(list) != len(want) || done != size || total != size {
			t.Errorf("%d files of %d and %d bytes of %d are reported", len(list), len(want), done, size)
		}
	}
}

func TestCopyTreeOfOneFile(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	must(t, os.WriteFile(src, []byte("abc"), 0o640))
	list, err := CopyTree(context.Background(), dst, src, CopyOptions{Hash: true})
	must(t, err)
	if diff := cmp.Diff(tree(t, src), tree(t, dst)); diff != "" {
		t.Error(diff)
	}
	if want := "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; len(list) != 1 || list[0].SHA256 != want {
		t.Errorf("the list is %v", list)
	}
}

func TestCopyTreeKeepsHoles(t *testing.T) {
	for _, test := range []struct {
		size int64
		hash bool // compares the content, but hashing more would take the test too long
	}{{512 << 20, false}, {64 << 20, true}} {
		dir := t.TempDir()
		src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		f, err := os.Create(src)
		must(t, err)
		must(t, f.Truncate(test.size))
		offsets := []int64{0, 1 << 20, test.size/2 + 12345, test.size - 1}
		for _, off := range offsets {
			_, err := f.WriteAt([]byte{1}, off)
			must(t, err)
		}
		must(t, f.Close())
		_, err = CopyTree(context.Background(), dst, src, CopyOptions{Hash: test.hash})
		must(t, err)
		got, err := os.Open(dst)
		must(t, err)
		defer got.Close()
		for _, off := range offsets {
			b := []byte{0}
			if _, err := got.ReadAt(b, off); err != nil || b[0] != 1 {
				t.Errorf("at %d the copy has %v, %v", off, b, err)
			}
		}
		info, err := got.Stat()
		must(t, err)
		if used := diskUse(info.Sys().(*syscall.Stat_t)); info.Size() != test.size || used > 64<<10 {
			t.Errorf("the copy has %d bytes and takes %d on disk", info.Size(), used)
		}
	}
}

func TestCopyTreeRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		make func(path string) error
		err  string
	}{
		"link":     {func(path string) error { return os.Symlink("db", path) }, "is a symbolic link"},
		"FIFO":     {func(path string) error { return syscall.Mkfifo(path, 0o600) }, "is neither a file nor a directory"},
		"bad name": {func(path string) error { return os.WriteFile(path+"\xff", nil, 0o600) }, "not a name in UTF-8"},
		"socket": {func(path string) error {
			listener, err := net.Listen("unix", path)
			if err == nil {
				listener.(*net.UnixListener).SetUnlinkOnClose(false)
				listener.Close()
			}
			return err
		}, "is neither a file nor a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			l := makeMember(t, root, false)
			must(t, test.make(filepath.Join(l.MemberDir(), "odd")))
			_, err := CopyTree(context.Background(), filepath.Join(root, "copy"), l.MemberDir(), CopyOptions{})
			checkError(t, err, test.err)
			checkError(t, err, "member/odd")
			_, err = CreateBackup(context.Background(), l, l.BackupsDir(""), testMeta, nil)
			checkError(t, err, test.err)
			if exists(filepath.Join(root, "copy")) || exists(l.BackupsDir("")) {
				t.Error("something has been made")
			}
		})
	}
	dir := t.TempDir()
	fill(t, dir, "", "a", "b")
	_, err := CopyTree(context.Background(), filepath.Join(dir, "b"), filepath.Join(dir, "a"), CopyOptions{})
	checkError(t, err, "b exists already")
	if !exists(filepath.Join(dir, "b")) {
		t.Error("what was there is gone")
	}
	_, err = CopyTree(context.Background(), filepath.Join(dir, "c"), filepath.Join(dir, "missing"), CopyOptions{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("copying nothing gives %v", err)
	}
}

// A source that something still writes to gives no copy.
func TestCopyTreeOfChangingSource(t *testing.T) {
	for name, change := range map[string]func(l Layout) error{
		"longer":  func(l Layout) error { return os.Truncate(l.DB(), 1<<20) },
		"shorter": func(l Layout) error { return os.Truncate(l.DB(), 1) },
		"gone":    func(l Layout) error { return os.Remove(l.DB()) },
		"new":     func(l Layout) error { return os.WriteFile(l.DB()+"2", nil, 0o600) },
		"rewritten": func(l Layout) error {
			return os.WriteFile(l.DB(), bytes.Repeat([]byte("x"), 100), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			l := makeMember(t, root, false)
			changed := false
			setBefore(t, func(op, path string) error {
				if op == "write" && strings.HasSuffix(path, "snap/db") && !changed {
					changed = true
					return change(l)
				}
				return nil
			})
			_, err := CopyTree(context.Background(), filepath.Join(root, "copy"), l.MemberDir(), CopyOptions{Hash: true})
			if err == nil || exists(filepath.Join(root, "copy")) {
				t.Errorf("a changing source gives %v", err)
			}
		})
	}
}

// A copy that is not what was written is noticed.
func TestCopyTreeReadsBack(t *testing.T) {
	for err, off := range map[string]int64{
		"differs from":           page, // where the source has zeros, which are not written
		"is damaged: it has 100": 100_000,
	} {
		root := t.TempDir()
		l := makeMember(t, root, false)
		data := make([]byte, 3*page)
		data[0], data[2*page] = 1, 1
		must(t, os.WriteFile(l.DB(), data, 0o600))
		setBefore(t, func(op, path string) error {
			if op != "write" || !strings.HasSuffix(path, "snap/db") {
				return nil
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			must(t, err)
			defer f.Close()
			_, err = f.WriteAt([]byte{1}, off)
			return err
		})
		_, got := CopyTree(context.Background(), filepath.Join(root, "copy"), l.MemberDir(), CopyOptions{Hash: true})
		checkError(t, got, err)
	}
}

func TestCopyTreeCancelled(t *testing.T) {
	root := t.TempDir()
	l := makeMember(t, root, false)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := CopyTree(ctx, filepath.Join(root, "copy"), l.MemberDir(), CopyOptions{Progress: func(int64, int64) { cancel() }})
	if !errors.Is(err, context.Canceled) || exists(filepath.Join(root, "copy")) {
		t.Errorf("it gives %v", err)
	}
}
