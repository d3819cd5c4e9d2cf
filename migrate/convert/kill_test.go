package convert

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// killedEnv makes the test binary convert to the path that it holds, and be killed.
const killedEnv = "ETCD_MIGRATE_TEST_CONVERT_TO"

func TestMain(m *testing.M) {
	if path := os.Getenv(killedEnv); path != "" {
		convertForKill(path)
		return
	}
	os.Exit(m.Run())
}

func convertForKill(path string) {
	tree, err := buildTree(10_000, 300, 7)
	if err == nil {
		fmt.Println("go")
		_, err = ToV3(context.Background(), Params{Tree: tree, RaftIndex: 500, RaftTerm: 2, Now: now, DB: path})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// TestKilled kills conversions at random instants. There must be the old db or the new one, and the next conversion must
// give the same as one that was never killed.
func TestKilled(t *testing.T) {
	kills, err := strconv.Atoi(os.Getenv("ETCD_MIGRATE_KILLS")) // `make crash` sets it
	if err != nil {
		kills = 10
	}
	for _, existing := range []bool{true, false} {
		t.Run(fmt.Sprint("existing db ", existing), func(t *testing.T) {
			p := params(t, tree(t, 10_000, 300, 7))
			if existing {
				makeDB(t, p.DB, nil)
			}
			old, _ := os.ReadFile(p.DB)
			began := time.Now()
			_, err := ToV3(t.Context(), p)
			must(t, err)
			duration, want := time.Since(began), readFile(t, p.DB)

			state := map[string]int{}
			for i := range kills {
				path := filepath.Join(t.TempDir(), "db")
				if existing {
					must(t, os.WriteFile(path, old, 0o600))
				}
				delay := time.Duration(rand.Float64() * 1.2 * float64(duration))
				if i == kills-1 {
					delay = time.Minute // the last one may finish
				}
				killDuring(t, path, delay)

				switch got, err := os.ReadFile(path); {
				case errors.Is(err, fs.ErrNotExist) && !existing, existing && string(got) == string(old):
					state["old"]++
				case err == nil && string(got) == want:
					state["new"]++
				default:
					t.Fatalf("neither the old db nor the new: %d bytes, error %v", len(got), err)
				}
				q := p
				q.DB = path
				_, err := ToV3(t.Context(), q)
				must(t, err)
				if readFile(t, path) != want {
					t.Fatal("the next conversion made another db")
				}
				onlyDB(t, q)
			}
			if state["new"] == 0 {
				t.Error("the last conversion was not killed, but has not finished")
			}
			t.Logf("states after the kill: %v", state)
		})
	}
}

func killDuring(t *testing.T, path string, delay time.Duration) {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), killedEnv+"="+path)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "go\n" {
		t.Errorf("the child said %q, error %v", line, err)
	}
	killer := time.AfterFunc(delay, func() { cmd.Process.Kill() })
	cmd.Wait()
	killer.Stop()
}
