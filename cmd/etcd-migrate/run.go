package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

type runCmd struct {
	Target string `group:"migration" name:"target-version" env:"TARGET_VERSION" placeholder:"VERSION" help:"Where to go. Default: what the etcd to become answers to --version."`
	migrationFlags
	probeFlags
	outputFlags
	Etcd []string `arg:"" passthrough:"" name:"etcd" help:"After --: the etcd to become, and its flags. They say where the data is, too."`
}

func (c *runCmd) Help() string {
	return `Example, as in a static pod's manifest:

  command: [etcd-migrate, run, --, etcd, --name=m1, --data-dir=/var/lib/etcd, --listen-client-urls=…]

Data dir, WAL dir, name and quota are read from etcd's flags, from ETCD_* variables or from its --config-file, exactly
as etcd reads them. If there is nothing to do, etcd is executed at once. Else probes are answered where etcd will answer
them, on its --listen-metrics-urls, until it does.`
}

func (c *runCmd) Run(ctx context.Context) error {
	err := c.migrateAndBecome(ctx) // which only returns if that fails
	noteTermination(c.TerminationLog, err)
	return err
}

func (c *runCmd) migrateAndBecome(ctx context.Context) error {
	argv := c.argv()
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
	p, err := c.probes(settings, r.StepTimeout, newOutput(c.outputFlags).warn)
	if err != nil {
		return err
	}
	r.Observer = p.observe
	_, err = c.run(ctx, r)
	p.close()
	if err != nil {
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
	if err := c.checkSettings(release.Minor()); err != nil {
		return migrate.Request{}, err
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

// checkSettings refuses flags that the etcd to become would die of, before the data is touched: after the migration it is
// too late to go back to the manifest that worked. Of a variable that it does not know, etcd only warns, and so do we; of a
// setting in its config file, it does not even do that.
func (c *runCmd) checkSettings(minor versionfile.Minor) error {
	var flags []error
	for _, s := range migrate.RemovedSettings(minor, c.argv()[1:], os.Environ()) {
		if strings.HasPrefix(s.Name, "-") {
			flags = append(flags, errors.New(s.String()))
		} else {
			newOutput(c.outputFlags).warn("etcd will ignore a setting: " + s.String())
		}
	}
	file, names, err := namesInConfigFile(c.argv()[1:], os.Environ())
	if err != nil {
		return usagef("read the settings of etcd: %w", err)
	}
	for _, s := range migrate.RemovedFromFile(minor, names) {
		newOutput(c.outputFlags).warn("etcd will ignore a setting in " + file + ": " + s.String())
	}
	if len(flags) == 0 {
		return nil
	}
	return &migrate.Error{Kind: migrate.Refused, Op: "check the flags of etcd " + minor.String(), Err: errors.Join(flags...),
		Hint: "change the command of the container; etcd would end at once"}
}

// argv is the command line of the etcd to become.
func (c *runCmd) argv() []string {
	if len(c.Etcd) > 0 && c.Etcd[0] == "--" {
		return c.Etcd[1:]
	}
	return c.Etcd
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
