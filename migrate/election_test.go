package migrate_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

// misses is the name of a stand-in that misses its election when it is run for the first time.
const misses = "misses-its-election"

// missElection answers for an etcd 3.5 that is still in a cluster at 3.4, until it is stopped. When it is run again, it becomes the
// real one.
func missElection() error {
	ran := os.Args[0] + ".ran"
	if _, err := os.Stat(ran); err == nil || os.Args[1] == "--version" {
		return becomeReal()
	}
	if err := os.WriteFile(ran, nil, 0o600); err != nil {
		return err
	}
	for _, arg := range os.Args {
		if listen, ok := strings.CutPrefix(arg, "--listen-client-urls="); ok {
			u, err := url.Parse(listen)
			if err != nil {
				return err
			}
			release, err := os.ReadFile(os.Args[0] + ".release")
			if err != nil {
				return err
			}
			return http.ListenAndServeTLS(u.Host, "/proc/self/fd/3", "/proc/self/fd/4", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintf(w, `{"etcdserver":%q,"etcdcluster":"3.4.0"}`, release)
			}))
		}
	}
	return nil
}

// TestMissedElection: an etcd that does not notice its own election, which happens on a busy machine, is started again instead of
// being waited for until it looks again, which takes 4 s.
func TestMissedElection(t *testing.T) {
	set := etcds(t)
	m := v3Only(t, set, nil, "3.4")
	r := m.request(t, "3.5")
	etcd := standIn(t, misses, newest(t, set, "3.5"))
	must(t, os.WriteFile(etcd.Path+".release", []byte(etcd.Release.String()), 0o600))
	r.Binaries = set.With(etcd)
	r.StepTimeout = time.Minute // the stand-in never gets ready, however long it is waited for
	_, err := migrate.New(r).Run(t.Context())
	must(t, err)
	if _, err := os.Stat(etcd.Path + ".ran"); err != nil {
		t.Errorf("it did not miss its election: %v", err)
	}
	m.serves(t, "3.5")
}
