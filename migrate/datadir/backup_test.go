package datadir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

func init() {
	// Make a backup, with an end at the n-th call if n is not 0.
	children["backup"] = func(args []string) error {
		if err := killAt(args[2]); err != nil {
			return err
		}
		l := Layout{DataDir: args[0], WALDir: args[1]}
		_, err := CreateBackup(context.Background(), l, l.BackupsDir(""), testMeta, nil)
		return err
	}

}

// setNow stops the clock for a test.
func setNow(t *testing.T, when time.Time) {
	old := now
	now = func() time.Time { return when }
	t.Cleanup(func() { now = old })
}

func TestCreateBackup(t *testing.T) {
	setNow(t, time.Date(2026, 1, 2, 16, 4, 5, 600, time.FixedZone("", 3600)))
	for _, separate := range []bool{false, true} {
		l := makeMember(t, t.TempDir(), separate)
		was := tree(t, l.DataDir, workName)
		member := memberTree(t, l)
		var last, total int64
		b, err := CreateBackup(context.Background(), l, l.BackupsDir(""), testMeta, func(d, n int64) { last, total = d, n })
		must(t, err)
		if diff := cmp.Diff(was, tree(t, l.DataDir, workName)); diff != "" {
			t.Errorf("the source has changed: %s", diff)
		}
		if b.ID != "20260102T150405Z-2.2.1-etcd2" || b.Path != filepath.Join(l.WorkDir(), "backups", b.ID) {
			t.Errorf("the backup is %s at %s", b.ID, b.Path)
		}
		copied := Layout{DataDir: b.Path, WALDir: filepath.Join(b.Path, "member/wal")}
		if separate {
			copied.WALDir = filepath.Join(b.Path, "wal")
		}
		if diff := cmp.Diff(member, memberTree(t, copied)); diff != "" {
			t.Errorf("the copy differs: %s", diff)
		}
		m := b.Manifest
		var sum int64
		for _, f := range m.Files {
			sum += f.Size
		}
		if m.Bytes != sum || last != sum || total != sum {
			t.Errorf("%d bytes are recorded, %d of %d reported, %d copied", m.Bytes, last, total, sum)
		}
		want := Manifest{
			Format: 1, ID: b.ID, Version: testVersion, Reason: "a test", Tool: "1.2.3",
			Created: now().UTC(), DataDir: l.DataDir, WALDir: l.WALDir, SeparateWAL: separate,
			Bytes: m.Bytes, Files: m.Files, Digest: m.Digest,
		}
		if diff := cmp.Diff(want, m); diff != "" {
			t.Error(diff)
		}
		if mode := tree(t, b.Path)["."].Mode; mode != fs.ModeDir|0o700 {
			t.Errorf("the backup has mode %v", mode)
		}
		must(t, b.Verify(context.Background(), nil))
		// This is what docs/formats/backup-manifest.md tells people to do.
		shell := exec.Command("sh", "-c", `sed 's/^  "digest": "[0-9a-f]*"$/  "digest": ""/' manifest.json | sha256sum`)
		shell.Dir = b.Path
		if out, err := shell.Output(); err != nil || !strings.HasPrefix(string(out), m.Digest) {
			t.Errorf("the digest is %s, and computed by hand %s, %v", m.Digest, out, err)
		}
	}
}

func TestBackupIDs(t *testing.T) {
	l := makeMember(t, t.TempDir(), false)
	start := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	for i, step := range []struct {
		clock   time.Duration
		version versionfile.Version
		want    string
	}{
		{0, testVersion, "20260102T150405Z-2.2.1-etcd2"},
		{time.Millisecond, versionfile.Version{}, "20260102T150406Z-unknown"},
		{10 * time.Second, testVersion, "20260102T150415Z-2.2.1-etcd2"},
		{-24 * time.Hour, testVersion, "20260102T150416Z-2.2.1-etcd2"}, // the clock was wrong and has been set
	} {
		setNow(t, start.Add(step.clock))
		b, err := CreateBackup(context.Background(), l, l.BackupsDir(""), Meta{Version: step.version}, nil)
		must(t, err)
		if b.ID != step.want {
			t.Errorf("backup %d is %s, want %s", i, b.ID, step.want)
		}
		if !b.Manifest.Created.Equal(now()) {
			t.Errorf("backup %d was created at %v, it says", i, b.Manifest.Created)
		}
		all, err := ListBackups(l.BackupsDir(""))
		must(t, err)
		if len(all) != i+1 || all[i].ID != b.ID || all[i].Err != nil {
			t.Errorf("backup %d is not the last of %v", i, all)
		}
	}
}

