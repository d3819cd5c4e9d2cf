// Package binaries knows which etcds are on this machine.
//
// They lie in one directory, named as in the etcd image of Kubernetes: etcd-<version>, etcdctl-<version> and, from 3.5
// on, etcdutl-<version>. A binary is taken at its word, not at its file's: what it answers to --version must be what its
// name says, because a wrong etcd on the only copy of the data is the one mistake that nothing mends.
package binaries

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Prefix begins the file name of an etcd server; the version follows.
const Prefix = "etcd-"

// versionTimeout is how long a binary may take to answer --version. Real ones take some 10 ms; a slow disk on a first
// start may need seconds.
const versionTimeout = 30 * time.Second

// Binary is one etcd server on this machine.
type Binary struct {
	Path    string
	Release versionfile.Release
}

// Set is the etcd servers of one directory, oldest first. What their names say has been read, what they answer has not:
// see Verify.
type Set struct {
	Dir      string
	Binaries []Binary
}

// Find lists the etcd servers in dir. It starts none of them, so that it costs next to nothing. A name that begins with
// "etcd-" and does not go on with a version is not an etcd server and is passed over.
func Find(dir string) (Set, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Set{}, fmt.Errorf("find etcd binaries: %s does not exist; --bin-dir must name the directory that holds etcd-<version>", dir)
		}
		return Set{}, fmt.Errorf("find etcd binaries in --bin-dir: %w", err)
	}
	s := Set{Dir: dir}
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), Prefix)
		if !ok {
			continue
		}
		r, err := versionfile.ParseRelease(number)
		if err != nil {
			continue
		}
		s.Binaries = append(s.Binaries, Binary{Path: filepath.Join(dir, e.Name()), Release: r})
	}
	slices.SortFunc(s.Binaries, func(a, b Binary) int { return a.Release.Compare(b.Release) })
	return s, nil
}

// Newest gives the newest patch release of a minor.
func (s Set) Newest(m versionfile.Minor) (Binary, bool) {
	for _, b := range slices.Backward(s.Binaries) {
		if b.Release.Minor() == m {
			return b, true
		}
	}
	return Binary{}, false
}

// Get gives exactly that release.
func (s Set) Get(r versionfile.Release) (Binary, bool) {
	i := slices.IndexFunc(s.Binaries, func(b Binary) bool { return b.Release == r })
	if i < 0 {
		return Binary{}, false
	}
	return s.Binaries[i], true
}

// String lists the releases for an error message.
func (s Set) String() string {
	if len(s.Binaries) == 0 {
		return fmt.Sprintf("no etcd-<version> in %s", s.Dir)
	}
	var names []string
	for _, b := range s.Binaries {
		names = append(names, b.Release.String())
	}
	return fmt.Sprintf("etcd %s in %s", strings.Join(names, ", "), s.Dir)
}

// Verify starts each binary with --version and compares the answer with the file's name. All that is wrong is reported
// at once, each with the file. They run as the user that their etcds will run as, nil for our own: what we can start can
// be out of that user's reach.
func Verify(ctx context.Context, as *syscall.Credential, bins ...Binary) error {
	errs := make([]error, len(bins))
	var g errgroup.Group
	g.SetLimit(4)
	for i, b := range bins {
		g.Go(func() error {
			got, err := ask(ctx, as, b.Path)
			switch {
			case err != nil:
				errs[i] = err
			case got != b.Release:
				errs[i] = fmt.Errorf("%s says that it is etcd %s; replace it by etcd %s or rename it", b.Path, got, b.Release)
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs, all of them
	return errors.Join(errs...)
}

// Ask runs an etcd server with --version and gives what it says it is.
func Ask(ctx context.Context, path string) (versionfile.Release, error) { return ask(ctx, nil, path) }

func ask(ctx context.Context, as *syscall.Credential, path string) (versionfile.Release, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return versionfile.Release{}, fmt.Errorf("etcd binary: %w", err)
	case !info.Mode().IsRegular():
		return versionfile.Release{}, fmt.Errorf("etcd binary %s is not a regular file", path)
	case info.Mode()&0o111 == 0:
		return versionfile.Release{}, fmt.Errorf("etcd binary %s is not executable (mode %s); chmod 755 it", path, info.Mode())
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	// As its etcd will be started: by its whole path, which may lead through directories that our own does not.
	whole, err := filepath.Abs(path)
	if err != nil {
		return versionfile.Release{}, fmt.Errorf("etcd binary %s: %w", path, err)
	}
	cmd := exec.CommandContext(ctx, whole, "--version")
	cmd.Dir = "/"
	who := ""
	if as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		who = fmt.Sprintf(" as uid %d", as.Uid)
	}
	// An ETCD_* variable in our own environment can make an etcd refuse its flags. The one it gets is what etcd 2.3 to 3.4
	// ask for before they start on anything but amd64, even for --version.
	cmd.Env = []string{}
	if runtime.GOARCH != "amd64" {
		cmd.Env = append(cmd.Env, "ETCD_UNSUPPORTED_ARCH="+runtime.GOARCH)
	}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return versionfile.Release{}, fmt.Errorf("run %s --version%s: %w%s", path, who, err, firstLine(out))
	}
	return parseVersion(path, string(out))
}

// parseVersion reads what etcd prints since 2.0:
//
//	etcd Version: 3.5.35
//	Git SHA: …
func parseVersion(path, out string) (versionfile.Release, error) {
	for line := range strings.Lines(out) {
		if number, ok := strings.CutPrefix(strings.TrimSpace(line), "etcd Version: "); ok {
			r, err := versionfile.ParseRelease(strings.TrimSpace(number))
			if err != nil {
				return r, fmt.Errorf("%s --version: %w", path, err)
			}
			return r, nil
		}
	}
	return versionfile.Release{}, fmt.Errorf("%s is not an etcd server: it answers --version without a line that begins with \"etcd Version:\"%s",
		path, firstLine([]byte(out)))
}

func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if line == "" {
		return ""
	}
	const limit = 200
	return fmt.Sprintf(" (it says %q)", line[:min(len(line), limit)])
}

// With gives the set with more binaries in it, which may lie elsewhere. They come before those of the same release.
func (s Set) With(more ...Binary) Set {
	all := slices.Concat(more, s.Binaries)
	slices.SortStableFunc(all, func(a, b Binary) int { return a.Release.Compare(b.Release) })
	s.Binaries = slices.CompactFunc(all, func(a, b Binary) bool { return a.Release == b.Release })
	return s
}
