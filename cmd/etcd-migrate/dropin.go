package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// dropInNames are the names of what this program takes the place of, if it is called so.
var dropInNames = []string{"migrate", "migrate-if-needed.sh"}

const dropInDescription = `Takes the place of migrate and migrate-if-needed.sh of the Kubernetes etcd image: the same flags and environment
variables, one minor at a time, with a backup and proofs. docs/drop-in.md says where it differs, and why.

It does not start etcd afterwards. Write "migrate-if-needed.sh && exec etcd …": etcd must not start if this fails.
The exit codes are those of etcd-migrate: 0 if the data is at the target, else not.`

// dropIn is the command line of the Kubernetes tool, of 1.13 to 1.35. Beyond that it takes what `migrate` takes.
type dropIn struct {
	DataDir string `group:"data" placeholder:"DIR" env:"DATA_DIRECTORY" help:"The member's data dir."`
	Name    string `group:"data" placeholder:"NAME" env:"ETCD_NAME" help:"The member's name. Default: etcd-$ETCD_HOSTNAME, or the one in the data."`
	Target  string `group:"migration" name:"target-version" placeholder:"VERSION" env:"TARGET_VERSION" help:"Where to go, such as 3.5.21."`
	migrationFlags
	probeFlags
	outputFlags

	DataPrefix   string `group:"migration" name:"etcd-data-prefix" placeholder:"PREFIX" default:"/registry" env:"ETCD_DATA_PREFIX" help:"--ttl-keys-directory is events below it, unless given (${default})."`
	ServerArgs   string `group:"migration" name:"etcd-server-extra-args" placeholder:"FLAGS" env:"ETCD_CREDS" help:"Flags of the etcd to come. Its quota and WAL dir are read from them; certificates are not needed."`
	KeepBinaries string `group:"migration" name:"do-not-move-binaries" placeholder:"true" env:"DO_NOT_MOVE_BINARIES" help:"Unless it is true, etcd-<target> and etcdctl-<target> become etcd and etcdctl in --bin-dir."`
	Bundled      string `group:"migration" name:"bundled-versions" placeholder:"VERSION,…" env:"BUNDLED_VERSIONS" help:"The etcds in --bin-dir. All that are there are used, and those of this list that are not are named."`

	Hostname string `group:"data" hidden:"" name:"etcd-hostname" env:"ETCD_HOSTNAME"`
	ignoredFlags
}

// ignoredFlags are accepted and not needed: the etcds that make the steps listen where nobody else can find them, and the
// members of the cluster are in the data.
type ignoredFlags struct {
	Port           string `group:"ignored" placeholder:"PORT" env:"MIGRATE_PORT" help:"Not needed: nor are the other flags of this group. The etcds that make the steps listen where nobody finds them."`
	PeerPort       string `group:"ignored" placeholder:"PORT" env:"MIGRATE_PEER_PORT" help:"Not needed."`
	ListenPeer     string `group:"ignored" name:"listen-peer-urls" placeholder:"URLS" env:"LISTEN_PEER_URLS" help:"Not needed."`
	AdvertisePeer  string `group:"ignored" name:"initial-advertise-peer-urls" placeholder:"URLS" env:"INITIAL_ADVERTISE_PEER_URLS" help:"Not needed."`
	ListenClient   string `group:"ignored" name:"listen-client-urls" placeholder:"URLS" env:"LISTEN_CLIENT_URLS" help:"Not needed."`
	InitialCluster string `group:"ignored" name:"initial-cluster" placeholder:"NAME=URL,…" env:"INITIAL_CLUSTER" help:"Not needed: the members are in the data."`
}

func (c *dropIn) Run(ctx context.Context) error {
	err := c.migrate(ctx)
	if err != nil {
		noteTermination(c.TerminationLog, err)
	}
	return err
}

func (c *dropIn) migrate(ctx context.Context) error {
	out := newOutput(c.outputFlags)
	r, err := c.request(out.warn)
	if err != nil {
		return err
	}
	moves, err := c.moves(r.Target.Release)
	if err != nil {
		return err
	}
	p, err := c.probes(etcdSettings{}, r.StepTimeout, out.warn)
	if err != nil {
		return err
	}
	defer p.close()
	r.Observer = p.observe
	if _, err := c.run(ctx, r); err != nil {
		return err
	}
	return moves.do(r.Target)
}

// request makes what the Kubernetes tool would have made of its flags.
func (c *dropIn) request(warn func(string)) (migrate.Request, error) {
	for _, must := range []struct{ value, name string }{
		{c.DataDir, "--data-dir (DATA_DIRECTORY)"}, {c.Target, "--target-version (TARGET_VERSION)"}, {c.Storage, "--target-storage (TARGET_STORAGE)"},
	} {
		if must.value == "" {
			return migrate.Request{}, usagef("missing %s", must.name)
		}
	}
	settings, err := readEtcdSettings(strings.Fields(c.ServerArgs), nil)
	if err != nil {
		return migrate.Request{}, usagef("--etcd-server-extra-args (ETCD_CREDS): %w", err)
	}
	settings.DataDir, settings.Name = c.DataDir, c.Name
	if c.Name == "" && c.Hostname != "" {
		settings.Name = "etcd-" + c.Hostname
	}
	if c.TTLDirectory == "" {
		c.TTLDirectory = strings.TrimSuffix(c.DataPrefix, "/") + "/events"
	}
	r, err := c.migrationFlags.request(c.Target, settings)
	if err != nil {
		return r, err
	}
	for name := range strings.SplitSeq(c.Bundled, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		release, err := versionfile.ParseRelease(name)
		if err != nil {
			return r, usagef("--bundled-versions: %w", err)
		}
		if _, ok := r.Binaries.Get(release); !ok {
			warn(fmt.Sprintf("--bundled-versions names etcd %s, and there is only %s", release, r.Binaries))
		}
	}
	return r, nil
}

// moves are the files that become others in --bin-dir, from path to path.
type moves [][2]string

// moves finds out, before the data is touched, which binaries have to be put into place and whether that can be done: the
// manifest goes on to start bin-dir/etcd, whatever that is.
func (c *dropIn) moves(target versionfile.Release) (moves, error) {
	if c.KeepBinaries == "true" {
		return nil, nil
	}
	var all moves
	for _, name := range []string{"etcd", "etcdctl"} {
		from, to := filepath.Join(c.BinDir, name+"-"+target.String()), filepath.Join(c.BinDir, name)
		same, err := sameContent(from, to)
		if name == "etcdctl" && errors.Is(err, os.ErrNotExist) {
			continue // not every image has one per version, and no data depends on it
		}
		if err == nil && !same {
			err = writableDir(c.BinDir)
		}
		if err != nil {
			return nil, &migrate.Error{Kind: migrate.Refused, Op: fmt.Sprintf("put %s into place as %s", filepath.Base(from), to), Err: err,
				Hint: "start " + filepath.Join(c.BinDir, "etcd-"+target.String()) + " by that name and set DO_NOT_MOVE_BINARIES=true, or make that possible"}
		}
		if !same {
			all = append(all, [2]string{from, to})
		}
	}
	return all, nil
}

func (m moves) do(target versionfile.Version) error {
	for _, move := range m {
		if err := replaceFile(move[0], move[1]); err != nil {
			return &migrate.Error{Kind: migrate.Failed, Op: "put " + filepath.Base(move[0]) + " into place", Err: err,
				Data: fmt.Sprintf("the data is at %s and complete", target), Hint: "give the same command again"}
		}
	}
	return nil
}

func isDropIn(program string) bool { return slices.Contains(dropInNames, filepath.Base(program)) }
