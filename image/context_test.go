package image_test

import (
	"os/exec"
	"path"
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
		dir := strings.TrimPrefix(p, module)
		for dir != "." && !slices.Contains(lines, "!"+dir) {
			dir = path.Dir(dir)
		}
		if dir == "." {
			t.Errorf("%s is not in the build context: .dockerignore has neither it nor a directory above", p)
		}
	}
}
