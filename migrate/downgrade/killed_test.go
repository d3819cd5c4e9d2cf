package downgrade

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// killedEnv makes the test binary bring the data dir that it names down to a minor, or convert it to "etcd2", and be
// killed meanwhile: "<to> <dir>".
const killedEnv = "ETCD_MIGRATE_TEST_DOWNGRADE"

func TestMain(m *testing.M) {
	if order := os.Getenv(killedEnv); order != "" {
		to, dir, _ := strings.Cut(order, " ")
		if err := takeOrder(to, dir, "go"); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func takeOrder(to, dir string, say ...any) error {
	snapDir := filepath.Join(dir, "member", "snap")
	log, err := raftlog.Open(snapDir, filepath.Join(dir, "member", "wal"))
	if err != nil {
		return err
	}
	tree, sum, err := replay(log)
	if err != nil {
		return err
	}
	if len(say) > 0 {
		fmt.Println(say...)
	}
	if to == "etcd2" {
		_, err := convert.ToV2(context.Background(), convert.V2Params{
			Log: log, Summary: sum, Tree: tree, SnapDir: snapDir, Now: killedNow,
		})
		return err
	}
	m, err := versionfile.ParseMinor(to)
	if err != nil {
		return err
	}
	_, err = Offline(context.Background(), Params{Log: log, Summary: sum, Tree: tree, SnapDir: snapDir, To: m})
	return err
}

// killedNow makes expiries the same at each call.
var killedNow = time.Date(2035, 5, 5, 5, 5, 5, 0, time.UTC)

// outcome is all that must be the same after any number of kills as after none.
type outcome struct {
	V2, V3                              string
	ClusterVersion                      string
	Index                               uint64
	Members                             []keyspace.V2Member
	State                               string
	Snapshot                            uint64
	DB                                  bool
	DBVersion, StorageVersion, ConfMeta string
	DBIndex                             uint64
	DBMembers                           []keyspace.V3Member
}

func outcomeOf(t testing.TB, dir string) (o outcome) {
	t.Helper()
	log, sum, tree := load(t, dir)
	fp := fingerprint(tree)
	members, err := tree.Members()
	must(t, err)
	o = outcome{
		V2: fp.String(), ClusterVersion: tree.ClusterVersion(), Index: tree.Index(), Members: members,
		State: fmt.Sprintf("%+v %d", sum.HardState, sum.LastTerm), Snapshot: log.Snapshot().Index,
	}
	db, err := keyspace.OpenDB(filepath.Join(dir, "member", "snap", "db"))
	if os.IsNotExist(err) || err != nil && strings.Contains(err.Error(), "no such file") {
		return o
	}
	must(t, err)
	defer db.Close()
	info, err := db.Info()
	must(t, err)
	v3, err := keyspace.FingerprintDB(db)
	must(t, err)
	o.DB, o.V3, o.DBVersion, o.DBIndex, o.DBMembers = true, v3.String(), info.ClusterVersion, info.ConsistentIndex, info.Members
	o.StorageVersion, o.ConfMeta = info.StorageVersion, fmt.Sprint(info.Term, info.ConfState)
	return o
}

// TestKilled kills downgrades and conversions at instants that are spread over their time. The data must be whole each
// time, and the next call must come to the same end as one that was never killed.
func TestKilled(t *testing.T) {
	for name, test := range map[string]struct {
		from string
		to   string
		v2   bool
	}{
		"3.5 to 3.4":     {"3.5", "3.4", false},
		"3.0 to 2.3":     {"3.0", "2.3", true},
		"etcd3 to etcd2": {"3.0", "etcd2", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base := filepath.Join(t.TempDir(), "data")
			s := serve(t, test.from, base)
			if test.v2 {
				must(t, s.FillV2(t.Context(), 100))
			} else {
				fillJSON(t, s)
			}
			must(t, s.Stop())
			trim(t, base)
			before := outcomeOf(t, base)

			whole := filepath.Join(t.TempDir(), "data")
			copyDir(t, whole, base)
			duration := order(t, test.to, whole, time.Minute)
			want := outcomeOf(t, whole)

			const kills = 21
			states := map[string]int{}
			dir := ""
			for i := range kills {
				if i%3 == 0 { // the others go on from where the last one was killed
					dir = filepath.Join(t.TempDir(), "data")
					copyDir(t, dir, base)
				}
				order(t, test.to, dir, 2*duration*time.Duration(i)/kills)

				got := outcomeOf(t, dir)
				switch {
				case got.ClusterVersion == want.ClusterVersion && got.V2 == want.V2:
					states["new log"]++
				case got.V2 == before.V2 && got.V3 == before.V3 && got.ClusterVersion == before.ClusterVersion:
					states["old log"]++
				default:
					t.Fatalf("neither the old log nor the new:\n%s", cmp.Diff(before, got))
				}
				if got.V2 != want.V2 && got.V3 != before.V3 {
					t.Fatalf("keys are in neither store:\n%s", cmp.Diff(before, got))
				}
				if i%3 == 2 {
					must(t, takeOrder(test.to, dir))
					if diff := cmp.Diff(want, outcomeOf(t, dir)); diff != "" {
						t.Fatalf("after a kill and another call:\n%s", diff)
					}
					if n := len(filesIn(t, dir)); n > 3 {
						t.Errorf("left behind: %q", filesIn(t, dir))
					}
				}
			}
			t.Logf("%d kills during %s: %v", kills, duration, states)
		})
	}
}

func filesIn(t testing.TB, dir string) (names []string) {
	for _, sub := range []string{"snap", "wal"} {
		files, err := os.ReadDir(filepath.Join(dir, "member", sub))
		must(t, err)
		for _, f := range files {
			names = append(names, sub+"/"+f.Name())
		}
	}
	return names
}

// order has a child work on the directory and kills it after that time. It gives how long the child worked.
func order(t testing.TB, to, dir string, after time.Duration) time.Duration {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killedEnv+"="+to+" "+dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "go" {
		t.Fatalf("the child says %q", lines.Text())
	}
	began := time.Now()
	timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
	defer timer.Stop()
	for lines.Scan() {
		t.Errorf("the child says %s", lines.Text())
	}
	_ = cmd.Wait() // it was killed, or has said what was wrong
	return time.Since(began)
}
