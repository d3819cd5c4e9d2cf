package migrate_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// nasty is the worst that a sound member of a minor can hold: the content of pathtest, and from 3.0 on keys, users and
// roles of the v2 API beside it, requests of the v2 API in the log, the NOSPACE alarm, authentication, up to 3.5 a member in the db
// that is gone, from 3.4 on as a learner what is none; a torn log, and an etcd that was killed.
func nasty(t *testing.T, set binaries.Set, minor versionfile.Minor) member {
	t.Helper()
	m := blank(t, set)
	bin := newest(t, set, minor.String())
	m.version = versionfile.Version{Release: bin.Release, Storage: minor.Storage()}
	var flags []string
	if minor == v(3, 4) || minor == v(3, 5) {
		flags = append(flags, "--enable-v2")
	}
	s := start(t, bin, m.dir, append(flags, "--snapshot-count", "50")...)
	if minor.Major == 2 {
		must(t, s.FillV2(t.Context(), 30))
		m.content = read(t, s, versionfile.Etcd2)
	} else {
		must(t, s.FillV3(t.Context(), 30))
		m.content = read(t, s, versionfile.Etcd3)
		if minor.Less(v(3, 6)) {
			putV2(t, s, 3)
			addV2Users(t, s)
			pollHealth(t, s)
		}
		raiseAlarm(t, s)
		enableAuth(t, s)
	}
	must(t, s.Kill())
	if minor.Major == 3 && minor.Less(v(3, 6)) {
		if !minor.Less(v(3, 4)) {
			markLearner(t, m.dir)
		}
		addZombie(t, m.dir)
	}
	tear(t, m.dir)
	must(t, os.Mkdir(filepath.Join(m.dir, "lost+found"), 0o700))
	st := inspect(t, m.dir)
	if st.Log.Torn == "" || hasProblem(st, "members-differ") != (minor.Major == 3 && minor.Less(v(3, 6))) {
		t.Errorf("the log is torn at %q, and the problems are %v", st.Log.Torn, st.Problems)
	}
	return m
}

func v(major, minor int) versionfile.Minor { return versionfile.Minor{Major: major, Minor: minor} }

// TestPairs goes from every minor to every later one.
func TestPairs(t *testing.T) {
	set := etcds(t)
	minors := versionfile.Minors()
	for i, from := range minors[:len(minors)-1] {
		t.Run("from "+from.String(), func(t *testing.T) {
			t.Parallel()
			made := nasty(t, set, from)
			for _, to := range minors[i+1:] {
				t.Run("to "+to.String(), func(t *testing.T) {
					made.clone(t).arrives(t, from, to)
				})
			}
		})
	}
}

// arrives migrates, and compares what the target's etcd serves with what was there before.
func (m member) arrives(t *testing.T, from, to versionfile.Minor) {
	t.Helper()
	r := m.request(t, to.String())
	r.V2Leftovers = migrate.LeftoversDiscard
	report, err := migrate.New(r).Run(t.Context())
	must(t, err)
	if report.From.Minor() != from {
		t.Errorf("it was taken for %s", report.From)
	}
	if got, err := versionfile.Read(m.dir); err != nil || got != report.Target {
		t.Errorf("version.txt is %s, %v", got, err)
	}
	for i, s := range report.Steps {
		changes := s.Kind == migrate.StepConvert || s.TTLsEnded > 0 || s.Replayed > 0
		if s.Fingerprint != s.FingerprintBefore && !changes || i > 0 && s.FingerprintBefore != report.Steps[i-1].Fingerprint {
			t.Errorf("step %s to %s: fingerprint %s and then %s", s.Kind, s.To, s.FingerprintBefore, s.Fingerprint)
		}
		if s.Replayed > 0 && i > 0 {
			t.Errorf("step %s to %s, which is not the first, replays %d entries", s.Kind, s.To, s.Replayed)
		}
	}
	s := start(t, newest(t, m.set, to.String()), m.dir)
	after, err := m.readAll(t, s, from, report.Target.Storage)
	must(t, err)
	for _, d := range pathtest.Compare(m.content, after) {
		t.Error(d)
	}
	must(t, s.Kill())
	if st := inspect(t, m.dir); from.Major == 3 && (len(st.V3.Alarms) != 1 || !st.V3.AuthEnabled || st.V2.Keys+st.V2.Auth > 0) {
		t.Errorf("alarms %v, authentication %v, %d keys and %d users and roles in the v2 store",
			st.V3.Alarms, st.V3.AuthEnabled, st.V2.Keys, st.V2.Auth)
	}
}

func (m member) readAll(t *testing.T, s *pathtest.Server, from versionfile.Minor, storage versionfile.Storage) (pathtest.Content, error) {
	switch {
	case storage == versionfile.Etcd2:
		return s.ReadV2(t.Context(), pathtest.Hidden...)
	case from.Major == 2:
		return s.ReadV3(t.Context())
	}
	return pathtest.ReadV3(t.Context(), asRoot(t, s))
}
