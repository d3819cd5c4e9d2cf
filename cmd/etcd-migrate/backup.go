package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// backupCmd has a command for each thing to be done with backups.
type backupCmd struct {
	List    backupListCmd    `cmd:"" help:"List the backups of a data dir, oldest first."`
	Verify  backupVerifyCmd  `cmd:"" help:"Compare a backup with its manifest, byte by byte."`
	Restore backupRestoreCmd `cmd:"" help:"Make the data dir what a backup holds."`
	Prune   backupPruneCmd   `cmd:"" help:"Remove the oldest backups."`
}

// backupFlags say which data dir's backups.
type backupFlags struct {
	DataDir   string `group:"data" required:"" placeholder:"DIR" env:"DATA_DIRECTORY" help:"The member's data dir, etcd's --data-dir."`
	WALDir    string `group:"data" name:"wal-dir" placeholder:"DIR" env:"WAL_DIRECTORY" help:"The member's WAL dir, if etcd runs with --wal-dir."`
	BackupDir string `group:"data" placeholder:"DIR" env:"BACKUP_DIR" help:"Where the backups are. Default: etcd-migrate/backups in the data dir."`
}

func (f backupFlags) open() (datadir.Layout, string, error) {
	l, err := migrate.OpenLayout(f.DataDir, f.WALDir)
	if err != nil {
		return l, "", err
	}
	return l, l.BackupsDir(f.BackupDir), nil
}

// find gives the backup with that id; "newest" is the newest one of the data dir that has a good manifest, unless there are
// backups of several members, or a newer one whose manifest the disk does not give: that may be the one that is meant.
func (f backupFlags) find(id string) (datadir.Layout, datadir.Backup, error) {
	l, dir, err := f.open()
	if err != nil {
		return l, datadir.Backup{}, err
	}
	all, err := datadir.ListBackups(dir)
	if err != nil {
		return l, datadir.Backup{}, err
	}
	var newest *datadir.Backup
	for _, b := range slices.Backward(all) {
		ours := l.Owns(b)
		switch {
		case b.ID == id:
			return l, b, nil
		case id == "newest" && newest == nil && notRead(b.Err):
			return l, datadir.Backup{}, fmt.Errorf("tell whether it is the newest backup: %w; nothing has been changed; mend the cause, or give the id of the backup", b.Err)
		case id != "newest" || b.Err != nil || !ours:
		case newest == nil:
			newest = &b
		case b.Manifest.Member != newest.Manifest.Member:
			return l, datadir.Backup{}, usagef("%s holds backups of the members %s and %s with the data dir %s; give the id of the right one",
				dir, newest.Manifest.Member, b.Manifest.Member, l.DataDir)
		}
	}
	if newest != nil {
		return l, *newest, nil
	}
	return l, datadir.Backup{}, usagef("there is no backup %s in %s; `etcd-migrate backup list`, with the same flags, shows what there is", id, dir)
}

// notRead tells a manifest that cannot be read from one that is not there or is broken.
func notRead(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path) && !errors.Is(err, fs.ErrNotExist)
}

type backupListCmd struct {
	backupFlags
	Output string `group:"output" short:"o" env:"OUTPUT_FORMAT" enum:"table,json" default:"table" help:"table or json, on standard output."`
}

// backupItem is a backup in `backup list -o json`.
type backupItem struct {
	ID      string    `json:"id"`
	Path    string    `json:"path"`
	Version string    `json:"version,omitempty"`
	Created time.Time `json:"created"`
	Member  string    `json:"member,omitempty"`
	Bytes   int64     `json:"bytes"`
	Reason  string    `json:"reason,omitempty"`
	Error   string    `json:"error,omitempty"`
}

