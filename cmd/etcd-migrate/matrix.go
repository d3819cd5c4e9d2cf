package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/matrix"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

type matrixCmd struct {
	BinDir string   `group:"migration" placeholder:"DIR" env:"BIN_DIR" default:"/usr/local/bin" help:"Directory with the etcd-<version> to try (${default})."`
	From   []string `group:"migration" env:"MATRIX_FROM" placeholder:"VERSION" help:"Where to start from: minors such as 3.4, releases such as 3.4.31, or versions such as 3.4.31/etcd2. Default: all of them."`
	To     []string `group:"migration" env:"MATRIX_TO" placeholder:"VERSION" help:"Where to go, likewise. Default: all of them."`
	Etcd2  bool     `group:"migration" name:"etcd2" env:"MATRIX_ETCD2" help:"Try 3.0 to 3.5 with the keys in the v2 store, too."`

	DataDir string `group:"data" placeholder:"DIR" env:"MATRIX_DATA_DIRECTORY" help:"A data dir of your own. It is copied, and never changed. Default: a built-in workload."`
	WALDir  string `group:"data" name:"wal-dir" placeholder:"DIR" env:"MATRIX_WAL_DIRECTORY" help:"Its WAL dir, if it has one."`
	Keys    int    `group:"data" placeholder:"N" default:"100" env:"MATRIX_KEYS" help:"How many plain keys the built-in workload has, beside some fifty special ones (${default})."`

	Accept      string        `group:"migration" name:"accept-loss" placeholder:"LOSS,…" env:"ACCEPT_LOSS" help:"As for migrate."`
	Leftovers   string        `group:"migration" name:"v2-leftovers" enum:",refuse,discard" default:"" placeholder:"refuse|discard" env:"V2_LEFTOVERS" help:"As for migrate."`
	Quota       quotaValue    `group:"migration" name:"quota-backend-bytes" placeholder:"BYTES" env:"QUOTA_BACKEND_BYTES" help:"As for migrate."`
	StepTimeout durationValue `group:"migration" placeholder:"15m" default:"15m" env:"STEP_TIMEOUT" help:"How long one etcd may take to make its step (${default})."`

	WorkDir string `group:"run" placeholder:"DIR" env:"MATRIX_WORK_DIR" help:"Where everything is done, and where the results and the data dirs of failed pairs are kept. Default: a temporary directory, removed afterwards unless a pair fails."`
	Resume  bool   `group:"run" env:"MATRIX_RESUME" help:"Go on with the results in --work-dir: what has passed or was refused is not tried again."`
	Jobs    int    `group:"run" short:"j" placeholder:"N" default:"2" env:"MATRIX_JOBS" help:"How many pairs to try at a time (${default})."`
	Strict  bool   `group:"run" env:"MATRIX_STRICT" help:"A refused pair counts as a failure, too."`

	Output string `group:"output" short:"o" env:"OUTPUT_FORMAT" enum:"table,json" default:"table" help:"table or json, on standard output."`
	HTML   string `group:"output" name:"html" placeholder:"FILE" env:"MATRIX_HTML" help:"Write one page for a browser, with all results in it."`
	JUnit  string `group:"output" name:"junit" placeholder:"FILE" env:"MATRIX_JUNIT" help:"Write JUnit XML, for a continuous integration. A refused pair is skipped there; one that an interrupted matrix did not get to is an error."`
}

func (c *matrixCmd) Help() string {
	return `For each pair of versions, an etcd of the first one writes a data dir, it is migrated to the second one as ` + "`migrate`" + ` does
it, an etcd of that version is started on the result, and all keys, values, revisions and TTLs that it serves are
compared with what the first one served. In the end it must take a write. A pair ends as

  passed    all of this is so
  refused   the migration was refused before anything was changed, with a reason
  failed    anything else: its data dir is kept

The exit code is 1 if a pair failed (with --strict also if one was refused). With --data-dir, the data is brought to each
version to start from first. Give --work-dir and --resume, and a matrix that was killed goes on where it was.`
}

func (c *matrixCmd) Run(ctx context.Context, names namePrinter) (err error) {
	o, err := c.options()
	if err != nil {
		return err
	}
	if err := c.checkFiles(); err != nil {
		return err
	}
	o.NameKeys = names.asked
	cleanUp := func(*matrix.Report) error { return nil }
	if c.WorkDir == "" {
		if o.WorkDir, cleanUp, err = temporaryWorkDir(); err != nil {
			return err
		}
	} else if err := datadir.MkdirAll(c.WorkDir); err != nil {
		return &migrate.Error{Kind: migrate.Refused, Op: "matrix", Err: err, Hint: "name another directory with --work-dir"}
	}
	show := newMatrixShow(c.Output == "json", o.From, o.To)
	o.Observer = show.observe
	report, err := matrix.Run(ctx, o)
	show.end()
	if report == nil {
		return errors.Join(err, cleanUp(nil))
	}
	if writeErr := errors.Join(c.write(report), cleanUp(report)); writeErr != nil {
		return errors.Join(err, writeErr)
	}
	if failed := report.Count(matrix.Failed); err == nil && failed > 0 {
		return fmt.Errorf("%d of %s failed", failed, plural(len(report.Results), "pair"))
	}
	if refused := report.Count(matrix.Refused); err == nil && c.Strict && refused > 0 {
		return fmt.Errorf("%d of %s refused", refused, plural(len(report.Results), "pair"))
	}
	return err
}

