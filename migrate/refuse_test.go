package migrate_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestRefusals gives Run what it must not touch, and compares the data dir byte by byte afterwards.
func TestRefusals(t *testing.T) {
	set := etcds(t)
	v2 := write(t, set, "2.3", versionfile.Etcd2)
	v3 := write(t, set, "3.4", versionfile.Etcd3)
	snapshots := write(t, set, "3.6", versionfile.Etcd3, "--snapshot-count", "10")
	for name, tc := range map[string]struct {
		member member
		spoil  func(t *testing.T, m member)
		with   func(t *testing.T, r *migrate.Request)
		kind   migrate.Kind
		want   []string // of the error
	}{
		"an unknown target": {v3, nil, func(t *testing.T, r *migrate.Request) { r.Target.Release.Line.Minor = 99 },
			migrate.Refused, []string{"3.99", "2.2 to 3.7"}},
		"a target below the data": {v3, nil, target("3.3"),
			migrate.Refused, []string{"3.4.0/etcd3", "above the target 3.3.27/etcd3"}},
		"a missing intermediate binary": {v3, nil, without("3.6"),
			migrate.Refused, []string{"needs an etcd 3.6", "--bin-dir"}},
		"a binary that is another": {v3, nil, lying("3.5", "3.6"),
			migrate.Refused, []string{"says that it is etcd 3.6"}},
		"garbage in version.txt": {v3, versionTxt("three point four"), nil,
			migrate.Refused, []string{`"three point four"`, "remove the file"}},
		"an empty version.txt": {v3, versionTxt(""), nil,
			migrate.Refused, []string{"version.txt is empty", "remove the file"}},
		"a version.txt that is ahead of the data": {v3, versionTxt("3.6.16/etcd3"), nil,
			migrate.Refused, []string{"version.txt says 3.6.16/etcd3", "at etcd 3.4", "remove"}},
		"a version.txt with the wrong store, never converted": {v2, versionTxt("2.3.8/etcd3"), nil,
			migrate.Refused, []string{"version.txt says 2.3.8/etcd3"}},
		"a version.txt with the wrong store, converted": {v3, versionTxt("3.4.31/etcd2"), nil,
			migrate.Refused, []string{"version.txt says 3.4.31/etcd2", "write 3.4.31/etcd3"}},
		"a db that is gone": {v3, remove("member/snap/db"), nil,
			migrate.Refused, []string{"member/snap/db is missing", "restore a backup"}},
		"a db that is cut off": {v3, truncate("member/snap/db", 10_000), nil,
			migrate.Refused, []string{"member/snap/db", "restore a backup"}},
		"a log that is gone": {v3, remove("member/wal"), nil,
			migrate.Refused, []string{"if etcd runs with --wal-dir, give the same here", "restore a backup"}},
		"a log that is gone, with snapshots": {snapshots, remove("member/wal"), nil,
			migrate.Refused, []string{"if etcd runs with --wal-dir, give the same here", "restore a backup"}},
		"a log that is elsewhere": {v3, remove("member/wal"), func(t *testing.T, r *migrate.Request) {
			r.WALDir = filepath.Join(t.TempDir(), "not-mounted")
		}, migrate.Refused, []string{"not-mounted", "see that its volume is mounted"}},
		"a log that is damaged": {v3, overwrite("member/wal/0000000000000000-0000000000000000.wal", 5000), nil,
			migrate.Refused, []string{"0000000000000000-0000000000000000.wal", "restore a backup"}},
		"a file instead of a directory": {v3, func(t *testing.T, m member) {
			must(t, os.RemoveAll(m.dir))
			must(t, os.WriteFile(m.dir, []byte("x"), 0o600))
		}, nil, migrate.Refused, []string{"etcd is a file: not a directory", "a directory is needed, not a file"}},
		"a directory of something else": {v3, func(t *testing.T, m member) {
			must(t, os.RemoveAll(filepath.Join(m.dir, "member")))
			must(t, os.WriteFile(filepath.Join(m.dir, "base.img"), []byte("x"), 0o600))
		}, nil, migrate.Refused, []string{"base.img", "does not look like an etcd data dir"}},
		"a member that is gone beside its version.txt": {v3, func(t *testing.T, m member) {
			m.writeVersion(t, "3.4.31/etcd3")
			must(t, os.RemoveAll(filepath.Join(m.dir, "member")))
		}, nil, migrate.Refused, []string{"holds no member's data", "3.4.31/etcd3", "empty cluster"}},
		"a member that is gone beside a backup of it": {v3, func(t *testing.T, m member) {
			l, err := datadir.NewLayout(m.dir, "")
			must(t, err)
			_, err = datadir.CreateBackup(t.Context(), l, l.BackupsDir(""), datadir.Meta{Version: m.version}, nil)
			must(t, err)
			must(t, os.RemoveAll(filepath.Join(m.dir, "member")))
		}, nil, migrate.Refused, []string{"holds no member's data, but there are backups", "empty cluster", "etcd-migrate backup restore --data-dir "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := tc.member.clone(t)
			if tc.spoil != nil {
				tc.spoil(t, m)
			}
			r := m.request(t, "3.7")
			if tc.with != nil {
				tc.with(t, &r)
			}
			before := tree(t, m.dir)
			_, _, planErr := migrate.New(r).Plan(t.Context())
			_, err := migrate.New(r).Run(t.Context())
			if migrate.KindOf(planErr) != migrate.Refused {
				t.Errorf("Plan says %v", planErr)
			}
			var e *migrate.Error
			if !errors.As(err, &e) || e.Kind != tc.kind || e.Hint == "" {
				t.Fatalf("got %v, want kind %v and a hint", err, tc.kind)
			}
			for _, want := range append(tc.want, "nothing has been changed") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			unchanged(t, m.dir, before)
		})
	}
}

