package migrate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// restoreCommand is the whole command for the person on call to paste. It restores the backup with that path or, if that is not
// known, the newest one in dir.
func restoreCommand(l datadir.Layout, dir, backup string) string {
	id := "newest"
	if backup != "" {
		dir, id = filepath.Split(backup)
	}
	words := []string{"etcd-migrate", "backup", "restore", "--data-dir", shellWord(l.DataDir)}
	if l.SeparateWAL() {
		words = append(words, "--wal-dir", shellWord(l.WALDir))
	}
	if dir = filepath.Clean(dir); dir != l.BackupsDir("") {
		words = append(words, "--backup-dir", shellWord(dir))
	}
	return "`" + strings.Join(append(words, shellWord(id)), " ") + "`"
}

// shellWord quotes what a shell would take apart.
func shellWord(s string) string {
	if !strings.ContainsAny(s, " \t\n'\"\\$&|;<>()*?[]#~!{}") {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// failedHint is what to do after a failed proof.
func failedHint(l datadir.Layout, backup string, several bool) string {
	if several {
		return severalFailedHint
	}
	return "restore the backup with " + restoreCommand(l, l.BackupsDir(""), backup) + ", and report this with the message; " +
		"nothing else may be done with the data until then"
}

// journalUnreadable is what to do about a journal that cannot be read.
func journalUnreadable(l datadir.Layout, dir string) string {
	return "restore the backup with " + restoreCommand(l, dir, "") +
		"; or if the data is known to be good, move the journal away, and a new backup is made"
}

// readHint is what to do about data that cannot be read: who may read it, if it is a matter of that.
func readHint(l datadir.Layout, err error, otherwise string) string {
	if !errors.Is(err, fs.ErrPermission) {
		return otherwise
	}
	owner := "the owner of the data"
	if info, err := os.Stat(l.DataDir); err == nil {
		if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() {
			owner = fmt.Sprintf("the owner, uid %d (of a container: --user %d:%d)", s.Uid, s.Uid, s.Gid)
		}
	}
	give := fmt.Sprintf("chown -R %d:%d %s", os.Geteuid(), os.Getegid(), shellWord(l.DataDir))
	if l.SeparateWAL() {
		give += " " + shellWord(l.WALDir)
	}
	return fmt.Sprintf("this runs as uid %d, which has no right to the data: run it as %s, or as root give the data to it: `%s`",
		os.Geteuid(), owner, give)
}
