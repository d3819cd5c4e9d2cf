package migrate_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestRollbackKeepsSince upgrades, writes with the newer etcd, and goes back: what was there before is there, and what was
// written, changed and deleted since.
func TestRollbackKeepsSince(t *testing.T) {
	set := etcds(t)
	for _, way := range [][2]string{{"3.4", "3.7"}, {"2.3", "3.5"}} {
		old, newer := way[0], way[1]
		t.Run(old, func(t *testing.T) {
			t.Parallel()
			m := blank(t, set)
			m.on(t, old, func(s *pathtest.Server) {
				if old == "2.3" {
					putV2(t, s, 3)
				} else {
					putV3(t, s, 3)
				}
			})
			m.migrate(t, newer)
			m.on(t, newer, func(s *pathtest.Server) {
				c, err := s.V3()
				must(t, err)
				before, err := s.ReadV3(t.Context())
				must(t, err)
				keys := slices.Sorted(maps.Keys(before.Keys))
				_, err = c.Put(t.Context(), keys[0], `"changed since"`)
				must(t, err)
				_, err = c.Delete(t.Context(), keys[1])
				must(t, err)
				_, err = c.Put(t.Context(), "/since/new", `"new since"`)
				must(t, err)
				m.content, err = s.ReadV3(t.Context())
				must(t, err)
			})
			r := m.request(t, old)
			r.AllowRollback = true
			_, err := migrate.New(r).Run(t.Context())
			must(t, err)
			m.on(t, old, func(s *pathtest.Server) {
				after := read(t, s, r.Target.Storage)
				for _, d := range pathtest.Compare(m.content, after) {
					t.Error(d)
				}
				if got := after.Keys["/since/new"].Value; len(after.Keys) != 3 || got != `"new since"` {
					t.Errorf("%d keys; the one written since is %q", len(after.Keys), got)
				}
			})
		})
	}
}

