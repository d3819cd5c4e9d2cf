package datadir

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sampleManifest is a valid one.
func sampleManifest() Manifest {
	dir := func(path string) File {
		return File{Path: path, Dir: true, Mode: 0o700, ModTime: time.Unix(1, 2).UTC()}
	}
	file := func(path string) File {
		return File{Path: path, Size: 7, Mode: 0o600, UID: 1, GID: 2, ModTime: time.Unix(1, 2).UTC(), SHA256: strings.Repeat("0a", 32)}
	}
	return Manifest{
		Format: 1, ID: "20260102T150405Z-2.2.1-etcd2", Version: testVersion, Reason: `"digest": ""`, Tool: "1",
		Created: time.Unix(1, 2).UTC(), DataDir: "/d", WALDir: "/w", SeparateWAL: true, Bytes: 21,
		Files: []File{dir("member"), dir("member/snap"), file("member/snap/db"), dir("wal"), file("wal/0.wal"), file("version.txt")},
	}
}

func TestManifestRefuses(t *testing.T) {
	m := sampleManifest()
	text, err := m.encode()
	must(t, err)
	got, err := parseManifest(text)
	must(t, err)
	if diff := cmp.Diff(m, got); diff != "" {
		t.Error(diff)
	}
	add := func(f File) func(*Manifest) {
		return func(m *Manifest) { m.Files = append(m.Files, f); m.Bytes += f.Size }
	}
	good := m.Files[2]
	with := func(change func(*File)) func(*Manifest) { f := good; change(&f); return add(f) }
	for name, test := range map[string]struct {
		change func(*Manifest)
		err    string
	}{
		"way out":           {with(func(f *File) { f.Path = "member/../../x" }), "cannot be in a backup"},
		"way out at once":   {with(func(f *File) { f.Path = "../x" }), "cannot be in a backup"},
		"absolute path":     {with(func(f *File) { f.Path = "/etc/passwd" }), "cannot be in a backup"},
		"empty path":        {with(func(f *File) { f.Path = "" }), "cannot be in a backup"},
		"unclean path":      {with(func(f *File) { f.Path = "member//x" }), "cannot be in a backup"},
		"zero byte":         {with(func(f *File) { f.Path = "member/\x00" }), "cannot be in a backup"},
		"other place":       {with(func(f *File) { f.Path = "etcd-migrate/x" }), "cannot be in a backup"},
		"manifest":          {with(func(f *File) { f.Path = "manifest.json" }), "cannot be in a backup"},
		"below version.txt": {with(func(f *File) { f.Path = "version.txt/x" }), "cannot be in a backup"},
		"member as file":    {func(m *Manifest) { m.Files[0] = File{Path: "member", SHA256: good.SHA256} }, "as a file"},
		"twice":             {add(good), `lists "member/snap/db" twice`},
		"no parent":         {with(func(f *File) { f.Path = "member/x/y" }), "not the directory that it is in"},
		"file as parent":    {with(func(f *File) { f.Path = "member/snap/db/y" }), "not the directory that it is in"},
		"negative size":     {with(func(f *File) { f.Path, f.Size = "member/x", -1 }), "with a size of -1"},
		"no sum":            {with(func(f *File) { f.Path, f.SHA256 = "member/x", "" }), "with a SHA-256 of"},
		"short sum":         {with(func(f *File) { f.Path, f.SHA256 = "member/x", "0a" }), "with a SHA-256 of"},
		"huge sizes": {func(m *Manifest) {
			for _, name := range []string{"member/x", "member/y"} {
				with(func(f *File) { f.Path, f.Size = name, 1<<63-1 })(m)
			}
		}, "make no sense"},
		"odd mode":        {with(func(f *File) { f.Path, f.Mode = "member/x", 0o10000 }), "octal digits"},
		"other bytes":     {func(m *Manifest) { m.Bytes++ }, "have 21 bytes and should have 22"},
		"other format":    {func(m *Manifest) { m.Format = 2 }, "its format is 2"},
		"bad id":          {func(m *Manifest) { m.ID = "../x" }, "is not the id"},
		"WAL not told of": {func(m *Manifest) { m.SeparateWAL = false }, "cannot be in a backup"},
		"no member":       {func(m *Manifest) { m.Files, m.Bytes = m.Files[3:], 14 }, "does not list the directories"},
	} {
		t.Run(name, func(t *testing.T) {
			m := sampleManifest()
			test.change(&m)
			text, err := m.encode()
			must(t, err)
			_, err = parseManifest(text)
			checkError(t, err, test.err)
		})
	}
	// Any changed byte but one in JSON's white space is found by the digest, and so is that.
	for i := range text {
		changed := bytes.Clone(text)
		changed[i] ^= 1
		if _, err := parseManifest(changed); err == nil {
			t.Errorf("a change at %d passes: %s", i, changed)
		}
	}
}

func FuzzManifest(f *testing.F) {
	m := sampleManifest()
	text, err := m.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, true)
	f.Add([]byte(`{"format": 1, "files": [{"path": "../x"}], "digest": ""}`), false)
	f.Add([]byte(`{"format": 2}`), false)
	f.Fuzz(func(t *testing.T, data []byte, sign bool) {
		if sign { // so that the fuzzer gets past the digest
			var m Manifest
			if json.Unmarshal(data, &m) != nil {
				return
			}
			text, err := m.encode()
			if err != nil {
				return
			}
			data = text
		}
		m, err := parseManifest(data)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, file := range m.Files {
			if !fs.ValidPath(file.Path) || !within(filepath.Join("/b", file.Path), "/b") || seen[file.Path] || file.Size < 0 {
				t.Errorf("accepted %+v", file)
			}
			seen[file.Path] = true
		}
		again, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		same, err := parseManifest(again)
		if err != nil {
			t.Fatalf("written again it is refused: %v", err)
		}
		same.Digest = m.Digest
		if diff := cmp.Diff(m, same); diff != "" {
			t.Error(diff)
		}
	})
}

func FuzzRestoreJournal(f *testing.F) {
	f.Add([]byte(`{"format":1,"backup":"/b","id":"x","version":true,"separateWAL":true,"wal":["0.wal"],` +
		`"replaced":"replaced-20260102T150405Z","installed":false}`))
	f.Add([]byte(`{"format":1,"wal":["../x"],"replaced":"replaced-20260102T150405Z"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		j, err := parseJournal(data)
		if err != nil {
			return
		}
		for _, name := range append(j.WAL, j.Replaced) {
			if filepath.Base(name) != name || name == "." || name == ".." {
				t.Errorf("accepted %q", name)
			}
		}
	})
}

// An unreadable journal stops everything that would have to know what is in it.
func TestRestoreJournalRefuses(t *testing.T) {
	c := newRestoreCase(t, false, false)
	for text, part := range map[string]string{
		``:              "EOF",
		`{"format": 2}`: "its format is 2",
		`{"format": 1}`: `"" is not a place`,
		`{"format": 1, "replaced": "replaced-20260102T150405Z", "wal": ["../x"]}`: `"../x" is not the name of a WAL file`,
	} {
		must(t, os.WriteFile(c.l.journalFile(), []byte(text), 0o600))
		_, err := c.l.InterruptedRestore()
		checkError(t, err, part)
		_, _, err = c.l.ResumeRestore()
		checkError(t, err, part)
		_, err = c.b.Restore(t.Context(), c.l, nil)
		checkError(t, err, part)
		checkError(t, err, c.l.journalFile())
	}
	if diff := cmp.Diff(c.old, memberTree(t, c.l)); diff != "" {
		t.Errorf("the member has changed: %s", diff)
	}
}
