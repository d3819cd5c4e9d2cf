package migrate_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestLeftovers: keys, users and roles of the v2 API beside v3 data are refused, by number, and nothing has been
// changed; if they are to be discarded, 3.6 starts on what is left.
func TestLeftovers(t *testing.T) {
	set := etcds(t)
	for i, minor := range []string{"3.0", "3.1", "3.2", "3.3", "3.4", "3.5"} {
		t.Run(minor, func(t *testing.T) {
			t.Parallel()
			var flags []string
			if minor >= "3.4" {
				flags = append(flags, "--enable-v2")
			}
			if i%2 == 0 {
				flags = append(flags, "--snapshot-count", "5") // in the snapshot, else in the log only
			}
			m := blank(t, set)
			m.on(t, minor, func(s *pathtest.Server) {
				putV3(t, s, 5)
				putV2(t, s, 3)
				addV2Users(t, s)
				m.content = read(t, s, versionfile.Etcd3)
			}, flags...)
			refusedUnchanged(t, m, m.request(t, "3.6"), "3 of them not in the v3 store", "--v2-leftovers=discard")

			r := m.request(t, "3.6")
			r.V2Leftovers = migrate.LeftoversDiscard
			report, err := migrate.New(r).Run(t.Context())
			must(t, err)
			var discarded *migrate.Discards
			for _, s := range report.Steps {
				if s.Discards != nil {
					discarded = s.Discards
				}
			}
			if discarded == nil || discarded.Keys != 3 || discarded.Users != 2 || discarded.Roles != 1 {
				t.Errorf("discarded %+v", discarded)
			}
			m.serves(t, "3.6")
		})
	}
}

func addV2Users(t *testing.T, s *pathtest.Server) {
	t.Helper()
	for path, body := range map[string]string{
		"users/root": `{"user":"root","password":"pw"}`, "users/app": `{"user":"app","password":"pw"}`, "roles/rw": `{"role":"rw"}`,
	} {
		v2Auth(t, s, path, body)
	}
}

func v2Auth(t *testing.T, s *pathtest.Server, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.URL+"/v2/auth/"+path, strings.NewReader(body))
	must(t, err)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	must(t, err)
	must(t, res.Body.Close())
	if res.StatusCode >= 300 {
		t.Fatalf("PUT %s: %s", path, res.Status)
	}
}