func (c *matrixCmd) options() (o matrix.Options, err error) {
	have, err := binaries.Find(c.BinDir)
	if err != nil {
		return o, usagef("%w", err)
	}
	if c.Resume && c.WorkDir == "" {
		return o, usagef("--resume needs --work-dir, where the results are")
	}
	if c.WALDir != "" && c.DataDir == "" {
		return o, usagef("--wal-dir goes with --data-dir")
	}
	if c.Keys < 0 || c.Jobs < 1 {
		return o, usagef("--keys must be at least 0, and --jobs at least 1")
	}
	o = matrix.Options{
		Binaries: have, DataDir: c.DataDir, WALDir: c.WALDir, Keys: c.Keys, WorkDir: c.WorkDir, Resume: c.Resume, Jobs: c.Jobs,
		QuotaBytes: int64(c.Quota), StepTimeout: time.Duration(c.StepTimeout), Tool: "etcd-migrate " + version,
	}
	all := matrix.Versions(have, c.Etcd2)
	if len(all) == 0 {
		return o, usagef("%s holds no etcd-<version> of a known minor: name the directory that does with --bin-dir; `make binaries` builds them into bin/etcd", c.BinDir)
	}
	if o.From, err = matrix.Select(all, c.From); err != nil {
		return o, usagef("--from: %w", err)
	}
	if o.To, err = matrix.Select(all, c.To); err != nil {
		return o, usagef("--to: %w", err)
	}
	if o.AcceptLoss, err = migrate.ParseLosses(c.Accept); err != nil {
		return o, usagef("--accept-loss: %w", err)
	}
	if o.V2Leftovers, err = migrate.ParseLeftovers(c.Leftovers); err != nil {
		return o, usagef("--v2-leftovers: %w", err)
	}
	return o, nil
}

// temporaryWorkDir is for a run that need not be gone on with. It stays if a failed pair's data dir is in it.
func temporaryWorkDir() (dir string, cleanUp func(*matrix.Report) error, err error) {
	dir, err = os.MkdirTemp("", "etcd-migrate-matrix-")
	return dir, func(r *matrix.Report) error {
		if r != nil && r.Count(matrix.Failed) > 0 {
			return nil
		}
		return os.RemoveAll(dir)
	}, err
}

// checkFiles sees that the results can be written before there are any: a matrix can take hours.
func (c *matrixCmd) checkFiles() error {
	for _, f := range []struct{ flag, path string }{{"html", c.HTML}, {"junit", c.JUnit}} {
		if f.path == "" {
			continue
		}
		if info, err := os.Stat(f.path); err == nil && info.IsDir() {
			return usagef("--%s: %s is a directory; name a file", f.flag, f.path)
		}
		probe, err := os.CreateTemp(filepath.Dir(f.path), ".etcd-migrate-")
		if err == nil {
			err = errors.Join(probe.Close(), os.Remove(probe.Name()))
		}
		var why *fs.PathError
		if errors.As(err, &why) {
			err = why.Err // its path is that of the file that was only tried
		}
		if err != nil {
			return usagef("--%s: no file can be made in %s: %w", f.flag, filepath.Dir(f.path), err)
		}
	}
	return nil
}

// write gives the results in all forms that were asked for.
func (c *matrixCmd) write(r *matrix.Report) error {
	var errs []error
	for _, f := range []struct {
		flag, path string
		write      func(io.Writer) error
	}{{"html", c.HTML, r.WriteHTML}, {"junit", c.JUnit, r.WriteJUnit}} {
		if f.path == "" {
			continue
		}
		var b bytes.Buffer
		err := f.write(&b)
		if err == nil {
			err = datadir.WriteFile(f.path, b.Bytes(), 0o644)
		}
		if err != nil {
			err = fmt.Errorf("--%s: %w", f.flag, err)
		}
		errs = append(errs, err)
	}
	if c.Output == "json" {
		errs = append(errs, writeJSON(r))
	} else {
		errs = append(errs, printMatrix(os.Stdout, r))
	}
	return errors.Join(errs...)
}

// versionsOf are the labels of a row or a column.
func versionsOf(versions []versionfile.Version) (labels []string, width int) {
	for _, v := range versions {
		labels = append(labels, matrix.Label(v))
		width = max(width, len(matrix.Label(v)))
	}
	return labels, width
}
