//go:build image

package image_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
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

// probe is one of a container's probes, of the kinds that the manifests have.
type probe struct {
	HTTPGet *struct {
		Host, Path, Scheme string
		Port               any // a number or the name of one
	}
	Exec *struct{ Command []string }
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
	if err := os.MkdirAll(n.data, 0o700); err != nil {
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
	n.probes = map[string]*probe{"liveness": c.LivenessProbe, "readiness": c.ReadinessProbe, "startup": c.StartupProbe}
	for _, p := range n.probes {
		for _, port := range c.Ports {
			if p != nil && p.HTTPGet != nil && p.HTTPGet.Port == port.Name {
				p.HTTPGet.Port = port.ContainerPort
			}
		}
	}

	var all map[string]any
	if err := yaml.Unmarshal([]byte(manifest), &all); err != nil {
		n.Fatal(err)
	}
	spec := all["spec"].(map[string]any)
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
	out, err := json.Marshal(all)
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

// own gives everything that the pod uses to its user, as docs/kubeadm.md tells people to do.
func (n *node) own() {
	n.Helper()
	for _, dir := range []string{n.data, filepath.Join(n.root, "etc")} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, uid, uid)
		})
		if err != nil {
			n.Fatal(err)
		}
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

// wait waits until the startup probe is answered, as a kubelet does.
func (n *node) wait() {
	n.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := n.probe("startup")
		if err == nil {
			return
		}
		if time.Now().After(deadline) || n.inspect("{{.RestartCount}}") > "2" {
			n.Fatalf("%v\nthe container is %s; its output:\n%s", err, n.inspect("{{.State.Status}}"), n.logs())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

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

// probe does what a kubelet does for a probe.
func (n *node) probe(name string) error {
	p := n.probes[name]
	switch {
	case p == nil:
		return fmt.Errorf("the manifest has no %s probe", name)
	case p.Exec != nil:
		_, err := containers.run(append([]string{"exec", n.container}, p.Exec.Command...)...)
		return err
	}
	g := p.HTTPGet
	client := http.Client{Timeout: 15 * time.Second}
	res, err := client.Get(fmt.Sprintf("%s://%s:%v%s", strings.ToLower(g.Scheme), g.Host, g.Port, g.Path))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", name, g.Path, res.Status)
	}
	return nil
}

// connect gives an etcd client with the TLS settings of the named user, or of nobody if that is empty.
func (n *node) connect(user string) *clientv3.Client {
	n.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + n.client}, TLS: n.ca.client(n.T, user), Logger: zap.NewNop(),
		DialTimeout: 10 * time.Second, MaxCallRecvMsgSize: 1 << 30,
	})
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { _ = c.Close() })
	return c
}

// holds sees that the pod's etcd has what the old one had.
func (n *node) holds(before pathtest.Content) {
	n.Helper()
	after, err := pathtest.ReadV3(n.Context(), n.connect("kube-apiserver-etcd-client"))
	if err != nil {
		n.Fatalf("%v\n%s", err, n.logs())
	}
	if len(after.Keys) == 0 {
		n.Error("the etcd is empty")
	}
	for _, diff := range pathtest.Compare(before, after) {
		n.Error(diff)
	}
}

// asksForCertificates sees that the etcd has nothing to say to those who show none.
func (n *node) asksForCertificates() {
	n.Helper()
	client := http.Client{Transport: &http.Transport{TLSClientConfig: n.ca.client(n.T, "")}, Timeout: 10 * time.Second}
	res, err := client.Get("https://" + n.client + "/version")
	if err == nil {
		res.Body.Close()
		n.Errorf("etcd answers a client without a certificate: %s", res.Status)
	} else if !strings.Contains(err.Error(), "certificate required") {
		n.Error(err)
	}
}

// isEtcd sees that the container's process 1 is the etcd of that release, with as few rights as the manifest gives it.
func (n *node) isEtcd(release string) {
	n.Helper()
	proc := filepath.Join("/proc", n.inspect("{{.State.Pid}}"))
	exe, err := os.Readlink(filepath.Join(proc, "exe"))
	if err != nil {
		n.Fatal(err)
	}
	if want := "/usr/local/bin/etcd-" + release; exe != want {
		n.Errorf("process 1 is %s instead of %s", exe, want)
	}
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		n.Fatal(err)
	}
	id := strings.TrimRight(strings.Repeat(strconv.Itoa(uid)+"\t", 4), "\t")
	want := map[string]string{
		"Uid": id, "Gid": id, "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapPrm": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if w, ok := want[key]; ok && w != value {
			n.Errorf("%s of the etcd is %q instead of %q", key, value, w)
		}
		delete(want, key)
	}
	if len(want) > 0 {
		n.Errorf("/proc says nothing of %v", want)
	}
	mounts, err := os.ReadFile(filepath.Join(proc, "mounts"))
	if err != nil {
		n.Fatal(err)
	}
	readOnly := false
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		readOnly = readOnly || f[1] == "/" && (f[3] == "ro" || strings.HasPrefix(f[3], "ro,"))
	}
	if !readOnly {
		n.Errorf("the container's root file system can be written to:\n%s", mounts)
	}
}

// ownsAll sees that nothing in the data dir has come to belong to anybody else, nor can be read by others.
func (n *node) ownsAll() {
	n.Helper()
	err := filepath.WalkDir(n.data, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if owner := ownerOf(info); owner != uid {
			n.Errorf("%s belongs to user %d", path, owner)
		}
		return nil
	})
	if err != nil {
		n.Fatal(err)
	}
}

// version gives the content of version.txt, or nothing if there is none yet.
func (n *node) version() string {
	n.Helper()
	b, err := os.ReadFile(filepath.Join(n.data, versionfile.Name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.Fatal(err)
	}
	return string(b)
}

func freePorts(t *testing.T, count int) (ports []string) {
	t.Helper()
	for range count {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	return ports
}
