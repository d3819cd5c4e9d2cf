package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/etcd-migrate/etcd-migrate/binaries"
)

// verifyBinaries asks every etcd of the plan whether it is what its name says, before the first one touches the data. It asks
// as the user that the etcds of the steps run as.
func (m *Migrator) verifyBinaries(ctx context.Context) error {
	var bins []binaries.Binary
	for _, s := range m.plan.Steps {
		if s.Binary != "" {
			bins = append(bins, binaries.Binary{Path: s.Binary, Release: s.To.Release})
		}
	}
	owner, err := m.owner()
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a fresh data dir has no owner yet
		return err
	}
	err = binaries.Verify(ctx, owner, bins...)
	if owner == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	apart := &foreignError{err: err, uid: owner.Uid}
	for _, b := range bins {
		if apart.barrier == "" {
			apart.barrier = barrier(b.Path, owner)
		}
	}
	return apart
}

// foreignError says that the user who owns the data may not run the etcds, though we may.
type foreignError struct {
	err     error
	uid     uint32
	barrier string // the directory or file that is closed to that user, empty if the modes do not tell
}

func (e *foreignError) Error() string {
	where := ""
	if e.barrier != "" {
		where = e.barrier + " is closed to it: "
	}
	return fmt.Sprintf("the data belongs to uid %d, so etcd runs as that user, and it may not run the etcd binaries: %s%v",
		e.uid, where, e.err)
}

func (e *foreignError) Unwrap() error { return e.err }

func (e *foreignError) hint() string {
	if !errors.Is(e.err, unix.EACCES) {
		return fmt.Sprintf("run this program as uid %d, or as root with the right to become that user (CAP_SETUID, CAP_SETGID)",
			e.uid)
	}
	return fmt.Sprintf("copy the etcds to a directory where uid %d may read and run them, /opt/etcd-migrate for example, and name it "+
		"with --bin-dir: the files and all directories above them must be open to everybody (chmod 755), and the volume not mounted "+
		"noexec", e.uid)
}

// barrier names what on the way to a file a user may not pass, or the file if that may not be run, with its mode. It goes by the
// modes alone, and gives "" where these do not tell.
func barrier(path string, user *syscall.Credential) string {
	whole, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	ways := []string{whole}
	if target, err := filepath.EvalSymlinks(whole); err == nil && target != whole {
		ways = append(ways, target)
	}
	for _, way := range ways {
		for end := range len(way) + 1 {
			if end < len(way) && way[end] != '/' || end == 0 {
				continue
			}
			info, err := os.Stat(way[:end])
			if err != nil {
				return ""
			}
			class := fs.FileMode(0o001)
			switch st := info.Sys().(*syscall.Stat_t); {
			case st.Uid == user.Uid:
				class = 0o100
			case st.Gid == user.Gid:
				class = 0o010
			}
			if info.Mode()&class == 0 {
				return fmt.Sprintf("%s (%s)", way[:end], info.Mode())
			}
		}
	}
	return ""
}
