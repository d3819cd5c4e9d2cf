package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// TestReproducibleBuild builds the same sources twice, in directories with other names, with another umask, user
// environment and time zone, and a GOTOOLCHAIN and GOFLAGS that would leave traces. The bytes must be the same, and come
// from the Go that go.mod names.
func TestReproducibleBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("links the program twice")
	}
	t.Parallel()
	var builds [][]byte
	for i, env := range [][]string{
		{"GOFLAGS=", "TZ=UTC", "HOME=" + t.TempDir(), "USER=one"},
		{"GOFLAGS=-buildvcs=true -ldflags=-X=main.builder=two", "TZ=Asia/Tokyo", "LANG=tr_TR.UTF-8", "USER=two", "GOROOT_FINAL=/elsewhere", "GOTOOLCHAIN=local"},
	} {
		src := filepath.Join(t.TempDir(), []string{"a", "quite/another/place"}[i])
		copySources(t, src)
		cmd := exec.Command("sh", "-c", "umask "+[]string{"022", "077"}[i]+" && make -s build")
		cmd.Dir = src
		cmd.Env = append(append(append(os.Environ(), "MAKEFLAGS="), goEnv(t)...), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		b, err := os.ReadFile(filepath.Join(src, "bin/etcd-migrate"))
		if err != nil {
			t.Fatal(err)
		}
		builds = append(builds, b)
	}
	if !bytes.Equal(builds[0], builds[1]) {
		t.Errorf("%d and %d bytes that are not the same", len(builds[0]), len(builds[1]))
	}
	info, err := buildinfo.Read(bytes.NewReader(builds[0]))
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mod), "\ntoolchain "+info.GoVersion+"\n") {
		t.Errorf("built by %s, which is not the toolchain of go.mod", info.GoVersion)
	}
	for _, trace := range []string{"quite/another/place", "builder=two"} {
		if bytes.Contains(builds[1], []byte(trace)) {
			t.Errorf("%q is in the program", trace)
		}
	}
}

// goEnv keeps the caches where they are, whatever the home directory is.
func goEnv(t *testing.T) (env []string) {
	t.Helper()
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPROXY"} {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, name+"="+strings.TrimSpace(string(out)))
	}
	return env
}

func copySources(t *testing.T, to string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if rel == "bin" || rel == ".git" || strings.HasSuffix(rel, "testdata") {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDependenciesAreJustified holds docs/dependencies.md to the modules that are required directly, and the other way
// around.
func TestDependenciesAreJustified(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root, "docs/dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	main, tools, _ := strings.Cut(string(doc), "\n## Tools\n")
	compare := func(name, table string, required []string) {
		t.Helper()
		var listed []string
		for line := range strings.Lines(table) {
			if cells := strings.Split(line, "|"); len(cells) > 2 {
				for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
					listed = append(listed, m[1])
				}
			}
		}
		for _, m := range required {
			if !slices.Contains(listed, m) {
				t.Errorf("%s requires %s, and docs/dependencies.md does not say why", name, m)
			}
		}
		for _, m := range listed {
			if !slices.Contains(required, m) {
				t.Errorf("docs/dependencies.md lists %s, which %s does not require", m, name)
			}
		}
	}
	compare("go.mod", main, direct(t, "go.mod"))
	sbom := direct(t, "image/sbom/go.mod")
	// A tool is a package in a module.
	b, err := os.ReadFile(filepath.Join(root, ".tools/go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\s+(\S+)/cmd/\S+$`).FindAllSubmatch(b, -1) {
		sbom = append(sbom, string(m[1]))
	}
	compare("no module of a tool", strings.Split(tools, "\n## ")[0], sbom)
}

// direct gives the modules that a go.mod requires and does not mark as indirect.
func direct(t *testing.T, file string) (modules []string) {
	t.Helper()
	cmd := exec.Command("go", "mod", "edit", "-json", filepath.Join(root, file))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
		Replace []struct{ Old struct{ Path string } }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	if len(mod.Replace) > 0 {
		t.Errorf("%s replaces %v", file, mod.Replace)
	}
	for _, r := range mod.Require {
		if !r.Indirect {
			modules = append(modules, r.Path)
		}
	}
	return modules
}

// TestBillOfMaterials has one written of two etcds, twice.
func TestBillOfMaterials(t *testing.T) {
	set := etcdSet(t)
	t.Parallel()
	write := func() []byte {
		args := []string{"run", "-C", filepath.Join(root, "image/sbom"), ".", "-version", "1.2.3"}
		for _, minor := range []string{"2.2", "3.7"} {
			path, err := filepath.Abs(etcdOf(t, set, minor).Path)
			if err != nil {
				t.Fatal(err)
			}
			args = append(args, path)
		}
		var stderr bytes.Buffer
		cmd := exec.Command("go", args...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr.Bytes())
		}
		return out
	}
	first := write()
	if !bytes.Equal(first, write()) {
		t.Error("two bills of the same programs are not the same")
	}
	var bom struct {
		Format       string `json:"bomFormat"`
		Components   []struct{ Name, Version, PURL string }
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
	if err := json.Unmarshal(first, &bom); err != nil {
		t.Fatal(err)
	}
	has := func(name, version string) bool {
		for _, c := range bom.Components {
			if c.Name == name && strings.HasPrefix(c.Version, version) && strings.HasPrefix(c.PURL, "pkg:golang/") {
				return true
			}
		}
		return false
	}
	if bom.Format != "CycloneDX" || !has("etcd-"+etcdOf(t, set, "2.2").Release.String(), "v2.2.") || !has("go.etcd.io/bbolt", "v1.") || !has("std", "1.") {
		t.Errorf("the bill is %s", first)
	}
	for _, d := range bom.Dependencies { // 2.2 has its libraries within its own module
		if len(d.DependsOn) < 5 && !strings.Contains(d.Ref, "etcd-2.2") {
			t.Errorf("%s depends on %v", d.Ref, d.DependsOn)
		}
	}
}
