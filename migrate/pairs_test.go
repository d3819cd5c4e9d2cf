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
// roles of the v2 API beside it, requests of the v2 API in the log, the NOSPACE alarm, authentication; a torn log, and an
// etcd that was killed.
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
	must(t, os.Mkdir(filepath.Join(m.dir, "lost+found"), 0o700))
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
	for _, s := range report.Steps {
		if s.Kind == migrate.StepUpgrade && s.Fingerprint != s.FingerprintBefore && s.TTLsEnded == 0 && s.Replayed == 0 {
			t.Errorf("step %s to %s: fingerprint %s and then %s", s.Kind, s.To, s.FingerprintBefore, s.Fingerprint)
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
