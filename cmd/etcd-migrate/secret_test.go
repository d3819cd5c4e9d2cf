package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// marker is in every key, value, user and role of the data that TestNothingOfTheDataIsTold writes.
const marker = "Zqx7Secret"

// TestNothingOfTheDataIsTold provokes refusals, notes and steps of all kinds on data whose every name has a marker in it,
// and looks for that in all that is printed and in every file that is left but the data itself.
func TestNothingOfTheDataIsTold(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	debug := []string{"--log-format", "json", "--log-level", "debug"}
	to := func(command, minor string, more ...string) []string {
		return append([]string{command, "--bin-dir", set.Dir, "--target-version", minor}, more...)
	}
	noisy := func(command, minor string, more ...string) []string {
		return append(append(to(command, minor), debug...), more...)
	}
	allLosses := "--accept-loss=v3-keys,over-quota,unfit-keys,not-utf8,not-json,v2-keys,v3-auth"
	type call struct {
		exit int
		args []string
		says string // in what it prints, to see that it came as far as it was meant to
	}
	for name, tc := range map[string]struct {
		write func(t *testing.T, w secretWriter)
		calls []call
	}{
		"etcd2 and back": {func(t *testing.T, w secretWriter) {
			w.etcd(t, "2.3", func(s *pathtest.Server) { w.v2(t, s) })
		}, []call{
			{0, []string{"inspect"}, "2 hidden"},
			{0, []string{"inspect", "-o", "json"}, `"hidden": 2`},
			{0, to("plan", "3.7", "-o", "json"), "empty-v2"},
			{0, noisy("rehearse", "3.7", "-o", "json"), "fingerprint"},
			{0, noisy("migrate", "3.7", "-o", "json"), "migration done"},
			{0, noisy("rollback", "3.4", "-o", "json"), "migration done"},
			{0, append([]string{"attach-leases", "--bin-dir", set.Dir, "--ttl-keys-directory", "/"}, debug...), "without a lease"},
			{3, noisy("rollback", "2.3", "-o", "json"), "--accept-loss=not-json"},
			{0, noisy("rollback", "2.2", "-o", "json", allLosses), "migration done"},
			{0, []string{"backup", "list"}, "before the migration"},
			{0, []string{"backup", "verify", "newest"}, "its manifest says"},
		}},
		"v2 users": {func(t *testing.T, w secretWriter) {
			w.etcd(t, "2.3", func(s *pathtest.Server) { w.v2(t, s); w.v2Auth(t, s) })
		}, []call{
			{0, []string{"inspect"}, "v2-auth"},
			{3, to("plan", "3.6"), "1 user and 1 role"},
			{3, noisy("migrate", "3.6"), "1 user and 1 role"},
			{3, to("plan", "3.5"), "empty-v2"},
			{3, noisy("migrate", "3.5"), "--v2-leftovers=discard"},
			{0, to("plan", "3.6", "--v2-leftovers=discard", "-o", "json"), "deleted"},
			{0, noisy("migrate", "3.6", "--v2-leftovers=discard", "-o", "json"), "migration done"},
		}},
		"leftovers": {func(t *testing.T, w secretWriter) {
			w.etcd(t, "3.4", func(s *pathtest.Server) { w.v3(t, s); w.v2(t, s); w.v2Auth(t, s) }, "--enable-v2")
			w.versionTxt(t, "3.4.31/etcd3")
		}, []call{
			{0, []string{"inspect"}, "not in the v3 store"},
			{0, []string{"inspect", "-o", "json"}, "not in the v3 store"},
			{3, to("plan", "3.6"), "not in the v3 store"},
			{3, noisy("migrate", "3.6"), "--show-keys"},
			{3, noisy("rehearse", "3.6"), "not in the v3 store"},
			{3, noisy("rollback", "2.3"), "v2-keys"},
			{0, noisy("migrate", "3.6", "--v2-leftovers=discard", "-o", "json"), "migration done"},
		}},
		"v3 users and binary values": {func(t *testing.T, w secretWriter) {
			w.etcd(t, "3.5", func(s *pathtest.Server) { w.v3(t, s); w.v3Auth(t, s) })
		}, []call{
			{0, []string{"inspect"}, "authentication enabled: true"},
			{0, []string{"inspect", "-o", "json"}, `"authEnabled": true`},
			{3, noisy("rollback", "2.3"), "v3-auth"},
			{0, noisy("migrate", "3.7", "-o", "json"), "migration done"},
			{0, noisy("rollback", "2.3", "-o", "json", allLosses), "migration done"},
		}},
		"both stores": {func(t *testing.T, w secretWriter) {
			w.etcd(t, "3.0", func(s *pathtest.Server) { w.v2(t, s); w.v3(t, s) })
			w.versionTxt(t, "3.0.17/etcd2")
		}, []call{
			{3, to("plan", "3.6", "-o", "json"), `"error": "the v3 store already holds`},
			{3, noisy("migrate", "3.6"), "already holds"},
			{0, noisy("migrate", "3.6", "--accept-loss=v3-keys", "-o", "json"), "migration done"},
		}},
		"an etcd that dies": {func(t *testing.T, w secretWriter) {
			w.etcd(t, "3.3", func(s *pathtest.Server) { w.v3(t, s) })
			w.dyingEtcd(t, "3.4")
		}, []call{
			{1, append([]string{"migrate", "--bin-dir", "bin", "--target-version", "3.4", "-o", "json"}, debug...), "etcd ended unexpectedly"},
			{1, append([]string{"rehearse", "--bin-dir", "bin", "--target-version", "3.4", "-o", "json"}, debug...), "etcd ended unexpectedly"},
		}},
		"a damaged log": {func(t *testing.T, w secretWriter) {
			w.etcd(t, "3.3", func(s *pathtest.Server) { w.v3(t, s) })
			w.damage(t, "member/wal/0000000000000000-0000000000000000.wal")
		}, []call{
			{3, []string{"inspect"}, "crc"},
			{3, noisy("migrate", "3.6"), "crc"},
		}},
		"a damaged db": {func(t *testing.T, w secretWriter) {
			w.etcd(t, "3.3", func(s *pathtest.Server) { w.v3(t, s) })
			w.damage(t, "member/snap/db")
		}, []call{
			{3, []string{"inspect"}, "snap/db"},
			{3, noisy("migrate", "3.6"), "snap/db"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := secretWriter{set, t.TempDir()}
			tc.write(t, w)
			for _, c := range tc.calls {
				args := c.args
				at := 1
				if args[0] == "backup" {
					at = 2
				}
				args = append(append(append([]string{}, args[:at]...), "--data-dir", w.dir()), args[at:]...)
				cmd := exec.Command(os.Args[0], args...)
				cmd.Dir = w.base
				cmd.Env = append(os.Environ(), asMain+"=1", "TMPDIR="+w.base)
				out, _ := cmd.CombinedOutput() // the exit code says it
				if got := cmd.ProcessState.ExitCode(); got != c.exit || !strings.Contains(string(out), c.says) {
					t.Fatalf("%q exits with %d, want %d and %q:\n%s", args, got, c.exit, c.says, out)
				}
				if at := tells(out); at >= 0 {
					t.Errorf("%q tells of the data: …%s", args, out[max(0, at-200):min(len(out), at+80)])
				}
				w.checkFiles(t)
			}
		})
	}
}

// TestShowKeys: who asks for the names is given three of them, on standard error.
func TestShowKeys(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	w := secretWriter{set, t.TempDir()}
	w.etcd(t, "3.4", func(s *pathtest.Server) { w.v3(t, s); w.v2(t, s); w.v2Auth(t, s) }, "--enable-v2")
	bin, _ := set.Newest(versionfile.Minor{Major: 3, Minor: 6})
	for _, args := range [][]string{
		{"--show-keys", "inspect", "--data-dir", w.dir(), "-o", "json"},
		{"plan", "--show-keys", "--data-dir", w.dir(), "--bin-dir", set.Dir, "--target-version", "3.6"},
		{"migrate", "--data-dir", w.dir(), "--bin-dir", set.Dir, "--target-version", "3.6", "--show-keys"},
		{"run", "--show-keys", "--bin-dir", set.Dir, "--", bin.Path, "--data-dir", w.dir()},
	} {
		cmd := exec.Command(os.Args[0], args...)
		cmd.Env = append(os.Environ(), asMain+"=1")
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		_ = cmd.Run() // most of them refuse
		if n := strings.Count(stderr.String(), ` "/`+marker); n != 3 || !strings.Contains(stderr.String(), "keys of the v2 store: ") {
			t.Errorf("%q names %d keys:\n%s", args, n, stderr.String())
		}
		if tells(stdout.Bytes()) >= 0 {
			t.Errorf("%q: names are on standard output", args)
		}
		for _, line := range strings.Split(stderr.String(), "\n") {
			if strings.HasPrefix(line, "{") && tells([]byte(line)) >= 0 {
				t.Errorf("%q: names are in a line of the log", args)
			}
		}
	}
}

// tells gives where the marker is in something that was printed, as it is or encoded; -1 for nowhere.
func tells(out []byte) int {
	forms := []string{marker, hex.EncodeToString([]byte(marker))}
	for shift := range 3 { // three bytes become four characters
		b := []byte(marker)[shift:]
		forms = append(forms, base64.StdEncoding.EncodeToString(b[:len(b)/3*3]))
	}
	lower := bytes.ToLower(out)
	for _, form := range forms {
		if i := bytes.Index(lower, []byte(strings.ToLower(form))); i >= 0 {
			return i
		}
	}
	return -1
}

// secretWriter writes data dirs that hold the marker, in a directory base.
type secretWriter struct {
	set  binaries.Set
	base string
}

func (w secretWriter) dir() string { return filepath.Join(w.base, "etcd") }

func (w secretWriter) etcd(t *testing.T, minor string, fill func(*pathtest.Server), flags ...string) {
	t.Helper()
	m, err := versionfile.ParseMinor(minor)
	if err != nil {
		t.Fatal(err)
	}
	bin, _ := w.set.Newest(m)
	s, err := pathtest.Start(t.Context(), bin, w.dir(), flags...)
	if err != nil {
		t.Fatal(err)
	}
	fill(s)
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) { // until the cluster has a version
		res, err := http.Get(s.URL + "/version")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || strings.Contains(string(b), `"etcdcluster":"`+minor) {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("etcd says %s", b)
		}
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
}

func (w secretWriter) v2(t *testing.T, s *pathtest.Server) {
	t.Helper()
	for key, form := range map[string]url.Values{
		"/" + marker + "/plain":   {"value": {marker}},
		"/" + marker + "/ttl":     {"value": {marker}, "ttl": {"5000"}},
		"/" + marker + "/_hidden": {"value": {marker}},
		"/_" + marker:             {"value": {marker}},
		"/" + marker + "-json":    {"value": {`{"a":"` + marker + `"}`}},
	} {
		status, body, err := s.V2(t.Context(), http.MethodPut, key, form)
		if err != nil || status >= 300 {
			t.Fatalf("%d %s %v", status, body, err)
		}
	}
}

func (w secretWriter) v2Auth(t *testing.T, s *pathtest.Server) {
	t.Helper()
	for _, put := range [][2]string{
		{"users/" + marker, `{"user":"` + marker + `","password":"` + marker + `"}`},
		{"roles/" + marker, `{"role":"` + marker + `"}`},
	} {
		for until := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.URL+"/v2/auth/"+put[0], strings.NewReader(put[1]))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode < 300 {
				break
			}
			if time.Now().After(until) { // until the cluster has a version, it is not capable of that
				t.Fatal(res.Status)
			}
		}
	}
}

