package image_test

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestBuildContext sees that the Dockerfile's build stage gets every package that the program is made of.
func TestBuildContext(t *testing.T) {
	lines := strings.Fields(string(readFile(t, "../.dockerignore")))
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if .Main}}{{$.ImportPath}}{{end}}{{end}}", "../cmd/etcd-migrate").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if len(packages) < 5 {
		t.Fatalf("only the packages %q", packages)
	}
	const module = "github.com/etcd-migrate/etcd-migrate/"
	for _, p := range packages {
		top, _, _ := strings.Cut(strings.TrimPrefix(p, module), "/")
		if !slices.Contains(lines, "!"+top) {
			t.Errorf("%s is not in the build context: .dockerignore has no !%s", p, filepath.Base(top))
		}
	}
}
