package matrix_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/matrix"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

func etcds(t *testing.T) binaries.Set {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// options are those of the pairs of the given minors.
func options(t *testing.T, set binaries.Set, minors ...string) matrix.Options {
	t.Helper()
	versions, err := matrix.Select(matrix.Versions(set, false), minors)
	if err != nil {
		t.Fatal(err)
	}
	return matrix.Options{Binaries: set, From: versions, To: versions, Keys: 5, WorkDir: t.TempDir(), Jobs: 2, Tool: "test"}
}

// replace gives the set with a shell script in the place of one minor's etcd. The script runs unless that is asked for its
// version; ETCD stands for the real one.
func replace(t *testing.T, set binaries.Set, minor, script string) binaries.Set {
	t.Helper()
	m, err := versionfile.ParseMinor(minor)
	if err != nil {
		t.Fatal(err)
	}
	bin, ok := set.Newest(m)
	if !ok {
		t.Fatalf("no etcd %s; run `make binaries`", minor)
	}
	etcd, err := filepath.Abs(bin.Path)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), filepath.Base(bin.Path))
	text := "#!/bin/sh\nif [ \"$*\" != --version ]; then\n" + strings.ReplaceAll(script, "ETCD", etcd) + "\nfi\nexec " + etcd + " \"$@\"\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return set.With(binaries.Binary{Path: path, Release: bin.Release})
}

// TestLost has a target's etcd that serves nothing of what the data holds: the pair fails, and the keys are named.
func TestLost(t *testing.T) {
	set := etcds(t)
	o := options(t, set, "3.6", "3.7")
	o.From, o.To = o.From[:1], o.To[1:]
	// The private etcds of a migration have certificates; the one that is read at the end has none.
	o.Binaries = replace(t, set, "3.7", `case "$*" in *--cert-file*) ;; *) rm -r "$4/member" ;; esac`)
	report, err := matrix.Run(t.Context(), o)
	if err != nil || len(report.Results) != 1 {
		t.Fatalf("%v, %+v", err, report)
	}
	r := report.Results[0]
	if r.Outcome != matrix.Failed || len(r.Differences) == 0 || !strings.Contains(strings.Join(r.Differences, "\n"), "is lost") {
		t.Errorf("%+v", r)
	}

	// Of a user's own data no key is named, unless that is asked for.
	bin, err := pathtest.Newest(set, "3.6")
	if err != nil {
		t.Fatal(err)
	}
	o.DataDir = t.TempDir()
	s := pathtest.Serve(t, bin, o.DataDir)
	if err := errors.Join(s.WriteOnce(t.Context()), s.Stop()); err != nil {
		t.Fatal(err)
	}
	for _, o.NameKeys = range []bool{false, true} {
		o.WorkDir = t.TempDir()
		report, err := matrix.Run(t.Context(), o)
		if err != nil || len(report.Results) != 1 {
			t.Fatalf("%v, %+v", err, report)
		}
		r := report.Results[0]
		if named := strings.Contains(strings.Join(r.Differences, "\n"), "/pathtest/written"); len(r.Differences) == 0 || named != o.NameKeys {
			t.Errorf("asked for names: %t: %q", o.NameKeys, r.Differences)
		}
	}
}

