package datadir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Mode is the permission bits of a file with setuid, setgid and sticky, as chmod(1) has them. Its text is octal.
type Mode uint32

// MarshalText gives "0600".
func (m Mode) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%04o", uint32(m)), nil }

// UnmarshalText reads up to four octal digits.
func (m *Mode) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 8, 12)
	if err != nil {
		return fmt.Errorf("file mode %q is not up to four octal digits", b)
	}
	*m = Mode(n)
	return nil
}

// Progress is told how many of how many bytes are done. Calls come from one goroutine at a time, often. It may be
// nil.
type Progress func(done, total int64)

// CopyOptions says how CopyTree copies.
type CopyOptions struct {
	// Hash fills in File.SHA256, and reads the copy back and compares it with the source. Reading back goes through
	// the page cache: with the fsync it shows that the right bytes were handed to the device, not that the device
	// keeps them.
	Hash     bool
	Progress Progress
}

// CopyTree copies the directory or file src to dst, which must not exist in a directory that does, and tells what it
// copied. Owner, mode and modification time are kept; holes stay holes; blocks are shared with the source where the
// file system can (xfs, btrfs, by FICLONE). Symbolic links and anything else but files and directories are an error
// before the first byte is copied, and so is too little space (a *SpaceError). When CopyTree returns, the copy is
// durable. After an error nothing is left at dst.
//
// A source that changes meanwhile is an error. Directories called lost+found are left out.
func CopyTree(ctx context.Context, dst, src string, opts CopyOptions) ([]File, error) {
	entries, err := scan(src, "", "")
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", src, err)
	}
	if exists(dst) {
		return nil, fmt.Errorf("copy %s: %s exists already", src, dst)
	}
	for i := range entries {
		entries[i].dst = filepath.Join(dst, filepath.FromSlash(entries[i].Path))
	}
	err = copyAll(ctx, entries, opts)
	if err == nil {
		err = SyncDir(filepath.Dir(dst))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("copy %s: %w", src, err), removeAll(dst))
	}
	return files(entries), nil
}

func files(entries []entry) []File {
	list := make([]File, len(entries))
	for i, e := range entries {
		list[i] = e.File
	}
	return list
}

// copier holds what the copying of one set of entries shares.
type copier struct {
	CopyOptions
	need    uint64 // bytes on disk, if nothing can be shared
	checked bool   // there is room for them
	done    int64
	total   int64
	finish  *errgroup.Group
}

// copyAll makes every entry's dst from its src. All go to one file system. The fsync of a file overlaps with the
// copying of the next ones.
func copyAll(ctx context.Context, entries []entry, opts CopyOptions) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4) // files that are open and not durable yet
	c := &copier{CopyOptions: opts, need: allocated(entries), finish: group}
	for _, e := range entries {
		c.total += e.Size
	}
	err := c.contents(ctx, entries)
	// Wait in any case: an error in a finisher is the cause of the cancelled context that the copying met.
	if finishErr := group.Wait(); finishErr != nil {
		err = finishErr
	}
	if err != nil {
		return err
	}
	// A directory is done last, because everything that is made in it changes its time, and because its mode may
	// forbid to make anything.
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].Dir {
			if err := finishDir(entries[i]); err != nil {
				return err
			}
		}
	}
	return unchanged(entries)
}

func (c *copier) contents(ctx context.Context, entries []entry) error {
	for i := range entries {
		var err error
		if e := &entries[i]; e.Dir {
			err = mkdir(e.dst)
		} else {
			err = c.copyFile(ctx, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func finishDir(e entry) error {
	dir, err := os.Open(e.dst)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := setAttributes(dir, e.File); err != nil {
		return err
	}
	return SyncDir(e.dst)
}

// setAttributes gives f the owner, mode and modification time of want.
func setAttributes(f *os.File, want File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != want.UID || st.Gid != want.GID {
		// Before chmod, because chown clears setuid and setgid.
		if err := f.Chown(int(want.UID), int(want.GID)); err != nil {
			return fmt.Errorf("keep owner %d:%d: %w (run this as root or as the owner)", want.UID, want.GID, err)
		}
	}
	if err := unix.Fchmod(int(f.Fd()), uint32(want.Mode)); err != nil {
		return fmt.Errorf("keep mode of %s: %w", f.Name(), err)
	}
	mtime, err := unix.TimeToTimespec(want.ModTime)
	if err != nil {
		return fmt.Errorf("keep time of %s: %w", f.Name(), err)
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, f.Name(), times, 0); err != nil {
		return fmt.Errorf("keep time of %s: %w", f.Name(), err)
	}
	return nil
}

// unchanged checks that the files that were copied are still what scan saw.
func unchanged(entries []entry) error {
	for _, e := range entries {
		var st syscall.Stat_t
		if err := syscall.Lstat(e.src, &st); err != nil {
			return fmt.Errorf("%s changed while it was copied: %w", e.src, err)
		}
		same := st.Ino == e.seen.Ino && st.Mtim == e.seen.Mtim && (e.Dir || st.Size == e.seen.Size)
		if !same {
			return fmt.Errorf("%s changed while it was copied: something is still writing to it", e.src)
		}
	}
	return nil
}

// copyFile copies the content. What can be done beside the copying of the next files is left to a finisher.
func (c *copier) copyFile(ctx context.Context, e *entry) (err error) {
	src, err := os.Open(e.src)
	if err != nil {
		return err
	}
	dst, err := create(e.dst)
	if err != nil {
		return errors.Join(err, src.Close())
	}
	var h *hasher
	if c.Hash {
		h = newHasher(e.Size)
	}
	err = c.copyContent(ctx, dst, src, e, h)
	if err == nil {
		err = setAttributes(dst, e.File)
	}
	err = errors.Join(err, src.Close())
	if h != nil {
		close(h.todo)
	}
	if err != nil {
		return errors.Join(err, dst.Close())
	}
	c.finish.Go(func() error {
		err := fsync(dst)
		if h != nil && err == nil {
			err = e.setDigest(<-h.digest)
		}
		return errors.Join(err, dst.Close())
	})
	return nil
}

// setDigest takes what was hashed for the file's digest, or checks that it is the one which was known before.
func (e *entry) setDigest(digest string) error {
	if e.SHA256 == "" {
		e.SHA256 = digest
	}
	return checkDigest(e.src, digest, e.SHA256)
}
