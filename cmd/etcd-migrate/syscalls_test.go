//go:build amd64

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// decode gives nil for a call that does not count.
func (s *session) decode(tid int, data [7]uint64) *call {
	nr, a := data[0], data[1:]
	c := &call{}
	fd := func(op string) { c.op, c.path = op, descriptor(tid, int32(a[0])) }
	at := func(op string, dir, name uint64) { c.op, c.path = op, pathAt(tid, int32(dir), name) }
	const here = uint64(0xffffff9c) // AT_FDCWD
	flags := uint64(0)
	switch nr {
	case unix.SYS_OPEN:
		flags = a[1]
		at("open", here, a[0])
	case unix.SYS_OPENAT:
		flags = a[2]
		at("open", a[0], a[1])
	case unix.SYS_READ, unix.SYS_PREAD64, unix.SYS_GETDENTS64:
		if !s.reads {
			return nil
		}
		fd("read")
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV, unix.SYS_PWRITEV, unix.SYS_SENDFILE, unix.SYS_FALLOCATE:
		fd("write")
	case unix.SYS_COPY_FILE_RANGE:
		c.op, c.path = "write", descriptor(tid, int32(a[2]))
	case unix.SYS_FTRUNCATE:
		fd("truncate")
	case unix.SYS_TRUNCATE:
		at("truncate", here, a[0])
	case unix.SYS_IOCTL:
		if a[1] != unix.FICLONE {
			return nil
		}
		fd("clone")
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		fd("sync")
	case unix.SYS_RENAME, unix.SYS_LINK:
		at("rename", here, a[0])
		c.to = pathAt(tid, unix.AT_FDCWD, a[1])
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT:
		at("rename", a[0], a[1])
		c.to = pathAt(tid, int32(a[2]), a[3])
		c.exchange = nr == unix.SYS_RENAMEAT2 && a[4]&unix.RENAME_EXCHANGE != 0
	case unix.SYS_UNLINK, unix.SYS_RMDIR:
		at("remove", here, a[0])
	case unix.SYS_UNLINKAT:
		at("remove", a[0], a[1])
	case unix.SYS_MKDIR:
		at("mkdir", here, a[0])
	case unix.SYS_MKDIRAT:
		at("mkdir", a[0], a[1])
	case unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN:
		at("attributes", here, a[0])
	case unix.SYS_FCHMODAT, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT:
		at("attributes", a[0], a[1])
	case unix.SYS_FCHMOD, unix.SYS_FCHOWN:
		fd("attributes")
	case unix.SYS_CLONE:
		return s.startOf(c, tid, a[0])
	case unix.SYS_CLONE3:
		b := memory(tid, a[0], 8)
		if len(b) < 8 {
			return nil
		}
		return s.startOf(c, tid, binary.LittleEndian.Uint64(b))
	case unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_KILL:
		if c.op = "signal"; a[1] == 0 || s.isChild(tid) {
			return nil
		}
		return c
	default:
		return nil
	}
	if nr == unix.SYS_LINK || nr == unix.SYS_LINKAT {
		c.op = "link"
	}
	if c.op == "open" {
		switch {
		case flags&unix.O_CREAT != 0:
			c.op = "create"
		case flags&unix.O_TRUNC != 0:
			c.op = "truncate"
		case !s.reads:
			return nil
		}
	}
	if !s.below(c.path) && (c.to == "" || !s.below(c.to)) {
		return nil
	}
	c.child = s.isChild(tid)
	return c
}

// startOf tells the start of a process from that of a thread.
func (s *session) startOf(c *call, tid int, flags uint64) *call {
	if c.op = "start"; flags&unix.CLONE_THREAD != 0 || s.isChild(tid) {
		return nil
	}
	return c
}

// isChild reports whether a thread is one of a child process.
func (s *session) isChild(tid int) bool { return s.followed && threadGroup(tid) != s.main }

func (s *session) below(path string) bool {
	return slices.ContainsFunc(s.roots, func(root string) bool {
		return path == root || strings.HasPrefix(path, root+"/")
	})
}

// threadGroup is the process that a thread belongs to.
func threadGroup(tid int) int {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	for line := range strings.Lines(string(status)) {
		var pid int
		if _, err := fmt.Sscanf(line, "Tgid: %d", &pid); err == nil {
			return pid
		}
	}
	return tid
}

// descriptor gives the path of an open file, "" for what is none.
func descriptor(tid int, fd int32) string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, fd))
	return strings.TrimSuffix(path, " (deleted)")
}

// pathAt reads a path from the memory of the program, and makes it absolute.
func pathAt(tid int, dir int32, address uint64) string {
	name := text(tid, address)
	if filepath.IsAbs(name) || name == "" {
		return filepath.Clean(name)
	}
	base := descriptor(tid, dir)
	if dir == unix.AT_FDCWD {
		base, _ = os.Readlink(fmt.Sprintf("/proc/%d/cwd", tid))
	}
	return filepath.Join(base, name)
}

// text reads a string that ends with a zero byte.
func text(tid int, address uint64) string {
	const page = 4096
	var all []byte
	for len(all) < unix.PathMax {
		part := memory(tid, address+uint64(len(all)), page-int((address+uint64(len(all)))%page)) // which is mapped as a whole
		if end := slices.Index(part, 0); end >= 0 {
			return string(append(all, part[:end]...))
		}
		if len(part) == 0 {
			return ""
		}
		all = append(all, part...)
	}
	return string(all)
}

func memory(tid int, address uint64, n int) []byte {
	b := make([]byte, n)
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(n)
	got, err := unix.ProcessVMReadv(tid, local, []unix.RemoteIovec{{Base: uintptr(address), Len: n}}, 0)
	if err != nil {
		return nil
	}
	return b[:got]
}
