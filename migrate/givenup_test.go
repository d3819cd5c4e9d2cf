package migrate_test

import (
	"bytes"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestConversionGivenUp: a run is killed when the new db is in place and version.txt does not say so yet, and the etcd of before
// serves the v2 store again. The next conversion replaces what the first one has made, and refuses to replace what somebody has
// written to the v3 store since.
func TestConversionGivenUp(t *testing.T) {
	set := etcds(t)
	m := blank(t, set)
	m.on(t, "2.3", func(s *pathtest.Server) {
		must(t, s.FillV2(t.Context(), 20))
	})
	var killed member
	r := m.request(t, "3.1")
	r.Now = func() time.Time {
		journal, _ := os.ReadFile(filepath.Join(m.dir, "etcd-migrate", migrate.JournalName))
		v, err := versionfile.Read(m.dir)
		if err == nil && v.Storage == versionfile.Etcd2 && bytes.Contains(journal, []byte(`"made"`)) && killed.dir == "" {
			killed = m.clone(t)
		}
		return time.Now()
	}
	_, err := migrate.New(r).Run(t.Context())
	must(t, err)
	if killed.dir == "" {
		t.Fatal("there is no moment after the conversion")
	}
	killed.on(t, "3.0", func(s *pathtest.Server) {
		for method, key := range map[string]string{http.MethodPut: "/since", http.MethodDelete: "/changed"} {
			status, body, err := s.V2(t.Context(), method, key, url.Values{"value": {"x"}, "recursive": {"true"}})
			if err != nil || status >= 400 {
				t.Fatalf("%s %s: %d %s %v", method, key, status, body, err)
			}
		}
		killed.content = read(t, s, versionfile.Etcd2)
	})
	written := killed.clone(t)
	report := killed.migrate(t, "3.1")
	if report.Conversion == nil || len(report.Conversion.Lost) > 0 {
		t.Errorf("the conversion: %+v", report.Conversion)
	}
	killed.serves(t, "3.1")

	written.on(t, "3.0", func(s *pathtest.Server) { putV3(t, s, 1) })
	if _, err := migrate.New(written.request(t, "3.1")).Run(t.Context()); migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), "v3 store already holds") {
		t.Errorf("with a key in the v3 store: %v", err)
	}
}