// Two members may share a backup directory: neither takes the other's unfinished backup for a leftover, or its id.
func TestBackupDirIsShared(t *testing.T) {
	setNow(t, time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC))
	root := t.TempDir()
	one, two := makeMember(t, filepath.Join(root, "1"), false), makeMember(t, filepath.Join(root, "2"), true)
	dir := filepath.Join(root, "backups/deep")
	var second Backup
	first, err := CreateBackup(context.Background(), one, dir, testMeta, func(done, total int64) {
		if second.ID == "" {
			var err error
			second, err = CreateBackup(context.Background(), two, dir, testMeta, nil)
			must(t, err)
		}
	})
	must(t, err)
	if first.ID == second.ID {
		t.Errorf("both are %s", first.ID)
	}
	for _, b := range []Backup{first, second} {
		must(t, b.Verify(context.Background(), nil))
	}
	if len(names(t, dir)) != 2 {
		t.Errorf("there are %v", names(t, dir))
	}
	removed, err := two.Prune(dir, 1)
	if len(removed) != 0 || err != nil {
		t.Errorf("pruning one member's backups removed %v, %v", removed, err)
	}
}

func TestCreateBackupRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(t *testing.T, l *Layout) string // gives the backup directory
		err     string
	}{
		"no data dir": {func(t *testing.T, l *Layout) string {
			must(t, os.RemoveAll(l.DataDir))
			return filepath.Join(filepath.Dir(l.DataDir), "backups")
		}, "the data dir is missing"},
		"no member": {func(t *testing.T, l *Layout) string {
			must(t, os.RemoveAll(l.MemberDir()))
			return ""
		}, "the data dir is empty"},
		"WAL elsewhere": {func(t *testing.T, l *Layout) string {
			must(t, os.RemoveAll(l.WALDir))
			return ""
		}, "has no *.wal file: if etcd runs with --wal-dir"},
		"linked WAL": {func(t *testing.T, l *Layout) string {
			must(t, os.Rename(l.WALDir, l.DataDir+"/../wal"))
			must(t, os.Symlink("../../wal", l.WALDir))
			return ""
		}, "member/wal is a symbolic link"},
		"backups in member": {func(t *testing.T, l *Layout) string {
			must(t, os.Symlink(l.SnapDir(), l.DataDir+"/../b"))
			return l.DataDir + "/../b"
		}, "cannot be kept in"},
		"backups in WAL dir": {func(t *testing.T, l *Layout) string {
			l.WALDir = filepath.Join(filepath.Dir(l.DataDir), "w")
			return filepath.Join(l.WALDir, "b")
		}, "cannot be kept in"},
		"backups in a file": {func(t *testing.T, l *Layout) string { return l.VersionFile() }, "is a file: not a directory"},
		"running etcd": {func(t *testing.T, l *Layout) string {
			f, err := os.Open(l.DB())
			must(t, err)
			t.Cleanup(func() { f.Close() })
			must(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
			return ""
		}, fmt.Sprintf("snap/db is locked by datadir.test (pid %d)", os.Getpid())},
	} {
		t.Run(name, func(t *testing.T) {
			l := makeMember(t, t.TempDir(), false)
			dir := l.BackupsDir(test.prepare(t, &l))
			root, err := filepath.EvalSymlinks(filepath.Join(l.DataDir, ".."))
			if err != nil {
				root = filepath.Dir(l.DataDir)
			}
			was := tree(t, root)
			_, err = CreateBackup(context.Background(), l, dir, testMeta, nil)
			checkError(t, err, test.err)
			checkError(t, err, "back up "+l.DataDir)
			if diff := cmp.Diff(was, tree(t, root)); diff != "" {
				t.Errorf("it has changed: %s", diff)
			}
		})
	}
}

func TestVerify(t *testing.T) {
	flip := func(data []byte) []byte { data[len(data)/2] ^= 0x10; return data }
	edit := func(name string, f func([]byte) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			data, err := os.ReadFile(path)
			must(t, err)
			must(t, os.WriteFile(path, f(data), 0o600))
		}
	}
	for name, test := range map[string]struct {
		damage func(t *testing.T, dir string)
		err    string
	}{
		"truncated": {edit("member/snap/db", func(b []byte) []byte { return b[:len(b)-1] }), "db is damaged: it has"},
		"longer":    {edit("version.txt", func(b []byte) []byte { return append(b, '\n') }), "version.txt is damaged: it has 12 bytes"},
		"bit flip":  {edit("wal/0000000000000001-0000000000000010.wal", flip), "0010.wal is damaged: its SHA-256 is"},
		"missing":   {func(t *testing.T, dir string) { must(t, os.Remove(dir+"/member/snap/db")) }, "snap/db is missing"},
		"extra file": {func(t *testing.T, dir string) { fill(t, dir, "", "wal/0000000000000002-0000000000000020.wal") },
			"0020.wal is not in the manifest"},
		"extra directory": {func(t *testing.T, dir string) { fill(t, dir, "", "member/x/") }, "member/x is not in the manifest"},
		"file instead of directory": {func(t *testing.T, dir string) {
			must(t, os.Remove(dir+"/member/snap/empty"))
			fill(t, dir, "", "member/snap/empty")
		}, "empty is a file instead"},
		"link instead of file": {func(t *testing.T, dir string) {
			must(t, os.Rename(dir+"/version.txt", dir+"/../v"))
			must(t, os.Symlink("../v", dir+"/version.txt"))
		}, "version.txt is a symbolic link"},
		"changed manifest": {edit("manifest.json", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"mode": "0600"`), []byte(`"mode": "0666"`), 1)
		}), "it has been changed: its digest is"},
		"truncated manifest": {edit("manifest.json", func(b []byte) []byte { return b[:len(b)/2] }), "unexpected end of JSON"},
		"empty manifest":     {edit("manifest.json", func(b []byte) []byte { return nil }), "unexpected end of JSON"},
		"no manifest":        {func(t *testing.T, dir string) { must(t, os.Remove(dir+"/manifest.json")) }, "no such file"},
		"newer format": {edit("manifest.json", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 2, "more": 1`), 1)
		}), "its format is 2, and this program knows format 1 only"},
	} {
		t.Run(name, func(t *testing.T) {
			l := makeMember(t, t.TempDir(), true)
			b := mustBackup(t, l)
			was := memberTree(t, l)
			test.damage(t, b.Path)
			all, err := ListBackups(l.BackupsDir(""))
			must(t, err)
			if len(all) != 1 || strings.Contains(name, "manifest") != (all[0].Err != nil) && name != "newer format" {
				t.Fatalf("listed is %v", all)
			}
			err = all[0].Verify(context.Background(), nil)
			checkError(t, err, test.err)
			checkError(t, err, b.Path)
			_, err = all[0].Restore(context.Background(), l, nil)
			checkError(t, err, test.err)
			if diff := cmp.Diff(was, memberTree(t, l)); diff != "" {
				t.Errorf("the restore changed something: %s", diff)
			}
		})
	}
}

