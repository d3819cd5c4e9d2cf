package migrate_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestNotUTF8: what is not UTF-8 is in the log of an etcd2, and lost with its next raft snapshot, which is JSON. The way to
// etcd3 writes none before the conversion, so every byte gets there; a way that must write one is refused.
func TestNotUTF8(t *testing.T) {
	set := etcds(t)
	odd := map[string]string{"/plain": "plain", "/value": "\xff\xfe", "/\xffkey": "1", "/\xfekey": "2", "/dir\xff/key": "\x80"}
	for _, minor := range []string{"2.2", "2.3", "3.0"} {
		t.Run(minor, func(t *testing.T) {
			t.Parallel()
			m := blank(t, set)
			m.version = versionfile.Version{Release: newest(t, set, minor).Release, Storage: versionfile.Etcd2}
			m.on(t, minor, func(s *pathtest.Server) {
				for key, value := range odd {
					status, body, err := s.V2(t.Context(), http.MethodPut, key, url.Values{"value": {value}})
					if err != nil || status != http.StatusCreated {
						t.Fatalf("%d %s %v", status, body, err)
					}
				}
			})
			if st := inspect(t, m.dir); st.V2.NotUTF8 != 4 {
				t.Errorf("%d keys are said not to be UTF-8", st.V2.NotUTF8)
			}
			stay := m.request(t, "3.4")
			stay.Target.Storage = versionfile.Etcd2
			refusedUnchanged(t, m, stay, "4 keys", "not valid UTF-8", "--target-storage etcd3")

			m.migrate(t, "3.7")
			m.on(t, "3.7", func(s *pathtest.Server) {
				got := map[string]string{}
				for key, r := range read(t, s, versionfile.Etcd3).Keys {
					got[key] = r.Value
				}
				for key, value := range odd {
					if got[key] != value {
						t.Errorf("%q has the value %q, want %q", key, got[key], value)
					}
				}
				if len(got) != len(odd) {
					t.Errorf("there are %d keys, want %d", len(got), len(odd))
				}
			})
		})
	}
}

// TestTwoStores: where both stores are in use and nothing says which is the users', a wrong guess would show them an empty
// cluster. Version.txt decides.
func TestTwoStores(t *testing.T) {
	set := etcds(t)
	m := blank(t, set)
	m.version = versionfile.Version{Release: newest(t, set, "3.0").Release, Storage: versionfile.Etcd2}
	m.on(t, "3.0", func(s *pathtest.Server) {
		putV2(t, s, 47)
		putV3(t, s, 1)
	})
	for _, target := range []string{"3.0", "3.4", "3.7"} {
		refusedUnchanged(t, m, m.request(t, target), "the v2 store holds 47 keys", "the v3 store holds 1", "write 3.0", "/etcd2", "--v2-leftovers=discard")
	}
	m.writeVersion(t, m.version.String())
	refusedUnchanged(t, m, m.request(t, "3.4"), "already holds 1 key that", "--accept-loss=v3-keys")
	m.writeVersion(t, fmt.Sprintf("%s/etcd3", m.version.Release))
	m.migrate(t, "3.4")
	m.on(t, "3.4", func(s *pathtest.Server) {
		if n := len(read(t, s, versionfile.Etcd3).Keys); n != 1 {
			t.Errorf("etcd serves %d keys", n)
		}
	})
}

// TestLyingVersionOfV2: a version.txt that names the target is not believed where a v2 store says otherwise.
func TestLyingVersionOfV2(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "2.3", versionfile.Etcd2)
	bin := newest(t, set, "3.5")
	m.writeVersion(t, fmt.Sprintf("%s/etcd2", bin.Release))
	r := m.request(t, "3.5")
	r.Target.Storage = versionfile.Etcd2
	refusedUnchanged(t, m, r, "version.txt says 3.5", "at etcd 2.3")

	must(t, os.Remove(filepath.Join(m.dir, versionfile.Name)))
	r = m.request(t, "2.3")
	for range 2 {
		if report, err := migrate.New(r).Run(t.Context()); err != nil || report.Changed() && report.Steps[0].Kind != migrate.StepRecord {
			t.Errorf("at its own version: %+v, %v", report, err)
		}
	}
}
