package golden_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest/golden"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

const archives = "../../../testdata/golden"

// TestArchives unpacks each archive, compares what Inspect says of it with its list, brings it to the newest etcd, and
// compares all that this serves with the list.
func TestArchives(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	etcds, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(archives, "*.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	minors := versionfile.Minors()
	newest := minors[len(minors)-1].String()
	seen := map[string]bool{}
	for _, path := range paths {
		base := strings.TrimSuffix(path, ".tar.gz")
		seen[filepath.Base(base)] = true
		t.Run(filepath.Base(base), func(t *testing.T) {
			t.Parallel()
			version, before := list(t, base+".txt")
			dir := unpack(t, path)
			inspected(t, dir, version, before)

			target, err := migrate.ResolveTarget(newest, "", etcds)
			if err != nil {
				t.Fatal(err)
			}
			report, err := migrate.New(migrate.Request{DataDir: dir, Target: target, Binaries: etcds}).Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if report.From.Minor() != version.Minor() || report.From.Storage != version.Storage {
				t.Errorf("it was taken for %s", report.From)
			}
			server := pathtest.Serve(t, pathtest.Binary(t, os.Getenv("ETCD_MIGRATE_BIN_DIR"), newest), dir)
			after, err := server.ReadV3(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range pathtest.Compare(before, golden.Shorten(after)) {
				t.Error(d)
			}
		})
	}
	for _, m := range minors {
		if !seen[m.String()] {
			t.Errorf("there is no archive of %s; run `make testdata`", m)
		}
	}
}

func list(t *testing.T, path string) (versionfile.Version, pathtest.Content) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v, c, err := golden.ReadList(f)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return v, c
}

func unpack(t *testing.T, path string) (dir string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir = t.TempDir()
	if err := golden.Unpack(f, dir); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return dir
}

func inspected(t *testing.T, dir string, v versionfile.Version, content pathtest.Content) {
	t.Helper()
	l, err := datadir.NewLayout(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	st, err := migrate.Inspect(t.Context(), l, now)
	if err != nil {
		t.Fatal(err)
	}
	if st.Version.Minor() != v.Minor() || st.Version.Storage != v.Storage {
		t.Errorf("Inspect takes %s for %s: %+v", v, st.Version, st.Evidence)
	}
	keys, revision := st.V3.Keys, st.V3.Revision
	want := len(content.Keys)
	if v.Storage == versionfile.Etcd2 {
		keys, revision, want = st.V2.Keys, int64(st.V2.Index), 0
		for _, k := range content.Keys {
			if k.Expiry.IsZero() || k.Expiry.After(now) {
				want++
			}
		}
	}
	if keys != want || revision < content.Revision {
		t.Errorf("Inspect counts %d keys at revision %d, and the list has %d at %d", keys, revision, want, content.Revision)
	}
	if st.Log.SnapshotIndex == 0 || st.Log.Index <= st.Log.SnapshotIndex {
		t.Errorf("the raft snapshot is at %d and the log at %d: there should be something of each", st.Log.SnapshotIndex, st.Log.Index)
	}
	if i := slices.IndexFunc(st.Problems, func(p migrate.Problem) bool { return p.Blocking }); i >= 0 {
		t.Errorf("%+v", st.Problems[i])
	}
}

// TestPack sees that an archive is always the same, and brings back the same files.
func TestPack(t *testing.T) {
	dir := unpack(t, filepath.Join(archives, "3.4.tar.gz"))
	var a, b bytes.Buffer
	if err := golden.Pack(&a, dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(dir, "member"), time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := golden.Pack(&b, dir); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives of the same files differ")
	}
	again := t.TempDir()
	if err := golden.Unpack(&a, again); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"member/snap/db", "member/wal/0000000000000000-0000000000000000.wal"} {
		x, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		y, err := os.ReadFile(filepath.Join(again, name))
		if err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s: %d bytes and then %d, %v", name, len(x), len(y), err)
		}
	}
}

// TestList writes a list and reads it back.
func TestList(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	v := versionfile.Version{Release: versionfile.Release{Line: versionfile.Minor{Major: 3, Minor: 4}, Patch: 31}, Storage: versionfile.Etcd3}
	want := pathtest.Content{Revision: 9, Read: at, Keys: map[string]pathtest.Key{
		"\x00\xff\t\n": {Value: "\xff\"tab\t", Created: 1, Modified: 2},
		"/leased":      {Value: "x", Created: 3, Modified: 3, Lease: 0x5b26a1fafca2c31a, TTL: 60, Expiry: at.Add(time.Minute)},
	}}
	var b strings.Builder
	if err := golden.WriteList(&b, v, want); err != nil {
		t.Fatal(err)
	}
	gotV, got, err := golden.ReadList(strings.NewReader(b.String()))
	if err != nil || gotV != v {
		t.Fatalf("%s, %v", gotV, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "x", b.String() + "\"/x\"\t1\n", strings.Replace(b.String(), "\t60\t", "\tsixty\t", 1)} {
		if _, _, err := golden.ReadList(strings.NewReader(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}
