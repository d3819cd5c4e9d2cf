//go:build amd64

package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestWriteOrder holds the promise that a power cut loses nothing: it traces what each scenario writes, and wants
//
//   - what gets another name to be synced before, with every file and every directory below it;
//   - the directory in which a name has changed to be synced before anything else is changed;
//   - nothing at all to be left unsynced when an etcd is started or stopped, and at the end.
//
// To show that it would notice, it then leaves out each sync that a rename needs, and has to complain.
func TestWriteOrder(t *testing.T) {
	for _, sc := range scenarios(t) {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			sc.open(t)
			done := sc.calls
			if problems := check(done, nil); len(problems) > 0 {
				t.Errorf("%s", strings.Join(problems[:min(len(problems), 20)], "\n"))
			}
			left := leftOut(done)
			for _, l := range left {
				if len(check(done, l.calls)) == 0 {
					t.Errorf("nobody would notice if there were no sync of %s for %s", l.path, l.rename)
				}
			}
			if len(left) < 2 {
				t.Errorf("only %d syncs could be left out", len(left))
			}
			t.Logf("%d calls, in the right order; %d ways to leave a sync out, each noticed", len(done)/2, len(left))
		})
	}
}

// event is the beginning of a call or, with what it returned, its end.
type event struct {
	*call
	ended bool
	ret   int64
}

// disk is what of the files is not durable yet.
type disk struct {
	// data are the files with content that is not synced, names the directories with names that are not; both with the
	// number of the change that did it.
	data, names map[string]int
	// renamed is the directory in which the last change was a rename, as long as it has not been synced.
	renamed  string
	problems []string
}

// check goes through the calls, as if those of without had not been made.
func check(done []event, without []*call) []string {
	d := disk{data: map[string]int{}, names: map[string]int{}}
	began := map[*call]int{} // what had been done when a sync began: what is written meanwhile may be missing
	for i, e := range done {
		switch {
		case slices.Contains(without, e.call):
		case !e.ended && e.op == "sync":
			began[e.call] = i
		case !e.ended:
			d.before(e.call)
		case e.ret < 0:
		case e.op == "sync":
			d.synced(e.path, began[e.call])
		default:
			d.after(e.call, i)
		}
	}
	d.all("at the end")
	return d.problems
}

func (d *disk) say(format string, args ...any) {
	d.problems = append(d.problems, fmt.Sprintf(format, args...))
}

// before is what must be durable before a call.
func (d *disk) before(c *call) {
	if d.renamed != "" && (c.op != "rename" || filepath.Dir(c.to) != d.renamed) {
		d.say("%s: %s has not been synced since a name in it changed", c, d.renamed)
		d.renamed = ""
	}
	switch c.op {
	case "start", "signal":
		d.all(c.String())
	case "rename", "link":
		d.published(c, c.path)
		if c.exchange {
			d.published(c, c.to)
		}
	}
}

// published wants a file, or a directory and all below it, to be durable.
func (d *disk) published(c *call, path string) {
	for _, dirty := range []map[string]int{d.data, d.names} {
		for p := range dirty {
			if p == path || strings.HasPrefix(p, path+"/") {
				d.say("%s: %s has not been synced", c, p)
			}
		}
	}
}

func (d *disk) all(when string) {
	for p := range d.data {
		d.say("%s: the content of %s has not been synced", when, p)
	}
	for p := range d.names {
		d.say("%s: the names in %s have not been synced", when, p)
	}
}

func (d *disk) after(c *call, now int) {
	switch c.op {
	case "create", "write", "truncate", "clone":
		if _, known := d.data[c.path]; c.op == "create" && !known {
			d.names[filepath.Dir(c.path)] = now
		}
		d.data[c.path] = now
	case "mkdir":
		d.names[filepath.Dir(c.path)] = now
	case "link":
		d.names[filepath.Dir(c.to)] = now
	case "remove":
		d.forget(c.path)
		d.names[filepath.Dir(c.path)] = now
	case "rename":
		d.names[filepath.Dir(c.path)], d.names[filepath.Dir(c.to)] = now, now
		d.renamed = filepath.Dir(c.to)
		if !c.exchange {
			d.forget(c.to)
			d.move(d.data, c.path, c.to)
			d.move(d.names, c.path, c.to)
		}
	}
}

func (d *disk) forget(path string) {
	for _, dirty := range []map[string]int{d.data, d.names} {
		for p := range dirty {
			if p == path || strings.HasPrefix(p, path+"/") {
				delete(dirty, p)
			}
		}
	}
}

func (d *disk) move(dirty map[string]int, from, to string) {
	for p, when := range dirty {
		if rest, below := strings.CutPrefix(p, from); below && (rest == "" || rest[0] == '/') {
			delete(dirty, p)
			dirty[to+rest] = when
		}
	}
}

func (d *disk) synced(path string, began int) {
	for _, dirty := range []map[string]int{d.data, d.names} {
		if when, ok := dirty[path]; ok && when < began {
			delete(dirty, path)
		}
	}
	if _, still := d.names[path]; d.renamed == path && !still {
		d.renamed = ""
	}
}

// omission is what of the syncs of a path can be left out.
type omission struct {
	path   string
	rename *call // that needs it
	calls  []*call
}

// leftOut gives, for each rename, the syncs of each file and directory that gets its name with it, and the sync of the
// directory that it is in then.
func leftOut(done []event) (left []omission) {
	for i, r := range done {
		if !r.ended || r.op != "rename" || r.ret < 0 {
			continue
		}
		before, changed := map[string]*omission{}, map[string]bool{}
		after := omission{path: filepath.Dir(r.to), rename: r.call}
		following := true // up to the next change
		for j, e := range done {
			switch {
			case e.op != "sync" && j < i:
				changed[filepath.Dir(e.path)] = true
				changed[e.path] = changed[e.path] || e.op != "mkdir" && e.op != "attributes"
			case e.op != "sync":
				following = following && j <= i
			case e.ended:
			case j < i && changed[e.path] && (e.path == r.path || strings.HasPrefix(e.path, r.path+"/")):
				if before[e.path] == nil {
					before[e.path] = &omission{path: e.path, rename: r.call}
				}
				before[e.path].calls = append(before[e.path].calls, e.call)
			case j > i && following && e.path == after.path:
				after.calls = append(after.calls, e.call)
			}
		}
		for _, o := range before {
			left = append(left, *o)
		}
		if len(after.calls) > 0 { // the last of several renames in the directory
			left = append(left, after)
		}
	}
	return left
}