func target(v string) func(*testing.T, *migrate.Request) {
	return func(t *testing.T, r *migrate.Request) {
		var err error
		r.Target, err = migrate.ResolveTarget(v, "", r.Binaries)
		must(t, err)
	}
}

func without(minor string) func(*testing.T, *migrate.Request) {
	return func(_ *testing.T, r *migrate.Request) {
		var kept []binaries.Binary
		for _, b := range r.Binaries.Binaries {
			if b.Release.Minor().String() != minor {
				kept = append(kept, b)
			}
		}
		r.Binaries.Binaries = kept
	}
}

// lying makes the etcd of one minor be that of another.
func lying(minor, truth string) func(*testing.T, *migrate.Request) {
	return func(t *testing.T, r *migrate.Request) {
		r.Binaries.Binaries = append([]binaries.Binary(nil), r.Binaries.Binaries...)
		for i, b := range r.Binaries.Binaries {
			if b.Release.Minor().String() == minor {
				r.Binaries.Binaries[i].Path = newest(t, r.Binaries, truth).Path
			}
		}
	}
}

func versionTxt(content string) func(*testing.T, member) {
	return func(t *testing.T, m member) { m.writeVersion(t, content) }
}

func remove(path string) func(*testing.T, member) {
	return func(t *testing.T, m member) { must(t, os.RemoveAll(filepath.Join(m.dir, path))) }
}

func truncate(path string, size int64) func(*testing.T, member) {
	return func(t *testing.T, m member) { must(t, os.Truncate(filepath.Join(m.dir, path), size)) }
}