// TestRollback goes from every minor to every earlier one: the older etcd starts, serves every record with its revisions,
// and takes writes; and a new upgrade to the newest works.
func TestRollback(t *testing.T) {
	set := etcds(t)
	minors := versionfile.Minors()
	newestMinor := minors[len(minors)-1]
	for i, from := range slices.Backward(minors) {
		if i == 0 {
			break
		}
		t.Run(from.String(), func(t *testing.T) {
			t.Parallel()
			m := writeJSON(t, set, from)
			for _, to := range slices.Backward(minors[:i]) {
				t.Run(to.String(), func(t *testing.T) {
					m := m.clone(t)
					r := m.request(t, to.String())
					r.AllowRollback = true
					report, err := migrate.New(r).Run(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if v, err := versionfile.Read(m.dir); err != nil || v != r.Target {
						t.Errorf("version.txt is %s, %v", v, err)
					}
					for _, s := range report.Steps {
						if s.Kind != migrate.StepDowngrade && s.Kind != migrate.StepConvertBack {
							t.Errorf("there is a step %s", s.Kind)
						}
					}
					s := start(t, newest(t, set, to.String()), m.dir)
					for _, d := range pathtest.Compare(m.content, readAll(t, s, from, to)) {
						t.Errorf("%s to %s: %s", from, to, d)
					}
					if err := s.WriteOnce(t.Context()); err != nil {
						t.Errorf("etcd %s takes no writes: %v", to, err)
					}
					m.content = readAll(t, s, from, to)
					stop(t, s)
					m.migrate(t, newestMinor.String())
					m.serves(t, newestMinor.String())
				})
			}
		})
	}
}

// readAll reads what writeJSON has written at from, of an etcd of to.
func readAll(t *testing.T, s *pathtest.Server, from, to versionfile.Minor) pathtest.Content {
	t.Helper()
	if to.Storage() == versionfile.Etcd3 || from.Storage() == versionfile.Etcd2 {
		return read(t, s, to.Storage())
	}
	content, err := s.ReadV2(t.Context()) // nothing is hidden
	must(t, err)
	return content
}

// writeJSON lets an etcd of that minor write data that can go back to any other.
func writeJSON(t *testing.T, set binaries.Set, minor versionfile.Minor) member {
	t.Helper()
	if minor.Storage() == versionfile.Etcd2 {
		return write(t, set, minor.String(), versionfile.Etcd2)
	}
	bin := newest(t, set, minor.String())
	m := member{set: set, dir: filepath.Join(t.TempDir(), "etcd"), version: versionfile.Version{Release: bin.Release, Storage: versionfile.Etcd3}}
	s := start(t, bin, m.dir)
	must(t, s.FillJSON(t.Context(), 50))
	m.content = read(t, s, versionfile.Etcd3)
	stop(t, s)
	return m
}

// TestRollbackRefusesWhatV2CannotHold: counted, with examples beside the error, and nothing changed.
func TestRollbackRefusesWhatV2CannotHold(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "3.4", versionfile.Etcd3) // with binary values, as Kubernetes writes them today
	r := m.request(t, "2.3")
	r.AllowRollback = true
	before := tree(t, m.dir)
	_, err := migrate.New(r).Run(t.Context())
	if migrate.KindOf(err) != migrate.Refused {
		t.Fatal(err)
	}
	for _, want := range []string{"keys", "--show-keys", "--accept-loss=unfit-keys,not-json", "nothing has been changed"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	var refused *migrate.Error
	if errors.As(err, &refused); len(refused.Names) == 0 {
		t.Error("no key is named")
	}
	for _, n := range refused.Names {
		if len(n.Names) == 0 || len(n.Names) > 3 || strings.Contains(err.Error(), n.Names[0]) {
			t.Errorf("%q names %v", err, n)
		}
	}
	unchanged(t, m.dir, before)
	if _, err := versionfile.Read(m.dir); err == nil {
		t.Errorf("%s was written", filepath.Join(m.dir, versionfile.Name))
	}
}

// TestRollbackResumes: killed after the keys have moved back and before version.txt says so, the next run goes on.
func TestRollbackResumes(t *testing.T) {
	set := etcds(t)
	minor, err := versionfile.ParseMinor("3.1")
	must(t, err)
	m := writeJSON(t, set, minor)
	r := m.request(t, "2.3")
	r.AllowRollback = true
	// What the kernel does to a killed process, the observer does to this one: it stops where version.txt would be written.
	killed := errors.New("killed")
	r.Observer = func(e migrate.Event) {
		if e.Kind == migrate.EventStepStarted && e.Plan.Steps[e.Step-1].Kind == migrate.StepConvertBack {
			must(t, os.Chmod(filepath.Join(m.dir, versionfile.Name), 0o400))
			must(t, os.Mkdir(filepath.Join(m.dir, "."+versionfile.Name+"-in-the-way"), 0o700))
			must(t, os.WriteFile(filepath.Join(m.dir, "."+versionfile.Name+"-in-the-way", "x"), nil, 0o600))
		}
	}
	if _, err := migrate.New(r).Run(t.Context()); err == nil {
		t.Fatal(killed)
	}
	if v, err := versionfile.Read(m.dir); err != nil || v.Storage != versionfile.Etcd3 {
		t.Fatalf("version.txt is %s, %v", v, err)
	}
	must(t, os.RemoveAll(filepath.Join(m.dir, "."+versionfile.Name+"-in-the-way")))
	r.Observer = func(e migrate.Event) {
		// From here on the journal tells what this run began with, and no longer why version.txt contradicts the data.
		if v, err := versionfile.Read(m.dir); e.Kind == migrate.EventBackup && (err != nil || v.Storage != versionfile.Etcd2) {
			t.Errorf("with the journal written anew, version.txt says %s, %v", v, err)
		}
	}
	report, err := migrate.New(r).Run(t.Context())
	must(t, err)
	if report.From.Storage != versionfile.Etcd2 {
		t.Errorf("went on from %s", report.From)
	}
	if backups, err := os.ReadDir(filepath.Join(m.dir, "etcd-migrate", "backups")); err != nil || len(backups) > 2 {
		t.Errorf("%d backups, %v", len(backups), err)
	}
	s := start(t, newest(t, set, "2.3"), m.dir)
	for _, d := range pathtest.Compare(m.content, readAll(t, s, minor, versionfile.Minors()[1])) {
		t.Error(d)
	}
	stop(t, s)
}

// TestRollbackUnproven: what a step back has made of the data is not taken for good, by any later run, before the older etcd
// has run on it.
func TestRollbackUnproven(t *testing.T) {
	set := etcds(t)
	minor, err := versionfile.ParseMinor("3.6")
	must(t, err)
	m := writeJSON(t, set, minor)
	real := newest(t, set, "3.5")
	dir := t.TempDir()
	fake, broken := filepath.Join(dir, filepath.Base(real.Path)), filepath.Join(dir, "broken")
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --version ] || [ ! -e %s ] || { echo 'panic: cannot read this data' >&2; exit 2; }\nexec %s \"$@\"\n", broken, real.Path)
	must(t, os.WriteFile(fake, []byte(script), 0o755))
	must(t, os.WriteFile(broken, nil, 0o600))
	r := m.request(t, "3.5")
	r.AllowRollback, r.Binaries = true, set.With(binaries.Binary{Path: fake, Release: real.Release})
	for run, says := range []string{"the files are those of etcd 3.5 by now, and version.txt says 3.6", "the data is at 3.5.0/etcd3"} {
		var failed *migrate.Error
		if _, err := migrate.New(r).Run(t.Context()); !errors.As(err, &failed) || failed.Kind != migrate.Failed ||
			!strings.Contains(err.Error(), "cannot read this data") || !strings.Contains(failed.Data, says) {
			t.Fatalf("run %d gives %v, want that 3.5 panics and that %q", run+1, err, says)
		}
	}
	must(t, os.Remove(broken))
	report, err := migrate.New(r).Run(t.Context())
	must(t, err)
	if len(report.Steps) == 0 || report.Steps[0].Kind != migrate.StepReplay || report.Steps[0].To.Release != real.Release {
		t.Errorf("the last run's steps are %+v, want that etcd 3.5 ran", report.Steps)
	}
	s := start(t, real, m.dir)
	for _, d := range pathtest.Compare(m.content, read(t, s, versionfile.Etcd3)) {
		t.Error(d)
	}
	stop(t, s)
}
