package downgrade

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// pairs are all downgrades, with the storage of the data in the test.
var pairs = []struct {
	from, to string
	v2       bool
}{
	{"2.3", "2.2", true}, {"3.0", "2.3", true},
	{"3.1", "3.0", false}, {"3.2", "3.1", true}, {"3.3", "3.2", false}, {"3.4", "3.3", false}, {"3.5", "3.4", true},
	{"3.6", "3.5", false}, {"3.7", "3.6", false},
}

// fill makes data that a clean stop has left.
func fill(t testing.TB, version string, v2 bool) (dir string, content pathtest.Content) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	s := serve(t, version, dir, v2Flags(version, v2)...)
	if v2 {
		must(t, s.FillV2(t.Context(), 20))
	} else {
		must(t, s.FillV3(t.Context(), 20))
	}
	content = read2or3(t, s, v2)
	must(t, s.Stop())
	return dir, content
}

func v2Flags(version string, v2 bool) []string {
	if v2 && version >= "3.4" {
		return []string{"--enable-v2"}
	}
	return nil
}

func read2or3(t testing.TB, s *pathtest.Server, v2 bool) pathtest.Content {
	t.Helper()
	if !v2 {
		return readV3(t, s)
	}
	c, err := s.ReadV2(t.Context(), pathtest.Hidden...)
	must(t, err)
	return c
}

// serves starts an etcd and sees that it serves the content and takes a write.
func serves(t testing.TB, version, dir string, v2 bool, want pathtest.Content) {
	t.Helper()
	s := serve(t, version, dir, v2Flags(version, v2)...)
	got := read2or3(t, s, v2)
	if version == "3.0" && !v2 {
		knowTTLs(got, want)
	}
	same(t, "etcd "+version, want, got)
	if v2 {
		putV2(t, s, "/written", version)
	} else {
		must(t, s.WriteOnce(t.Context()))
	}
	must(t, s.Stop())
}

// block puts a directory with something in it where a file is to be renamed to or removed, and unblock takes it away.
func block(t testing.TB, path string) (unblock func()) {
	t.Helper()
	kept := path + ".kept"
	if err := os.Rename(path, kept); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	must(t, os.MkdirAll(filepath.Join(path, "x"), 0o700))
	return func() {
		must(t, os.RemoveAll(path))
		if err := os.Rename(kept, path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// copyDir copies a data dir to a new place. Existing files there stay.
func copyDir(t testing.TB, dst, src string) {
	t.Helper()
	must(t, filepath.WalkDir(src, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dst, strings.TrimPrefix(path, src))
		if e.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		if _, err := os.Lstat(to); err == nil {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o600)
	}))
}

// trim cuts off what etcd has allocated of its WAL and not used, which would take long to copy.
func trim(t testing.TB, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*"))
	must(t, err)
	for _, path := range files {
		data, err := os.ReadFile(path)
		must(t, err)
		used := len(bytes.TrimRight(data, "\x00"))
		if used == 0 { // the file that is ready for later
			must(t, os.Remove(path))
			continue
		}
		const padding = 16 // may be zeros of the last record
		must(t, os.Truncate(path, int64(min(used+padding, len(data)))))
	}
}

// TestInterrupted stops a downgrade wherever the files are in another state than before. Until the new raft snapshot is in
// place the newer etcd starts and serves everything, from then on the older one does, and from each state a second call
// leads to the end.
func TestInterrupted(t *testing.T) {
	for _, p := range pairs {
		t.Run(p.from+" to "+p.to, func(t *testing.T) {
			t.Parallel()
			base, content := fill(t, p.from, p.v2)
			trim(t, base)
			// What a second call leads to is the same from each state.
			whole := filepath.Join(t.TempDir(), "data")
			copyDir(t, whole, base)
			down(t, whole, p.to)
			want := outcomeOf(t, whole)
			serves(t, p.to, whole, p.v2, content)
			check := func(state, dir, starts string) {
				again := filepath.Join(t.TempDir(), "data")
				copyDir(t, again, dir)
				down(t, again, p.to)
				if diff := cmp.Diff(want, outcomeOf(t, again)); diff != "" {
					t.Errorf("from where %s: %s", state, diff)
				}
				t.Log(state)
				serves(t, starts, dir, p.v2, content)
			}

			for state, path := range map[string]func(Params) string{
				"the db is lowered, if there is one": nextWAL,
				"there is a new wal file":            newSnapshot,
			} {
				dir := filepath.Join(t.TempDir(), "data")
				copyDir(t, dir, base)
				params := params(t, dir, p.to)
				unblock := block(t, path(params))
				if _, err := Offline(t.Context(), params); err == nil {
					t.Fatalf("%s: no error", state)
				}
				unblock()
				check(state, dir, p.from)
			}

			dir := filepath.Join(t.TempDir(), "data")
			copyDir(t, dir, base)
			down(t, dir, p.to)
			if p.to == "2.3" { // which does not start with a db
				copyDir(t, filepath.Join(dir, "member", "wal"), filepath.Join(base, "member", "wal"))
			} else {
				copyDir(t, dir, base)
			}
			check("what is void is still there", dir, p.to)
		})
	}
}

// nextWAL is where a downgrade puts its WAL file.
func nextWAL(p Params) string {
	dir := filepath.Join(filepath.Dir(p.SnapDir), "wal")
	files, _ := filepath.Glob(filepath.Join(dir, "*.wal"))
	var seq, index uint64
	fmt.Sscanf(filepath.Base(files[len(files)-1]), "%016x-%016x.wal", &seq, &index)
	return filepath.Join(dir, fmt.Sprintf("%016x-%016x.wal", seq+1, p.Summary.HardState.Commit))
}

// newSnapshot is where it puts its raft snapshot.
func newSnapshot(p Params) string {
	return filepath.Join(p.SnapDir, fmt.Sprintf("%016x-%016x.snap", p.Summary.LastTerm, p.Summary.HardState.Commit))
}
