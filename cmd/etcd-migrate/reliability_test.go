package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPromisesAreHeld looks for every test that docs/reliability.md names, in the file where it says it is.
func TestPromisesAreHeld(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root, "docs/reliability.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	var tests []string
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz)\\w+|[\\w/.-]+_test\\.go)`").FindAllStringSubmatch(string(doc), -1) {
		if !strings.HasSuffix(m[1], ".go") {
			tests = append(tests, m[1])
			continue
		}
		b, err := os.ReadFile(filepath.Join(root, m[1]))
		if err != nil {
			t.Error(err)
		}
		if len(tests) == 0 {
			t.Errorf("%s is named without a test in it", m[1])
		}
		for _, name := range tests {
			named++
			if !strings.Contains(string(b), "\nfunc "+name+"(") {
				t.Errorf("there is no %s in %s", name, m[1])
			}
		}
		tests = nil
	}
	if len(tests) > 0 || named < 50 {
		t.Errorf("%d tests are named, and %q without their file", named, tests)
	}
}
