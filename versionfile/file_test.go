package versionfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestWriteThenRead(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Read without a file: %v, want fs.ErrNotExist", err)
	}
	v, _ := Parse("3.0.17/etcd3")
	if err := Write(dir, v); err != nil {
		t.Fatal(err)
	}
	// To the byte what the Kubernetes tools write.
	if b, err := os.ReadFile(filepath.Join(dir, Name)); err != nil || string(b) != "3.0.17/etcd3" {
		t.Fatalf("file holds %q, %v", b, err)
	}
	if got, err := Read(dir); err != nil || got != v {
		t.Fatalf("Read = %v, %v", got, err)
	}
	if mode := mode(t, dir); mode != 0o600 {
		t.Errorf("a new file has mode %o, want 600", mode)
	}
	if err := os.Chmod(filepath.Join(dir, Name), 0o644); err != nil {
		t.Fatal(err)
	}
	// A process killed in mid-write leaves its temporary file; the next one clears it away.
	if err := os.WriteFile(filepath.Join(dir, "."+Name+"123456"), []byte("3.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, Default); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(dir); err != nil || got != Default {
		t.Fatalf("Read after the second write = %v, %v", got, err)
	}
	if mode := mode(t, dir); mode != 0o644 {
		t.Errorf("an existing file's mode became %o, want 644", mode)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left beside version.txt: %v, %v", entries, err)
	}
}

// TestReadNoFile: what is in the place of version.txt and is no file is not read, and nothing waits for it.
func TestReadNoFile(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"a link":      func(path string) error { return os.Symlink("/etc/hostname", path) },
		"a pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		dir := t.TempDir()
		if err := put(filepath.Join(dir, Name)); err != nil {
			t.Fatal(err)
		}
		var invalid *InvalidError
		if _, err := Read(dir); !errors.As(err, &invalid) || !strings.Contains(err.Error(), "it must be a file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func mode(t *testing.T, dir string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(filepath.Join(dir, Name))
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestWriteKeepsTheOldFileWhenItFails(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir, Default); err != nil {
		t.Fatal(err)
	}
	// A directory in the file's place can be neither replaced nor written to, whoever runs the test.
	other := filepath.Join(dir, "other")
	if err := os.MkdirAll(filepath.Join(other, Name, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(other, Default); err == nil || !strings.Contains(err.Error(), other) {
		t.Errorf("Write over a directory: %v", err)
	}
	if entries, _ := os.ReadDir(other); len(entries) != 1 {
		t.Errorf("the failed write left %v", entries)
	}
	if err := Write(filepath.Join(dir, "missing"), Default); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Write to a missing data dir: %v", err)
	}
	if got, err := Read(dir); err != nil || got != Default {
		t.Errorf("Read = %v, %v", got, err)
	}
}

func TestReadSaysWhatToDo(t *testing.T) {
	for name, tc := range map[string]struct{ content, want string }{
		"empty":           {"", "is empty"},
		"garbage":         {"<html>", `holds "<html>"`},
		"no such storage": {"3.0.17/etcd9", "etcd2, etcd3"},
		"long":            {strings.Repeat("é", 4000), "…"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, Name)
			if err := os.WriteFile(path, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Read(dir)
			var invalid *InvalidError
			if !errors.As(err, &invalid) {
				t.Fatalf("Read = %v, want an *InvalidError", err)
			}
			for _, want := range []string{path, tc.want, "remove the file"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if len(err.Error()) > 500+len(path) {
				t.Errorf("error has %d bytes", len(err.Error()))
			}
		})
	}
}
