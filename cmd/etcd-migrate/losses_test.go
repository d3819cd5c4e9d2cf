package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// TestShowLosses: what a conversion would lose is named, too.
func TestShowLosses(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		write  func(w secretWriter)
		target string
		want   []string // lines of standard error
	}{
		"v3-keys": {func(w secretWriter) {
			w.etcd(t, "3.0", func(s *pathtest.Server) { w.v2(t, s); w.v3(t, s) })
			w.versionTxt(t, "3.0.17/etcd2")
		}, "3.4", []string{`  v3-keys: "`, ` and 3 more`}},
		"v3-keys, on the way back": {func(w secretWriter) {
			w.etcd(t, "3.0", func(s *pathtest.Server) { w.v2(t, s); w.v3(t, s) })
			w.versionTxt(t, "3.0.17/etcd2")
		}, "2.3", []string{`  v3-keys: "`, ` and 3 more`}},
		"v2-auth": {func(w secretWriter) {
			w.etcd(t, "2.3", func(s *pathtest.Server) { w.v2(t, s); w.v2Auth(t, s) })
		}, "3.4", []string{`  users of the v2 API: "` + marker + `"`, `  roles of the v2 API: "` + marker + `"`}},
		"v3-auth": {func(w secretWriter) {
			w.etcd(t, "3.4", func(s *pathtest.Server) { w.v3Auth(t, s) })
		}, "2.3", []string{`  users of the v3 API: "` + marker + `" "root"`, `  roles of the v3 API: "` + marker + `" "root"`}},
		"v2-keys": {func(w secretWriter) {
			w.etcd(t, "3.4", func(s *pathtest.Server) { w.v2(t, s); w.v3(t, s) }, "--enable-v2")
			w.versionTxt(t, "3.4.31/etcd3")
		}, "2.3", []string{`  v2-keys: "/` + marker, ` and 2 more`}},
	} {
		t.Run(name, func(t *testing.T) {
			w := secretWriter{set, t.TempDir()}
			tc.write(w)
			for _, command := range []string{"plan", "migrate"} {
				cmd := exec.Command(os.Args[0], command, "--show-keys", "--data-dir", w.dir(), "--bin-dir", set.Dir,
					"--target-version", tc.target, "--allow-rollback")
				cmd.Env = append(os.Environ(), asMain+"=1")
				out, _ := cmd.CombinedOutput()
				if got := cmd.ProcessState.ExitCode(); got != 3 || !strings.Contains(string(out), "--show-keys names") {
					t.Errorf("%s exits with %d:\n%s", command, got, out)
				}
				for _, want := range tc.want {
					if !strings.Contains(string(out), want) {
						t.Errorf("%s does not say %q:\n%s", command, want, out)
					}
				}
			}
		})
	}
}
