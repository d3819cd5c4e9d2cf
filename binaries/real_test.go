package binaries

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestRealBinaries asks the etcds that `make binaries` has built.
func TestRealBinaries(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := Find(filepath.Join("..", "bin", "etcd"))
	if err != nil {
		t.Fatalf("%v; run `make binaries`", err)
	}
	if err := Verify(context.Background(), nil, set.Binaries...); err != nil {
		t.Fatal(err)
	}
	for _, m := range versionfile.Minors() {
		if _, ok := set.Newest(m); !ok {
			t.Errorf("no etcd %s in %s; run `make binaries`", m, set.Dir)
		}
	}
}
