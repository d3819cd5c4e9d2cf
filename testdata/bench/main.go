// Command bench measures etcd-migrate against the old way of doing the same thing, side by side in one run, and prints one
// table of medians and their ratios. What each line means is in docs/performance.md.
//
// usage: go run ./testdata/bench [flags] BIN      BIN holds etcd-migrate and etcd/etcd-<version>
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// bench is what all measurements share.
type bench struct {
	bin     string // etcd-migrate
	etcds   binaries.Set
	scratch string
	runs    int
	rows    []row
}

// row is one line of the table.
type row struct {
	what       string
	ours, them sample
	than       string // what them is
	goal       float64
}

// sample is a measured median.
type sample struct {
	seconds float64
	longest float64 // of all that were measured: a median hides what happens now and then
	rssMiB  float64 // peak, 0 if not measured
}

// parts are the measurements, in the order of the table.
var parts = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"nothing", (*bench).nothingToDo},
	{"path", (*bench).wholePath},
	{"steps", (*bench).steps},
	{"convert", (*bench).conversion},
	{"million", (*bench).million},
	{"backup", (*bench).backup},
	{"growth", (*bench).growth},
}

func main() {
	runs := flag.Int("runs", 5, "how often each thing is measured; the median counts")
	only := flag.String("only", "", "measure only these, comma-separated: nothing, path, steps, convert, million, backup, growth (not measured unless named)")
	dir := flag.String("scratch", "", "directory for the data (default: the system's for temporary files)")
	flag.Parse()
	if err := measure(flag.Arg(0), *dir, *runs, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func measure(bin, dir string, runs int, only string) error {
	ctx := context.Background()
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	etcds, err := binaries.Find(filepath.Join(bin, "etcd"))
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(dir, "etcd-migrate-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	b := &bench{bin: filepath.Join(bin, "etcd-migrate"), etcds: etcds, scratch: scratch, runs: runs}
	for _, p := range parts {
		if only == "" && p.name == "growth" || only != "" && !slices.Contains(strings.Split(only, ","), p.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring: %s\n", p.name)
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	b.print()
	return nil
}

func (b *bench) print() {
	if len(b.rows) == 0 {
		return
	}
	fmt.Printf("%d cores, %s/%s, %s, median of %d; %s\n\n", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), b.runs, b.etcds)
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "measured\tours\tat worst\tthe other\tthe other is\ttime ratio\tgoal\tpeak memory ratio")
	for _, r := range b.rows {
		goal, memory := "", ""
		if r.goal > 0 {
			goal = fmt.Sprintf("≤ %.2f", r.goal)
		}
		if r.ours.rssMiB > 0 && r.them.rssMiB > 0 {
			memory = fmt.Sprintf("%.2f (%.0f MiB / %.0f MiB)", r.ours.rssMiB/r.them.rssMiB, r.ours.rssMiB, r.them.rssMiB)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%.2f\t%s\t%s\n", r.what, duration(r.ours.seconds), duration(max(r.ours.longest, r.ours.seconds)), duration(r.them.seconds), r.than,
			r.ours.seconds/r.them.seconds, goal, memory)
	}
	_ = w.Flush()
}

func duration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d < time.Second {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// pair runs both things in turn, so that whatever else the machine does falls on both, and gives their medians.
func (b *bench) pair(ours, them func() (sample, error)) (o, t sample, err error) {
	var os, ts []sample
	for i := range b.runs {
		// In turn, because what comes first finds the machine's memory in another state.
		first, second := ours, them
		if i%2 == 1 {
			first, second = them, ours
		}
		so, err := first()
		if err != nil {
			return o, t, err
		}
		st, err := second()
		if err != nil {
			return o, t, err
		}
		if i%2 == 1 {
			so, st = st, so
		}
		os, ts = append(os, so), append(ts, st)
	}
	return median(os), median(ts), nil
}

func median(s []sample) sample {
	var m sample
	slices.SortFunc(s, func(a, b sample) int { return int(1e9 * (a.seconds - b.seconds)) })
	m.seconds, m.longest = s[len(s)/2].seconds, s[len(s)-1].seconds
	slices.SortFunc(s, func(a, b sample) int { return int(a.rssMiB - b.rssMiB) })
	m.rssMiB = s[len(s)/2].rssMiB
	return m
}

// command runs a program to its end.
func command(env []string, name string, args ...string) (sample, []byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	began := time.Now()
	err := cmd.Run()
	s := sample{seconds: time.Since(began).Seconds()}
	if err != nil {
		return s, nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, last(errs.String(), 2000))
	}
	s.rssMiB = float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) / 1024
	return s, []byte(out.String()), nil
}

func last(s string, n int) string { return s[max(0, len(s)-n):] }

// copyDir makes a fresh copy of a data dir to work on.
func (b *bench) copyDir(from string) (string, error) {
	to := filepath.Join(b.scratch, "work")
	if err := os.RemoveAll(to); err != nil {
		return "", err
	}
	if _, _, err := command(nil, "cp", "-a", "--reflink=never", from, to); err != nil {
		return "", err
	}
	syscall.Sync() // what the copy left to write must not fall on what is measured
	return to, nil
}

func (b *bench) newest(minor string) (binaries.Binary, error) {
	m, err := versionfile.ParseMinor(minor)
	if err != nil {
		return binaries.Binary{}, err
	}
	bin, ok := b.etcds.Newest(m)
	if !ok {
		return bin, fmt.Errorf("no etcd %s; run `make binaries`", minor)
	}
	return bin, nil
}

func (b *bench) ctl(bin binaries.Binary) string {
	return filepath.Join(b.etcds.Dir, "etcdctl-"+bin.Release.String())
}
