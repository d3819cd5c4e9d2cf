package migrate_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// etcds are the binaries that `make binaries` has built.
func etcds(t *testing.T) binaries.Set {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func newest(t *testing.T, set binaries.Set, minor string) binaries.Binary {
	t.Helper()
	b, err := pathtest.Newest(set, minor)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// member is a data dir that a real etcd has written.
type member struct {
	set     binaries.Set
	dir     string
	version versionfile.Version
	content pathtest.Content
}

// write lets an etcd of that minor write a data dir, with keys in the store that storage names.
func write(t *testing.T, set binaries.Set, minor string, storage versionfile.Storage, flags ...string) member {
	t.Helper()
	ctx := t.Context()
	bin := newest(t, set, minor)
	m := member{set: set, dir: filepath.Join(t.TempDir(), "etcd"), version: versionfile.Version{Release: bin.Release, Storage: storage}}
	if storage == versionfile.Etcd2 && bin.Release.Minor().AtLeast(3, 4) {
		flags = append(flags, "--enable-v2")
	}
	s := start(t, bin, m.dir, flags...)
	var err error
	if storage == versionfile.Etcd2 {
		err = s.FillV2(ctx, 100)
	} else {
		err = s.FillV3(ctx, 100)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.content = read(t, s, storage)
	stop(t, s)
	return m
}

func start(t *testing.T, bin binaries.Binary, dir string, flags ...string) *pathtest.Server {
	t.Helper()
	return pathtest.Serve(t, bin, dir, flags...)
}

func stop(t *testing.T, s *pathtest.Server) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, s *pathtest.Server, storage versionfile.Storage) pathtest.Content {
	t.Helper()
	var content pathtest.Content
	var err error
	if storage == versionfile.Etcd2 {
		content, err = s.ReadV2(t.Context(), pathtest.Hidden...)
	} else {
		content, err = s.ReadV3(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// clone copies the data dir, so that one that was written once serves several tests.
func (m member) clone(t *testing.T) member {
	t.Helper()
	m2 := m
	m2.dir = filepath.Join(t.TempDir(), "etcd")
	if err := os.CopyFS(m2.dir, os.DirFS(m.dir)); err != nil {
		t.Fatal(err)
	}
	return m2
}

func (m member) writeVersion(t *testing.T, v string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, versionfile.Name), []byte(v), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (m member) request(t *testing.T, target string) migrate.Request {
	t.Helper()
	v, err := migrate.ResolveTarget(target, "", m.set)
	if err != nil {
		t.Fatal(err)
	}
	return migrate.Request{DataDir: m.dir, Target: v, Binaries: m.set, Tool: "test"}
}

func (m member) migrate(t *testing.T, target string) *migrate.Report {
	t.Helper()
	r, err := migrate.New(m.request(t, target)).Run(t.Context())
	if err != nil {
		t.Fatalf("migrate %s to %s: %v", m.version, target, err)
	}
	return r
}

// serves starts the etcd of that minor on the data and compares what it serves with what was there before.
func (m member) serves(t *testing.T, minor string) {
	t.Helper()
	bin := newest(t, m.set, minor)
	s := start(t, bin, m.dir)
	for _, d := range pathtest.Compare(m.content, read(t, s, versionfile.Etcd3)) {
		t.Errorf("after %s to %s: %s", m.version, bin.Release, d)
	}
	c, err := s.V3()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(t.Context(), "/after", "1"); err != nil {
		t.Errorf("etcd %s takes no writes: %v", bin.Release, err)
	}
	stop(t, s)
}

// tree gives every file and directory below dir with its mode, size and digest.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		digest := ""
		if info.Mode().IsRegular() {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			digest = hex.EncodeToString(h.Sum(nil))
		}
		files[strings.TrimPrefix(path, dir)] = fmt.Sprintf("%s %d %s", info.Mode(), info.Size(), digest)
		if d.IsDir() {
			files[strings.TrimPrefix(path, dir)] = info.Mode().String()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// unchanged fails the test if anything below dir is other than in before.
func unchanged(t *testing.T, dir string, before map[string]string) {
	t.Helper()
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("the data dir has been changed: %s", diff)
	}
}

// TestFromEveryMinor migrates data of every minor to the newest etcd: with and without a raft snapshot, with and without
// a version.txt.
func TestFromEveryMinor(t *testing.T) {
	set := etcds(t)
	minors := versionfile.Minors()
	target := minors[len(minors)-1]
	for _, minor := range minors[:len(minors)-1] {
		for _, storage := range []versionfile.Storage{versionfile.Etcd2, versionfile.Etcd3} {
			if storage == versionfile.Etcd3 && !minor.AtLeast(3, 0) || storage == versionfile.Etcd2 && minor.AtLeast(3, 4) {
				continue
			}
			for _, snapshot := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/snapshot=%v", minor, storage, snapshot), func(t *testing.T) {
					t.Parallel()
					var flags []string
					if snapshot {
						flags = []string{"--snapshot-count", "10"}
					}
					m := write(t, set, minor.String(), storage, flags...)
					m.allTheWay(t, target, minor)
					with := m.clone(t)
					with.writeVersion(t, m.version.String())
					with.allTheWay(t, target, minor)
				})
			}
		}
	}
}

func (m member) allTheWay(t *testing.T, target, minor versionfile.Minor) {
	t.Helper()
	m = m.clone(t)
	r := m.migrate(t, target.String())
	if len(r.Steps) == 0 || r.From.Minor() != minor || r.From.Storage != m.version.Storage {
		t.Errorf("migrated from %s in %d steps, and the data was of %s", r.From, len(r.Steps), m.version)
	}
	if v, err := versionfile.Read(m.dir); err != nil || v != r.Target {
		t.Errorf("version.txt is %s, %v", v, err)
	}
	before := tree(t, m.dir)
	if again := m.migrate(t, target.String()); again.Changed() {
		t.Errorf("the second run did %d steps", len(again.Steps))
	}
	unchanged(t, m.dir, before)
	m.serves(t, target.String())
}

// TestConversion compares all that a live etcd 2.3 answers with what etcd 3.0, 3.4 and 3.7 serve after the migration.
func TestConversion(t *testing.T) {
	set := etcds(t)
	for _, flags := range [][]string{nil, {"--snapshot-count", "10"}} {
		m := write(t, set, "2.3", versionfile.Etcd2, flags...)
		m.on(t, "2.3", func(s *pathtest.Server) {
			status, body, err := s.V2(t.Context(), http.MethodPut, "/odd/\x01 \t \x7f", url.Values{"value": {"control characters in its name"}})
			if err != nil || status >= 400 {
				t.Fatalf("%d %s %v", status, body, err)
			}
			m.content = read(t, s, versionfile.Etcd2)
		}, flags...)
		for _, target := range []string{"3.0", "3.4", "3.7"} {
			t.Run(fmt.Sprintf("%s%v", target, flags), func(t *testing.T) {
				m := m.clone(t)
				r := m.migrate(t, target)
				c := r.Conversion
				if c == nil || c.FingerprintBefore != c.FingerprintAfter || c.Records < int64(len(m.content.Keys)-1) ||
					c.TTLs < 23 || c.Hidden != 2 || c.EmptyDirs != 1 || int64(c.Index) != c.Revision {
					t.Errorf("the report's proof is %+v", c)
				}
				m.serves(t, target)
			})
		}
	}
}

// TestEtcdutlAgrees asks etcd's own tool about a migrated db: it reads every key of it, and its hash covers them.
func TestEtcdutlAgrees(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "2.2", versionfile.Etcd2)
	r := m.migrate(t, "3.7")
	status, err := snapshot.NewV3(zap.NewNop()).Status(filepath.Join(m.dir, "member", "snap", "db"))
	must(t, err)
	var newest int64 // etcdutl gives the revision of the newest key, which may have ended since
	for _, k := range m.content.Keys {
		newest = max(newest, k.Modified)
	}
	st := inspect(t, m.dir)
	if status.Revision < newest || status.Revision > st.V3.Revision || status.TotalKey < r.KeysAfter || status.TotalKey > r.KeysBefore {
		t.Errorf("etcdutl counts %d keys at revision %d; we have %d at revision %d of %d", status.TotalKey, status.Revision, r.KeysAfter, newest, st.V3.Revision)
	}
}
