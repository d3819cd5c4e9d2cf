package matrix

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// source is a data dir of the version that pairs start from. It is made when the first of them needs it.
type source struct {
	version versionfile.Version
	left    int // pairs that are not done

	once    sync.Once
	dir     string
	content *pathtest.Content
	hidden  []string // keys that no listing of the v2 store shows
	err     error
}

// original is the copy of the user's data.
type original struct {
	layout datadir.Layout
	state  migrate.State
	hidden []string // as far as the keys are in the v2 store
}

// copyOriginal copies the user's data into dir, with the WAL where etcd looks for it by default.
func copyOriginal(ctx context.Context, o Options, dir string) (*original, error) {
	l, err := datadir.NewLayout(o.DataDir, o.WALDir)
	if err != nil {
		return nil, refuse(err, "give etcd's data dir, and its WAL dir if it has one of its own")
	}
	if err := l.LiveEtcd(); err != nil {
		return nil, &migrate.Error{Kind: migrate.InUse, Op: "matrix", Err: err, Hint: "stop it first, or give a copy of its data dir"}
	}
	user := &original{}
	if user.state, err = migrate.Inspect(ctx, l, time.Now()); err != nil {
		return nil, err
	}
	if user.state.Presence == migrate.Fresh {
		return nil, refuse(fmt.Errorf("%s holds no member's data", o.DataDir), "give a data dir that an etcd has written")
	}
	if len(user.state.Members) > 1 {
		return nil, refuse(fmt.Errorf("the data is of a cluster of %d members, and one alone cannot be started", len(user.state.Members)),
			"make a copy, start the etcd that it is of on it once with --force-new-cluster, stop it, and give the copy")
	}
	if user.state.V2.AuthEnabled || user.state.V3.AuthEnabled {
		return nil, refuse(errors.New("authentication is enabled in the data, so that nothing can be read through etcd's API"),
			"use `etcd-migrate rehearse`, which needs no password, or a copy of the data with authentication disabled")
	}
	if user.hidden, err = hiddenKeys(l); err != nil {
		return nil, refuse(err, "see what `etcd-migrate inspect` says of the data dir")
	}
	copied := filepath.Join(dir, "data")
	if err := copyData(ctx, l, copied); err != nil {
		return nil, refuse(fmt.Errorf("copy the data dir: %w", err), "free some space, or name another --work-dir")
	}
	if user.layout, err = datadir.NewLayout(copied, ""); err != nil {
		return nil, refuse(err, "name another --work-dir")
	}
	return user, nil
}

// copyData copies what is etcd's, and version.txt.
func copyData(ctx context.Context, l datadir.Layout, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	parts := [][2]string{{l.MemberDir(), filepath.Join(dir, "member")}}
	if l.SeparateWAL() {
		parts = append(parts, [2]string{l.WALDir, filepath.Join(dir, "member", "wal")})
	}
	if _, err := os.Stat(l.VersionFile()); err == nil {
		parts = append(parts, [2]string{l.VersionFile(), filepath.Join(dir, versionfile.Name)})
	}
	for _, part := range parts {
		if _, err := datadir.CopyTree(ctx, part[1], part[0], datadir.CopyOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// hiddenKeys names the keys in the v2 store that no listing shows, so that they can be asked for.
func hiddenKeys(l datadir.Layout) (keys []string, err error) {
	log, err := raftlog.Open(l.SnapDir(), l.WALDir)
	if err != nil {
		return nil, err
	}
	tree := keyspace.NewTree()
	if s := log.Snapshot(); s.Index > 0 {
		if tree, err = keyspace.LoadTree(s.Data); err != nil {
			return nil, err
		}
	}
	if _, err = log.Each(func(e raftlog.Entry) error {
		switch e.Kind {
		case raftlog.V2:
			return tree.ApplyV2(e.V2)
		case raftlog.V3:
			return tree.ApplyV3(e.V3)
		case raftlog.ConfChange:
			return tree.ApplyConfChange(e.ConfChange)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	err = tree.Each(time.Time{}, func(r keyspace.Record) error {
		if isHidden(string(r.Key)) {
			keys = append(keys, string(r.Key))
		}
		return nil
	})
	return keys, err
}

func isHidden(key string) bool { return strings.Contains(key, "/_") }

// make lets an etcd of the source's version write a data dir and tell what is in it.
func (m *runner) make(ctx context.Context, s *source) error {
	dir := filepath.Join(m.dirs.from, strings.ReplaceAll(s.version.String(), "/", "-"))
	s.dir = filepath.Join(dir, "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if m.user != nil {
		if err := m.bringUser(ctx, s); err != nil {
			return fmt.Errorf("bring the data dir to %s first: %w", Label(s.version), err)
		}
	}
	etcd, err := m.start(ctx, s.version, s.dir)
	if err != nil {
		return err
	}
	if m.user == nil {
		err = m.fill(ctx, etcd, s)
	}
	if err == nil {
		var content pathtest.Content
		content, err = read(ctx, etcd, s.version.Storage, s.hidden)
		s.content = &content
	}
	return errors.Join(err, etcd.Stop())
}

// bringUser migrates a copy of the user's data to the source's version.
func (m *runner) bringUser(ctx context.Context, s *source) error {
	if err := copyData(ctx, m.user.layout, s.dir); err != nil {
		return err
	}
	s.hidden = m.user.hidden
	_, err := migrate.New(m.request(s.dir, s.version)).Run(ctx)
	return err
}

func (m *runner) fill(ctx context.Context, etcd *pathtest.Server, s *source) error {
	if s.version.Storage == versionfile.Etcd2 {
		s.hidden = pathtest.Hidden
		return etcd.FillV2(ctx, m.Keys)
	}
	return etcd.FillJSON(ctx, m.Keys)
}

func (m *runner) request(dir string, target versionfile.Version) migrate.Request {
	return migrate.Request{
		DataDir: dir, Target: target, Binaries: m.Binaries, AllowRollback: true, AcceptLoss: m.AcceptLoss,
		V2Leftovers: m.V2Leftovers, QuotaBytes: m.QuotaBytes, StepTimeout: m.StepTimeout, Tool: m.Tool,
	}
}

// start starts the etcd of a version. Its raft snapshots are so far apart that data has some, and entries after the last.
func (m *runner) start(ctx context.Context, v versionfile.Version, dir string) (*pathtest.Server, error) {
	bin, ok := m.Binaries.Get(v.Release)
	if !ok {
		return nil, fmt.Errorf("there is no etcd %s among %s", v.Release, m.Binaries)
	}
	flags := []string{"--snapshot-count", "60"}
	if v.Storage == versionfile.Etcd2 && v.Minor().AtLeast(3, 4) {
		flags = append(flags, "--enable-v2")
	}
	if m.user != nil {
		flags = append(flags, "--name", m.user.state.Member.Name)
	}
	if m.QuotaBytes != 0 && v.Minor().AtLeast(3, 0) {
		flags = append(flags, fmt.Sprintf("--quota-backend-bytes=%d", m.QuotaBytes))
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(m.StepTimeout, migrate.DefaultStepTimeout)) // a large store takes long to load
	defer cancel()
	return pathtest.Start(ctx, bin, dir, flags...)
}

func read(ctx context.Context, etcd *pathtest.Server, storage versionfile.Storage, hidden []string) (pathtest.Content, error) {
	if storage == versionfile.Etcd2 {
		return etcd.ReadV2(ctx, hidden...)
	}
	return etcd.ReadV3(ctx)
}
