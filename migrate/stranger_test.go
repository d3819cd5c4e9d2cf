package migrate_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestEtcdDuringMigration: an etcd that somebody starts between two steps does not get at data that is half way. It ends, or it
// waits, by its version.
func TestEtcdDuringMigration(t *testing.T) {
	set := etcds(t)
	for _, tc := range []struct {
		from, target string
		storage      versionfile.Storage
	}{{"2.3", "3.1", versionfile.Etcd2}, {"3.4", "3.6", versionfile.Etcd3}} {
		t.Run(tc.from, func(t *testing.T) {
			t.Parallel()
			m := write(t, set, tc.from, tc.storage)
			for _, minor := range []string{"2.3", "3.0", "3.5", "3.7"} {
				at := m.clone(t)
				r := at.request(t, tc.target)
				var said []string
				r.Observer = func(e migrate.Event) {
					if e.Kind == migrate.EventStepDone {
						ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
						defer cancel()
						cmd := exec.CommandContext(ctx, newest(t, set, minor).Path, "--data-dir", at.dir,
							"--listen-client-urls", "http://127.0.0.1:0", "--advertise-client-urls", "http://127.0.0.1:0", "--listen-peer-urls", "http://127.0.0.1:0")
						out, _ := cmd.CombinedOutput()
						said = append(said, string(out))
					}
				}
				if _, err := migrate.New(r).Run(t.Context()); err != nil {
					t.Fatalf("with an etcd %s: %v", minor, err)
				}
				for _, out := range said {
					if strings.Contains(out, "ready to serve") {
						t.Errorf("etcd %s has got in:\n%s", minor, out)
					}
				}
				at.serves(t, tc.target)
			}
		})
	}
}

// TestEtcdBeforeStep: one that has got in before the first step is no failed proof. What it has written is kept.
func TestEtcdBeforeStep(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "3.4", versionfile.Etcd3)
	r := m.request(t, "3.6")
	var s *pathtest.Server
	r.Observer = func(e migrate.Event) {
		if e.Kind == migrate.EventStepStarted && e.Step == 1 {
			s = start(t, newest(t, set, "3.4"), m.dir)
		}
	}
	_, err := migrate.New(r).Run(t.Context())
	if migrate.KindOf(err) != migrate.Failed || !strings.Contains(err.Error(), "is locked by etcd") || !strings.Contains(err.Error(), "stop it") {
		t.Fatalf("beside an etcd: %v", err)
	}
	c, err := s.V3()
	must(t, err)
	_, err = c.Put(t.Context(), "/meanwhile", "1")
	must(t, err)
	m.content = read(t, s, versionfile.Etcd3)
	stop(t, s)
	m.migrate(t, "3.6")
	m.serves(t, "3.6")
}
