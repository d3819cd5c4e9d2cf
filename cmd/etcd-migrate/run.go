package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
)

type runCmd struct {
	Target string `group:"migration" name:"target-version" env:"TARGET_VERSION" placeholder:"VERSION" help:"Where to go. Default: what the etcd to become answers to --version."`
	migrationFlags
	outputFlags
	Etcd []string `arg:"" passthrough:"" name:"etcd" help:"After --: the etcd to become, and its flags. They say where the data is, too."`
}

func (c *runCmd) Help() string {
	return `Example, as in a static pod's manifest:

  command: [etcd-migrate, run, --, etcd, --name=m1, --data-dir=/var/lib/etcd, --listen-client-urls=…]

Data dir, WAL dir, name and quota are read from etcd's flags, from ETCD_* variables or from its --config-file, exactly
as etcd reads them. If there is nothing to do, etcd is executed at once.`
}

func (c *runCmd) Run(ctx context.Context) error {
	argv := c.Etcd
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return usagef("no etcd to become: end the command with -- etcd and its flags")
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return &execError{argv[0], err}
	}
	settings, err := readEtcdSettings(argv[1:], os.Environ())
	if err != nil {
		return usagef("read the settings of %s: %w", argv[0], err)
	}
	r, err := c.requestFor(ctx, path, settings)
	if err != nil {
		return err
	}
	if _, err := c.run(ctx, r); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		// Stopped in the moment between the migration and etcd: the data is at the target, but nobody wants an etcd now.
		return &migrate.Error{Kind: migrate.Interrupted, Op: "start " + path, Err: err}
	}
	return &execError{path, syscall.Exec(path, argv, os.Environ())}
}

// requestFor makes the request whose target is the etcd at path, unless a flag names another.
func (c *runCmd) requestFor(ctx context.Context, path string, settings etcdSettings) (migrate.Request, error) {
	release, err := binaries.Ask(ctx, path)
	if err != nil {
		return migrate.Request{}, &execError{path, err}
	}
	target := c.Target
	if target == "" {
		target = release.String()
	}
	r, err := c.request(target, settings, binaries.Binary{Path: path, Release: release})
	if err != nil {
		return migrate.Request{}, err
	}
	if r.Target.Minor() != release.Minor() {
		return migrate.Request{}, usagef("--target-version (TARGET_VERSION) is %s, but %s is etcd %s; leave it out, or name another etcd after --",
			target, path, release)
	}
	return r, nil
}

// execError says that the etcd to become cannot be executed.
type execError struct {
	path string
	err  error
}

func (e *execError) Error() string { return fmt.Sprintf("execute %s: %v", e.path, e.err) }
func (e *execError) Unwrap() error { return e.err }

// code is what shells and container runtimes use: 127 not found, 126 found and not executable.
func (e *execError) code() int {
	if errors.Is(e.err, exec.ErrNotFound) || errors.Is(e.err, fs.ErrNotExist) {
		return exitNoSuchEtcd
	}
	return exitCannotExec
}
