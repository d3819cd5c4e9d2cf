package datadir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNewLayout(t *testing.T) {
	root := t.TempDir()
	data := filepath.Join(root, "data")
	must(t, os.MkdirAll(filepath.Join(data, "member/wal"), 0o700))
	must(t, os.Mkdir(filepath.Join(root, "wal"), 0o700))
	must(t, os.Symlink("data", filepath.Join(root, "link")))
	must(t, os.Symlink("wal", filepath.Join(root, "wal-link")))
	must(t, os.Symlink("nowhere", filepath.Join(root, "dangling")))
	must(t, os.Symlink(".", filepath.Join(root, "here")))
	must(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o600))

	inside, outside := filepath.Join(data, "member/wal"), filepath.Join(root, "wal")
	missing := filepath.Join(root, "missing")
	tests := map[string]struct {
		data, wal string
		want      Layout
		err       string
	}{
		"plain":                {data, "", Layout{data, inside}, ""},
		"unclean":              {data + "/../data//", "", Layout{data, inside}, ""},
		"WAL dir in place":     {data, data + "/member/wal/", Layout{data, inside}, ""},
		"separate WAL dir":     {data, outside, Layout{data, outside}, ""},
		"WAL dir in data dir":  {data, data + "/wal", Layout{data, data + "/wal"}, ""},
		"link":                 {root + "/link", root + "/wal-link", Layout{data, outside}, ""},
		"link to WAL in place": {data, root + "/link/member/wal", Layout{data, inside}, ""},
		"missing":              {missing, "", Layout{missing, missing + "/member/wal"}, ""},
		"missing below link":   {root + "/here/missing/x", "", Layout{missing + "/x", missing + "/x/member/wal"}, ""},
		"dangling link":        {root + "/dangling", "", Layout{}, "is a symbolic link to nowhere, which does not exist"},
		"dangling WAL link":    {data, root + "/dangling", Layout{}, "is a symbolic link to nowhere"},
		"file":                 {root + "/file", "", Layout{}, root + "/file is a file: not a directory"},
		"below a file":         {root + "/file/x", "", Layout{}, "there is a file on the way to " + root + "/file/x"},
		"WAL dir is a file":    {data, root + "/file", Layout{}, root + "/file is a file: not a directory"},
		"no name":              {"", "", Layout{}, "the data dir has no name"},
		"WAL dir in member":    {data, data + "/member/w", Layout{}, "cannot hold the data dir or be inside"},
		"WAL dir in work dir":  {data, data + "/etcd-migrate/w", Layout{}, "cannot hold the data dir or be inside"},
		"WAL dir is data dir":  {data, data, Layout{}, "cannot hold the data dir or be inside"},
		"WAL dir is above":     {data, root, Layout{}, "cannot hold the data dir or be inside"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := NewLayout(test.data, test.wal)
			checkError(t, err, test.err)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := NewLayout(root+"/dangling", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dangling link gives %v, want one that is fs.ErrNotExist", err)
	}
}

// checkError wants an error with the text part in it, or none if part is empty.
func checkError(t *testing.T, err error, part string) {
	t.Helper()
	switch {
	case part == "" && err != nil:
		t.Errorf("unexpected error: %v", err)
	case part != "" && (err == nil || !strings.Contains(err.Error(), part)):
		t.Errorf("error is %v, want one with %q", err, part)
	}
}

func TestLayoutPaths(t *testing.T) {
	l, err := NewLayout("/d", "")
	must(t, err)
	got := []string{l.MemberDir(), l.SnapDir(), l.DB(), l.VersionFile(), l.WorkDir(), l.BackupsDir(""), l.BackupsDir("/b")}
	want := []string{
		"/d/member", "/d/member/snap", "/d/member/snap/db", "/d/version.txt", "/d/etcd-migrate", "/d/etcd-migrate/backups", "/b",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if l.SeparateWAL() || !(Layout{"/d", "/d/wal"}).SeparateWAL() {
		t.Error("SeparateWAL does not tell the two apart")
	}
}

func TestPresence(t *testing.T) {
	tests := map[string]struct {
		files []string // below the parent of data/
		wal   string
		want  Presence
		err   string
	}{
		"missing":               {nil, "", Missing, ""},
		"empty":                 {[]string{"data/"}, "", Empty, ""},
		"fresh volume":          {[]string{"data/lost+found/"}, "", Empty, ""},
		"ours only":             {[]string{"data/version.txt", "data/etcd-migrate/backups/x/member/snap/db", "data/.keep"}, "", Empty, ""},
		"empty member":          {[]string{"data/member/snap/", "data/member/wal/"}, "", Empty, ""},
		"member on a volume":    {[]string{"data/member/lost+found/x"}, "", Empty, ""},
		"member":                {[]string{"data/member/snap/db"}, "", Present, ""},
		"WAL only":              {[]string{"data/member/wal/0.wal", "data/stray"}, "", Present, ""},
		"stray file":            {[]string{"data/snapshot.db", "data/version.txt"}, "", Missing, "no member data but holds snapshot.db"},
		"another service":       {[]string{"data/pg_wal/", "data/base/"}, "", Missing, "holds base, pg_wal"},
		"member is a file":      {[]string{"data/member"}, "", Missing, "member is not a directory"},
		"separate WAL":          {[]string{"data/", "wal/0.wal"}, "wal", Present, ""},
		"separate WAL, no data": {[]string{"wal/0.wal"}, "wal", Present, ""},
		"empty separate WAL":    {[]string{"data/", "wal/lost+found/"}, "wal", Empty, ""},
		"WAL dir in data dir":   {[]string{"data/a/wal/"}, "data/a/wal", Empty, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			fill(t, root, "", test.files...)
			if test.wal != "" {
				test.wal = filepath.Join(root, test.wal)
			}
			l, err := NewLayout(filepath.Join(root, "data"), test.wal)
			must(t, err)
			was := tree(t, root)
			got, err := l.Presence()
			checkError(t, err, test.err)
			if got != test.want {
				t.Errorf("it is %v, want %v", got, test.want)
			}
			if diff := cmp.Diff(was, tree(t, root)); diff != "" {
				t.Errorf("looking changed it: %s", diff)
			}
		})
	}
}

func TestPresenceOfLinkedMember(t *testing.T) {
	root := t.TempDir()
	fill(t, root, "", "elsewhere/snap/db", "data/")
	must(t, os.Symlink("../elsewhere", filepath.Join(root, "data/member")))
	l, err := NewLayout(filepath.Join(root, "data"), "")
	must(t, err)
	_, err = l.Presence()
	checkError(t, err, "data/member is a symbolic link")
}

// Looking at a member leaves no trace.
func TestQueriesChangeNothing(t *testing.T) {
	for _, separate := range []bool{false, true} {
		l := makeMember(t, t.TempDir(), separate)
		was := tree(t, filepath.Dir(l.DataDir))
		_, err := l.Presence()
		must(t, err)
		must(t, l.LiveEtcd())
		unlock, err := l.Lock()
		must(t, err)
		must(t, unlock())
		_, err = l.Usage()
		must(t, err)
		_, err = FreeSpace(l.BackupsDir(""))
		must(t, err)
		_, err = SameFileSystem(l.DataDir, l.BackupsDir("/none"))
		must(t, err)
		_, err = ListBackups(l.BackupsDir(""))
		must(t, err)
		_, err = l.InterruptedRestore()
		must(t, err)
		if diff := cmp.Diff(was, tree(t, filepath.Dir(l.DataDir))); diff != "" {
			t.Error(diff)
		}
	}
}
