package migrate_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestDetectVersion: every minor's data is known for what it is without a version.txt, freshly made and after so many
// writes that a raft snapshot holds most of it.
func TestDetectVersion(t *testing.T) {
	set := etcds(t)
	for _, minor := range versionfile.Minors() {
		for _, n := range []int{0, 1, 1000} {
			t.Run(fmt.Sprintf("%s/%d writes", minor, n), func(t *testing.T) {
				t.Parallel()
				m := blank(t, set)
				writes, count := n, "300"
				if n == 1000 && os.Getenv("ETCD_MIGRATE_LONG") != "" {
					writes, count = 20_000, "7000"
				}
				m.on(t, minor.String(), func(s *pathtest.Server) {
					if minor.Major == 2 {
						putV2(t, s, writes)
					} else {
						putV3Fast(t, s, writes)
					}
				}, "--snapshot-count", count)
				st := inspect(t, m.dir)
				if st.Version.Minor() != minor || st.Version.Storage != minor.Storage() || st.Presence != migrate.Present {
					t.Errorf("is taken for %s because of %v", st.Version, st.Evidence)
				}
				if snap := st.Log.SnapshotIndex > 0; snap != (n == 1000) {
					t.Errorf("the newest snapshot is at %d", st.Log.SnapshotIndex)
				}
				if len(st.Members) != 1 || st.Member.Name != pathtest.Name || len(st.Problems) > 0 {
					t.Errorf("member %v of %v, problems %v", st.Member, st.Members, st.Problems)
				}
			})
		}
	}
}

func inspect(t *testing.T, dir string) migrate.State {
	t.Helper()
	l, err := datadir.NewLayout(dir, "")
	must(t, err)
	st, err := migrate.Inspect(t.Context(), l, time.Now())
	must(t, err)
	return st
}

// putV3Fast writes many keys at once.
func putV3Fast(t *testing.T, s *pathtest.Server, n int) {
	t.Helper()
	c, err := s.V3()
	must(t, err)
	const writers = 50
	errs := make(chan error, writers)
	for w := range writers {
		go func() {
			for i := w; i < n; i += writers {
				if _, err := c.Put(t.Context(), fmt.Sprintf("/put/%d", i), "1"); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers {
		must(t, <-errs)
	}
}
