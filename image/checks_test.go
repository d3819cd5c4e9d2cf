//go:build image

package image_test

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// serves checks everything that a control plane needs of a running pod.
func (n *node) serves(before pathtest.Content) {
	n.Helper()
	for name, p := range n.probes {
		if _, err := n.ask(p); err != nil {
			n.Errorf("%s probe: %v", name, err)
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

// holds sees that the pod's etcd gives those who show a certificate what the old one had.
func (n *node) holds(before pathtest.Content) {
	n.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"https://" + n.client}, TLS: n.ca.client(n.T, "kube-apiserver-etcd-client"),
		Logger: zap.NewNop(), DialTimeout: 10 * time.Second, MaxCallRecvMsgSize: 1 << 30,
	})
	if err != nil {
		n.Fatal(err)
	}
	defer c.Close()
	after, err := pathtest.ReadV3(n.Context(), c)
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
		n.Error("the container's root file system can be written to")
	}
}

// ownsAll sees that nothing in the data dir has come to belong to anybody else.
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
		if owner := info.Sys().(*syscall.Stat_t).Uid; owner != uid {
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
