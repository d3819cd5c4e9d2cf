package main

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// everything is whether all is to be tried that can be.
var everything = os.Getenv("ETCD_MIGRATE_CRASH") == "all"

// inMemory is where tests put what they make, if there is room: see quick.
const inMemory = "/dev/shm"

// inMountNamespace runs the test once more, in a process with mounts of its own, which are gone with it. It reports
// whether this is that process.
func inMountNamespace(t *testing.T) bool {
	t.Helper()
	const there = "ETCD_MIGRATE_TEST_IN_NAMESPACE"
	if os.Getenv(there) != "" {
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), there+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		t.Skip("this user may not make mount namespaces: run it as root")
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else {
		t.Logf("%s", out)
	}
	return false
}

// inHugePages runs this test program once more, in a process that has memory of huge pages at inMemory, and ends with it. Each
// etcd that is started there preallocates 64 MiB, and with small pages that takes longer than all else that it does. Where that
// cannot be, for want of rights for example, it returns.
func inHugePages() {
	const there, mounted = "ETCD_MIGRATE_TEST_IN_HUGE_PAGES", "mounted"
	switch os.Getenv(there) {
	case "":
	case mounted: // by the process that has started this one
		return
	default:
		_ = os.Setenv(there, mounted)
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err == nil {
			_ = unix.Mount("tmpfs", inMemory, "tmpfs", 0, "huge=always") // else what is there will do
		}
		return
	}
	if os.Geteuid() != 0 {
		return // as root of a user namespace the tests would not be those of this user
	}
	runtime.LockOSThread() // whose end would be that of the process
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), there+"=wanted")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return
	}
	_ = cmd.Wait()
	os.Exit(cmd.ProcessState.ExitCode())
}
