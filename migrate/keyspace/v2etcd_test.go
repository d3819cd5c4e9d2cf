package keyspace

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// v2Etcd is a real etcd on a directory of its own, driven through the v2 API.
type v2Etcd struct {
	t                    *testing.T
	binary, version      string
	dir, name, url, peer string
	args                 []string // of its last start
	cmd                  *exec.Cmd
	log                  bytes.Buffer
	auth                 bool     // requests need a password
	hidden               []string // keys that no listing shows
	lastIndex            uint64   // X-Etcd-Index of the last answer
}

func v2EtcdBinary(t *testing.T, version string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real etcds")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(set.Dir, "etcd-"+version)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make binaries", err)
	}
	return path
}

func v2FreeURL(t *testing.T) string {
	t.Helper()
	u, err := pathtest.FreeURL()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func newV2Etcd(t *testing.T, version string) *v2Etcd {
	t.Helper()
	e := &v2Etcd{t: t, binary: v2EtcdBinary(t, version), version: version}
	e.dir, e.url, e.peer = t.TempDir(), v2FreeURL(t), v2FreeURL(t)
	e.name = "m-" + strings.NewReplacer("http://", "", ":", "-").Replace(e.peer)
	t.Cleanup(func() {
		if e.cmd != nil && e.cmd.ProcessState == nil {
			e.cmd.Process.Kill()
			e.cmd.Wait()
		}
	})
	return e
}

// start starts the member, in a new cluster of its own or with the others in an existing one.
func (e *v2Etcd) start(with []*v2Etcd, args ...string) {
	e.t.Helper()
	cluster, state := e.name+"="+e.peer, "new"
	for _, other := range with {
		cluster, state = cluster+","+other.name+"="+other.peer, "existing"
	}
	if e.version >= "3.4" {
		args = append(args, "--enable-v2")
	}
	e.args = append([]string{
		"--name", e.name, "--data-dir", e.dir,
		"--listen-client-urls", e.url, "--advertise-client-urls", e.url,
		"--listen-peer-urls", e.peer, "--initial-advertise-peer-urls", e.peer,
		"--initial-cluster", cluster, "--initial-cluster-state", state,
		"--heartbeat-interval", "10", "--election-timeout", "50",
	}, args...)
	e.restart()
}

func (e *v2Etcd) restart() {
	e.t.Helper()
	if e.cmd != nil {
		e.stop()
	}
	e.cmd = exec.Command(e.binary, e.args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ETCD_") {
			e.cmd.Env = append(e.cmd.Env, v)
		}
	}
	e.cmd.Stdout, e.cmd.Stderr = &e.log, &e.log
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
}

func (e *v2Etcd) wait() {
	e.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get(e.url + "/v2/keys/?quorum=true")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK && e.clusterVersion() {
				break
			}
		}
		if time.Now().After(deadline) {
			e.stop()
			e.t.Fatalf("etcd does not answer: %v\n%s", err, e.log.String())
		}
	}
}

// clusterVersion reports whether the cluster has agreed on a version, which the leader proposes after its election.
func (e *v2Etcd) clusterVersion() bool {
	resp, err := http.Get(e.url + "/version")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return err == nil && !bytes.Contains(body, []byte("not_decided"))
}

func (e *v2Etcd) stop() {
	e.t.Helper()
	e.cmd.Process.Signal(syscall.SIGTERM)
	e.cmd.Wait()
}

// do sends a request for a key and wants the status. The form's pairs go into the body of a PUT or POST and into the
// query of anything else.
func (e *v2Etcd) do(method, key string, status int, form ...string) []byte {
	e.t.Helper()
	values := url.Values{}
	for i := 0; i < len(form); i += 2 {
		values.Set(form[i], form[i+1])
	}
	u, err := url.Parse(e.url)
	if err != nil {
		e.t.Fatal(err)
	}
	u.Path = "/v2/keys" + key
	var body io.Reader
	header := http.Header{}
	if method == "PUT" || method == "POST" {
		body = strings.NewReader(values.Encode())
		header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else {
		u.RawQuery = values.Encode()
	}
	return e.send(method, u.String(), header, body, status)
}

func (e *v2Etcd) send(method, url string, header http.Header, body io.Reader, status int) []byte {
	e.t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header = header
	if e.auth {
		req.SetBasicAuth("root", "pw")
	}
	var resp *http.Response
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if resp, err = http.DefaultClient.Do(req); err != nil {
			e.t.Fatal(err)
		}
		if resp.StatusCode/100 != 5 || status/100 == 5 || req.GetBody == nil || method == "POST" || time.Now().After(deadline) {
			break
		}
		_ = resp.Body.Close() // two that have lost each other, which they do on a busy machine
		if req.Body, err = req.GetBody(); err != nil {
			e.t.Fatal(err)
		}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	if resp.StatusCode/100 != status/100 {
		e.t.Fatalf("%s %.200q: %s %.300s, want %d", method, url, resp.Status, answer, status)
	}
	if index := resp.Header.Get("X-Etcd-Index"); index != "" {
		e.lastIndex, _ = strconv.ParseUint(index, 10, 64)
	}
	return answer
}

func (e *v2Etcd) json(method, path, body string) []byte {
	e.t.Helper()
	return e.send(method, e.url+path, http.Header{"Content-Type": {"application/json"}}, strings.NewReader(body), 200)
}

// set is a plain PUT, and remembers what no listing shows.
func (e *v2Etcd) set(key, value string, form ...string) {
	e.t.Helper()
	e.do("PUT", key, 200, append([]string{"value", value}, form...)...)
	if strings.Contains(key, "/_") {
		e.hidden = append(e.hidden, key)
	}
}

// v2Answer is the node in an answer of the v2 API.
type v2Answer struct {
	Key           string
	Value         string
	Dir           bool
	Expiration    *time.Time
	CreatedIndex  uint64
	ModifiedIndex uint64
	Nodes         []v2Answer
}

func (a v2Answer) collect(into map[string]v2Node) {
	n := v2Node{Dir: a.Dir, Value: a.Value, Created: a.CreatedIndex, Modified: a.ModifiedIndex}
	if a.Expiration != nil {
		n.Expiry = a.Expiration.UTC()
	}
	if a.Key != "" {
		into[a.Key] = n
	}
	for _, child := range a.Nodes {
		child.collect(into)
	}
}

// live gives what the running etcd shows: its full listing, and the hidden keys by name. A hidden directory that a
// hidden key brought into being is not shown by either.
func (e *v2Etcd) live() map[string]v2Node {
	e.t.Helper()
	nodes := map[string]v2Node{}
	for _, key := range append([]string{"/"}, e.hidden...) {
		var answer struct{ Node v2Answer }
		raw := e.do("GET", key, 200, "recursive", "true", "sorted", "true")
		if err := json.Unmarshal(raw, &answer); err != nil {
			e.t.Fatalf("GET %q: %v", key, err)
		}
		answer.Node.collect(nodes)
	}
	return nodes
}