// TestFailed has an etcd on the way that does not start: pairs that need it fail and say so, the others pass, the failed
// one's data dir is kept, and when the etcd is mended only what failed is tried again.
func TestFailed(t *testing.T) {
	set := etcds(t)
	o := options(t, set, "3.5", "3.7")
	o.Binaries = replace(t, set, "3.6", "echo 'panic: broken' >&2; exit 2")
	report, err := matrix.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	up := report.Get(matrix.Pair{From: o.From[0], To: o.To[1]})
	if up == nil || up.Outcome != matrix.Failed || !strings.Contains(up.Reason, "upgrade to 3.6") || !strings.Contains(up.Reason, "panic: broken") {
		t.Fatalf("3.5 to 3.7 by way of a broken 3.6: %+v", up)
	}
	if up.Seconds <= 0 {
		t.Errorf("it took %g seconds", up.Seconds)
	}
	if _, err := os.Stat(filepath.Join(up.DataDir, "member")); err != nil {
		t.Errorf("the data dir of the failed pair: %v", err)
	}
	o.Binaries, o.Resume = set, true
	var tried []matrix.Pair
	o.Observer = func(e matrix.Event) {
		if e.Result != nil {
			tried = append(tried, e.Pair)
		}
	}
	if report, err = matrix.Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if report.Count(matrix.Passed) != 2 || len(tried)+report.Resumed != 2 || len(tried) == 0 {
		t.Errorf("after it was mended %d passed; tried %v, %d were kept", report.Count(matrix.Passed), tried, report.Resumed)
	}
}

// TestInterrupted ends a matrix after its first pair: what is done is kept, and the next one goes on.
func TestInterrupted(t *testing.T) {
	o := options(t, etcds(t), "3.6", "3.7")
	o.Jobs = 1
	ctx, cancel := context.WithCancel(t.Context())
	o.Observer = func(e matrix.Event) {
		if e.Result != nil {
			cancel()
		}
	}
	report, err := matrix.Run(ctx, o)
	if migrate.KindOf(err) != migrate.Interrupted || !errors.Is(err, context.Canceled) || len(report.Results) != 1 || report.NotRun() != 1 {
		t.Fatalf("%v, %+v", err, report)
	}
	o.Resume, o.Observer = true, nil
	if report, err = matrix.Run(t.Context(), o); err != nil || report.Resumed != 1 || report.Count(matrix.Passed) != 2 {
		t.Errorf("%v, %+v", err, report)
	}
}

// TestNotAtHand goes where a minor on the way is missing: that is refused, not failed.
func TestNotAtHand(t *testing.T) {
	set := etcds(t)
	o := options(t, set, "3.4", "3.6")
	o.From, o.To = o.From[:1], o.To[1:]
	o.Binaries.Binaries = nil
	for _, b := range set.Binaries {
		if b.Release.Minor().String() != "3.5" {
			o.Binaries.Binaries = append(o.Binaries.Binaries, b)
		}
	}
	report, err := matrix.Run(t.Context(), o)
	if err != nil || report.Count(matrix.Refused) != 1 || !strings.Contains(report.Results[0].Reason, "needs an etcd 3.5") {
		t.Errorf("%v, %+v", err, report)
	}
}

// TestOwnData has data of a user's own that cannot be read once it is copied: it is refused before that.
func TestOwnData(t *testing.T) {
	set := etcds(t)
	o := options(t, set, "3.6", "3.7")
	bin, err := pathtest.Newest(set, "3.6")
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(context.Context, *clientv3.Client) error{
		"cluster of 2 members": func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.MemberAdd(ctx, []string{"http://127.0.0.1:1"})
			return err
		},
		"authentication is enabled": func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.UserAdd(ctx, "root", "secret")
			if err == nil {
				_, err = c.UserGrantRole(ctx, "root", "root")
			}
			if err == nil {
				_, err = c.AuthEnable(ctx)
			}
			return err
		},
	} {
		o.DataDir, o.WorkDir = t.TempDir(), t.TempDir()
		s := pathtest.Serve(t, bin, o.DataDir)
		c, err := s.V3()
		if err != nil {
			t.Fatal(err)
		}
		if err := change(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		report, err := matrix.Run(t.Context(), o)
		if report != nil || migrate.KindOf(err) != migrate.InUse {
			t.Errorf("%s, while its etcd runs: %v", want, err)
		}
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		o.Resume = true
		report, err = matrix.Run(t.Context(), o)
		if report != nil || migrate.KindOf(err) != migrate.Refused || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %+v", want, err, report)
		}
		if _, err := os.Stat(filepath.Join(o.WorkDir, "original", "data")); err == nil {
			t.Errorf("%s: it was copied", want)
		}
	}
}
