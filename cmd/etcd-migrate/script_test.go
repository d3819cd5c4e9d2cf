package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// asMain makes this test binary be etcd-migrate, for tests that need its process.
const asMain = "ETCD_MIGRATE_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == probe {
		runProbe()
	}
	if os.Getenv(asSandbox) != "" {
		fmt.Fprintln(os.Stderr, enterSandbox())
		os.Exit(1)
	}
	if os.Getenv(asMain) != "" {
		main()
	}
	if everything {
		inHugePages()
	}
	testscript.Main(withTable{m}, map[string]func(){"etcd-migrate": main, "migrate": main, "migrate-if-needed.sh": main})
}

// withTable prints what TestKilled has done when all tests are done, and removes what they shared.
type withTable struct{ *testing.M }

func (m withTable) Run() int {
	defer table.print(os.Stdout)
	defer workshop.remove()
	return m.M.Run()
}

// TestScripts runs the scripts in testdata/script. Besides the commands of testscript they have:
//
//	exits CODE PROGRAM ARG…       runs a program, stdout and stderr to be matched afterwards, and checks its exit code
//	etcd2 MINOR DIR               lets that etcd write a data dir with keys in the v2 store
//	etcd3 MINOR DIR               the same with keys in the v3 store
//	cut FILE N                    cuts the last N bytes off a file
//
// and the variables $BIN, the directory of the etcd binaries, and $ETCD_<minor without its dot>, each newest release.
func TestScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(set.Dir)
	if err != nil {
		t.Fatal(err)
	}
	write := func(v2 bool) func(*testscript.TestScript, bool, []string) {
		return func(ts *testscript.TestScript, _ bool, args []string) {
			minor, err := versionfile.ParseMinor(args[0])
			ts.Check(err)
			bin, _ := set.Newest(minor)
			s, err := pathtest.Start(t.Context(), bin, ts.MkAbs(args[1]))
			ts.Check(err)
			if v2 {
				err = s.FillV2(t.Context(), 10)
			} else {
				err = s.FillV3(t.Context(), 10)
			}
			ts.Check(err)
			ts.Check(s.Stop())
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(e *testscript.Env) error {
			e.Setenv("BIN", dir)
			for _, b := range set.Binaries {
				m := b.Release.Minor()
				e.Setenv("ETCD_"+strconv.Itoa(m.Major)+strconv.Itoa(m.Minor), filepath.Join(dir, filepath.Base(b.Path)))
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"etcd2": write(true),
			"etcd3": write(false),
			"cut": func(ts *testscript.TestScript, _ bool, args []string) {
				n, err := strconv.Atoi(args[1])
				ts.Check(err)
				info, err := os.Stat(ts.MkAbs(args[0]))
				ts.Check(err)
				ts.Check(os.Truncate(ts.MkAbs(args[0]), info.Size()-int64(n)))
			},
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				got := 0
				if err := ts.Exec(args[1], args[2:]...); err != nil {
					exit, ok := err.(*exec.ExitError)
					if !ok {
						ts.Fatalf("%s: %v", args[1], err)
					}
					got = exit.ExitCode()
				}
				if got != want {
					ts.Fatalf("%s exits with %d, want %d", args[1], got, want)
				}
			},
		},
	})
}
