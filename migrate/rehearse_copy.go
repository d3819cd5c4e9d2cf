package migrate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// copyMember copies the member to dir, and lists what was copied.
func copyMember(ctx context.Context, l datadir.Layout, dir string) (copied datadir.Layout, original listing, err error) {
	copied.DataDir = filepath.Join(dir, "data")
	copied.WALDir = filepath.Join(copied.MemberDir(), "wal")
	if err := errors.Join(os.Mkdir(copied.DataDir, 0o700), ownLike(copied.DataDir, l.DataDir)); err != nil {
		return copied, nil, err
	}
	to := map[string]string{l.MemberDir(): copied.MemberDir(), l.VersionFile(): copied.VersionFile()}
	if l.SeparateWAL() {
		copied.WALDir = filepath.Join(dir, "wal")
		to[l.WALDir] = copied.WALDir
	}
	original = listing{}
	for _, src := range roots(l) {
		files, err := datadir.CopyTree(ctx, to[src], src, datadir.CopyOptions{Hash: true})
		if err != nil {
			return copied, nil, err
		}
		for _, f := range files {
			original[filepath.Join(src, filepath.FromSlash(f.Path))] = f.SHA256
		}
	}
	return copied, original, nil
}

// roots are the directories and the file that a rehearsal copies.
func roots(l datadir.Layout) []string {
	all := []string{l.MemberDir()}
	if l.SeparateWAL() {
		all = append(all, l.WALDir)
	}
	if _, err := os.Stat(l.VersionFile()); err == nil {
		all = append(all, l.VersionFile())
	}
	return all
}

// listing has the digest of every file by its path, and "" for a directory.
type listing map[string]string

func list(l datadir.Layout) (listing, error) {
	all := listing{}
	for _, root := range roots(l) {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case d != nil && d.IsDir() && d.Name() == "lost+found":
				return filepath.SkipDir
			case err != nil:
				return err
			case d.IsDir():
				all[path] = ""
				return nil
			}
			all[path], err = hashFile(path)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// differs names what is not the same, in alphabetical order.
func (before listing) differs(after listing) (changed []string) {
	for path, digest := range before {
		switch now, ok := after[path]; {
		case !ok:
			changed = append(changed, path+" is gone")
		case now != digest:
			changed = append(changed, path+" is another")
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok {
			changed = append(changed, path+" is new")
		}
	}
	slices.Sort(changed)
	return changed
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// ownLike gives a directory the owner of another, if we are root: a private etcd runs as that user.
func ownLike(dir, model string) error {
	info, err := os.Stat(model)
	if err != nil || os.Geteuid() != 0 {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	return os.Chown(dir, int(st.Uid), int(st.Gid))
}
