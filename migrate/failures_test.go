package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// The data dirs of the known failures, made by the etcds that make them. Each recipe gives a dir that the next minor's
// etcd does not get along with when it is simply started, which TestFailures shows on a copy.

// on starts an etcd on the member's data, does something and stops it.
func (m member) on(t *testing.T, minor string, do func(s *pathtest.Server), flags ...string) {
	t.Helper()
	s := start(t, newest(t, m.set, minor), m.dir, flags...)
	if do != nil {
		do(s)
	}
	stop(t, s)
}

func blank(t *testing.T, set binaries.Set) member {
	return member{set: set, dir: filepath.Join(t.TempDir(), "etcd")}
}

func putV3(t *testing.T, s *pathtest.Server, n int) {
	t.Helper()
	c, err := s.V3()
	must(t, err)
	for i := range n {
		_, err := c.Put(t.Context(), fmt.Sprintf("/put/%s/%d", s.Release, i), "1")
		must(t, err)
	}
}

func putV2(t *testing.T, s *pathtest.Server, n int) {
	t.Helper()
	for i := range n {
		status, body, err := s.V2(t.Context(), http.MethodPut, fmt.Sprintf("/v2/key-%d", i), url.Values{"value": {"1"}})
		if err != nil || status >= 400 {
			t.Fatalf("%d %s %v", status, body, err)
		}
	}
}

// from2 is data that was at 2.3 once and whose raft snapshot is still of then, brought to a minor with the v3 API in use.
func from2(t *testing.T, set binaries.Set, then ...string) member {
	m := blank(t, set)
	m.on(t, "2.3", func(s *pathtest.Server) {
		putV2(t, s, 25)
		_, _, err := s.V2(t.Context(), http.MethodDelete, "/v2", url.Values{"recursive": {"true"}})
		must(t, err)
	}, "--snapshot-count", "10")
	for _, minor := range then {
		m.on(t, minor, func(s *pathtest.Server) {
			putV3(t, s, 1)
			m.content = read(t, s, versionfile.Etcd3)
		})
	}
	return m
}

// v3Only is data of a v3-only cluster that was begun at the first minor and went on to the others.
func v3Only(t *testing.T, set binaries.Set, do func(*pathtest.Server), minors ...string) member {
	m := blank(t, set)
	for _, minor := range minors {
		m.on(t, minor, func(s *pathtest.Server) {
			putV3(t, s, 2)
			if do != nil {
				do(s)
			}
			m.content = read(t, s, versionfile.Etcd3)
		})
	}
	return m
}

// neverReady is what an etcd 3.5 last says that answers every v3 request "etcdserver: not capable".
const neverReady = "serving client traffic"

