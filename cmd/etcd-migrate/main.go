// Command etcd-migrate brings an etcd data dir to the version of the etcd that is to run on it, and then becomes that
// etcd. It is made to be the entrypoint of the container that runs etcd.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// version is the release of etcd-migrate itself.
const version = "0.1.0"

// cli is the command line: a struct per command, each in its own file.
type cli struct {
	Run      runCmd      `cmd:"" help:"Migrate the data dir if that is needed, then become etcd. The container's entrypoint."`
	Migrate  migrateCmd  `cmd:"" help:"Migrate a data dir, and start nothing afterwards."`
	Rollback rollbackCmd `cmd:"" help:"Bring a data dir back to an older version, keeping what was written since."`
	Inspect  inspectCmd  `cmd:"" help:"Show what a data dir holds, which etcd it belongs to, and what is wrong with it. Changes nothing, and ends with 0 whatever is wrong with the data, if it can be read."`
	Plan     planCmd     `cmd:"" help:"Show what migrate would do. Refuses what a migration would, and changes nothing."`
	Rehearse rehearseCmd `cmd:"" help:"Migrate a copy of the data dir, and show what it takes. Refuses what a migration would, and changes nothing."`

	Matrix matrixCmd `cmd:"" help:"Try every way from one etcd version to another, on a built-in workload or on a copy of a data dir."`

	Backup       backupCmd       `cmd:"" help:"List, verify, restore and prune backups."`
	Manifest     manifestCmd     `cmd:"" help:"Put etcd-migrate into the manifest of a static pod that runs etcd, and print it."`
	AttachLeases attachLeasesCmd `cmd:"" help:"Give keys below a directory a TTL, if they have none: for data that an older tool converted without TTLs."`

	commonFlags
}

// entrypoint is the part of cli that a container starts with. Kong looks at every flag of every command, which takes
// several milliseconds, and at almost every start there is nothing else to do.
type entrypoint struct {
	Run runCmd `cmd:"" help:"Migrate the data dir if that is needed, then become etcd. The container's entrypoint."`
	commonFlags
}

type commonFlags struct {
	ShowKeys bool             `env:"SHOW_KEYS" help:"Name on standard error up to three of the keys, users or roles that a refusal or a note counts. Without it, only a terminal shows them, and never for run. For matrix: name the keys of --data-dir that differ."`
	Version  kong.VersionFlag `help:"Print the version and exit."`
}

const description = `Brings an etcd data dir to any etcd version, up or down, one minor at a time, and never loses a key.

Exit codes:
  0       done, or nothing to do
  1       a step failed: the data is as the last finished step left it, and the same command goes on from there
  2       the command line is wrong
  3       refused before anything was changed: the message says what to put right
  4       another process holds the data dir: nothing was changed
  126     the etcd to become could not be executed
  127     the etcd to become was not found
  130,143 ended by SIGINT or SIGTERM between two changes: the same command goes on from there`

func main() {
	os.Exit(start(os.Args[0], os.Args[1:]))
}

// saveMemory makes a container that is sized for its etcd have room for the migration, too. The ballast, which is never
// touched and so takes no memory, keeps the collector from running after each MiB while there is little to collect: that
// took a fifth of the time of a small data dir's migration.
func saveMemory() {
	ballast = make([]byte, 64<<20)
	debug.SetGCPercent(25)
}

var ballast []byte //nolint:unused // it only has to be there

// start runs one command and gives the exit code. The program's name matters: see dropIn.
func start(program string, args []string) int {
	parser, showKeys, inPod := newParser(program, args)
	kctx, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%[1]s: %[2]v\nTry `%[1]s --help`.\n", parser.Model.Name, err)
		if inPod {
			noteTermination(cmp.Or(os.Getenv("TERMINATION_LOG"), defaultTerminationLog), err)
		}
		return exitUsage
	}
	ctx, stop := withSignals(context.Background())
	defer stop()
	kctx.BindTo(ctx, (*context.Context)(nil))
	if !inPod {
		saveMemory()
	}
	names := namePrinter{w: os.Stderr, asked: *showKeys, show: *showKeys || !inPod && term.IsTerminal(int(os.Stderr.Fd()))}
	kctx.Bind(names)
	err = kctx.Run()
	if err == nil {
		return exitOK
	}
	var shown *shownError
	if !errors.As(err, &shown) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", parser.Model.Name, err)
	}
	var about *migrate.Error
	if errors.As(err, &about) {
		names.print(about.Names)
	}
	return exitCode(ctx, err)
}

