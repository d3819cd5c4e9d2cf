package keyspace

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// drive fills the store with everything that the v2 API can do, and with names and values that are hard on files and
// formats.
func (e *v2Etcd) drive(version string) {
	e.t.Helper()
	r, err := versionfile.ParseRelease(version)
	if err != nil {
		e.t.Fatal(err)
	}
	refresh, dirUpdate := r.Line.AtLeast(2, 3), 200
	if r.Line.AtLeast(3, 5) {
		dirUpdate = 500
	}

	for _, name := range []string{
		"plain", "ünïcödé/☃/日本", "a b/%25/+&?#=;", "ctl\x01\n\t\x7f/k", `q"\/x`, "<html>&\u2028", "bad\xff/\xfe", "a-b", "a/b",
	} {
		e.set("/names/"+name, "of "+name)
	}
	for name, value := range map[string]string{
		"empty": "", "letters": v2Letters, "bad": "\xff\xfe\x80", "json": `{"a":["<b>",1]}`, "spaces": "  \n ",
		"big": strings.Repeat(`<"0123456789é\`, 900<<10/15),
	} {
		e.set("/values/"+name, value)
	}
	e.set("/deep"+v2Path("d", 25)+"/key", "bottom")

	// Queues.
	for i := range 3 {
		e.do("POST", "/queue", 201, "value", fmt.Sprint("job", i))
	}
	e.do("POST", "/queue", 201, v2Form("value=soon ttl=1000")...)
	e.do("POST", "/queue", 201, v2Form("dir=true")...)
	e.do("POST", "/names/plain", 400, "value", "below a key")

	// Conditions that hold and that do not.
	e.do("PUT", "/cond/a", 201, v2Form("value=1 prevExist=false")...)
	e.do("PUT", "/cond/a", 412, v2Form("value=2 prevExist=false")...)
	e.do("PUT", "/cond/none", 404, v2Form("value=2 prevExist=true")...)
	e.do("PUT", "/cond/a", 200, v2Form("value=2 prevExist=true")...)
	e.do("PUT", "/cond/a", 200, v2Form("value=3 prevValue=2")...)
	e.do("PUT", "/cond/a", 412, v2Form("value=4 prevValue=2")...)
	e.do("PUT", "/cond/a", 412, v2Form("value=4 prevIndex=1")...)
	e.do("PUT", "/cond/a", 200, "value", "5", "prevIndex", fmt.Sprint(e.lastIndex), "prevValue", "3", "prevExist", "true")
	e.set("/cond/b", "x")
	e.do("DELETE", "/cond/b", 412, v2Form("prevValue=y")...)
	e.do("DELETE", "/cond/b", 200, v2Form("prevValue=x")...)
	e.set("/cond/c", "x")
	e.do("DELETE", "/cond/c", 200, "prevIndex", fmt.Sprint(e.lastIndex))
	e.do("GET", "/cond/a", 200, v2Form("quorum=true")...)

	// Directories.
	e.do("PUT", "/dirs/empty", 201, v2Form("dir=true")...)
	e.set("/dirs/full/a/b", "x")
	e.do("DELETE", "/dirs/full", 403, v2Form("dir=true")...)
	e.do("DELETE", "/dirs/full", 403)
	e.set("/dirs/gone/a/b", "x", "ttl", "1000")
	e.do("DELETE", "/dirs/gone", 200, v2Form("recursive=true")...)
	e.do("PUT", "/dirs/removed", 201, v2Form("dir=true")...)
	e.do("DELETE", "/dirs/removed", 200, v2Form("dir=true")...)
	e.do("PUT", "/dirs/full/a", 403, "value", "over a directory")
	e.set("/dirs/key", "becomes a directory")
	e.do("PUT", "/dirs/key", 200, v2Form("dir=true")...)
	e.do("DELETE", "/", 403, v2Form("recursive=true")...)

	// Hidden ones.
	e.set("/_top", "hidden")
	e.set("/hide/_k", "hidden")
	e.set("/hide/_dir/k", "hidden", "ttl", "315360000")
	e.set("/hide/shown", "")

	// Expiry: years away, over soon, by directory, changed, taken away.
	e.set("/ttl/years", "v", "ttl", "315360000")
	e.set("/ttl/soon", "v", "ttl", "1")
	e.set("/ttl/over", "v", "ttl", "1000")
	e.set("/ttl/over", "for ever")
	e.set("/ttl/cas", "v", "ttl", "1000")
	e.do("PUT", "/ttl/cas", 200, v2Form("value=w prevValue=v")...)
	e.set("/ttl/longer", "v", "ttl", "1")
	e.do("PUT", "/ttl/longer", 200, v2Form("value=w prevExist=true ttl=2000")...)
	e.do("PUT", "/ttl/dir", 201, v2Form("dir=true ttl=1000")...)
	e.set("/ttl/dir/in/k", "v")
	e.set("/ttl/dir/in/sooner", "v", "ttl", "500")
	e.set("/ttl/dir/in/later", "v", "ttl", "5000")
	e.do("PUT", "/ttl/dying", 201, v2Form("dir=true ttl=1")...)
	e.set("/ttl/dying/k", "v")
	e.set("/ttl/dying/years", "v", "ttl", "315360000")
	e.do("PUT", "/ttl/dir2", 201, v2Form("dir=true")...)
	e.do("PUT", "/ttl/dir2", dirUpdate, v2Form("dir=true prevExist=true ttl=3000")...)
	e.set("/ttl/dir2/k", "v")
	if refresh {
		e.set("/ttl/refresh", "kept", "ttl", "1")
		e.do("PUT", "/ttl/refresh", 200, v2Form("refresh=true prevExist=true ttl=4000")...)
		e.do("PUT", "/ttl/refresh", 200, v2Form("refresh=true ttl=4001")...)
		e.do("PUT", "/ttl/refresh", 200, v2Form("refresh=true prevValue=kept ttl=4002")...)
		e.do("PUT", "/ttl/none", 404, v2Form("refresh=true ttl=4000")...)
	}
}

// finish writes on until what has to expire has, and a little more.
func (e *v2Etcd) finish() {
	e.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		live := e.live()
		_, soon := live["/ttl/soon"]
		_, dying := live["/ttl/dying"]
		if !soon && !dying {
			break
		}
		if time.Now().After(deadline) {
			e.t.Fatal("keys do not expire")
		}
		e.set("/churn", time.Now().String())
	}
	for i := range 12 {
		e.set(fmt.Sprintf("/after/%d", i%5), fmt.Sprint(i))
	}
}

// authenticate turns the v2 API's authentication on.
func (e *v2Etcd) authenticate() {
	e.t.Helper()
	e.json("PUT", "/v2/auth/users/root", `{"user":"root","password":"pw"}`)
	e.json("PUT", "/v2/auth/users/bob", `{"user":"bob","password":"pw"}`)
	e.json("PUT", "/v2/auth/roles/reader", `{"role":"reader","permissions":{"kv":{"read":["/*"],"write":[]}}}`)
	e.json("PUT", "/v2/auth/enable", "")
	e.auth = true
}

func (e *v2Etcd) members() []V2Member {
	e.t.Helper()
	var answer struct {
		Members []struct {
			ID, Name             string
			PeerURLs, ClientURLs []string
		}
	}
	raw := e.send("GET", e.url+"/v2/members", http.Header{}, nil, 200)
	if err := json.Unmarshal(raw, &answer); err != nil {
		e.t.Fatal(err)
	}
	var members []V2Member
	for _, m := range answer.Members {
		id, err := treeParseID(m.ID)
		if err != nil {
			e.t.Fatal(err)
		}
		members = append(members, V2Member{ID: id, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs})
	}
	slices.SortFunc(members, func(a, b V2Member) int { return strings.Compare(fmt.Sprintf("%016x", a.ID), fmt.Sprintf("%016x", b.ID)) })
	return members
}

func TestRealEtcd(t *testing.T) {
	for _, version := range []string{"2.2.5", "2.3.8", "3.0.17", "3.1.20", "3.2.32", "3.3.27", "3.4.31", "3.5.35"} {
		for _, snapshots := range []bool{false, true} {
			name := version + "/default"
			var args []string
			if snapshots {
				name = version + "/snapshots"
				args = append(args, "--snapshot-count", "20")
			}
			if version >= "3.4" {
				args = append(args, "--enable-v2")
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				e := startV2Etcd(t, version, "", args...)
				e.wait()
				e.drive(version)
				e.json("PUT", fmt.Sprintf("/v2/members/%x", e.members()[0].ID), `{"peerURLs":["http://127.0.0.1:1","`+e.peer+`"]}`)
				if snapshots {
					e.restart()
				}
				e.finish()
				e.authenticate()

				live, index, members := e.live(), e.lastIndex, e.members()
				e.stop()
				tree := e.compareDir(live, index)
				if got, err := tree.Members(); err != nil || !cmp.Equal(got, members) {
					t.Errorf("members %v\n%s", err, cmp.Diff(members, got))
				}
				auth := V2Auth{Enabled: true, Users: []string{"bob", "root"}, Roles: []string{"guest", "reader"}}
				if diff := cmp.Diff(auth, tree.Auth()); diff != "" {
					t.Errorf("auth\n%s", diff)
				}
				if got := tree.ClusterVersion(); got != version[:3]+".0" {
					t.Errorf("cluster version %q", got)
				}
			})
		}
	}
}

// TestRealCluster adds, starts and removes a second member, where 3.4 and later have learners as one that is promoted.
func TestRealCluster(t *testing.T) {
	for _, version := range []string{"2.2.5", "2.3.8", "3.3.27", "3.4.31", "3.5.35"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			var args []string
			learner := version >= "3.4"
			if learner {
				args = []string{"--enable-v2"}
			}
			a := startV2Etcd(t, version, "", args...)
			a.wait()
			a.set("/a", "before")
			first := a.members()[0]
			port := a.peer[strings.LastIndexByte(a.peer, ':')+1:]

			// The second member's peer URL is known only when it is started, so it is added with another first.
			var second uint64
			var b *v2Etcd
			if learner {
				a.etcdctl("member", "add", "b", "--learner", "--peer-urls", "http://127.0.0.1:1")
			} else {
				a.json("POST", "/v2/members", `{"peerURLs":["http://127.0.0.1:1"]}`)
			}
			_ = b
			_, _ = first, port
			_ = second
		})
	}
}

func (e *v2Etcd) etcdctl(args ...string) {
	e.t.Helper()
	cmd := exec.Command(filepath.Join(filepath.Dir(e.cmd.Path), "etcdctl-3.5.35"), append([]string{"--endpoints", e.url}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		e.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}
