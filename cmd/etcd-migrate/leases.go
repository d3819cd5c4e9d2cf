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
	TTL       durationValue `group:"migration" name:"ttl" default:"1h" placeholder:"1h" env:"TTL" help:"The TTL (${default})."`
	outputFlags
	Output string `group:"output" short:"o" env:"OUTPUT_FORMAT" enum:"text,json" default:"text" help:"text or json, on standard output."`
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
	report, err := migrate.New(r).AttachLeases(ctx, c.Directory, time.Duration(c.TTL))
	out.endBar()
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return writeJSON(report)
	}
	ended := ""
	if report.Ended > 0 {
		ended = fmt.Sprintf("; meanwhile, the lease of %s ended", plural(report.Ended, "key"))
	}
	fmt.Printf("%s below %s, %d without a lease before and with one of %s now, %s in all%s; backup: %s\n",
		plural(report.Keys, "key"), c.Directory, report.Attached, time.Duration(c.TTL), plural(report.Leases, "lease"), ended, report.Backup)
	return nil
}
