package datadir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "version.txt")
	if os.Geteuid() == 0 {
		must(t, os.Chown(dir, 111, 222))
	}
	must(t, WriteFile(path, []byte("one"), 0o644))
	first := tree(t, path)["."]
	if first.Mode != 0o644 || first.Size != 3 || os.Geteuid() == 0 && (first.UID != 111 || first.GID != 222) {
		t.Errorf("the new file is %+v", first)
	}
	if os.Geteuid() == 0 {
		must(t, os.Chown(path, 333, 444))
	}
	// Left behind by a killed run; the others only look alike.
	fill(t, dir, "", ".version.txt8123", ".version.txt-next", "version.txt1", ".version.txt")
	must(t, WriteFile(path, []byte("two!"), 0o600))
	second := tree(t, path)["."]
	if second.Mode != 0o600 || second.Size != 4 || os.Geteuid() == 0 && (second.UID != 333 || second.GID != 444) {
		t.Errorf("the rewritten file is %+v", second)
	}
	want := []string{".version.txt", ".version.txt-next", "version.txt", "version.txt1"}
	if diff := cmp.Diff(want, names(t, dir)); diff != "" {
		t.Error(diff)
	}
	checkError(t, WriteFile(filepath.Join(dir, "none/x"), nil, 0o600), "no such file")
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// Whatever fails, there is the old file or the new one, and the error says which file it is about and why.
func TestWriteFileFaults(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO} {
		for n := 1; ; n++ {
			dir := t.TempDir()
			path := filepath.Join(dir, "version.txt")
			must(t, os.WriteFile(path, []byte("old"), 0o600))
			failed := failAt(t, n, false, errno)
			err := WriteFile(path, []byte("new"), 0o600)
			before = func(string, string) error { return nil }
			if *failed == "" {
				must(t, err)
				if n < 4 {
					t.Errorf("there are only %d calls", n-1)
				}
				break
			}
			if !errors.Is(err, errno) || !strings.Contains(err.Error(), path) {
				t.Errorf("a failing %s gives %v", *failed, err)
			}
			data, err := os.ReadFile(path)
			must(t, err)
			// After the rename only the directory's sync can fail.
			if want := map[bool]string{true: "new", false: "old"}[strings.HasPrefix(*failed, "sync "+dir) &&
				!strings.Contains(*failed, ".version")]; string(data) != want {
				t.Errorf("after a failing %s the file has %q", *failed, data)
			}
			if diff := cmp.Diff([]string{"version.txt"}, names(t, dir)); diff != "" {
				t.Errorf("after a failing %s: %s", *failed, diff)
			}
		}
	}
}

// failAt makes the n-th call that changes the disk fail, or with on all from there, and tells which one that was.
func failAt(t *testing.T, n int, on bool, errno syscall.Errno) (failed *string) {
	failed = new(string)
	calls := make(chan int, 1)
	calls <- 0
	setBefore(t, func(op, path string) error {
		i := <-calls + 1
		defer func() { calls <- i }()
		if i == n {
			*failed = op + " " + path
		}
		if i == n || on && i > n {
			return errno
		}
		return nil
	})
	return failed
}

func TestJSON(t *testing.T) {
	type thing struct{ A, B int }
	path := filepath.Join(t.TempDir(), "migration.json")
	var got thing
	if err := ReadJSON(path, &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading nothing gives %v", err)
	}
	must(t, WriteJSON(path, thing{1, 2}))
	must(t, ReadJSON(path, &got))
	if got != (thing{1, 2}) {
		t.Errorf("it reads %v", got)
	}
	for text, part := range map[string]string{
		"":                                  "EOF",
		"{":                                 "EOF",
		`{"A":1} x`:                         "something after",
		`{"A":1} {}`:                        "something after",
		`{"A":1,"C":2}`:                     "unknown field",
		strings.Repeat(" ", maxJSON) + "{}": "larger than",
	} {
		must(t, os.WriteFile(path, []byte(text), 0o600))
		err := ReadJSON(path, &got)
		checkError(t, err, part)
		checkError(t, err, path)
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		must(t, os.Chown(dir, 111, 222))
	}
	must(t, MkdirAll(filepath.Join(dir, "a/b/c")))
	must(t, MkdirAll(filepath.Join(dir, "a/b")))
	for name, s := range tree(t, filepath.Join(dir, "a")) {
		if s.Mode != fs.ModeDir|0o700 || os.Geteuid() == 0 && (s.UID != 111 || s.GID != 222) {
			t.Errorf("%s is %+v", name, s)
		}
	}
	fill(t, dir, "", "file")
	checkError(t, MkdirAll(filepath.Join(dir, "file")), "file is not a directory")
	checkError(t, MkdirAll(filepath.Join(dir, "file/x")), "not a directory")
}