func TestVerifyTellsEverything(t *testing.T) {
	l := makeMember(t, t.TempDir(), false)
	b := mustBackup(t, l)
	must(t, os.Remove(b.Path+"/version.txt"))
	must(t, os.Truncate(b.Path+"/member/snap/db", 5))
	fill(t, b.Path, "", "member/snap/x")
	err := b.Verify(context.Background(), nil)
	for _, part := range []string{"version.txt is missing", "snap/db is damaged", "snap/x is not in the manifest"} {
		checkError(t, err, part)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.Verify(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled Verify gives %v", err)
	}
}

func TestPrune(t *testing.T) {
	l := makeMember(t, t.TempDir(), false)
	dir := l.BackupsDir("")
	if removed, err := l.Prune(dir, 1); removed != nil || err != nil {
		t.Errorf("pruning nothing gives %v, %v", removed, err)
	}
	var ids []string
	for range 5 {
		ids = append(ids, mustBackup(t, l).ID)
	}
	must(t, os.Remove(filepath.Join(dir, ids[0], manifestName)))
	fill(t, dir, "", "notes.txt", "other/x")
	if _, err := l.Prune(dir, 0); err == nil {
		t.Error("all may go, it seems")
	}
	removed, err := l.Prune(dir, 2)
	checkError(t, err, "leave a broken backup alone: read manifest of backup "+filepath.Join(dir, ids[0]))
	if diff := cmp.Diff(ids[1:3], removed); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{ids[0], ids[3], ids[4], "notes.txt", "other"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
	must(t, os.RemoveAll(filepath.Join(dir, ids[0])))
	removed, err = l.Prune(dir, 7)
	if len(removed) != 0 || err != nil {
		t.Errorf("pruning less than there is gives %v, %v", removed, err)
	}
}

// Members whose data dirs have the same path, on machines of their own, can share a directory.
func TestPruneByMember(t *testing.T) {
	l := makeMember(t, t.TempDir(), false)
	dir := l.BackupsDir("")
	var ids []string
	for _, member := range []string{"c/1", "c/2", "c/1", "c/1", "c/2"} {
		b, err := CreateBackup(t.Context(), l, dir, Meta{Member: member}, nil)
		must(t, err)
		ids = append(ids, b.ID)
	}
	removed, err := l.Prune(dir, 1)
	must(t, err)
	if diff := cmp.Diff([]string{ids[0], ids[1], ids[2]}, removed); diff != "" {
		t.Error(diff)
	}
}

// A killed Prune leaves no half backup that looks like one.
func TestPruneFaults(t *testing.T) {
	for n := 1; ; n++ {
		l := makeMember(t, t.TempDir(), false)
		dir := l.BackupsDir("")
		mustBackup(t, l)
		newest := mustBackup(t, l)
		failed := failAt(t, n, true, syscall.EIO)
		_, err := l.Prune(dir, 1)
		before = func(string, string) error { return nil }
		if *failed == "" {
			must(t, err)
			break
		}
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("a failing %s gives %v", *failed, err)
		}
		all, err := ListBackups(dir)
		must(t, err)
		for _, b := range all {
			must(t, b.Verify(context.Background(), nil))
		}
		mustBackup(t, l) // clears up
		if _, err := l.Prune(dir, 1); err != nil || exists(newest.Path) {
			t.Errorf("pruning again gives %v", err)
		}
		if len(names(t, dir)) != 1 {
			t.Errorf("after a failing %s there is %v", *failed, names(t, dir))
		}
	}
}