func (c *backupListCmd) Run() error {
	_, dir, err := c.open()
	if err != nil {
		return err
	}
	all, err := datadir.ListBackups(dir)
	if err != nil {
		return err
	}
	items := []backupItem{}
	for _, b := range all {
		item := backupItem{ID: b.ID, Path: b.Path, Created: b.Manifest.Created, Member: b.Manifest.Member, Bytes: b.Manifest.Bytes, Reason: b.Manifest.Reason}
		if b.Err != nil {
			item.Error = b.Err.Error()
		}
		if !b.Manifest.Version.IsZero() {
			item.Version = b.Manifest.Version.String()
		}
		items = append(items, item)
	}
	if c.Output == "json" {
		return writeJSON(items)
	}
	if len(items) == 0 {
		fmt.Printf("no backups in %s\n", dir)
		return nil
	}
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tVERSION\tMEMBER\tSIZE\tWHY")
	for _, b := range items {
		why := b.Reason
		if b.Error != "" {
			why = "broken: " + b.Error
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", b.ID, b.Version, b.Member, humanize.IBytes(uint64(b.Bytes)), why)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Printf("\nin %s\n", dir)
	return nil
}

type backupVerifyCmd struct {
	backupFlags
	ID string `arg:"" help:"The backup's id, or newest."`
}

func (c *backupVerifyCmd) Run(ctx context.Context) error {
	_, b, err := c.find(c.ID)
	if err != nil {
		return err
	}
	if err := b.Verify(ctx, nil); err != nil {
		return err
	}
	fmt.Printf("%s is what its manifest says: %d files and directories, %s\n", b.Path, len(b.Manifest.Files), humanize.IBytes(uint64(b.Manifest.Bytes)))
	return nil
}

type backupRestoreCmd struct {
	backupFlags
	ID string `arg:"" help:"The backup's id, or newest."`
}

func (c *backupRestoreCmd) Help() string {
	return `What the data dir holds now is kept, in etcd-migrate/replaced-<time>, for you to remove. Everything is copied and checked
before the first change, and from then on only renames are left: killed at any moment, the same command, or the next start
of etcd-migrate on the data dir, completes it. Writes since the backup are lost with the restore.`
}

func (c *backupRestoreCmd) Run(ctx context.Context) (err error) {
	l, b, err := c.find(c.ID)
	if err != nil {
		return err
	}
	if err := datadir.MkdirAll(l.DataDir); err != nil {
		return err
	}
	unlock, err := l.Lock()
	if err != nil {
		return inUse("restore", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	replaced, err := b.Restore(ctx, l, nil)
	if err != nil {
		return restoreError(ctx, err)
	}
	fmt.Printf("%s is what backup %s holds: %s\n", l.DataDir, b.ID, b.Manifest.Version)
	for _, dir := range replaced {
		fmt.Printf("what was there is in %s; remove it when you no longer need it\n", dir)
	}
	return nil
}

// restoreError says what state the data is in.
func restoreError(ctx context.Context, err error) error {
	const again = "mend the cause and give the same command again"
	var held *datadir.HeldError
	var unfinished *datadir.UnfinishedError
	switch {
	case errors.As(err, &held):
		return inUse("restore", err)
	case errors.As(err, &unfinished):
		return &migrate.Error{Kind: migrate.Failed, Op: "restore", Err: err, Data: migrate.HalfRestored, Hint: again + ", which completes it"}
	case ctx.Err() != nil:
		return &migrate.Error{Kind: migrate.Interrupted, Op: "restore", Err: context.Cause(ctx), Data: "the data is what it was", Hint: "give the same command again"}
	}
	return &migrate.Error{Kind: migrate.Refused, Op: "restore", Err: err, Hint: again}
}

type backupPruneCmd struct {
	backupFlags
	Keep int `group:"data" required:"" placeholder:"N" env:"KEEP_BACKUPS" help:"How many of the newest are kept, at least 1."`
}

func (c *backupPruneCmd) Run() (err error) {
	l, dir, err := c.open()
	if err != nil {
		return err
	}
	if c.Keep < 1 {
		return usagef("--keep %d: the newest backup is always kept, so it is at least 1", c.Keep)
	}
	unlock, err := l.Lock()
	if err != nil {
		return inUse("prune", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if _, err := os.Stat(filepath.Join(l.WorkDir(), migrate.JournalName)); err == nil {
		return &migrate.Error{Kind: migrate.Refused, Op: "prune", Err: errors.New("a migration of this data dir has been begun and not finished"),
			Hint: "finish it first: its backup is still needed"}
	}
	removed, err := l.Prune(dir, c.Keep)
	for _, id := range removed {
		fmt.Printf("removed %s\n", id)
	}
	return err
}

// inUse gives an error its kind, if it is that somebody holds the data.
func inUse(op string, err error) error {
	var held *datadir.HeldError
	if errors.As(err, &held) {
		return &migrate.Error{Kind: migrate.InUse, Op: op, Err: err, Hint: "stop that process first"}
	}
	return err
}
