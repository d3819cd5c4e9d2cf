//go:build image

package image_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStaticPod plays the manifests on old data dirs, and again, as after a reboot.
func TestStaticPod(t *testing.T) {
	for name, tc := range map[string]struct{ manifest, minor string }{
		"kubeadm from 2.2": {"etcd.yaml", "2.2"},
		"kubeadm from 3.4": {"etcd.yaml", "3.4"},
		"GCE from 2.3":     {"gce-etcd.json", "2.3"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, tc.manifest)
			before := n.fill(tc.minor, 200)
			n.own()
			for _, when := range []string{"first", "again"} {
				began := time.Now()
				n.play()
				n.wait()
				t.Logf("%s: ready %s after kube play began", when, time.Since(began).Round(time.Millisecond))
				n.serves(before)
				n.down()
			}
		})
	}
}

// TestProbed asks for the startup probe, over and over, from before the migration until etcd has taken over. Once somebody
// has answered, there may only be the one gap in which etcd starts, and it must be shorter than what makes the kubelet's
// liveness probe end the container.
func TestProbed(t *testing.T) {
	n := newNode(t, "etcd.yaml")
	before := n.fill("2.2", 3000)
	n.own()
	n.play()
	var answered, etcd bool
	var gaps []time.Duration
	var silent time.Time
	answers := map[string]int{} // by what the migration was doing
	for deadline := time.Now().Add(2 * time.Minute); !etcd; {
		if time.Now().After(deadline) {
			t.Fatalf("etcd does not answer:\n%s", n.logs())
		}
		answer, err := n.ask(n.probes["startup"])
		switch {
		case err != nil && answered && migrating(answer):
			t.Fatal(err)
		case err != nil && answered && silent.IsZero():
			silent = time.Now()
		case err != nil:
		default:
			answered = true
			if !silent.IsZero() {
				gaps = append(gaps, time.Since(silent))
				silent = time.Time{}
			}
			if etcd = !migrating(answer); !etcd {
				answers[strings.TrimSpace(answer)]++
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	if len(answers) < 5 {
		t.Errorf("the migration has hardly answered: %v", answers)
	}
	p := n.probes["liveness"]
	most := time.Duration((p.FailureThreshold-1)*p.PeriodSeconds) * time.Second
	if len(gaps) > 1 || len(gaps) == 1 && gaps[0] > most {
		t.Errorf("nobody answered for %v; there may be one gap of %s", gaps, most)
	}
	t.Logf("answers: %v, gap: %v", answers, gaps)
	n.wait()
	n.serves(before)
}

// TestEnded ends the container again and again in the middle of a migration, by force as a node's failure does and
// politely as a kubelet does. It must come back, go on where it was, and lose nothing.
func TestEnded(t *testing.T) {
	n := newNode(t, "etcd.yaml")
	before := n.fill("2.2", 3000)
	n.own()
	n.play()
	for _, tc := range []struct {
		when    string
		reached func() bool
		end     []string
		code    string
	}{
		{"the backup is begun", func() bool { return exists(filepath.Join(n.data, "etcd-migrate")) }, []string{"kill"}, "137"},
		{"it is at 2.3", n.at("2.3."), []string{"kill"}, "137"},
		{"the keys are converted", n.at("3.0.17/etcd3"), []string{"kill"}, "137"},
		{"it is at 3.2", n.at("3.2."), []string{"stop", "--time=30"}, "143"},
		{"it is at 3.4", n.at("3.4."), []string{"kill"}, "137"},
	} {
		n.until(tc.when, tc.reached)
		containers.must(t, append(tc.end, n.container)...)
		n.until("it has ended", func() bool { return n.inspect("{{.State.Status}}") == "exited" })
		if v := n.version(); strings.HasPrefix(v, target) {
			t.Fatalf("%s: the migration was over before it could be ended", tc.when)
		}
		if code := n.inspect("{{.State.ExitCode}}"); code != tc.code {
			t.Errorf("%s: exit code %s instead of %s", tc.when, code, tc.code)
		}
		t.Logf("%s: ended with version.txt at %q", tc.when, n.version())
		// A new pod, as after a reboot: podman stops a pod after its last container has ended, but a moment later, and would
		// stop a container that has been started again in between as well.
		n.down()
		n.play()
	}
	n.wait()
	n.serves(before)
	backups, err := filepath.Glob(filepath.Join(n.data, "etcd-migrate", "backups", "*-etcd2"))
	if err != nil || len(backups) != 1 {
		t.Errorf("there is not one backup, but %d: %v", len(backups), backups)
	}
}

// at says whether version.txt has come to that release or storage.
func (n *node) at(version string) func() bool {
	return func() bool { return strings.HasPrefix(n.version(), version) }
}

// until waits for something that is to happen soon.
func (n *node) until(what string, happened func() bool) {
	n.Helper()
	for deadline := time.Now().Add(time.Minute); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			n.Fatalf("not after a minute: %s; the container is %s; its output:\n%s",
				what, n.inspect("{{.State.Status}}"), n.logs())
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
