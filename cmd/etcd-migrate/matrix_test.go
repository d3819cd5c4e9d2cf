package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/migrate/matrix"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestMatrixNotRun has a matrix that was interrupted: what it did not get to is counted.
func TestMatrixNotRun(t *testing.T) {
	var versions []versionfile.Version
	for _, s := range []string{"3.5.35/etcd3", "3.6.16/etcd3"} {
		v, err := versionfile.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, v)
	}
	path := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	up := matrix.Result{Pair: matrix.Pair{From: versions[0], To: versions[1]}, Outcome: matrix.Passed}
	if err := printMatrix(f, &matrix.Report{From: versions, To: versions, Results: []matrix.Result{up}}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), "2 pairs in 0 s: 1 passed, 0 refused, 0 failed, 1 not run\n") {
		t.Errorf("%s, %v", b, err)
	}
}
