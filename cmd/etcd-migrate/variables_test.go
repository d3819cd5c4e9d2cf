package main

import (
	"os"
	"regexp"
	"testing"

	"github.com/alecthomas/kong"
)

// TestVariables: every flag is an environment variable, too, and docs/variables.md has both.
func TestVariables(t *testing.T) {
	b, err := os.ReadFile("../../docs/variables.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{} // the cell with the flags, by variable
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Z0-9_]+)` \\| ([^|]+) \\|").FindAllStringSubmatch(string(b), -1) {
		documented[row[1]] = row[2]
	}
	used := map[string]bool{}
	for program, args := range map[string][]string{"etcd-migrate": nil, "etcd-migrate run": {"run"}, "migrate": nil} {
		parser, _, _ := newParser(program, args)
		err := kong.Visit(parser.Model, func(node kong.Visitable, next kong.Next) error {
			flag, ok := node.(*kong.Flag)
			switch {
			case !ok || flag.Name == "help" || flag.Name == "version":
			case len(flag.Envs) != 1:
				t.Errorf("%s: --%s has the variables %q, want one", program, flag.Name, flag.Envs)
			case !regexp.MustCompile("`--" + flag.Name + "`").MatchString(documented[flag.Envs[0]]):
				t.Errorf("docs/variables.md lacks %s for --%s", flag.Envs[0], flag.Name)
			default:
				used[flag.Envs[0]] = true
			}
			return next(nil)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name := range documented {
		if !used[name] {
			t.Errorf("docs/variables.md has %s, which is no variable", name)
		}
	}
}
