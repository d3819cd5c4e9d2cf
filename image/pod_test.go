//go:build image

package image_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

const (
	uid         = 65532       // of the manifests, and the image's default
	nodeAddress = "127.0.0.2" // stands in for the manifests' 192.0.2.10
)

// node is a machine of a control plane, as far as an etcd pod sees it.
type node struct {
	*testing.T
	root      string // the pod's host paths lie below it
	data      string // the data dir on the host
	ca        *authority
	manifest  string // what is played
	pod       string
	container string
	client    string // the address to talk to etcd
	probes    map[string]*probe
}

// probe is one of a container's probes, as the manifests have them.
type probe struct {
	HTTPGet *struct {
		Host, Path, Scheme string
		Port               any // a number or the name of one
	}
	FailureThreshold, PeriodSeconds int
}

// newNode makes a node for a manifest, with its certificates and an empty data dir.
func newNode(t *testing.T, manifest string) *node {
	t.Helper()
	n := &node{T: t, root: t.TempDir(), ca: newAuthority(t)}
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	ports := freePorts(t, 3)
	n.client = net.JoinHostPort("127.0.0.1", ports[0])
	adapted := strings.NewReplacer("192.0.2.10", nodeAddress, "etcd-cp1", pathtest.Name, "cp1", pathtest.Name,
		"2379", ports[0], "2380", ports[1], "2381", ports[2], "2382", ports[2]).Replace(string(text))
	n.adapt(adapted)

	pki := filepath.Join(n.root, "/etc/kubernetes/pki/etcd")
	gce := filepath.Join(n.root, "/etc/srv/kubernetes")
	n.ca.write(t, filepath.Join(pki, "ca.crt"), filepath.Join(pki, "server"), filepath.Join(pki, "peer"))
	n.ca.write(t, filepath.Join(gce, "etcd-ca.crt"), filepath.Join(gce, "etcd-peer"))
	n.ca.write(t, filepath.Join(gce, "pki/etcd-apiserver-ca.crt"), filepath.Join(gce, "pki/etcd-apiserver-server"),
		filepath.Join(gce, "pki/etcd-apiserver-client"))
	if err := errors.Join(os.MkdirAll(n.data, 0o755), os.Chmod(n.data, 0o700)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := containers.close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// adapt makes the manifest into one that podman can play here: with our image and paths, and without the ports and
// probes, because podman maps ports even on the host's network, and wants curl in the image for the probes.
func (n *node) adapt(manifest string) {
	n.Helper()
	var pod struct {
		Metadata struct{ Name string }
		Spec     struct {
			Containers []struct {
				Name                                        string
				LivenessProbe, ReadinessProbe, StartupProbe *probe
				Ports                                       []struct {
					Name          string
					ContainerPort int
				}
			}
		}
	}
	if err := yaml.Unmarshal([]byte(manifest), &pod); err != nil {
		n.Fatal(err)
	}
	c := pod.Spec.Containers[0]
	n.pod, n.container = pod.Metadata.Name, pod.Metadata.Name+"-"+c.Name
	n.probes = map[string]*probe{}
	all := map[string]*probe{"liveness": c.LivenessProbe, "readiness": c.ReadinessProbe, "startup": c.StartupProbe}
	for name, p := range all {
		if p == nil {
			continue
		}
		for _, port := range c.Ports {
			if p.HTTPGet.Port == port.Name {
				p.HTTPGet.Port = port.ContainerPort
			}
		}
		n.probes[name] = p
	}

	var play map[string]any
	if err := yaml.Unmarshal([]byte(manifest), &play); err != nil {
		n.Fatal(err)
	}
	spec := play["spec"].(map[string]any)
	container := spec["containers"].([]any)[0].(map[string]any)
	container["image"] = imageName
	for _, key := range []string{"ports", "livenessProbe", "readinessProbe", "startupProbe"} {
		delete(container, key)
	}
	for _, v := range spec["volumes"].([]any) {
		host := v.(map[string]any)["hostPath"].(map[string]any)
		path := filepath.Join(n.root, host["path"].(string))
		host["path"] = path
		switch v.(map[string]any)["name"] {
		case "etcd-data":
			n.data = path
		case "varetcd":
			n.data = filepath.Join(path, "data")
		}
	}
	out, err := json.Marshal(play)
	if err != nil {
		n.Fatal(err)
	}
	n.manifest = filepath.Join(n.root, "pod.json")
	if err := os.WriteFile(n.manifest, out, 0o600); err != nil {
		n.Fatal(err)
	}
}

// fill lets an old etcd write the node's data, and gives what it holds. From 3.0 on that is in the v3 store.
func (n *node) fill(minor string, plainKeys int) pathtest.Content {
	n.Helper()
	m, err := versionfile.ParseMinor(minor)
	if err != nil {
		n.Fatal(err)
	}
	etcds, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		n.Fatal(err)
	}
	bin, ok := etcds.Newest(m)
	if !ok {
		n.Fatalf("no etcd %s among %s; run `make binaries`", minor, etcds)
	}
	// With etcd's usual timing, as in the pod: the shortest TTL that an etcd grants follows from it.
	server, err := pathtest.Start(n.Context(), bin, n.data, "--heartbeat-interval", "100", "--election-timeout", "1000")
	if err != nil {
		n.Fatal(err)
	}
	var content pathtest.Content
	if m.Storage() == versionfile.Etcd2 {
		if err = server.FillV2(n.Context(), plainKeys); err == nil {
			content, err = server.ReadV2(n.Context(), pathtest.Hidden...)
		}
	} else {
		if err = server.FillV3(n.Context(), plainKeys); err == nil {
			content, err = server.ReadV3(n.Context())
		}
	}
	if err := errors.Join(err, server.Stop()); err != nil {
		n.Fatal(err)
	}
	return content
}

// own gives the pod's user what docs/kubeadm.md says that it needs: the data, and the keys of the certificates.
func (n *node) own() {
	n.Helper()
	chown(n.T, n.data, uid)
	err := filepath.WalkDir(filepath.Join(n.root, "etc"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".key" {
			return err
		}
		return os.Lchown(path, uid, -1)
	})
	if err != nil {
		n.Fatal(err)
	}
	for dir := n.root; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil { // the test's directories are root's alone
			n.Fatal(err)
		}
	}
}

