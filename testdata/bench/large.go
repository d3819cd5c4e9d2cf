package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// conversion is issue number one of every old tool: 100,000 keys of 400 bytes, 30,000 of them with a TTL.
func (b *bench) conversion(ctx context.Context) error { return b.convert(ctx, 100_000, 400, 30_000) }

// million is a million small keys.
func (b *bench) million(ctx context.Context) error { return b.convert(ctx, 1_000_000, 40, 0) }

// convert measures the conversion alone against `etcdctl migrate`, and, if there are TTLs, the whole stage against
// `etcdctl migrate` and then a put with a lease for each key with a TTL, as the Kubernetes tool did it.
func (b *bench) convert(ctx context.Context, keys, size, ttls int) error {
	etcd, err := b.newest("3.4")
	if err != nil {
		return err
	}
	dir := filepath.Join(b.scratch, fmt.Sprintf("v2-%d", keys))
	if err := b.fillV2(ctx, dir, keys, size, ttls); err != nil {
		return err
	}
	var stage, put []sample
	ours, them, err := b.pair(
		func() (sample, error) {
			work, err := b.copyDir(dir)
			if err != nil {
				return sample{}, err
			}
			r, err := b.report(work, "3.4")
			if err != nil {
				return sample{}, err
			}
			stage = append(stage, sample{seconds: r.seconds("convert", "empty-v2")})
			return sample{seconds: r.seconds("convert"), rssMiB: float64(r.PeakMemoryBytes) / (1 << 20)}, os.RemoveAll(work)
		},
		func() (sample, error) {
			work, err := b.copyDir(dir)
			if err != nil {
				return sample{}, err
			}
			s, _, err := command([]string{"ETCDCTL_API=3"}, b.ctl(etcd), "migrate", "--data-dir", work)
			if err != nil || ttls == 0 {
				return s, err
			}
			seconds, err := b.attachLeases(ctx, work)
			put = append(put, sample{seconds: s.seconds + seconds})
			return s, err
		})
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d keys of %d bytes, %d TTLs", keys, size, ttls)
	b.rows = append(b.rows, row{"convert " + what, ours, them, "etcdctl migrate, which drops the TTLs", 1.0 / 3})
	if ttls > 0 {
		b.rows = append(b.rows, row{"convert and empty-v2", median(stage), median(put), "etcdctl migrate and a put per TTL", 0.1})
	}
	return os.RemoveAll(dir)
}

// fillV2 writes the keys through the v2 API of an etcd 3.4, and lets it stop with a version.txt that says so.
func (b *bench) fillV2(ctx context.Context, dir string, keys, size, ttls int, flags ...string) error {
	bin, err := b.newest("3.4")
	if err != nil {
		return err
	}
	flags = append(flags, "--enable-v2", "--unsafe-no-fsync", "--heartbeat-interval=100", "--election-timeout=1000")
	s, err := pathtest.Start(ctx, bin, dir, flags...)
	if err != nil {
		return err
	}
	value := strings.Repeat("v", size)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	var g errgroup.Group
	for w := range 64 {
		g.Go(func() error {
			for i := w; i < keys; i += 64 {
				form := url.Values{"value": {value}}
				if i < ttls {
					form.Set("ttl", strconv.Itoa(24*3600+i))
				}
				if err := put(ctx, client, s.URL+fmt.Sprintf("/v2/keys/registry/kind-%03d/key-%07d", i%200, i), form); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.Stop(); err != nil {
		return err
	}
	return versionfile.Write(dir, versionfile.Version{Release: bin.Release, Storage: versionfile.Etcd2})
}

func put(ctx context.Context, client *http.Client, u string, form url.Values) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, u, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		return fmt.Errorf("PUT %s: %s", u, res.Status)
	}
	return nil
}

// attachLeases does what the Kubernetes tool did: one lease, and a put of each key with it. Here for as many keys as had
// a TTL, the tool took all of a prefix.
func (b *bench) attachLeases(ctx context.Context, dir string) (float64, error) {
	const ttls = 30_000
	began := time.Now()
	bin, err := b.newest("3.4")
	if err != nil {
		return 0, err
	}
	s, err := pathtest.Start(ctx, bin, dir)
	if err != nil {
		return 0, err
	}
	c, err := s.V3()
	if err != nil {
		return 0, err
	}
	lease, err := c.Grant(ctx, 3600)
	if err != nil {
		return 0, err
	}
	for i := range ttls {
		key := fmt.Sprintf("/registry/kind-%03d/key-%07d", i%200, i)
		res, err := c.Get(ctx, key)
		if err != nil {
			return 0, err
		}
		if len(res.Kvs) != 1 {
			return 0, fmt.Errorf("key %s is not there", key)
		}
		if _, err := c.Put(ctx, key, string(res.Kvs[0].Value), clientv3.WithLease(lease.ID)); err != nil {
			return 0, err
		}
	}
	return time.Since(began).Seconds(), s.Stop()
}

// backup is a backup of 2 GiB, hashed, synced and verified, against cp -a and sync.
func (b *bench) backup(ctx context.Context) error {
	dir, err := b.small(ctx, "3.6")
	if err != nil {
		return err
	}
	if err := grow(filepath.Join(dir, "member", "snap", "db"), 2<<30); err != nil {
		return err
	}
	l, err := datadir.NewLayout(dir, "")
	if err != nil {
		return err
	}
	dst := filepath.Join(b.scratch, "backups")
	ours, them, err := b.pair(
		func() (sample, error) {
			syscall.Sync()
			began := time.Now()
			_, err := datadir.CreateBackup(ctx, l, dst, datadir.Meta{}, nil)
			s := sample{seconds: time.Since(began).Seconds()}
			if err != nil {
				return s, err
			}
			return s, os.RemoveAll(dst)
		},
		func() (sample, error) {
			syscall.Sync()
			began := time.Now()
			if _, _, err := command(nil, "cp", "-a", dir, dst); err != nil {
				return sample{}, err
			}
			syscall.Sync()
			return sample{seconds: time.Since(began).Seconds()}, os.RemoveAll(dst)
		})
	if err != nil {
		return err
	}
	b.rows = append(b.rows, row{"backup of 2 GiB", ours, them, "cp -a and sync", 1.2})
	return nil
}

// grow appends bytes that are no holes.
func grow(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i*7 + i>>8)
	}
	for written := int64(0); written < size; written += int64(len(chunk)) {
		if _, err := f.Write(chunk); err != nil {
			return err
		}
	}
	return f.Sync()
}
