package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestRunOnDamage gives run data dirs that are damaged, on the way to the target and at it. It must refuse them, leave them as
// they are, and not become etcd: that would begin an empty cluster, or go on without what is lost. The many ways of damage
// are in package migrate's TestDamage.
func TestRunOnDamage(t *testing.T) {
	set := etcdSet(t)
	db, log := "member/snap/db", "member/wal/0000000000000000-0000000000000000.wal"
	half := func(b []byte) []byte { return b[:len(b)/2] }
	noSector := func(b []byte) []byte {
		written := len(bytes.TrimRight(b, "\x00"))
		clear(b[written/3&^511 : written/3&^511+512])
		return b
	}
	type damage map[string]func([]byte) []byte // nil removes
	all := map[string]damage{
		"no db":           {db: nil},
		"a cut db":        {db: func(b []byte) []byte { return b[:3*4096] }}, // the second half of the file is not in use
		"an empty db":     {db: func([]byte) []byte { return nil }},
		"zeros for a db":  {db: func(b []byte) []byte { return make([]byte, len(b)) }},
		"no log":          {"member/wal": nil},
		"no member":       {"member": nil},
		"an empty member": {"member/wal": nil, "member/snap": nil},
	}
	onTheWay := map[string]damage{
		"no first sector of the log": {log: func(b []byte) []byte { clear(b[:512]); return b }},
		"a sector less in the log":   {log: noSector},
		"an old log":                 {log: func(b []byte) []byte { clear(b[len(bytes.TrimRight(b, "\x00"))/3:]); return b }},
		"another version.txt":        {"version.txt": func([]byte) []byte { return []byte("3.7.3/etcd3") }},
		"half a version.txt":         {"version.txt": half},
	}
	for minor, damages := range map[string][]map[string]damage{"3.4": {all, onTheWay}, "3.7": {all}} {
		m := etcdOf(t, set, minor)
		good := filled(t, set, minor)
		if err := versionfile.Write(good, versionfile.Version{Release: m.Release, Storage: versionfile.Etcd3}); err != nil {
			t.Fatal(err)
		}
		wal := filepath.Join(good, log)
		b, err := os.ReadFile(wal)
		if err == nil { // of the 64 MiB, most are zeros
			err = os.Truncate(wal, int64(len(bytes.TrimRight(b, "\x00"))+16<<10)&^4095)
		}
		if err != nil {
			t.Fatal(err)
		}
		etcd := probeDir(t, etcdOf(t, set, "3.7"))
		for _, some := range damages {
			for name, d := range some {
				t.Run(minor+"/"+name, func(t *testing.T) {
					dir := filepath.Join(t.TempDir(), "etcd")
					if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
						t.Fatal(err)
					}
					for file, change := range d {
						path := filepath.Join(dir, file)
						if change == nil {
							if err := os.RemoveAll(path); err != nil {
								t.Fatal(err)
							}
							continue
						}
						b, err := os.ReadFile(path)
						if err == nil {
							err = os.WriteFile(path, change(b), 0o600)
						}
						if err != nil {
							t.Fatal(err)
						}
					}
					before, told := digests(t, dir), filepath.Join(t.TempDir(), "told")
					cmd := asTool("run", "--bin-dir", set.Dir, "--", etcd, "--data-dir="+dir, "--name=m1", "--tell="+told)
					out, _ := cmd.CombinedOutput() // the exit code says it
					if code := cmd.ProcessState.ExitCode(); code != exitRefused || !strings.Contains(string(out), dir) {
						t.Errorf("exits with %d, want %d and the path:\n%s", code, exitRefused, out)
					}
					if _, err := os.Stat(told); err == nil {
						t.Error("etcd was started")
					}
					if after := digests(t, dir); after != before {
						t.Errorf("the data dir was\n%s and is\n%s", before, after)
					}
				})
			}
		}
	}
}

// digests gives the names and the digests of all files.
func digests(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprint(&b, path)
		if d.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", sha256.Sum256(content))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
