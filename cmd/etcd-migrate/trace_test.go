//go:build amd64

package main

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tracer runs a program under ptrace(2) and meets each of its system calls that touches files below a directory. The
// program is the real one, without any code for it: that is what makes these tests complete, and keeps them so. Only the
// program's own threads are traced, not what it starts, unless followed is set.
//
// strace could do it too, but counts the calls of each thread by itself, and Go moves its work between threads. The numbers
// and registers are those of amd64; what is tested with them is the same everywhere.
type tracer struct {
	// roots are the directories below which a call counts. Links must have been resolved.
	roots []string
	// reads makes calls count that only read, too.
	reads bool
	// followed makes the calls of child processes count, too.
	followed bool
	// enter is called before a call is made, exit after it, with what it returned: below 0 a negated errno. What enter
	// returns is done. All calls come from one goroutine, and only the calling thread stands still meanwhile.
	enter func(c *call) action
	exit  func(c *call, ret int64)
}

// action is what becomes of a call. A positive one is an errno that the call gives without having been made.
type action int

const (
	goOn action = 0
	kill action = -1
)

// call is a system call that counts.
type call struct {
	// n counts the calls from 1.
	n int
	// op is what it does: create, write, truncate, clone, rename, link, remove, mkdir, sync, attributes; open and read if
	// reads is set; start and signal, which are about a child process and have no path.
	op string
	// path is absolute; to is the new path of a rename or link.
	path, to string
	pid      int // of the thread
	child    bool
	exchange bool
	answer   action
}

func (c *call) String() string {
	s := c.op + " " + c.path
	if c.to != "" {
		s += " " + c.to
	}
	if c.child {
		s = "etcd's " + s
	}
	return fmt.Sprintf("%d: %s", c.n, s)
}

// changes reports whether the call changes what another process sees.
func (c *call) changes() bool { return c.op != "sync" && c.op != "open" && c.op != "read" }

// syscallInfo is struct ptrace_syscall_info of linux/ptrace.h.
type syscallInfo struct {
	op   uint8 // 1 entry, 2 exit
	_    [3]uint8
	arch uint32
	ip   uint64
	sp   uint64
	data [7]uint64 // at entry the number and six arguments, at exit the result
}

const (
	ptraceGetSyscallInfo = 0x420e
	atEntry, atExit      = 1, 2
	syscallStop          = syscall.SIGTRAP | 0x80
)

// tracers are the threads that trace. The kernel takes requests only from the thread that has started the program, and that
// thread must wait for no other child; so these have never done anything else.
var tracers = func() chan<- func() {
	const most = 4
	jobs, ready := make(chan func()), make(chan bool)
	for range most {
		go func() {
			runtime.LockOSThread()
			ready <- true
			for job := range jobs {
				job()
			}
		}()
		<-ready
	}
	return jobs
}()

// run gives how the program ended.
func (tr *tracer) run(t *testing.T, cmd *exec.Cmd) (end syscall.WaitStatus) {
	t.Helper()
	done := make(chan error)
	tracers <- func() {
		var err error
		end, err = tr.trace(cmd)
		done <- err
	}
	if err := <-done; err != nil {
		t.Fatalf("trace %v: %v", cmd.Args, err)
	}
	return end
}

func (tr *tracer) trace(cmd *exec.Cmd) (end syscall.WaitStatus, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return end, fmt.Errorf("start: %w (tracing needs ptrace(2): in a container, CAP_SYS_PTRACE or a kernel of 4.8 or later)", err)
	}
	pid := cmd.Process.Pid
	defer func() { _ = cmd.Process.Release() }() // it has been waited for here
	options := unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if tr.followed {
		options |= unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEEXEC
	}
	s := session{tracer: tr, main: pid, pending: map[int]*call{}, known: map[int]bool{}}
	for {
		var ws syscall.WaitStatus
		tid, err := syscall.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return end, nil
		case err != nil:
			return end, err
		}
		if ws.Exited() || ws.Signaled() {
			if tid == pid {
				end = ws
			}
			delete(s.pending, tid)
			continue
		}
		if !s.known[tid] {
			s.known[tid] = true
			if tid == pid {
				if err := unix.PtraceSetOptions(pid, options); err != nil {
					return end, fmt.Errorf("set the options of ptrace: %w", err)
				}
			}
			s.resume(tid, 0) // from the stop that it begins with
			continue
		}
		switch sig := ws.StopSignal(); {
		case sig == syscallStop:
			if err := s.stopped(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return end, err
			}
			s.resume(tid, 0)
		case sig == syscall.SIGTRAP && ws.TrapCause() > 0:
			s.resume(tid, 0)
		default:
			s.resume(tid, sig)
		}
	}
}

// session is one program under way.
type session struct {
	*tracer
	main    int
	n       int
	pending map[int]*call // by thread
	known   map[int]bool
	killed  bool
}

// resume lets a thread go on. It may be gone, by a signal for example.
func (s *session) resume(tid int, sig syscall.Signal) { _ = unix.PtraceSyscall(tid, int(sig)) }

// stopped deals with a thread that enters or leaves a system call.
func (s *session) stopped(tid int) error {
	var info syscallInfo
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(tid), unsafe.Sizeof(info),
		uintptr(unsafe.Pointer(&info)), 0, 0); errno != 0 {
		return errno
	}
	switch info.op {
	case atEntry:
		return s.entered(tid, info.data)
	case atExit:
		c := s.pending[tid]
		if c == nil {
			return nil
		}
		delete(s.pending, tid)
		ret := int64(info.data[0])
		if c.answer > 0 {
			ret = -int64(c.answer)
			if err := setRegisters(tid, func(r *unix.PtraceRegs) { r.Rax = uint64(ret) }); err != nil {
				return err
			}
		}
		if s.exit != nil {
			s.exit(c, ret)
		}
	}
	return nil
}

func (s *session) entered(tid int, data [7]uint64) error {
	if s.killed {
		return nil
	}
	c := s.decode(tid, data)
	if c == nil {
		return nil
	}
	s.n++
	c.n, c.pid = s.n, tid
	s.pending[tid] = c
	if s.enter == nil {
		return nil
	}
	switch c.answer = s.enter(c); {
	case c.answer == kill:
		s.killed = true
		return unix.Kill(s.main, unix.SIGKILL) // whom the kernel kills in a stop does not make the call any more
	case c.answer > 0:
		return setRegisters(tid, func(r *unix.PtraceRegs) { r.Orig_rax = ^uint64(0) }) // no call at all
	}
	return nil
}

func setRegisters(tid int, change func(*unix.PtraceRegs)) error {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return err
	}
	change(&r)
	return unix.PtraceSetRegs(tid, &r)
}