func TestSwap(t *testing.T) {
	for _, atomic := range []bool{true, false} {
		dir := t.TempDir()
		fresh, live := filepath.Join(dir, "a/fresh"), filepath.Join(dir, "b/live")
		fill(t, fresh, "", "new")
		fill(t, filepath.Dir(live), "")
		must(t, os.Mkdir(filepath.Dir(live), 0o700))
		setBefore(t, func(string, string) error { return nil })
		if !atomic {
			noExchange()
		}
		must(t, Swap(fresh, live)) // nothing there yet
		if exists(fresh) || !exists(live+"/new") {
			t.Fatal("fresh is not at live")
		}
		fill(t, fresh, "", "newer")
		must(t, Swap(fresh, live))
		if diff := cmp.Diff([][]string{{"new"}, {"newer"}}, [][]string{names(t, fresh), names(t, live)}); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"fresh"}, names(t, filepath.Dir(fresh))); diff != "" {
			t.Error(diff)
		}
		checkError(t, Swap(filepath.Join(dir, "none"), live), "none")
		if diff := cmp.Diff([]string{"newer"}, names(t, live)); diff != "" {
			t.Error(diff)
		}
	}
}

// After a crash at any call, Swap is done, not begun, or completed by another Swap.
func TestSwapCrashes(t *testing.T) {
	for _, atomic := range []bool{true, false} {
		var states []string
		for n := 1; ; n++ {
			dir := t.TempDir()
			fresh, live := filepath.Join(dir, "fresh"), filepath.Join(dir, "live")
			fill(t, dir, "", "fresh/new", "live/old")
			// From the n-th call on nothing works, which is what a crash looks like on the disk.
			failed := failAt(t, n, true, syscall.EIO)
			if !atomic {
				noExchange()
			}
			err := Swap(fresh, live)
			if *failed == "" {
				must(t, err)
				break
			}
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("a failing %s gives %v", *failed, err)
			}
			if atomic && !exists(live) {
				t.Errorf("after a failing %s there is nothing at live", *failed)
			}
			state := strings.Join(names(t, dir), " ")
			if exists(live + "/new") {
				state += " done"
			}
			if !slices.Contains(states, state) {
				states = append(states, state)
			}
			before = func(string, string) error { return nil }
			if !atomic {
				noExchange()
			}
			if exists(fresh+".old") || !exists(live+"/new") {
				must(t, Swap(fresh, live))
			}
			got := [][]string{names(t, dir), names(t, fresh), names(t, live)}
			if diff := cmp.Diff([][]string{{"fresh", "live"}, {"old"}, {"new"}}, got); diff != "" {
				t.Errorf("after a failing %s: %s", *failed, diff)
			}
		}
		want := []string{"fresh live", "fresh live done"}
		if !atomic {
			want = []string{"fresh live", "fresh fresh.old", "fresh.old live done", "fresh live done"}
		}
		if diff := cmp.Diff(want, states); diff != "" {
			t.Error(diff)
		}
	}
}

// If the second of the three renames fails, the old one is put back.
func TestSwapPutsBack(t *testing.T) {
	dir := t.TempDir()
	fresh, live := filepath.Join(dir, "fresh"), filepath.Join(dir, "live")
	fill(t, dir, "", "fresh/new", "live/old")
	renames := 0
	setBefore(t, func(op, path string) error {
		if op == "rename" && path == live {
			if renames++; renames == 1 {
				return syscall.EACCES
			}
		}
		return nil
	})
	noExchange()
	if err := Swap(fresh, live); !errors.Is(err, syscall.EACCES) {
		t.Errorf("it gives %v", err)
	}
	got := [][]string{names(t, dir), names(t, fresh), names(t, live)}
	if diff := cmp.Diff([][]string{{"fresh", "live"}, {"new"}, {"old"}}, got); diff != "" {
		t.Error(diff)
	}
}
