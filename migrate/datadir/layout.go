package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Names of the entries of a data dir.
const (
	memberName  = "member"
	versionName = "version.txt"
	workName    = "etcd-migrate"
	backupsName = "backups"
	// lost+found is made by mkfs at the root of an ext file system, so it is there when a directory is a whole
	// volume.
	lostFound = "lost+found"
)

// Layout says where the files of one member are. Both paths are absolute and clean.
type Layout struct {
	DataDir string
	WALDir  string // <data dir>/member/wal unless etcd runs with --wal-dir
}

// NewLayout makes a Layout from what etcd's --data-dir and --wal-dir say; an empty walDir means that etcd runs
// without
// --wal-dir. Symbolic links that lead to either directory are followed, so that both spellings of a directory share one
// lock. The directories need not exist, but a link that leads nowhere is an error: the volume behind it is probably
// not mounted, and that must not pass for an empty data dir. So is a file in the place of one of them.
func NewLayout(dataDir, walDir string) (Layout, error) {
	if dataDir == "" {
		return Layout{}, errors.New("the data dir has no name")
	}
	dir, err := resolve(dataDir)
	if err != nil {
		return Layout{}, fmt.Errorf("find data dir: %w", err)
	}
	l := Layout{DataDir: dir}
	l.WALDir = filepath.Join(l.MemberDir(), "wal")
	if walDir == "" {
		return l, nil
	}
	wal, err := resolve(walDir)
	if err != nil {
		return Layout{}, fmt.Errorf("find WAL dir: %w", err)
	}
	if wal == l.WALDir {
		return l, nil
	}
	if within(wal, l.MemberDir()) || within(wal, l.WorkDir()) || within(l.DataDir, wal) {
		return Layout{}, fmt.Errorf("WAL dir %s: a separate WAL dir cannot hold the data dir or be inside its %s or %s",
			wal, memberName, workName)
	}
	l.WALDir = wal
	return l, nil
}

// resolve gives the absolute path of name with all links followed, as far as it exists.
func resolve(name string) (string, error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(abs)
	switch {
	case errors.Is(err, unix.ENOTDIR):
		return "", fmt.Errorf("there is a file on the way to %s: %w", abs, err)
	case err == nil:
		return dir, checkDir(dir)
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	if target, err := os.Readlink(abs); err == nil {
		return "", fmt.Errorf("%s is a symbolic link to %s, which does not exist: %w", abs, target, fs.ErrNotExist)
	}
	parent := filepath.Dir(abs)
	if parent == abs {
		return abs, nil
	}
	if parent, err = resolve(parent); err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// checkDir refuses a file in the place of a directory, with unix.ENOTDIR.
func checkDir(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		return fmt.Errorf("%s is a file: %w", path, unix.ENOTDIR)
	}
	return err
}

// within reports whether path is dir or below it. Both are clean and absolute.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// MemberDir is the directory that holds etcd's snap and, unless the WAL dir is separate, wal.
func (l Layout) MemberDir() string { return filepath.Join(l.DataDir, memberName) }

// SnapDir holds the raft snapshots and the db.
func (l Layout) SnapDir() string { return filepath.Join(l.MemberDir(), "snap") }

// DB is etcd3's bbolt file.
func (l Layout) DB() string { return filepath.Join(l.SnapDir(), "db") }

// VersionFile is version.txt.
func (l Layout) VersionFile() string { return filepath.Join(l.DataDir, versionName) }

// WorkDir is this program's own directory inside the data dir. Reading functions never create it.
func (l Layout) WorkDir() string { return filepath.Join(l.DataDir, workName) }

// SeparateWAL reports whether etcd runs with a --wal-dir elsewhere than member/wal.
func (l Layout) SeparateWAL() bool { return l.WALDir != filepath.Join(l.MemberDir(), "wal") }

// BackupsDir is where backups are kept: override if it is not empty, else a directory inside the work dir.
func (l Layout) BackupsDir(override string) string {
	if override != "" {
		return override
	}
	return filepath.Join(l.WorkDir(), backupsName)
}

// Presence says whether there is a member to work on.
type Presence int

// What Presence finds.
const (
	Missing Presence = iota // there is no data dir
	Empty                   // the data dir holds nothing of etcd's: a first start
	Present                 // the data dir or the separate WAL dir holds files of a member
)

func (p Presence) String() string { return [...]string{"missing", "empty", "present"}[p] }

// Presence looks into the data dir without changing it. It is Empty with lost+found, version.txt, the work dir, dot
// files and empty member directories only. Anything else without a member beside it is an error, because a directory
// with somebody else's files in it is a wrong path or a wrong volume rather than a first start. So is a file or a
// symbolic link where a directory has to be.
func (l Layout) Presence() (Presence, error) {
	entries, err := os.ReadDir(l.DataDir)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return Missing, fmt.Errorf("read data dir: %w", err)
	}
	if l.SeparateWAL() {
		names, err := walFiles(l.WALDir)
		if err != nil {
			return Missing, fmt.Errorf("read WAL dir: %w", err)
		}
		if len(names) > 0 {
			return Present, nil
		}
	}
	if missing {
		return Missing, nil
	}
	found, err := anyFile(l.MemberDir())
	if err != nil {
		return Missing, fmt.Errorf("look for member data: %w", err)
	}
	if found {
		return Present, nil
	}
	if unknown := l.unknown(entries); len(unknown) > 0 {
		return Missing, fmt.Errorf("%s has no member data but holds %s: it does not look like an etcd data dir",
			l.DataDir, strings.Join(unknown, ", "))
	}
	return Empty, nil
}

// unknown names the entries of a data dir that an etcd data dir without a member does not have.
func (l Layout) unknown(entries []fs.DirEntry) []string {
	var names []string
	for _, e := range entries {
		name := e.Name()
		known := slices.Contains([]string{memberName, versionName, workName, lostFound}, name)
		if !known && !strings.HasPrefix(name, ".") && !within(l.WALDir, filepath.Join(l.DataDir, name)) {
			names = append(names, name)
		}
	}
	return names
}

// anyFile reports whether there is anything but directories in or below dir.
func anyFile(dir string) (bool, error) {
	info, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case info.Mode().Type() == fs.ModeSymlink:
		return false, linkError(dir)
	case !info.IsDir():
		return false, fmt.Errorf("%s is not a directory", dir)
	}
	found := false
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() && e.Name() == lostFound {
			return filepath.SkipDir
		}
		if err == nil && !e.IsDir() {
			found = true
			return filepath.SkipAll
		}
		return err
	})
	return found, err
}

// walFiles gives the full names of the *.wal files in dir, oldest first, and none if dir does not exist.
func walFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".wal" {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names, nil
}