// namePrinter shows examples of what users have named, where a person sees them or has asked for them. Nothing else does:
// they must not get into the log of a container.
type namePrinter struct {
	w     io.Writer
	show  bool
	asked bool // with --show-keys
}

func (p namePrinter) print(about []migrate.Names) {
	if !p.show {
		return
	}
	for _, n := range about {
		fmt.Fprintf(p.w, "  %s:", n.What)
		for _, name := range n.Names {
			fmt.Fprintf(p.w, " %.80q", name)
		}
		if rest := n.Of - len(n.Names); rest > 0 {
			fmt.Fprintf(p.w, " and %d more", rest)
		}
		fmt.Fprintln(p.w)
	}
}

// newParser makes the parser for a program of that name, and says whether this is what a pod's container is made of.
func newParser(program string, args []string) (parser *kong.Kong, showKeys *bool, inPod bool) {
	var last versionfile.Minor
	for _, last = range versionfile.Minors() {
	}
	vars := kong.Vars{"version": version, "newest": last.String(), "terminationLog": defaultTerminationLog, "allowRollback": "false"}
	options := []kong.Option{
		vars,
		kong.PostBuild(ignoreEmptyVariables),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.Groups{"data": "The data:", "migration": "The migration:", "run": "How it runs:", "output": "Output:", "probes": "Probes:",
			"ignored": "Not needed any more:"},
	}
	if isDropIn(program) {
		vars["allowRollback"] = "true" // as it always was
		options = append(options, kong.Name(filepath.Base(program)), kong.Description(dropInDescription),
			kong.WithHyphenPrefixedParameters(true)) // --etcd-server-extra-args has such values
		return kong.Must(&dropIn{}, options...), new(bool), true
	}
	options = append(options, kong.Name("etcd-migrate"), kong.Description(description))
	if len(args) > 0 && args[0] == "run" {
		var c entrypoint
		return kong.Must(&c, options...), &c.ShowKeys, true
	}
	var c cli
	all := kong.Must(&c, options...)
	for _, command := range all.Model.Children {
		if command.Name == "rollback" {
			for _, f := range command.Flags { // of migrate, and with nothing to say here
				f.Hidden = f.Hidden || slices.Contains([]string{"allow-rollback", "ttl-keys-directory", "ttl"}, f.Name)
			}
		}
	}
	return all, &c.ShowKeys, false
}

const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRefused     = 3
	exitInUse       = 4
	exitCannotExec  = 126
	exitNoSuchEtcd  = 127
	exitSignalBase  = 128
	exitInterrupted = exitSignalBase + int(syscall.SIGTERM)
)

// exitCode is the one place that turns an error into an exit code.
func exitCode(ctx context.Context, err error) int {
	var usage *usageError
	var exec *execError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &exec):
		return exec.code()
	}
	switch migrate.KindOf(err) {
	case migrate.Refused:
		return exitRefused
	case migrate.InUse:
		return exitInUse
	case migrate.Interrupted:
		var s *signalError
		if errors.As(context.Cause(ctx), &s) {
			return exitSignalBase + int(s.signal)
		}
		return exitInterrupted
	}
	return exitFailed
}

// usageError is a command line that parses and makes no sense.
type usageError struct{ error }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// shownError is an error that the user has already been told about.
type shownError struct{ error }

func (e *shownError) Unwrap() error { return e.error }

// signalError is the cause of a context that a signal ended.
type signalError struct{ signal syscall.Signal }

func (e *signalError) Error() string { return "received " + e.signal.String() }

// withSignals gives a context that ends at SIGINT or SIGTERM, with the signal as its cause. A second signal changes
// nothing: a step is never left faster than it can be left safely.
func withSignals(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case s := <-ch:
			cancel(&signalError{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		cancel(nil)
	}
}
