package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// SpaceError says that a file system has too little room for a copy. Nothing has been copied.
type SpaceError struct {
	Path string // where the copy was to go
	Need uint64 // bytes
	Free uint64 // bytes
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("the copy in %s needs %s, and its file system has %s free", e.Path,
		humanize.IBytes(e.Need), humanize.IBytes(e.Free))
}

// Unwrap makes a SpaceError match syscall.ENOSPC, which is what going on would have met.
func (e *SpaceError) Unwrap() error { return unix.ENOSPC }

// FreeSpace is how many bytes an ordinary user can still write to the file system of path. If path does not exist, it
// is the file system that path would be made in.
func FreeSpace(path string) (uint64, error) {
	var st unix.Statfs_t
	err := atNearest(path, func(p string) error { return unix.Statfs(p, &st) })
	if err != nil {
		return 0, fmt.Errorf("ask for free space at %s: %w", path, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// SameFileSystem reports whether a and b are on one file system, so that copies between them can share blocks. A path
// that does not exist counts as where it would be made. A rename can fail all the same between two mounts of one file
// system.
func SameFileSystem(a, b string) (bool, error) {
	var found [2]unix.Stat_t
	for i, path := range []string{a, b} {
		if err := atNearest(path, func(p string) error { return unix.Stat(p, &found[i]) }); err != nil {
			return false, fmt.Errorf("find the file system of %s: %w", path, err)
		}
	}
	return found[0].Dev == found[1].Dev, nil
}

// atNearest calls f with path, or else with the nearest directory above it that exists.
func atNearest(path string, f func(string) error) error {
	err := f(path)
	if errors.Is(err, fs.ErrNotExist) && filepath.Dir(path) != path {
		return atNearest(filepath.Dir(path), f)
	}
	return err
}

// Usage is how many bytes of disk a full copy of the member takes: member/, a separate WAL dir and version.txt,
// without the holes in sparse files. It needs no lock, but is an estimate while etcd runs.
func (l Layout) Usage() (uint64, error) {
	entries, err := l.scan()
	if err != nil {
		return 0, err
	}
	return allocated(entries), nil
}

func allocated(entries []entry) uint64 {
	var sum int64
	for _, e := range entries {
		sum += e.alloc
	}
	return uint64(sum)
}

// checkSpace returns a *SpaceError if need bytes do not fit at path.
func checkSpace(path string, need uint64) error {
	free, err := FreeSpace(path)
	if err != nil {
		return err
	}
	if free < need {
		return &SpaceError{Path: path, Need: need, Free: free}
	}
	return nil
}

// diskUse is what the file takes on disk. The kernel counts in units of 512 bytes whatever the block size.
func diskUse(st *syscall.Stat_t) int64 { return st.Blocks * 512 }

// mountIn names a mount point that is dir or below it, or "". Such a directory cannot be replaced by renaming: the
// mount would stay, and hide what came in its place.
func mountIn(dir string) (string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("look for mounts: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		// The fifth field is the mount point: proc_pid_mountinfo(5).
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if point := unescapeMount(fields[4]); within(point, dir) {
			return point, nil
		}
	}
	return "", nil
}

// unescapeMount undoes the kernel's \040 for a space and the like.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
