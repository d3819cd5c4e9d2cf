package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// freeSpace is for tests.
var freeSpace = datadir.FreeSpace

// preflight refuses what would fail later on: a binary that is not what it seems, missing rights, a loss, a full disk.
func (m *Migrator) preflight(ctx context.Context) error {
	if len(m.plan.Steps) == 0 || m.st.Presence == Fresh {
		return m.checkBinaries(ctx)
	}
	// First, because the binaries are asked as the user that all of the data belongs to.
	if err := m.checkRights(); err != nil {
		return err
	}
	if err := m.checkBinaries(ctx); err != nil {
		return err
	}
	return m.checkSteps(ctx)
}

// checkPlan refuses what Run would refuse, as far as that is in the data, the plan and the binaries. Rights are left to Run,
// because a plan is also made of a read-only copy, and so is how a member meets the others, which only `run` is told.
func (m *Migrator) checkPlan(ctx context.Context) error {
	if err := m.checkJournal(); err != nil {
		return err
	}
	if err := m.checkAllowed(); err != nil {
		return err
	}
	if err := m.checkTogether(); err != nil {
		return err
	}
	if err := m.checkBinaries(ctx); err != nil {
		return err
	}
	return m.checkSteps(ctx)
}

func (m *Migrator) checkBinaries(ctx context.Context) error {
	err := m.verifyBinaries(ctx)
	if err != nil && ctx.Err() != nil {
		return &Error{Kind: Interrupted, Op: "check the binaries", Err: context.Cause(ctx)}
	}
	var apart *foreignError
	if errors.As(err, &apart) {
		return refuse(err, apart.hint())
	}
	if err != nil {
		return refuse(err, "every etcd on the way must be there and be what its name says")
	}
	return nil
}

// checkSteps refuses steps that would lose something, or that there is no room for.
func (m *Migrator) checkSteps(ctx context.Context) error {
	var demands []demand
	for _, s := range m.plan.Steps {
		switch s.Kind {
		case StepConvert:
			d, err := m.checkConversion()
			if err != nil {
				return err
			}
			demands = append(demands, d)
		case StepConvertBack, StepDowngrade:
			if err := m.checkBack(ctx, s); err != nil {
				return err
			}
		case StepUpgrade, StepReplay, StepEmptyV2:
			demands = append(demands, m.demandOfEtcd(s)...)
		}
	}
	if m.plan.needsBackup() {
		d, err := m.demandOfBackup()
		if err != nil {
			return err
		}
		demands = append(demands, d...)
	}
	return checkSpace(demands)
}

// demand is room that is needed on the file system of a path.
type demand struct {
	what  string
	path  string
	bytes uint64
}

// walSegment is what every etcd from 3.0 on allocates ahead of need when it opens its log (wal.SegmentSizeBytes).
const walSegment = 64 << 20

// demandOfEtcd is what one step's etcd writes: a log segment, what the last one lacks, and raft snapshots with all of the v2 store
// in them. Up to five of these are kept.
func (m *Migrator) demandOfEtcd(s Step) []demand {
	snapshots := demand{"raft snapshots", m.layout.SnapDir(), 5 * uint64(m.st.V2.Bytes)}
	if s.To.Minor().Less(v3Since) {
		return []demand{snapshots}
	}
	return []demand{snapshots, {"a segment of the raft log", m.layout.WALDir, walSegment},
		{"holes in its last segment", m.layout.WALDir, m.unfilledLog()},
		{"growth of the db", m.layout.SnapDir(), dbGrowth(m.layout.SnapDir())}}
}

// unfilledLog is what an etcd allocates of the log's last segment when it opens it, as far as that has no blocks of its own: in a
// copy it has holes, or shares its blocks with the original.
func (m *Migrator) unfilledLog() uint64 {
	entries, err := os.ReadDir(m.layout.WALDir)
	if err != nil {
		return 0 // whoever reads it will say so
	}
	for _, e := range slices.Backward(entries) { // their names are in the order of the log
		if filepath.Ext(e.Name()) != ".wal" {
			continue
		}
		path := filepath.Join(m.layout.WALDir, e.Name())
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		own := info.Sys().(*syscall.Stat_t).Blocks * 512
		if sharesBlocks(path) {
			own = 0
		}
		return uint64(max(0, info.Size()-own))
	}
	return 0
}

// dbGrowth is by how much etcd makes a db longer that it writes to (bbolt.DefaultAllocSize). These are holes, which only a file
// system in memory fills: etcd maps them.
func dbGrowth(path string) uint64 {
	if fileSystem(path) == unix.TMPFS_MAGIC {
		return 16 << 20
	}
	return 0
}