func (w secretWriter) v3(t *testing.T, s *pathtest.Server) {
	t.Helper()
	c, err := s.V3()
	if err != nil {
		t.Fatal(err)
	}
	lease, err := c.Grant(t.Context(), 5000)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{
		"/registry/" + marker: "k8s\x00" + marker, marker + " unfit": marker, "/" + marker + "//unclean": marker,
		"/" + marker + "/binary": "\xff" + marker, "/" + marker + "/is/a": `{"b":"` + marker + `"}`, "/" + marker + "/is": marker,
	} {
		if _, err := c.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Put(t.Context(), "/"+marker+"/leased", marker, clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Delete(t.Context(), "/"+marker+"/is"); err != nil {
		t.Fatal(err)
	}
}

func (w secretWriter) v3Auth(t *testing.T, s *pathtest.Server) {
	t.Helper()
	c, err := s.V3()
	if err != nil {
		t.Fatal(err)
	}
	for _, do := range []func() error{
		func() error { _, err := c.RoleAdd(t.Context(), marker); return err },
		func() error { _, err := c.RoleAdd(t.Context(), "root"); return err },
		func() error {
			_, err := c.RoleGrantPermission(t.Context(), marker, "/"+marker, "", clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := c.UserAdd(t.Context(), marker, marker); return err },
		func() error { _, err := c.UserAdd(t.Context(), "root", marker); return err },
		func() error { _, err := c.UserGrantRole(t.Context(), marker, marker); return err },
		func() error { _, err := c.UserGrantRole(t.Context(), "root", "root"); return err },
		func() error { _, err := c.AuthEnable(t.Context()); return err },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
}

func (w secretWriter) versionTxt(t *testing.T, v string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir(), "version.txt"), []byte(v), 0o600); err != nil {
		t.Fatal(err)
	}
}

// dyingEtcd makes a directory bin with an etcd of that minor that answers --version, and else prints keys and dies.
func (w secretWriter) dyingEtcd(t *testing.T, minor string) {
	t.Helper()
	m, err := versionfile.ParseMinor(minor)
	if err != nil {
		t.Fatal(err)
	}
	bin, _ := w.set.Newest(m)
	dir := filepath.Join(w.base, "bin")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\nif [ \"$1\" = --version ]; then exec " + bin.Path + " --version; fi\n"
	for _, line := range []string{
		`2026-11-20 18:36:45.680590 W | etcdserver: request "header:<ID:3 > put:<key:\"` + marker + `\" >" took too long`,
		`2026-11-20 18:36:45.680590 C | mvcc: store.keyindex: tombstone got an unexpected empty keyIndex ` + marker,
		`2026-11-20 18:36:45.680590 E | etcdserver: cannot do something with ` + "/registry/" + marker,
		`2026-11-20 18:36:45.680590 E | etcdserver: a key with a line break in it: "/a`, marker + `" is`,
		`{"level":"panic","msg":"detected disallowed v2 WAL for stage --v2-deprecation=write-only","method":"PUT","path":"/1/` + marker + `"}`,
		`{"level":"fatal","msg":"failed","error":"key \"` + marker + `\" and /` + marker + ` are wrong","key":"` + marker + `","value":"` + marker + `"}`,
		`panic: unexpected request PUT "` + marker + `"`,
		`panic: cannot apply PUT /1/` + marker,
	} {
		script += "cat >&2 <<'EOF'\n" + line + "\nEOF\n"
	}
	if err := os.WriteFile(filepath.Join(dir, filepath.Base(bin.Path)), []byte(script+"exit 2\n"), 0o700); err != nil {
		t.Fatal(err)
	}
}

// damage changes one byte of each page in the middle of a file, where it is not empty.
func (w secretWriter) damage(t *testing.T, file string) {
	t.Helper()
	path := filepath.Join(w.dir(), file)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.TrimRight(b, "\x00")
	for i := bytes.Index(b, []byte(marker)); i >= 0 && i < len(b); i += 512 {
		b[i] ^= 0x40
	}
	for i := 2 * 4096; i+12 < len(b) && strings.HasSuffix(file, "db"); i += 4096 {
		b[i+10] ^= 0x01 // how many elements the page has
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

// checkFiles looks into all that etcd-migrate has left beside the data: journal, manifests, version.txt.
func (w secretWriter) checkFiles(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(w.base, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case tells([]byte(d.Name())) >= 0:
			t.Errorf("the name of %s tells of the data", path)
		case d.IsDir() && (d.Name() == "member" || d.Name() == "bin"):
			return filepath.SkipDir
		case d.Type().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if tells(b) >= 0 {
				t.Errorf("%s tells of the data", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
