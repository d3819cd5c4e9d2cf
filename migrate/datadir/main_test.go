package datadir

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// The test binary starts itself to play another process. What that does is named by childEnv; the arguments follow in
// the command line.
const childEnv = "DATADIR_TEST_CHILD"

var children = map[string]func(args []string) error{}

func TestMain(m *testing.M) {
	name := os.Getenv(childEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := children[name](os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func child(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	if children[name] == nil {
		t.Fatalf("there is no child %q", name)
	}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	return cmd
}

// setBefore installs a seam for the duration of a test.
func setBefore(t *testing.T, f func(op, path string) error) {
	old := before
	before = f
	t.Cleanup(func() { before = old })
}

// killAt makes this process kill itself at the n-th call that changes what other processes see. Before a sync there
// is nothing to see that is not there before the call after it, too.
func killAt(n string) error {
	limit, err := strconv.ParseInt(n, 10, 64)
	var calls atomic.Int64
	before = func(op, _ string) error {
		if op != "sync" && op != "clone" && calls.Add(1) == limit {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	return err
}

// noExchange makes the file system one without RENAME_EXCHANGE, on top of what the seam does already.
func noExchange() {
	inner := before
	before = func(op, path string) error {
		if err := inner(op, path); err != nil {
			return err
		}
		if op == "exchange" {
			return syscall.EINVAL
		}
		return nil
	}
}

var testVersion = versionfile.Version{
	Release: versionfile.Release{Line: versionfile.Minor{Major: 2, Minor: 2}, Patch: 1},
	Storage: versionfile.Etcd2,
}

var testMeta = Meta{Version: testVersion, Reason: "a test", Tool: "1.2.3"}

// fill writes files, whose names end in a slash if they are directories. The content is derived from name and salt.
func fill(t *testing.T, root, salt string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(root, name)
		var err error
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o700)
		} else if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = os.WriteFile(path, []byte(strings.Repeat(salt+name+"\n", 1000)), 0o600)
		}
		must(t, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeMember makes a data dir that looks like a member's, with the things around it that do not belong to a backup.
func makeMember(t *testing.T, root string, separateWAL bool) Layout {
	t.Helper()
	l := Layout{DataDir: filepath.Join(root, "data")}
	l.WALDir = filepath.Join(l.MemberDir(), "wal")
	if separateWAL {
		l.WALDir = filepath.Join(root, "wal")
		fill(t, l.WALDir, "", "lost+found/")
	}
	fill(t, l.DataDir, "", "lost+found/", "etcd-migrate/migration.json", ".dot")
	writeMember(t, l, "old ", "2.2.1/etcd2")
	return l
}

// writeMember replaces the member's own files.
func writeMember(t *testing.T, l Layout, salt, version string, wals ...string) {
	t.Helper()
	must(t, os.RemoveAll(l.MemberDir()))
	if len(wals) == 0 {
		wals = []string{"0000000000000000-0000000000000000.wal", "0000000000000001-0000000000000010.wal"}
	}
	fill(t, l.MemberDir(), salt, "snap/db", "snap/0000000000000002-0000000000000005.snap", "snap/empty/")
	old, err := walFiles(l.WALDir)
	must(t, err)
	for _, name := range old {
		must(t, os.Remove(name))
	}
	fill(t, l.WALDir, salt, wals...)
	if version == "" {
		os.Remove(l.VersionFile())
	} else {
		must(t, os.WriteFile(l.VersionFile(), []byte(version), 0o644))
	}
	// Attributes that a careless copy would not keep.
	must(t, os.WriteFile(filepath.Join(l.SnapDir(), "empty.snap"), nil, 0o640))
	must(t, os.Chmod(filepath.Join(l.SnapDir(), "empty"), 0o750))
	must(t, os.Chtimes(l.DB(), time.Time{}, time.Unix(1_500_000_000, 123456789)))
	if os.Geteuid() == 0 {
		must(t, os.Chown(l.DB(), 1234, 5678))
		must(t, os.Chown(filepath.Join(l.SnapDir(), "empty"), 1234, 5678))
	}
	for i, dir := range []string{filepath.Join(l.SnapDir(), "empty"), l.SnapDir(), l.MemberDir()} {
		must(t, os.Chtimes(dir, time.Time{}, time.Unix(1_600_000_000+int64(i), 0)))
	}
}

// state is everything about a file that has to survive.
type state struct {
	Mode     fs.FileMode
	UID, GID uint32
	Size     int64
	ModTime  int64
	Digest   string
}

// tree tells the state of everything in and below dir but for what is below the names in skip. The times of dir
// itself and of the directories in timeless are left out.
func tree(t *testing.T, dir string, skip ...string) map[string]state {
	t.Helper()
	all := map[string]state{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if slices.Contains(skip, rel) {
			return filepath.SkipDir
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		s := state{Mode: info.Mode(), UID: st.Uid, GID: st.Gid}
		if path != dir {
			s.ModTime = info.ModTime().UnixNano()
		}
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			s.Size, s.Digest = info.Size(), hex.EncodeToString(sum[:8])
		}
		all[rel] = s
		return nil
	})
	must(t, err)
	return all
}

// memberTree is the state of what belongs to the member.
func memberTree(t *testing.T, l Layout) map[string]state {
	t.Helper()
	all := map[string]state{}
	if exists(l.MemberDir()) {
		for name, s := range tree(t, l.MemberDir()) {
			all["member/"+name] = s
		}
	}
	if l.SeparateWAL() {
		for name, s := range tree(t, l.WALDir, lostFound, workName) {
			if name != "." {
				all["wal/"+name] = s
			}
		}
	}
	if exists(l.VersionFile()) {
		all["version"] = tree(t, l.VersionFile())["."]
	}
	return all
}

// quickDir is a directory for the tests that try every call: in memory, where a sync costs nothing, if there is one.
func quickDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "datadir-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func mustBackup(t *testing.T, l Layout) Backup {
	t.Helper()
	b, err := CreateBackup(context.Background(), l, l.BackupsDir(""), testMeta, nil)
	must(t, err)
	return b
}
