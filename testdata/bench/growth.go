package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// load is what a data dir is filled with, to see what its cost grows with.
type load struct {
	keys, size, ttls int
	// wholeLog keeps all writes in the log: etcd makes no raft snapshot.
	wholeLog bool
}

func (l load) String() string {
	s := fmt.Sprintf("%d keys of %d bytes", l.keys, l.size)
	if l.ttls > 0 {
		s += fmt.Sprintf(", %d TTLs", l.ttls)
	}
	if l.wholeLog {
		s += ", all in the log"
	}
	return s
}

// loads differ from the first, or from one before, in one thing each.
var loads = []load{
	{keys: 10_000, size: 100},
	{keys: 10_000, size: 100, wholeLog: true},
	{keys: 100_000, size: 100},
	{keys: 100_000, size: 100, wholeLog: true},
	{keys: 100_000, size: 100, ttls: 10_000},
	{keys: 100_000, size: 100, ttls: 100_000},
	{keys: 100_000, size: 1_000},
	{keys: 1_000_000, size: 100},
}

// growth measures how the cost of the two kinds of steps grows: the conversion, and the upgrade of a v3 store.
func (b *bench) growth(ctx context.Context) error {
	table := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	fmt.Fprintln(table, "load\tconversion at 3.4\tthe whole migration\tpeak memory\tupgrade 3.4 to 3.5\tbare etcd 3.5\tthe whole migration\tpeak memory")
	for _, l := range loads {
		fmt.Fprintf(os.Stderr, "measuring: growth: %s\n", l)
		v2, err := b.grown(ctx, "3.4", l, b.fillLoadV2, "convert")
		if err != nil {
			return err
		}
		v3, err := b.grown(ctx, "3.5", l, b.fillLoadV3, "upgrade")
		if err != nil {
			return err
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%.0f MiB\t%s\t%s\t%s\t%.0f MiB\n", l, duration(v2.step), duration(v2.whole), v2.memory,
			duration(v3.step), duration(v3.bare), duration(v3.whole), v3.memory)
	}
	fmt.Println()
	return table.Flush()
}

// cost is what one migration of a load took: seconds, and MiB of the whole process at its peak.
type cost struct{ step, bare, whole, memory float64 }

func (b *bench) grown(ctx context.Context, target string, l load, fill func(context.Context, string, load) error, step string) (c cost, err error) {
	dir := filepath.Join(b.scratch, "grown")
	defer os.RemoveAll(dir)
	if err := fill(ctx, dir, l); err != nil {
		return c, err
	}
	bin, err := b.newest(target)
	if err != nil {
		return c, err
	}
	var steps, wholes, bares []sample
	for range b.runs {
		work, err := b.copyDir(dir)
		if err != nil {
			return c, err
		}
		r, err := b.report(work, target)
		if err != nil {
			return c, err
		}
		steps = append(steps, sample{seconds: r.seconds(step), rssMiB: float64(r.PeakMemoryBytes) / (1 << 20)})
		wholes = append(wholes, sample{seconds: r.Seconds})
		if step != "upgrade" {
			continue
		}
		if work, err = b.copyDir(dir); err != nil {
			return c, err
		}
		seconds, err := b.bareStart(ctx, bin, work)
		if err != nil {
			return c, err
		}
		bares = append(bares, sample{seconds: seconds})
	}
	c = cost{step: median(steps).seconds, whole: median(wholes).seconds, memory: median(steps).rssMiB}
	if len(bares) > 0 {
		c.bare = median(bares).seconds
	}
	return c, nil
}

func (l load) flags() []string {
	if l.wholeLog {
		return []string{"--snapshot-count=100000000"}
	}
	return nil
}

func (b *bench) fillLoadV2(ctx context.Context, dir string, l load) error {
	return b.fillV2(ctx, dir, l.keys, l.size, l.ttls, l.flags()...)
}

// fillLoadV3 writes the keys through the v3 API of an etcd 3.4. A lease of its own for each TTL is the worst case.
func (b *bench) fillLoadV3(ctx context.Context, dir string, l load) error {
	bin, err := b.newest("3.4")
	if err != nil {
		return err
	}
	s, err := pathtest.Start(ctx, bin, dir, append(l.flags(), "--unsafe-no-fsync", "--heartbeat-interval=100", "--election-timeout=1000")...)
	if err != nil {
		return err
	}
	c, err := s.V3()
	if err != nil {
		return err
	}
	value := strings.Repeat("v", l.size)
	var g errgroup.Group
	for w := range 64 {
		g.Go(func() error {
			for i := w; i < l.keys; i += 64 {
				var opts []clientv3.OpOption
				if i < l.ttls {
					lease, err := c.Grant(ctx, int64(24*3600+i))
					if err != nil {
						return err
					}
					opts = append(opts, clientv3.WithLease(lease.ID))
				}
				if _, err := c.Put(ctx, fmt.Sprintf("/registry/kind-%03d/key-%07d", i%200, i), value, opts...); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond) // 3.4 commits its db every 100 ms: one that was stopped at leisure is the usual case
	if err := s.Stop(); err != nil {
		return err
	}
	return versionfile.Write(dir, versionfile.Version{Release: bin.Release, Storage: versionfile.Etcd3})
}
