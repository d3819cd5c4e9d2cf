package migrate_test

import (
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestEtcdctlMigrate shows what docs/comparison.md says of `etcdctl migrate`: TTLs are dropped, or with --no-ttl the keys that
// have one, hidden keys are lost, and v3 keys that are there already are overwritten. This program refuses the same data because of the last; TestConversion has
// what it does about the others.
func TestEtcdctlMigrate(t *testing.T) {
	set := etcds(t)
	bin := newest(t, set, "3.0")
	ctx := t.Context()
	m := blank(t, set)
	s := start(t, bin, m.dir)
	c, err := s.V3()
	must(t, err)
	var last int64
	for range 5 { // so that the revision of the last is the index of a key that is converted, too
		put, err := c.Put(ctx, "/v3", "in the v3 store")
		must(t, err)
		last = put.Header.Revision
	}
	for _, key := range []string{"/_hidden", "/plain", "/ttl", "/more"} {
		form := url.Values{"value": {"1"}}
		if key == "/ttl" {
			form.Set("ttl", "3600")
		}
		status, body, err := s.V2(ctx, http.MethodPut, key, form)
		must(t, err)
		if status != http.StatusCreated {
			t.Fatalf("%d %s", status, body)
		}
	}
	stop(t, s)
	m.version = versionfile.Version{Release: bin.Release, Storage: versionfile.Etcd2}
	m.writeVersion(t, m.version.String())
	ours, noTTL := m.clone(t), m.clone(t)

	etcdctl := func(dir string, flags ...string) pathtest.Content {
		args := append([]string{"migrate", "--data-dir", dir}, flags...)
		cmd := exec.Command(filepath.Join(filepath.Dir(bin.Path), "etcdctl-"+bin.Release.String()), args...)
		cmd.Env = []string{"ETCDCTL_API=3"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		s := start(t, bin, dir)
		defer stop(t, s)
		return read(t, s, versionfile.Etcd3)
	}
	without := etcdctl(noTTL.dir, "--no-ttl")
	if _, ok := without.Keys["/ttl"]; ok {
		t.Error("etcdctl migrate --no-ttl keeps the key with a TTL")
	}
	if _, ok := without.Keys["/plain"]; !ok {
		t.Error("etcdctl migrate --no-ttl has converted nothing")
	}
	theirs := etcdctl(m.dir)
	if k, ok := theirs.Keys["/ttl"]; !ok || k.Lease != 0 {
		t.Errorf("etcdctl migrate gives the key with a TTL lease %x (there: %v)", k.Lease, ok)
	}
	if _, ok := theirs.Keys["/_hidden"]; ok {
		t.Error("etcdctl migrate keeps hidden keys")
	}
	if _, ok := theirs.Keys["/plain"]; !ok {
		t.Error("etcdctl migrate has converted nothing")
	}
	if k, ok := theirs.Keys["/v3"]; ok && k.Modified == last {
		t.Errorf("etcdctl migrate keeps the v3 key: %+v", k)
	}

	refusedUnchanged(t, ours, ours.request(t, "3.0"), "v3 store")
}