// demandOfBackup is none where an earlier run has left one, or where the copy can share its blocks with the original.
func (m *Migrator) demandOfBackup() ([]demand, error) {
	if earlier, err := m.earlierRun(); err != nil || earlier != nil && earlier.Backup != "" {
		return nil, err
	}
	const hint = "put right what it says: all of the data must be readable, and can only be backed up as files and directories"
	dir := m.layout.BackupsDir(m.BackupDir)
	same, err := datadir.SameFileSystem(dir, m.layout.SnapDir())
	if err != nil {
		return nil, refuse(err, hint)
	}
	if same && sharesBlocks(m.layout.SnapDir()) {
		return nil, nil
	}
	size, err := m.layout.Usage()
	if err != nil {
		return nil, refuse(err, hint)
	}
	return []demand{{"the backup", dir, size}}, nil
}

// sharesBlocks reports whether a file system may be able to clone files. The backup itself refuses if it cannot.
func sharesBlocks(path string) bool {
	const bcachefs = 0xca451a4e
	switch fileSystem(path) {
	case unix.BTRFS_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, bcachefs:
		return true
	}
	return false
}

// fileSystem is the kernel's number for the type of a path's file system, 0 if that is not known.
func fileSystem(path string) uint64 {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0
	}
	return uint64(st.Type) & 0xffffffff
}

// checkSpace adds up what is needed on each file system. Of what is needed for the same purpose by several steps, the
// most counts, because a step's room is free again or used again by the next.
func checkSpace(demands []demand) error {
	var systems [][]demand
next:
	for _, d := range demands {
		for i, s := range systems {
			same, err := datadir.SameFileSystem(s[0].path, d.path)
			if err != nil {
				return refuse(err, "the data dir must be readable")
			}
			if same {
				systems[i] = merge(s, d)
				continue next
			}
		}
		systems = append(systems, []demand{d})
	}
	for _, s := range systems {
		var need uint64
		var parts []string
		for _, d := range s {
			if need += d.bytes; d.bytes > 0 {
				parts = append(parts, d.what+" "+humanize.IBytes(d.bytes))
			}
		}
		free, err := freeSpace(s[0].path)
		if err != nil {
			return refuse(err, "the data dir must be readable")
		}
		if free < need {
			return refuse(roomError(fmt.Sprintf("the file system of %s has %s free, and the migration needs %s there (%s)",
				s[0].path, humanize.IBytes(free), humanize.IBytes(need), strings.Join(parts, ", "))),
				"make room there, or put the backup on another volume with --backup-dir")
		}
	}
	return nil
}

// roomError matches syscall.ENOSPC, which is what going on would have met.
type roomError string

func (e roomError) Error() string { return string(e) }

func (roomError) Unwrap() error { return unix.ENOSPC }

func merge(demands []demand, d demand) []demand {
	for i := range demands {
		if demands[i].what == d.what {
			demands[i].bytes = max(demands[i].bytes, d.bytes)
			return demands
		}
	}
	return append(demands, d)
}

// checkRights refuses what etcd or this program could not write to later on.
func (m *Migrator) checkRights() error {
	dirs := []string{m.layout.DataDir, m.layout.MemberDir(), m.layout.SnapDir(), m.layout.WALDir}
	if m.plan.needsBackup() && m.BackupDir != "" {
		dirs = append(dirs, nearest(m.BackupDir))
	}
	for _, dir := range dirs {
		if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.R_OK|unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
			return refuseRights(dir, err)
		}
	}
	owner, err := m.owner()
	if err != nil {
		return refuse(err, "the data dir must be readable")
	}
	for _, dir := range []string{m.layout.MemberDir(), m.layout.WALDir} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case d != nil && d.Name() == "lost+found":
				return filepath.SkipDir
			case err != nil:
				return err
			}
			return checkOwner(path, d, owner)
		})
		var refused *Error
		if errors.As(err, &refused) {
			return refused
		}
		if err != nil {
			return refuse(err, "the data dir must be readable")
		}
	}
	return nil
}

// checkOwner sees that the etcd of a step can use the file: it runs as we do, or as the owner of the member directory.
func checkOwner(path string, d fs.DirEntry, owner *syscall.Credential) error {
	if owner == nil {
		if err := unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK|unix.W_OK, unix.AT_EACCESS); err != nil {
			return refuseRights(path, err)
		}
		return nil
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != owner.Uid && info.Mode().Perm()&0o006 != 0o006 {
		return refuse(fmt.Errorf("%s belongs to user %d, but the member directory to user %d, and etcd runs as that", path, st.Uid, owner.Uid),
			fmt.Sprintf("give the files to one user: chown -R %d:%d on the data dir, and on the WAL dir if there is one", owner.Uid, owner.Gid))
	}
	return nil
}

func refuseRights(path string, err error) error {
	if errors.Is(err, unix.EROFS) {
		return refuse(fmt.Errorf("%s is on a file system that is mounted read-only", path),
			"mount it writable; if the kernel made it read-only, look for disk errors with dmesg first")
	}
	return refuse(fmt.Errorf("%s cannot be read and written: %w", path, err),
		"run this program as the user that etcd runs as, or as root, or correct owner and mode")
}

// nearest is path, or the nearest directory above it that exists.
func nearest(path string) string {
	for {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) || filepath.Dir(path) == path {
			return path
		}
		path = filepath.Dir(path)
	}
}
