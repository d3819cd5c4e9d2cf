package pathtest

import (
	"context"
	"fmt"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TB is what Binary and Serve need of a testing.TB. It is here so that a program that imports this package does not
// import package testing.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(func())
	Context() context.Context
}

// Binary gives the newest etcd of a minor, "3.4", among those that Binaries finds in dir. Without one the test fails.
func Binary(tb TB, dir, minor string) binaries.Binary {
	tb.Helper()
	set, err := Binaries(dir)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	bin, err := Newest(set, minor)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return bin
}

// Newest gives the newest etcd of a minor, "3.4".
func Newest(set binaries.Set, minor string) (binaries.Binary, error) {
	m, err := versionfile.ParseMinor(minor)
	if err != nil {
		return binaries.Binary{}, err
	}
	bin, ok := set.Newest(m)
	if !ok {
		return binaries.Binary{}, fmt.Errorf("there is no etcd %s among %s; run `make binaries`", minor, set)
	}
	return bin, nil
}

// Serve is Start for tests: the test fails if the etcd does not start, and kills it at its end if it still runs then.
func Serve(tb TB, bin binaries.Binary, dataDir string, flags ...string) *Server {
	tb.Helper()
	s, err := Start(tb.Context(), bin, dataDir, flags...)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() { _ = s.Kill() }) // unless it was stopped
	return s
}
