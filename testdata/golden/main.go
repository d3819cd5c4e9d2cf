// Command golden makes the archives in testdata/golden anew: a data dir that an etcd of each minor has written, and a list
// of what that etcd served. From 3.0 to 3.5 there is one with the keys in the v2 store, too.
//
// usage: go run ./testdata/golden BIN OUT      BIN holds etcd-<version>
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/matrix"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest/golden"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

func main() {
	if err := all(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "golden:", err)
		os.Exit(1)
	}
}

func all(bin, out string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	etcds, err := binaries.Find(bin)
	if err != nil {
		return err
	}
	for _, v := range matrix.Versions(etcds, true) {
		if err := one(ctx, etcds, v, out); err != nil {
			return fmt.Errorf("%s: %w", v, err)
		}
	}
	return nil
}

func one(ctx context.Context, etcds binaries.Set, v versionfile.Version, out string) (err error) {
	scratch, err := os.MkdirTemp("", "etcd-migrate-golden-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	dir := filepath.Join(scratch, "etcd")
	content, err := write(ctx, etcds, v, dir)
	if err != nil {
		return err
	}
	base := filepath.Join(out, v.Minor().String())
	if v.Storage != v.Minor().Storage() {
		base += "-" + string(v.Storage)
	}
	archive, err := os.Create(base + ".tar.gz")
	if err != nil {
		return err
	}
	if err := errors.Join(golden.Pack(archive, dir), archive.Close()); err != nil {
		return err
	}
	var list strings.Builder
	if err := golden.WriteList(&list, v, content); err != nil {
		return err
	}
	info, err := os.Stat(base + ".tar.gz")
	if err != nil {
		return err
	}
	fmt.Printf("%s.tar.gz: %d keys, %d bytes\n", base, len(content.Keys), info.Size())
	return os.WriteFile(base+".txt", []byte(list.String()), 0o644)
}

// write has an etcd fill a data dir. A raft snapshot is in it, and entries after it.
func write(ctx context.Context, etcds binaries.Set, v versionfile.Version, dir string) (content pathtest.Content, err error) {
	bin, _ := etcds.Get(v.Release)
	flags := []string{"--snapshot-count", "40"}
	if v.Storage == versionfile.Etcd2 && v.Minor().AtLeast(3, 4) {
		flags = append(flags, "--enable-v2")
	}
	server, err := pathtest.Start(ctx, bin, dir, flags...)
	if err != nil {
		return content, err
	}
	if v.Storage == versionfile.Etcd2 {
		if err = server.FillV2(ctx, 20); err == nil {
			content, err = server.ReadV2(ctx, pathtest.Hidden...)
		}
	} else if err = server.FillV3(ctx, 20); err == nil {
		content, err = server.ReadV3(ctx)
	}
	return content, errors.Join(err, server.Stop())
}