func TestFailures(t *testing.T) {
	set := etcds(t)
	for name, tc := range map[string]struct {
		make func(t *testing.T) member
		// next is the etcd that the data is a trap for, which then says so; empty if it starts.
		next, says string
		target     string
		with       func(*migrate.Request)
	}{
		"F01 a v2 snapshot newer than the db": {func(t *testing.T) member {
			m := from2(t, set)
			asleep := newest(t, set, "3.0")
			asleep.Release = newest(t, set, "2.3").Release // so that the v3 API is not asked whether it is ready
			stop(t, start(t, asleep, m.dir))
			return m
		}, "3.1", "snapshot file doesn't exist", "3.2", nil},
		"F03 a 2.x version in the snapshot, at 3.4": {func(t *testing.T) member { return from2(t, set, "3.0", "3.4") },
			"3.5", neverReady, "3.7", nil},
		"F03 stuck at 3.5": {func(t *testing.T) member {
			m := from2(t, set, "3.0", "3.4")
			fails(t, m, "3.5", neverReady)
			return m
		}, "3.5", neverReady, "3.7", nil},
		"F04 keys of the v2 API in the snapshot": {func(t *testing.T) member {
			m := blank(t, set)
			m.on(t, "3.5", func(s *pathtest.Server) {
				putV2(t, s, 30)
				putV3(t, s, 10)
				m.content = read(t, s, versionfile.Etcd3)
			}, "--enable-v2", "--snapshot-count", "10")
			return m
		}, "3.6", "detected disallowed custom content in v2store", "3.6", func(r *migrate.Request) { r.V2Leftovers = migrate.LeftoversDiscard }},
		"F05 SYNC in the log": {func(t *testing.T) member { return v3Only(t, set, awaitSync, "3.0", "3.5") },
			"3.6", "detected disallowed v2 WAL", "3.7", nil},
		"F05 QGET in the log": {func(t *testing.T) member {
			return v3Only(t, set, func(s *pathtest.Server) { pollHealth(t, s) }, "3.3", "3.5")
		}, "3.6", "detected disallowed v2 WAL", "3.6", nil},
		"F06 what 3.5 publishes, at 3.7": {func(t *testing.T) member { return v3Only(t, set, nil, "3.5", "3.6") },
			"3.7", "unmarshal should never fail", "3.7", nil},
		"F07 a member from before a snapshot was restored is in the db": {func(t *testing.T) member {
			m := v3Only(t, set, awaitBatch(t), "3.4").restored(t, "3.4")
			m.on(t, "3.4", nil)
			believes(t, m.clone(t), "3.6")
			return m
		}, "", "", "3.7", nil},
		"F07 a member that was removed is in the db, at 3.5": {func(t *testing.T) member {
			m := v3Only(t, set, nil, "3.5")
			addZombie(t, m.dir)
			believes(t, m.clone(t), "3.6")
			return m
		}, "", "", "3.7", nil},
		"F08 a promoted member is a learner in the db": {func(t *testing.T) member {
			m := v3Only(t, set, nil, "3.5")
			markLearner(t, m.dir)
			believes(t, m.clone(t), "3.6")
			return m
		}, "", "", "3.7", nil},
		"F16 lost+found and a stray file": {func(t *testing.T) member {
			m := v3Only(t, set, nil, "3.4")
			must(t, os.Mkdir(filepath.Join(m.dir, "lost+found"), 0o700))
			must(t, os.WriteFile(filepath.Join(m.dir, "notes"), nil, 0o600))
			return m
		}, "", "", "3.7", nil},
		"F20 a torn log": {func(t *testing.T) member {
			m := v3Only(t, set, nil, "3.4")
			tear(t, m.dir)
			return m
		}, "", "", "3.7", nil},
		"K02 version.txt of an etcd that never ran": {func(t *testing.T) member {
			m := v3Only(t, set, nil, "3.3")
			m.writeVersion(t, "3.4.18/etcd3")
			return m
		}, "", "", "3.5", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := tc.make(t)
			if tc.next != "" {
				fails(t, m.clone(t), tc.next, tc.says)
			}
			r := m.request(t, tc.target)
			if tc.with != nil {
				tc.with(&r)
			}
			_, err := migrate.New(r).Run(t.Context())
			must(t, err)
			m.on(t, tc.target, func(s *pathtest.Server) {
				if m.content.Keys != nil {
					for _, d := range pathtest.Compare(m.content, read(t, s, versionfile.Etcd3)) {
						t.Error(d)
					}
				}
				c, err := s.V3()
				must(t, err)
				members, err := c.MemberList(t.Context())
				must(t, err)
				if len(members.Members) != 1 || members.Members[0].IsLearner {
					t.Errorf("the members are %v", members.Members)
				}
				_, err = c.Put(t.Context(), "/after", "1")
				must(t, err)
			})
		})
	}
}

// awaitSync gives an old etcd the time to write a SYNC into its log, which it does every half second.
func awaitSync(s *pathtest.Server) {
	if s.Release.Minor() == v(3, 0) {
		time.Sleep(2 * time.Second)
	}
}

// fails sees that the etcd does not start on the data, and says why.
func fails(t *testing.T, m member, minor, says string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second) // one that will never be ready need not be waited for
	defer cancel()
	s, err := pathtest.Start(ctx, newest(t, m.set, minor), m.dir)
	if err == nil {
		_ = s.Kill()
		t.Fatalf("etcd %s starts: the data is no trap", minor)
	}
	if !strings.Contains(err.Error(), says) {
		t.Fatalf("etcd %s fails with %v, want %q", minor, err, says)
	}
}

// believes sees that the etcd takes the db's word for the members, be it with a zombie or a learner, or does not start.
func believes(t *testing.T, m member, minor string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	s, err := pathtest.Start(ctx, newest(t, m.set, minor), m.dir)
	if err != nil {
		return
	}
	defer s.Kill()
	c, err := s.V3()
	must(t, err)
	res, err := c.MemberList(ctx)
	must(t, err)
	if len(res.Members) == 1 && !res.Members[0].IsLearner {
		t.Fatalf("etcd %s lists one voter: the data is no trap", minor)
	}
}

