package keyspace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
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

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
)

// v2Etcd is a real etcd on a directory of its own, driven through the v2 API.
type v2Etcd struct {
	t         *testing.T
	dir       string
	url       string
	peer      string
	cmd       *exec.Cmd
	log       bytes.Buffer
	auth      bool
	hidden    []string // keys that no listing shows
	lastIndex uint64   // X-Etcd-Index of the last answer
}

func v2EtcdBinary(t *testing.T, version string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real etcd")
	}
	dir := os.Getenv("ETCD_MIGRATE_BIN_DIR")
	if dir == "" {
		wd, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for dir = filepath.Join(wd, "bin", "etcd"); ; dir = filepath.Join(wd, "bin", "etcd") {
			if _, err := os.Stat(dir); err == nil || wd == filepath.Dir(wd) {
				break
			}
			wd = filepath.Dir(wd)
		}
	}
	path := filepath.Join(dir, "etcd-"+version)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("run make binaries: %v", err)
	}
	return path
}

func v2FreeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startV2Etcd starts a member and waits until it answers. cluster is its --initial-cluster beside itself, "" for none.
func startV2Etcd(t *testing.T, version, cluster string, args ...string) *v2Etcd {
	t.Helper()
	binary := v2EtcdBinary(t, version)
	e := &v2Etcd{t: t, dir: t.TempDir(), url: "http://" + v2FreeAddr(t), peer: "http://" + v2FreeAddr(t)}
	name := "m" + e.peer[strings.LastIndexByte(e.peer, ':')+1:]
	state := "new"
	if cluster != "" {
		cluster, state = cluster+",", "existing"
	}
	e.cmd = exec.Command(binary, append([]string{
		"--name", name, "--data-dir", e.dir,
		"--listen-client-urls", e.url, "--advertise-client-urls", e.url,
		"--listen-peer-urls", e.peer, "--initial-advertise-peer-urls", e.peer,
		"--initial-cluster", cluster + name + "=" + e.peer, "--initial-cluster-state", state,
		"--heartbeat-interval", "10", "--election-timeout", "50",
	}, args...)...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ETCD_") {
			e.cmd.Env = append(e.cmd.Env, v)
		}
	}
	e.cmd.Stdout, e.cmd.Stderr = &e.log, &e.log
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if e.cmd.ProcessState == nil {
			e.cmd.Process.Kill()
			e.cmd.Wait()
		}
	})
	return e
}

func (e *v2Etcd) wait() {
	e.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get(e.url + "/v2/keys/?quorum=true")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) {
			e.stop()
			e.t.Fatalf("etcd does not answer: %v\n%s", err, e.log.String())
		}
	}
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
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		e.t.Fatal(err)
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

// v2Replay reads a stopped member's directory: its newest snapshot and the committed entries after it.
func v2Replay(t *testing.T, dir string) (tree *Tree, snapshots, entries int) {
	t.Helper()
	lg := zap.NewNop()
	tree, at := NewTree(), walpb.Snapshot{}
	found, err := snap.New(lg, filepath.Join(dir, "member", "snap")).Load()
	switch {
	case err == nil:
		if tree, err = LoadTree(found.Data); err != nil {
			t.Fatal(err)
		}
		at.Index, at.Term = found.Metadata.Index, found.Metadata.Term
		snapshots = 1
	case !errors.Is(err, snap.ErrNoSnapshot):
		t.Fatal(err)
	}
	w, err := wal.OpenForRead(lg, filepath.Join(dir, "member", "wal"), at)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, state, ents, err := w.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, ent := range ents {
		if ent.Index > state.Commit {
			break
		}
		entries++
		if err := v2ApplyEntry(tree, ent); err != nil {
			t.Fatalf("entry %d: %v", ent.Index, err)
		}
	}
	return tree, snapshots, entries
}

func v2ApplyEntry(tree *Tree, ent raftpb.Entry) error {
	if ent.Type == raftpb.EntryConfChange {
		var cc raftpb.ConfChange
		if err := cc.Unmarshal(ent.Data); err != nil {
			return err
		}
		return tree.ApplyConfChange(&cc)
	}
	if len(ent.Data) == 0 {
		return nil
	}
	var r etcdserverpb.InternalRaftRequest
	if r.Unmarshal(ent.Data) == nil {
		return tree.ApplyV3(&r)
	}
	var v2 etcdserverpb.Request
	if err := v2.Unmarshal(ent.Data); err != nil {
		return err
	}
	return tree.ApplyV2(&v2)
}

// v2Valid makes of a key or value what a JSON answer shows of it.
func v2Valid(s string) string {
	raw, _ := json.Marshal(s)
	json.Unmarshal(raw, &s)
	return s
}

// compareDir holds what the stopped member's directory says against what the member said last.
func (e *v2Etcd) compareDir(live map[string]v2Node, index uint64) *Tree {
	e.t.Helper()
	tree, snapshots, entries := v2Replay(e.t, e.dir)
	e.t.Logf("%d live nodes, %d snapshot, %d entries, index %d", len(live), snapshots, entries, index)
	if tree.Index() != index {
		e.t.Errorf("index %d, etcd had %d", tree.Index(), index)
	}

	got := map[string]v2Node{}
	for path, n := range v2Nodes(tree) {
		key, user := strings.CutPrefix(path, "/1/")
		if !user {
			continue
		}
		key, n.Value = v2Valid("/"+key), v2Valid(n.Value)
		if _, shown := live[key]; !shown && n.Dir && strings.Contains(key, "/_") {
			continue
		}
		got[key] = n
	}
	if diff := cmp.Diff(live, got); diff != "" {
		e.t.Errorf("nodes differ (-etcd +tree)\n%.5000s", diff)
	}

	records, last := map[string]v2Node{}, ""
	err := tree.Each(time.Now(), func(r Record) error {
		if string(r.Key) <= last {
			e.t.Errorf("key %q comes after %q", r.Key, last)
		}
		last = string(r.Key)
		records[v2Valid(last)] = v2Node{
			Value: v2Valid(string(r.Value)), Created: uint64(r.Created), Modified: uint64(r.Modified), Expiry: r.Expiry,
		}
		return nil
	})
	if err != nil {
		e.t.Fatal(err)
	}
	want := map[string]v2Node{}
	for key, n := range live {
		if n.Dir {
			continue
		}
		for dir := filepath.Dir(key); dir != "/"; dir = filepath.Dir(dir) {
			if x := live[dir].Expiry; !x.IsZero() && (n.Expiry.IsZero() || x.Before(n.Expiry)) {
				n.Expiry = x
			}
		}
		want[key] = n
	}
	if diff := cmp.Diff(want, records); diff != "" {
		e.t.Errorf("records differ (-etcd +tree)\n%.5000s", diff)
	}
	return tree
}

func v2Path(elem string, depth int) string { return strings.Repeat("/"+elem, depth) }

// v2Form gives pairs for do, for the sake of short lines.
func v2Form(pairs string) []string {
	var form []string
	for _, pair := range strings.Fields(pairs) {
		k, v, _ := strings.Cut(pair, "=")
		form = append(form, k, v)
	}
	return form
}

var v2Letters = fmt.Sprintf("%s<&>\"\\\x00\x01\x1f\x7f\u2028", strings.Repeat("é", 100))
