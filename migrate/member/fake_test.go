package member

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fake makes a binary that behaves as an etcd only sometimes does. It is the test binary under another name, because
// the environment and the flags of a private etcd leave no room to say how it shall behave.
func fake(t *testing.T, role string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "fake-"+role)
	if err := os.Symlink(exe, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func fakeEtcd(role string) {
	switch role {
	case "ignores-sigterm":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Minute)
	case "ends-with-0":
		os.Exit(0)
	case "fails-to-stop":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		<-c
		fmt.Println("panic: freeing of the backend failed")
		os.Exit(2)
	case "finds-port-taken":
		// Twice, and then it becomes the etcd that the file beside it names.
		counter := os.Args[0] + ".runs"
		runs, _ := os.ReadFile(counter)
		if err := os.WriteFile(counter, append(runs, '.'), 0o600); err != nil {
			panic(err)
		}
		real, err := os.ReadFile(os.Args[0] + ".real")
		if err != nil || len(runs) < 2 {
			fmt.Println("2020-01-01 00:00:00.000000 C | etcdmain: listen tcp 127.0.0.1:2379: bind: address already in use")
			os.Exit(1)
		}
		panic(syscall.Exec(string(real), os.Args, os.Environ()))
	}
	panic("no such role: " + role)
}

// helperEnv makes the test binary the parent of private etcds, so that the parent's fate can be tested.
const helperEnv = "MEMBER_TEST_HELPER"

// command makes a helper with arguments of its own.
func command(role string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

// signalMask reads a set of signals from a process's status: see proc(5).
func signalMask(t testing.TB, status []byte, which string) (mask uint64) {
	t.Helper()
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, which+":"); ok {
			if _, err := fmt.Sscanf(strings.TrimSpace(value), "%x", &mask); err != nil {
				t.Fatal(err)
			}
			return mask
		}
	}
	t.Fatalf("no %s in the status %s", which, status)
	return 0
}
