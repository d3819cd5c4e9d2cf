package keyspace

import (
	"bytes"
	"encoding/json"
	"errors"
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

// drive fills the store with everything that the v2 API can do, and with names and values that are hard on files and
// formats.
func (e *v2Etcd) drive() {
	e.t.Helper()
	r, err := versionfile.ParseRelease(e.version)
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
	e.set("/deep"+strings.Repeat("/d", 25)+"/key", "bottom")

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
	e.set("/ttl/longer", "v", "ttl", "100")
	e.do("PUT", "/ttl/longer", 200, v2Form("value=w prevExist=true ttl=2000")...)
	e.do("PUT", "/ttl/dir", 201, v2Form("dir=true ttl=1000")...)
	e.set("/ttl/dir/in/k", "v")
	e.set("/ttl/dir/in/sooner", "v", "ttl", "500")
	e.set("/ttl/dir/in/later", "v", "ttl", "5000")
	for dying := false; !dying; { // on a slow machine it can be over before the keys are in it
		e.do("PUT", "/ttl/dying", 201, v2Form("dir=true ttl=2")...)
		e.set("/ttl/dying/k", "v")
		e.set("/ttl/dying/years", "v", "ttl", "315360000")
		if dying = bytes.Contains(e.do("GET", "/ttl/dying", 200), []byte("expiration")); !dying {
			e.do("DELETE", "/ttl/dying", 200, v2Form("recursive=true")...)
		}
	}
	e.do("PUT", "/ttl/dir2", 201, v2Form("dir=true")...)
	e.do("PUT", "/ttl/dir2", dirUpdate, v2Form("dir=true prevExist=true ttl=3000")...)
	e.set("/ttl/dir2/k", "v")
	if refresh {
		e.set("/ttl/refresh", "kept", "ttl", "100")
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
	slices.SortFunc(members, func(a, b V2Member) int {
		return strings.Compare(fmt.Sprintf("%016x", a.ID), fmt.Sprintf("%016x", b.ID))
	})
	return members
}

func TestRealEtcd(t *testing.T) {
	for _, version := range []string{"2.2.5", "2.3.8", "3.0.17", "3.1.20", "3.2.32", "3.3.27", "3.4.31", "3.5.35"} {
		for _, count := range []string{"10000", "20"} {
			if count == "10000" && (version == "3.1.20" || version == "3.2.32" || version == "3.4.31") {
				continue // TestRealUpgrade has them with the default
			}
			t.Run(version+"/snapshot-count="+count, func(t *testing.T) {
				t.Parallel()
				e := newV2Etcd(t, version)
				e.start(nil, "--snapshot-count", count)
				e.wait()
				e.drive()
				urls := `{"peerURLs":["http://127.0.0.1:1","` + e.peer + `"]}`
				e.json("PUT", fmt.Sprintf("/v2/members/%x", e.members()[0].ID), urls)
				if count == "20" {
					e.restart()
					e.wait()
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

// TestRealCluster adds, starts, changes and removes a second member: from 3.4 on as a learner that is promoted.
func TestRealCluster(t *testing.T) {
	for _, version := range []string{"2.2.5", "2.3.8", "3.3.27", "3.4.31", "3.5.35"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			a, b := newV2Etcd(t, version), newV2Etcd(t, version)
			args := []string{"--heartbeat-interval", "50", "--election-timeout", "500"} // two can lose each other
			if version != "2.2.5" {
				args = append(args, "--strict-reconfig-check=false") // or it waits for 5 s of health
			}
			a.start(nil, args...)
			a.wait()
			a.set("/a", "alone")
			first := a.members()[0]
			if version >= "3.4" {
				a.etcdctl("member", "add", b.name, "--learner", "--peer-urls", b.peer)
			} else {
				a.json("POST", "/v2/members", `{"peerURLs":["`+b.peer+`"]}`)
			}
			b.start([]*v2Etcd{a}, args...)
			members := a.members()
			members = slices.DeleteFunc(members, func(m V2Member) bool { return m.ID == first.ID })
			second := fmt.Sprintf("%x", members[0].ID)
			if version >= "3.4" {
				a.etcdctl("member", "promote", second)
			}
			b.wait()
			a.set("/b", "together")
			a.json("PUT", "/v2/members/"+second, `{"peerURLs":["http://127.0.0.1:1","`+b.peer+`"]}`)
			a.removeMember(second)
			a.set("/c", "alone again")

			live, index := a.live(), a.lastIndex
			a.stop()
			b.stop()
			tree := a.compareDir(live, index)
			if got, err := tree.Members(); err != nil || !cmp.Equal(got, []V2Member{first}) {
				t.Errorf("members %+v, %v", got, err)
			}
			if got, err := tree.RemovedMembers(); err != nil || !cmp.Equal(got, []uint64{members[0].ID}) {
				t.Errorf("removed members %x, %v", got, err)
			}
		})
	}
}

// removeMember tries again while the two have lost each other, which they do on a busy machine.
func (e *v2Etcd) removeMember(id string) {
	e.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		req, err := http.NewRequest("DELETE", e.url+"/v2/members/"+id, nil)
		if err != nil {
			e.t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusGone {
				return
			}
			err = errors.New(resp.Status)
		}
		if time.Now().After(deadline) {
			e.t.Fatal(err)
		}
	}
}

// TestRealUpgrade takes one directory from 2.2 to 3.4 without a snapshot: the log then holds what each of them wrote, and
// the last of them has read all of it.
func TestRealUpgrade(t *testing.T) {
	t.Parallel()
	e := newV2Etcd(t, "2.2.5")
	e.start(nil)
	e.wait()
	e.drive()
	for _, version := range []string{"2.3.8", "3.0.17", "3.1.20", "3.2.32", "3.3.27", "3.4.31"} {
		e.stop()
		e.binary, e.version = v2EtcdBinary(t, version), version
		e.start(nil)
		e.wait()
		e.set("/by/"+version, version)
		e.set("/by/all", version)
		e.set("/by/ttl/"+version, version, "ttl", "1000")
		e.do("POST", "/queue", 201, "value", version)
		e.do("PUT", "/by/all", 412, v2Form("value=x prevValue=y")...)
		e.do("PUT", "/by/ttl", 200, v2Form("dir=true prevExist=true ttl=5000")...)
	}
	e.finish()
	live, index := e.live(), e.lastIndex
	e.stop()
	if tree := e.compareDir(live, index); tree.ClusterVersion() != "3.4.0" {
		t.Errorf("cluster version %q", tree.ClusterVersion())
	}
}

// etcdctl runs until it succeeds: a learner can be promoted only when it has caught up.
func (e *v2Etcd) etcdctl(args ...string) {
	e.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		cmd := exec.Command(filepath.Join(filepath.Dir(e.binary), "etcdctl-3.5.35"), append([]string{"--endpoints", e.url}, args...)...)
		out, err := cmd.CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
}
