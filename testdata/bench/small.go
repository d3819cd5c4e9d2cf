package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// small writes a small data dir with an etcd.
func (b *bench) small(ctx context.Context, minor string) (string, error) {
	bin, err := b.newest(minor)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.scratch, "small-"+minor)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil // another measurement has had it written
	}
	s, err := pathtest.Start(ctx, bin, dir)
	if err != nil {
		return "", err
	}
	if bin.Release.Line.AtLeast(3, 0) {
		err = s.FillV3(ctx, 200)
	} else {
		err = s.FillV2(ctx, 200)
	}
	if err != nil {
		return "", err
	}
	return dir, s.Stop()
}

// nothingToDo is the time from start to exec if the data is at the target, against that etcd's --version, which it
// contains: the etcd to become is /bin/true with an etcd's answer.
func (b *bench) nothingToDo(ctx context.Context) error {
	dir, err := b.small(ctx, "3.7")
	if err != nil {
		return err
	}
	etcd, err := b.newest("3.7")
	if err != nil {
		return err
	}
	version := versionfile.Version{Release: etcd.Release, Storage: versionfile.Etcd3}
	if err := versionfile.Write(dir, version); err != nil {
		return err
	}
	ours, them, err := b.pair(
		func() (sample, error) {
			// etcd is executed and asked for its version; --help is all that it then has to do.
			s, _, err := command(nil, b.bin, "run", "--", etcd.Path, "--data-dir="+dir, "--version")
			return s, err
		},
		func() (sample, error) {
			s, _, err := command(nil, etcd.Path, "--version")
			return s, err
		})
	if err != nil {
		return err
	}
	// The etcd that was become took its time, too.
	ours.seconds -= them.seconds
	ours.rssMiB, them.rssMiB = 0, 0
	b.rows = append(b.rows, row{"start to exec, nothing to do", ours, them, "etcd --version", 2})
	return nil
}

// wholePath is the way from 2.2 to 3.4 on a small data dir, against the old script's algorithm.
func (b *bench) wholePath(ctx context.Context) error {
	dir, err := b.small(ctx, "2.2")
	if err != nil {
		return err
	}
	target, err := b.newest("3.4")
	if err != nil {
		return err
	}
	bins, err := b.plainBinDir("2.3", "3.0", "3.1", "3.2", "3.3", "3.4")
	if err != nil {
		return err
	}
	ours, them, err := b.pair(
		func() (sample, error) {
			work, err := b.copyDir(dir)
			if err != nil {
				return sample{}, err
			}
			s, _, err := command(nil, b.bin, "migrate", "--data-dir", work, "--bin-dir", bins, "--target-version", target.Release.String())
			return s, err
		},
		func() (sample, error) {
			work, err := b.copyDir(dir)
			if err != nil {
				return sample{}, err
			}
			s, _, err := command(nil, "bash", "testdata/bench/baseline.sh", bins, work, target.Release.String(), "etcd3")
			return s, err
		})
	if err != nil {
		return err
	}
	ours.rssMiB, them.rssMiB = 0, 0 // the script's memory is that of other programs
	b.rows = append(b.rows, row{"2.2 to 3.4, small data dir", ours, them, "the old script's way", 0.25})
	return nil
}

// plainBinDir is a directory with only those etcds, because the old script takes all that it finds.
func (b *bench) plainBinDir(minors ...string) (string, error) {
	dir := filepath.Join(b.scratch, "bin")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	for _, m := range minors {
		bin, err := b.newest(m)
		if err != nil {
			return "", err
		}
		for _, path := range []string{bin.Path, b.ctl(bin)} {
			if err := os.Symlink(path, filepath.Join(dir, filepath.Base(path))); err != nil && !os.IsExist(err) {
				return "", err
			}
		}
	}
	return dir, nil
}

// steps is what each step of a whole path takes, against the bare start of that etcd to its first write on the same data.
func (b *bench) steps(ctx context.Context) error {
	dir, err := b.small(ctx, "2.2")
	if err != nil {
		return err
	}
	ours := map[string][]sample{}
	bare := map[string][]sample{}
	for range b.runs {
		for _, m := range versionfile.Minors()[1:] {
			bin, err := b.newest(m.String())
			if err != nil {
				return err
			}
			work, err := b.copyDir(dir)
			if err != nil {
				return err
			}
			// Everything up to the minor before, then the one step.
			prev := versionfile.Minors()[indexOf(m)-1]
			if prev.String() != "2.2" {
				if _, err := b.report(work, prev.String()); err != nil {
					return err
				}
			}
			seconds, err := b.bareStart(ctx, bin, work)
			if err != nil {
				return err
			}
			bare[m.String()] = append(bare[m.String()], sample{seconds: seconds})
			if work, err = b.copyDir(dir); err != nil {
				return err
			}
			r, err := b.report(work, m.String())
			if err != nil {
				return err
			}
			for _, s := range r.Steps {
				if s.Kind == "upgrade" && s.To.Minor() == m {
					ours[m.String()] = append(ours[m.String()], sample{seconds: s.Seconds})
				}
			}
		}
	}
	for _, m := range versionfile.Minors()[1:] {
		b.rows = append(b.rows, row{"step to " + m.String(), median(ours[m.String()]), median(bare[m.String()]),
			"bare etcd, start to first write", 1.3})
	}
	return nil
}

func indexOf(m versionfile.Minor) int {
	for i, o := range versionfile.Minors() {
		if o == m {
			return i
		}
	}
	return -1
}

// bareStart is the time from the start of an etcd to its first committed write.
func (b *bench) bareStart(ctx context.Context, bin binaries.Binary, dir string) (float64, error) {
	began := time.Now()
	s, err := pathtest.Start(ctx, bin, dir)
	if err != nil {
		return 0, err
	}
	if err := s.WriteOnce(ctx); err != nil {
		return 0, err
	}
	took := time.Since(began).Seconds()
	return took, s.Stop()
}

// migrationReport is what the benchmarks need of `migrate -o json`.
type migrationReport struct {
	Seconds       float64
	BackupSeconds float64
	Steps         []struct {
		Kind    string
		To      versionfile.Version
		Seconds float64
	}
	PeakMemoryBytes int64
}

func (b *bench) report(dir, target string, flags ...string) (migrationReport, error) {
	args := append([]string{"migrate", "--data-dir", dir, "--bin-dir", b.etcds.Dir, "--target-version", target, "-o", "json"}, flags...)
	_, out, err := command(nil, b.bin, args...)
	if err != nil {
		return migrationReport{}, err
	}
	var r migrationReport
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("read the report: %w", err)
	}
	return r, nil
}

func (r migrationReport) seconds(kinds ...string) float64 {
	sum := 0.0
	for _, s := range r.Steps {
		for _, k := range kinds {
			if s.Kind == k {
				sum += s.Seconds
			}
		}
	}
	return sum
}
