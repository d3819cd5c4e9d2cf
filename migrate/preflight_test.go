package migrate_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
)

// TestEtcdsOutOfReach: root can start the etcds in its home, the user that the data belongs to cannot. That is refused before
// the first change, with what is closed to whom.
func TestEtcdsOutOfReach(t *testing.T) {
	set := etcds(t)
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	const user = 65532
	made := v3Only(t, set, nil, "3.6")
	for _, target := range []string{"3.5", "3.7"} {
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			m := made.clone(t)
			must(t, filepath.WalkDir(m.dir, func(path string, _ fs.DirEntry, err error) error {
				must(t, err)
				return os.Chown(path, user, user)
			}))
			for dir := filepath.Dir(m.dir); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
				must(t, os.Chmod(dir, 0o755))
			}
			home := filepath.Join(filepath.Dir(m.dir), "home")
			bin := newest(t, set, target)
			must(t, os.MkdirAll(filepath.Join(home, "etcd"), 0o755))
			must(t, os.Chmod(home, 0o700))
			content, err := os.ReadFile(bin.Path)
			must(t, err)
			bin.Path = filepath.Join(home, "etcd", filepath.Base(bin.Path))
			must(t, os.WriteFile(bin.Path, content, 0o755))

			r := m.request(t, target)
			r.Binaries, r.AllowRollback = binaries.Set{Dir: filepath.Dir(bin.Path)}.With(bin), true
			before := tree(t, m.dir)
			says := []string{"belongs to uid 65532", home + " (drwx------) is closed to it", bin.Path + " --version as uid 65532: ",
				"permission denied", "/opt/etcd-migrate", "--bin-dir", "directories above", "nothing has been changed"}
			refused := func(what string, err error) {
				t.Helper()
				for _, w := range says {
					if migrate.KindOf(err) != migrate.Refused || !strings.Contains(fmt.Sprint(err), w) {
						t.Fatalf("%s gives %v, and not %q", what, err, w)
					}
				}
				unchanged(t, m.dir, before)
			}
			_, _, err = migrate.New(r).Plan(t.Context())
			refused("a plan", err)
			_, err = migrate.Rehearse(t.Context(), r, t.TempDir())
			refused("a rehearsal", err)
			_, err = migrate.New(r).Run(t.Context())
			refused("a run", err)

			must(t, os.Chmod(home, 0o755))
			closed := t.TempDir()
			must(t, os.Chmod(closed, 0o700))
			_, err = migrate.Rehearse(t.Context(), r, closed)
			says = []string{" is closed to the user that the data belongs to", "--scratch", "that was a copy", "nothing has been changed"}
			refused("a rehearsal in a closed directory", err)
			_, err = migrate.New(r).Run(t.Context())
			must(t, err)
		})
	}
}
