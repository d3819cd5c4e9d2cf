package main

import (
	"context"
	"fmt"
	"time"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
)

// dataFlags say where the data is. `run` has none of them: it takes them from etcd's own command line.
type dataFlags struct {
	DataDir string `group:"data" required:"" placeholder:"DIR" env:"DATA_DIRECTORY" help:"The member's data dir, etcd's --data-dir."`
	WALDir  string `group:"data" name:"wal-dir" placeholder:"DIR" env:"WAL_DIRECTORY" help:"The member's WAL dir, if etcd runs with --wal-dir."`
	Name    string `group:"data" placeholder:"NAME" env:"ETCD_NAME" help:"The member's name. Default: the one in the data."`
}

// migrationFlags say what is to be done; all commands that plan take them.
type migrationFlags struct {
	BinDir      string     `group:"migration" placeholder:"DIR" env:"BIN_DIR" default:"/usr/local/bin" help:"Directory with etcd-<version> of every minor on the way (${default})."`
	Storage     string     `group:"migration" name:"target-storage" env:"TARGET_STORAGE" placeholder:"etcd2|etcd3" help:"Which store is to hold the keys. Default: etcd3 from 3.0 on."`
	BackupDir   string     `group:"migration" placeholder:"DIR" env:"BACKUP_DIR" help:"Where the backup goes. Default: etcd-migrate/backups in the data dir."`
	KeepBackups countValue `group:"migration" placeholder:"N" env:"KEEP_BACKUPS" help:"Remove older backups when the migration is done, so that N of each member with this data dir are left. Default: keep all."`

	AllowRollback bool   `group:"migration" default:"${allowRollback}" negatable:"" env:"ALLOW_ROLLBACK" help:"Allow a target below the data. Without it, that is refused."`
	Accept        string `group:"migration" name:"accept-loss" placeholder:"LOSS,…" env:"ACCEPT_LOSS" help:"Go on though something cannot be carried over: v3-keys, over-quota (etcd2 to etcd3); unfit-keys, not-utf8, not-json, v2-keys, v3-auth (back). Without it, such data is refused."`

	Leftovers string `group:"migration" name:"v2-leftovers" enum:",refuse,discard" default:"" placeholder:"refuse|discard" env:"V2_LEFTOVERS" help:"What becomes of keys and users in the v2 store that the v3 store does not have: etcd 3.6 and later do not start on them. Default: refuse."`

	TTLDirectory string        `group:"migration" name:"ttl-keys-directory" placeholder:"PREFIX" env:"TTL_KEYS_DIRECTORY" help:"In a conversion from etcd2 to etcd3, keys below it that have no TTL are given one, for example /registry/events."`
	TTL          durationValue `group:"migration" name:"ttl" default:"1h" placeholder:"1h" env:"TTL" help:"The TTL for --ttl-keys-directory (${default})."`

	StepTimeout durationValue `group:"migration" placeholder:"15m" default:"15m" env:"STEP_TIMEOUT" help:"How long one etcd may take to make its step (${default})."`
	Quota       quotaValue    `group:"migration" name:"quota-backend-bytes" placeholder:"BYTES" env:"QUOTA_BACKEND_BYTES" help:"The quota that etcd will run with, if not its default of 2 GiB: 8GiB for example, or =-1 for none."`
}

// outputFlags say how the account of a migration looks.
type outputFlags struct {
	LogFormat string     `group:"output" enum:"auto,terminal,json,text" default:"auto" env:"LOG_FORMAT" help:"terminal: an account for people. json, text: one structured line per event. auto: terminal if standard error is one, else json."`
	LogLevel  levelValue `group:"output" placeholder:"info" default:"info" env:"LOG_LEVEL" help:"The least level that is logged: debug, info, warn, error (${default})."`
}

// etcdSettings is what a plan has to know of the etcd that will run: from dataFlags, or from etcd's own command line.
type etcdSettings struct {
	DataDir string
	WALDir  string
	Name    string
	Quota   int64
	Peers   *member.Peers // nil if not from etcd's own command line

	// Where it will be probed, comma-separated, and with which certificate if that is https.
	MetricsURLs    string
	CertFile       string
	KeyFile        string
	TrustedCAFile  string
	ClientCertAuth bool
}

// request puts a request together. target is a minor or a release; extra is an etcd that may lie outside of the bin dir.
func (m migrationFlags) request(target string, e etcdSettings, extra ...binaries.Binary) (migrate.Request, error) {
	have, err := binaries.Find(m.BinDir)
	if err != nil && len(extra) == 0 {
		return migrate.Request{}, usagef("%w", err)
	}
	have = have.With(extra...)
	version, err := migrate.ResolveTarget(target, m.Storage, have)
	if err != nil {
		return migrate.Request{}, err
	}
	if m.Quota != 0 {
		e.Quota = int64(m.Quota)
	}
	losses, err := migrate.ParseLosses(m.Accept)
	if err != nil {
		return migrate.Request{}, usagef("--accept-loss: %w", err)
	}
	leftovers, err := migrate.ParseLeftovers(m.Leftovers)
	if err != nil {
		return migrate.Request{}, usagef("--v2-leftovers: %w", err)
	}
	return migrate.Request{
		V2Leftovers:   leftovers,
		DataDir:       e.DataDir,
		WALDir:        e.WALDir,
		Name:          e.Name,
		Target:        version,
		Binaries:      have,
		BackupDir:     m.BackupDir,
		AllowRollback: m.AllowRollback,
		KeepBackups:   int(m.KeepBackups),
		AcceptLoss:    losses,
		QuotaBytes:    e.Quota,
		Peers:         e.Peers,
		TTLDirectory:  m.TTLDirectory,
		TTL:           time.Duration(m.TTL),
		StepTimeout:   time.Duration(m.StepTimeout),
		Tool:          fmt.Sprintf("etcd-migrate %s", version),
	}, nil
}

// run does the migration with an account of it on standard error, and also tells r.Observer, if there is one.
func (o outputFlags) run(ctx context.Context, r migrate.Request) (*migrate.Report, error) {
	out := newOutput(o)
	observers := []func(migrate.Event){out.observe}
	if r.Observer != nil {
		observers = append(observers, r.Observer)
	}
	r.Observer = func(e migrate.Event) {
		if e.Kind == migrate.EventBegun {
			saveMemory() // not before: at most starts there is nothing to do, and etcd is waited for
		}
		for _, observe := range observers {
			observe(e)
		}
	}
	r.Log = out.log
	report, err := migrate.New(r).Run(ctx)
	out.finish(report, err)
	if err != nil {
		return report, &shownError{err}
	}
	return report, nil
}
