package main

import (
	"context"
	"fmt"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
)

type attachLeasesCmd struct {
	dataFlags
	BinDir    string        `group:"migration" placeholder:"DIR" env:"BIN_DIR" default:"/usr/local/bin" help:"Directory with the etcd-<version> that the data belongs to (${default})."`
	BackupDir string        `group:"migration" placeholder:"DIR" env:"BACKUP_DIR" help:"Where the backup goes. Default: etcd-migrate/backups in the data dir."`
	Directory string        `group:"migration" name:"ttl-keys-directory" required:"" env:"TTL_KEYS_DIRECTORY" placeholder:"PREFIX" help:"Keys below it are given a TTL, for example /registry/events."`
	TTL       time.Duration `group:"migration" name:"ttl" default:"1h" placeholder:"1h" help:"The TTL (${default})."`
	outputFlags
	Output string `group:"output" short:"o" enum:"text,json" default:"text" help:"text or json, on standard output."`
}

func (c *attachLeasesCmd) Run(ctx context.Context) error {
	have, err := binaries.Find(c.BinDir)
	if err != nil {
		return usagef("%w", err)
	}
	out := newOutput(c.outputFlags)
	r := migrate.Request{
		DataDir: c.DataDir, WALDir: c.WALDir, Name: c.Name, Binaries: have, BackupDir: c.BackupDir,
		Tool: "etcd-migrate " + version, Observer: out.observe, Log: out.log,
	}
	report, err := migrate.New(r).AttachLeases(ctx, c.Directory, c.TTL)
	out.endBar()
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return writeJSON(report)
	}
	fmt.Printf("%d keys below %s, %d of them had no lease and have one of %s now, %d leases in all; backup: %s\n",
		report.Keys, c.Directory, report.Attached, c.TTL, report.Leases, report.Backup)
	return nil
}