func overwrite(path string, at int64) func(*testing.T, member) {
	return func(t *testing.T, m member) {
		f, err := os.OpenFile(filepath.Join(m.dir, path), os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("not what was there"), at)
		must(t, errors.Join(err, f.Close()))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestLiveEtcd: a data dir that an etcd runs on is left alone, at once, and the error says who holds it.
func TestLiveEtcd(t *testing.T) {
	set := etcds(t)
	for _, minor := range []string{"2.2", "3.0", "3.7"} {
		m := member{set: set, dir: filepath.Join(t.TempDir(), "etcd")}
		s := start(t, newest(t, set, minor), m.dir)
		r := m.request(t, "3.7")
		r.Target.Release.Patch-- // else there is nothing to do at 3.7
		_, err := migrate.New(r).Run(t.Context())
		if migrate.KindOf(err) != migrate.InUse || !strings.Contains(err.Error(), "etcd") || !strings.Contains(err.Error(), "pid") {
			t.Errorf("etcd %s: %v", minor, err)
		}
		if _, _, err := migrate.New(r).Plan(t.Context()); migrate.KindOf(err) != migrate.InUse || !strings.Contains(err.Error(), "pid") {
			t.Errorf("etcd %s: the plan is %v", minor, err)
		}
		if _, err := os.Stat(filepath.Join(m.dir, "etcd-migrate")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("etcd %s: the work dir was made: %v", minor, err)
		}
		stop(t, s)
	}
}

// TestFreshDataDir: nothing there means a version.txt and no step, for a missing, an empty and a newly mounted directory.
func TestFreshDataDir(t *testing.T) {
	set := etcds(t)
	for name, prepare := range map[string]func(dir string) error{
		"missing":    func(string) error { return nil },
		"empty":      func(dir string) error { return os.Mkdir(dir, 0o700) },
		"lost+found": func(dir string) error { return os.MkdirAll(filepath.Join(dir, "lost+found"), 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			m := member{set: set, dir: filepath.Join(t.TempDir(), "etcd")}
			must(t, prepare(m.dir))
			r := m.migrate(t, "3.7")
			if len(r.Steps) != 1 || r.Steps[0].Kind != migrate.StepRecord || r.Backup != "" {
				t.Errorf("did %+v with backup %q", r.Steps, r.Backup)
			}
			if v, err := versionfile.Read(m.dir); err != nil || v != r.Target {
				t.Errorf("version.txt is %s, %v", v, err)
			}
			// An etcd that ends before it has made its files may be started again; one whose files are gone may not.
			if again := m.migrate(t, "3.7"); again.Changed() {
				t.Errorf("the second start did %+v", again.Steps)
			}
			m.serves(t, "3.7")
			if again := m.migrate(t, "3.7"); again.Changed() {
				t.Errorf("the run after it did %+v", again.Steps)
			}
			must(t, os.RemoveAll(filepath.Join(m.dir, "member")))
			if _, err := migrate.New(m.request(t, "3.7")).Run(t.Context()); migrate.KindOf(err) != migrate.Refused {
				t.Errorf("without its member: %v", err)
			}
		})
	}
}

// TestLossBeforeTheProof: a run was killed after a step had lost keys and before it could find out. Who has written meanwhile
// has raised the revision, and who has not, has not.
func TestLossBeforeTheProof(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "3.5", versionfile.Etcd3)
	r := m.migrate(t, "3.6")
	st, _, err := migrate.New(m.request(t, "3.7")).Plan(t.Context())
	must(t, err)
	journal := func(from versionfile.Version, revision int64) {
		must(t, datadir.WriteJSON(filepath.Join(m.dir, "etcd-migrate", migrate.JournalName), map[string]any{
			"format": 1, "began": r.Began, "from": from, "target": r.Target, "backup": r.Backup, "permanent": "of more keys", "storage": "etcd3", "revision": revision,
		}))
	}
	converted := versionfile.Version{Release: r.From.Release, Storage: versionfile.Etcd2} // on the way, which was noted
	for _, from := range []versionfile.Version{r.From, converted} {
		journal(from, st.V3.Revision)
		_, err := migrate.New(m.request(t, "3.7")).Run(t.Context())
		if migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), "was killed before its proof") || !strings.Contains(err.Error(), r.Backup) {
			t.Errorf("after a loss: %v", err)
		}
	}
	// Where only the record of the last step is missing, too.
	m.writeVersion(t, "3.5.35/etcd3")
	for _, target := range []string{"3.6", "3.7"} {
		journal(r.From, st.V3.Revision)
		if _, err := migrate.New(m.request(t, target)).Run(t.Context()); migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), "was killed before its proof") {
			t.Errorf("after a loss in the last step, to %s: %v", target, err)
		}
	}
	journal(r.From, st.V3.Revision-1)
	if _, err := migrate.New(m.request(t, "3.7")).Run(t.Context()); err != nil {
		t.Errorf("after a write: %v", err)
	}
}