// play starts the pod.
func (n *node) play() {
	n.Helper()
	containers.must(n.T, "kube", "play", n.manifest)
}

// down ends the pod, as the removal of a static pod's manifest does.
func (n *node) down() {
	n.Helper()
	containers.must(n.T, "kube", "down", n.manifest)
}

// wait waits until the etcd answers the startup probe. The migration answers it, too.
func (n *node) wait() {
	n.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		answer, err := n.ask(n.probes["startup"])
		if err == nil && !migrating(answer) {
			return
		}
		if time.Now().After(deadline) || n.inspect("{{.RestartCount}}") > "2" {
			n.Fatalf("%q, %v\nthe container is %s; its output:\n%s", answer, err, n.inspect("{{.State.Status}}"), n.logs())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// migrating reports whether it was the migration that has answered a probe.
func migrating(answer string) bool { return strings.HasPrefix(answer, "migrating: ") }

func (n *node) inspect(format string) string {
	n.Helper()
	return containers.must(n.T, "container", "inspect", "--format="+format, n.container)
}

// logs gives all that the container has printed, over all its starts.
func (n *node) logs() string {
	n.Helper()
	path := n.inspect("{{.HostConfig.LogConfig.Path}}")
	b, err := os.ReadFile(path)
	if err != nil {
		n.Fatal(err)
	}
	return string(b)
}

// ask does what a kubelet does for a probe, and gives the answer.
func (n *node) ask(p *probe) (answer string, err error) {
	g := p.HTTPGet
	client := http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get(fmt.Sprintf("%s://%s:%v%s", strings.ToLower(g.Scheme), g.Host, g.Port, g.Path))
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", g.Path, res.Status, body)
	}
	return string(body), err
}

// freePorts gives ports below those that the kernel gives to connections, which could take one before the pod does.
func freePorts(t *testing.T, count int) (ports []string) {
	t.Helper()
	for port := 20000 + rand.IntN(8000); len(ports) < count; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, strconv.Itoa(port))
	}
	return ports
}
