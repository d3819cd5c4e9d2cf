package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"time"
	"unicode/utf8"
)

// File is a copied file or directory, as the manifest of a backup has it.
type File struct {
	Path    string    `json:"path"` // slash-separated, below what was copied
	Dir     bool      `json:"dir,omitempty"`
	Size    int64     `json:"size"` // bytes; 0 for a directory
	Mode    Mode      `json:"mode"`
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	ModTime time.Time `json:"mtime"`
	SHA256  string    `json:"sha256,omitempty"` // of the content, in hexadecimal; empty for a directory
}

// entry is one file or directory of a copy to make. A SHA256 that is set is what the content has to hash to.
type entry struct {
	File
	src, dst string
	alloc    int64 // bytes that it takes on disk, if it is a file
	seen     syscall.Stat_t
}

// linkError refuses a symbolic link. A copy of it would be a second name for the live files, and a restore through it
// would write over them.
func linkError(name string) error {
	return fmt.Errorf("%s is a symbolic link, which a copy or a backup cannot stand for: "+
		"put the directory itself there, or name the place of the WAL with --wal-dir", name)
}

// scan lists src, which is a directory or a regular file, and all below it, directories before what is in them. The
// entries' paths begin with rel, which may be empty. Left out are the entry skip of src itself, and each lost+found:
// it belongs to a volume, not to etcd, and only root may look into it.
func scan(src, rel, skip string) ([]entry, error) {
	info, err := os.Lstat(src)
	if err != nil {
		return nil, err
	}
	st := info.Sys().(*syscall.Stat_t)
	e := entry{
		File: File{Path: rel, Mode: Mode(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid, ModTime: info.ModTime().UTC()},
		src:  src,
		seen: *st,
	}
	switch {
	case info.Mode().IsRegular():
		e.Size, e.alloc = info.Size(), diskUse(st)
		return []entry{e}, nil
	case info.Mode().Type() == fs.ModeSymlink:
		return nil, linkError(src)
	case !info.IsDir():
		return nil, fmt.Errorf("%s is neither a file nor a directory but %s", src, info.Mode().Type())
	}
	e.Dir = true
	all := []entry{e}
	names, err := os.ReadDir(src)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if n.IsDir() && n.Name() == lostFound || n.Name() == skip {
			continue
		}
		if !utf8.ValidString(n.Name()) {
			return nil, fmt.Errorf("%q is not a name in UTF-8", filepath.Join(src, n.Name()))
		}
		below, err := scan(filepath.Join(src, n.Name()), path.Join(rel, n.Name()), "")
		if err != nil {
			return nil, err
		}
		all = append(all, below...)
	}
	return all, nil
}

// Names of what a backup holds, below the backup's directory.
const (
	walName      = "wal" // only of a separate WAL dir
	manifestName = "manifest.json"
)

// scan lists what belongs to the member: member/, a separate WAL dir as wal/, and version.txt if there is one.
func (l Layout) scan() ([]entry, error) {
	entries, err := scan(l.MemberDir(), memberName, "")
	if err != nil {
		return nil, err
	}
	if l.SeparateWAL() {
		wal, err := scan(l.WALDir, walName, workName)
		if err != nil {
			return nil, err
		}
		entries = append(entries, wal...)
	}
	version, err := scan(l.VersionFile(), versionName, "")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return append(entries, version...), nil
}