func pollHealth(t *testing.T, s *pathtest.Server) {
	t.Helper()
	for range 3 {
		res, err := http.Get(s.URL + "/health")
		must(t, err)
		must(t, res.Body.Close())
	}
}

// raiseAlarm sets the NOSPACE alarm, as an etcd does whose db has reached its quota.
func raiseAlarm(t *testing.T, s *pathtest.Server) {
	t.Helper()
	c, err := s.V3()
	must(t, err)
	_, err = etcdserverpb.NewMaintenanceClient(c.ActiveConnection()).Alarm(t.Context(), &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: memberID(t, c), Alarm: etcdserverpb.AlarmType_NOSPACE,
	})
	must(t, err)
	if _, err := c.Put(t.Context(), "/refused", "1"); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatalf("with the alarm set, a write is answered %v", err)
	}
}

func memberID(t *testing.T, c *clientv3.Client) uint64 {
	t.Helper()
	res, err := c.MemberList(t.Context())
	must(t, err)
	return res.Members[0].ID
}

// enableAuth makes root the only one to read and write, with the password "pw".
func enableAuth(t *testing.T, s *pathtest.Server) {
	t.Helper()
	c, err := s.V3()
	must(t, err)
	_, err = c.UserAdd(t.Context(), "root", "pw")
	must(t, err)
	_, err = c.RoleAdd(t.Context(), "root")
	must(t, err)
	_, err = c.UserGrantRole(t.Context(), "root", "root")
	must(t, err)
	_, err = c.AuthEnable(t.Context())
	must(t, err)
}

func asRoot(t *testing.T, s *pathtest.Server) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.URL}, Username: "root", Password: "pw", DialTimeout: 10 * time.Second})
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestAlarmAndAuth takes data with the NOSPACE alarm set and authentication enabled, of which no password is given, from
// 3.0 through every minor. Both are there afterwards.
func TestAlarmAndAuth(t *testing.T) {
	set := etcds(t)
	for _, minor := range []string{"3.0", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6"} {
		t.Run(minor, func(t *testing.T) {
			t.Parallel()
			m := blank(t, set)
			m.on(t, minor, func(s *pathtest.Server) {
				must(t, s.FillV3(t.Context(), 10))
				m.content = read(t, s, versionfile.Etcd3)
				raiseAlarm(t, s)
				enableAuth(t, s)
			})
			r := m.migrate(t, "3.7")
			if len(r.State.V3.Alarms) != 1 || !r.State.V3.AuthEnabled || !hasProblem(r.State, "alarm") {
				t.Errorf("found the alarms %v, authentication %v, problems %v", r.State.V3.Alarms, r.State.V3.AuthEnabled, r.State.Problems)
			}
			m.on(t, "3.7", func(s *pathtest.Server) {
				open, err := s.V3()
				must(t, err)
				if _, err := open.Get(t.Context(), "/a"); !errors.Is(err, rpctypes.ErrUserEmpty) {
					t.Errorf("without a password a read is answered %v", err)
				}
				c := asRoot(t, s)
				after, err := pathtest.ReadV3(t.Context(), c)
				must(t, err)
				for _, d := range pathtest.Compare(m.content, after) {
					t.Error(d)
				}
				if _, err := c.Put(t.Context(), "/x", "1"); !errors.Is(err, rpctypes.ErrNoSpace) {
					t.Errorf("the alarm was cleared: a write is answered %v", err)
				}
			})
		})
	}
}

func hasProblem(st migrate.State, code string) bool {
	for _, p := range st.Problems {
		if p.Code == code {
			return true
		}
	}
	return false
}

// longOr gives all in a long test run, which ETCD_MIGRATE_LONG asks for, else the few.
func longOr(all []string, few ...string) []string {
	if os.Getenv("ETCD_MIGRATE_LONG") != "" {
		return all
	}
	return few
}

// refusedUnchanged sees that a request is refused with these words, and that nothing has been changed.
func refusedUnchanged(t *testing.T, m member, r migrate.Request, words ...string) {
	t.Helper()
	before := tree(t, m.dir)
	_, err := migrate.New(r).Run(t.Context())
	var e *migrate.Error
	if !errors.As(err, &e) || e.Kind != migrate.Refused || e.Hint == "" {
		t.Fatalf("got %v, want a refusal with a hint", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	unchanged(t, m.dir, before)
}
