package migrate_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestEtcdctlBackup takes the way of docs/from-2.2.md: `etcdctl backup` gives its copy the log of a member that is in no
// cluster, which is refused at once, because no etcd elects itself on it; --force-new-cluster puts it right.
func TestEtcdctlBackup(t *testing.T) {
	set := etcds(t)
	m := blank(t, set)
	bin := newest(t, set, "2.2")
	m.version = versionfile.Version{Release: bin.Release, Storage: versionfile.Etcd2}
	s := start(t, bin, m.dir)
	must(t, s.FillV2(t.Context(), 10))
	m.content = read(t, s, versionfile.Etcd2)
	copied := filepath.Join(t.TempDir(), "backup")
	etcdctl := filepath.Join(filepath.Dir(bin.Path), "etcdctl-"+bin.Release.String())
	if out, err := exec.Command(etcdctl, "backup", "--data-dir", m.dir, "--backup-dir", copied).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	stop(t, s)

	m.dir = copied
	before := tree(t, m.dir)
	_, err := migrate.New(m.request(t, "3.7")).Run(t.Context())
	if migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), "not-a-member") {
		t.Fatalf("it was not refused: %v", err)
	}
	unchanged(t, m.dir, before)

	s, err = pathtest.Start(t.Context(), bin, m.dir, "--force-new-cluster")
	must(t, err)
	stop(t, s)
	m.migrate(t, "3.7")
	m.serves(t, "3.7")
}