// TestFailedProofIsRemembered: what one run has found to be missing stops every later one, until a backup is restored.
func TestFailedProofIsRemembered(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "3.5", versionfile.Etcd3)
	r := m.migrate(t, "3.6")
	journal := filepath.Join(m.dir, "etcd-migrate", migrate.JournalName)
	must(t, datadir.WriteJSON(journal, map[string]any{
		"format": 1, "began": r.Began, "from": r.From, "target": r.Target, "backup": r.Backup, "permanent": "", "failed": "3 keys are gone",
	}))
	if st := inspect(t, m.dir); !hasProblem(st, "proof-failed") || !strings.Contains(st.Problems[0].Text, r.Backup) {
		t.Errorf("inspect finds the problems %v", st.Problems)
	}
	if _, _, err := migrate.New(m.request(t, "3.7")).Plan(t.Context()); migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), "3 keys are gone") {
		t.Errorf("the plan is %v", err)
	}
	if _, err := migrate.Rehearse(t.Context(), m.request(t, "3.7"), t.TempDir()); migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), "3 keys are gone") {
		t.Errorf("the rehearsal: %v", err)
	}
	for i, target := range []string{"3.6", "3.7", "3.7"} {
		if i == 2 { // nor is it forgotten with the backup
			must(t, os.RemoveAll(r.Backup))
		}
		_, err := migrate.New(m.request(t, target)).Run(t.Context())
		if migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), "3 keys are gone") || !strings.Contains(err.Error(), r.Backup) {
			t.Errorf("%s: %v", target, err)
		}
	}
}

// TestMemberJoining: an etcd that is killed right after `member add` has it in its log, and often not as committed yet. Alone
// it can never be ready.
func TestMemberJoining(t *testing.T) {
	set := etcds(t)
	for _, minor := range []string{"3.4", "3.6"} {
		t.Run(minor, func(t *testing.T) {
			t.Parallel()
			m := blank(t, set)
			s := start(t, newest(t, set, minor), m.dir)
			c, err := s.V3()
			must(t, err)
			// In its first seconds etcd takes nobody, because it does not see itself connected for long enough.
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
				if _, err = c.MemberAdd(t.Context(), []string{"http://127.0.0.1:1"}); err == nil || time.Now().After(deadline) {
					break
				}
			}
			must(t, err)
			must(t, s.Kill())
			refusedUnchanged(t, m, m.request(t, "3.7"))
		})
	}
}

// TestRunsOnce gives a Migrator a second run, which must not pass for a migration.
func TestRunsOnce(t *testing.T) {
	set := etcds(t)
	m := migrate.New(blank(t, set).request(t, "3.7"))
	if _, _, err := m.Plan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if report, err := m.Run(t.Context()); report != nil || migrate.KindOf(err) != migrate.Refused {
		t.Errorf("a second run gives %+v, %v", report, err)
	}
}

// TestSecondsOfFailure has an etcd that cannot make its step: the report says how long it took all the same.
func TestSecondsOfFailure(t *testing.T) {
	set := etcds(t)
	m := blank(t, set)
	m.on(t, "3.6", nil)
	broken := filepath.Join(t.TempDir(), "etcd-3.7.3")
	script := "#!/bin/sh\n[ \"$*\" = --version ] || exit 1\nexec " + newest(t, set, "3.7").Path + " --version\n"
	must(t, os.WriteFile(broken, []byte(script), 0o755))
	r := m.request(t, "3.7")
	r.Binaries = set.With(binaries.Binary{Path: broken, Release: r.Target.Release})
	report, err := migrate.New(r).Run(t.Context())
	if err == nil || report == nil || report.Seconds <= 0 {
		t.Errorf("%v, %+v", err, report)
	}
}

// TestPlanWhileEtcdRuns must say so: the data is in use, not damaged.
func TestPlanWhileEtcdRuns(t *testing.T) {
	m := blank(t, etcds(t))
	s := start(t, newest(t, m.set, "3.6"), m.dir)
	defer stop(t, s)
	if _, _, err := migrate.New(m.request(t, "3.7")).Plan(t.Context()); migrate.KindOf(err) != migrate.InUse {
		t.Error(err)
	}
}
