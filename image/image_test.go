//go:build image

package image_test

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

const imageName = "localhost/etcd-migrate/etcd:test"

var (
	containers *podman // shared, because building the image takes a while
	imageID    string
	target     string // the release of the image's etcd
)

func TestMain(m *testing.M) { os.Exit(runAll(m)) }

func runAll(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "etcd-migrate-image-")
	if err == nil {
		defer func() {
			if err := os.RemoveAll(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}()
		containers, err = newPodman(dir)
	}
	if err == nil {
		imageID, err = containers.build(imageName)
	}
	if err == nil {
		target, err = containers.run("image", "inspect", `--format={{index .Labels "etcd-migrate.target"}}`, imageName)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "the container tests cannot run:", err)
		return 1
	}
	return m.Run()
}

func TestStaticPod(t *testing.T) {
	for _, minor := range []string{"2.2", "3.4"} {
		t.Run(minor, func(t *testing.T) {
			n := newNode(t, "etcd.yaml")
			before := n.fill(minor, 200)
			n.own()
			began := time.Now()
			n.play()
			n.wait()
			t.Logf("ready %s after kube play", time.Since(began).Round(time.Millisecond))
			n.serves(before)

			// Again, as after a reboot.
			n.down()
			began = time.Now()
			n.play()
			n.wait()
			t.Logf("ready %s after kube play when nothing is to be done", time.Since(began).Round(time.Millisecond))
			n.serves(before)
		})
	}
}

// serves checks everything that a control plane needs of a running pod.
func (n *node) serves(before pathtest.Content) {
	n.Helper()
	for _, name := range []string{"readiness", "liveness"} {
		if err := n.probe(name); err != nil && n.probes[name] != nil {
			n.Errorf("%s: %v", name, err)
		}
	}
	n.isEtcd(target)
	n.holds(before)
	n.asksForCertificates()
	n.ownsAll()
	if v, want := n.version(), target+"/etcd3"; v != want {
		n.Errorf("version.txt says %q instead of %q", v, want)
	}
}

// TestKilled kills the container again and again in the middle of a migration. It must come back, go on, and lose nothing.
func TestKilled(t *testing.T) {
	n := newNode(t, "etcd.yaml")
	before := n.fill("2.2", 3000)
	n.own()
	n.play()
	for _, signal := range []string{"KILL", "TERM"} {
		_ = signal
	}
	for _, at := range []string{"2.3", "3.0", "3.1", "3.4"} {
		n.until("version.txt says "+at, func() bool { return strings.HasPrefix(n.version(), at) })
		containers.must(t, "kill", n.container)
		t.Log("killed at", n.version(), n.inspect("{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}} {{.State.Pid}}"))
		time.Sleep(time.Second)
		t.Log("killed at", n.version(), n.inspect("{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}} {{.State.Pid}}"))
		containers.must(t, "start", n.container)
	}
	n.wait()
	n.serves(before)
	t.Log(n.logs())
}

// until waits for something that is to happen soon.
func (n *node) until(what string, happened func() bool) {
	n.Helper()
	for deadline := time.Now().Add(time.Minute); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			n.Fatalf("not after a minute: %s; the container is %s; its output:\n%s", what, n.inspect("{{.State.Status}}"), n.logs())
		}
	}
}

func ownerOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

var _ = strings.Contains
