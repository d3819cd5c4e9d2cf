package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// MigrationJournal is the file in the work dir that says that a migration has been begun and not been finished. Its content
// belongs to package migrate; a restore ends the migration, and removes it.
const MigrationJournal = "migration.json"

// journalFormat is the format of restore.json that this program writes, and the only one that it reads.
const journalFormat = 1

// restoreJournal is restore.json: it exists from the moment at which everything is prepared until the restore is
// done.
type restoreJournal struct {
	Format  int    `json:"format"`
	Backup  string `json:"backup"`  // the directory
	ID      string `json:"id"`      // of the backup
	Version bool   `json:"version"` // the backup has a version.txt
	// WAL is what a separate WAL dir will hold.
	SeparateWAL bool     `json:"separateWAL"`
	WAL         []string `json:"wal"`
	// Replaced is the name of the directory, in each work dir, that takes what is replaced.
	Replaced string `json:"replaced"`
	// Installed is set when everything is in place and only clearing up is left.
	Installed bool `json:"installed"`
}

var replacedName = regexp.MustCompile(`^replaced-[0-9]{8}T[0-9]{6}Z$`)

// errNotPrepared means that neither the member directory nor the prepared one is the restored one.
var errNotPrepared = errors.New("what it had prepared is gone: restore a backup again")

func (l Layout) journalFile() string { return filepath.Join(l.WorkDir(), "restore.json") }

// readJournal gives nil if no restore is under way.
func (l Layout) readJournal() (*restoreJournal, error) {
	data, err := readSmall(l.journalFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	j, err := parseJournal(data)
	if err != nil {
		return nil, fmt.Errorf("read journal %s: %w", l.journalFile(), err)
	}
	return j, nil
}

func parseJournal(data []byte) (*restoreJournal, error) {
	j := &restoreJournal{}
	if err := decodeJSON(data, j); err != nil {
		return nil, err
	}
	if j.Format != journalFormat {
		return nil, formatError(j.Format, journalFormat)
	}
	if !replacedName.MatchString(j.Replaced) {
		return nil, fmt.Errorf("%q is not a place for what is replaced", j.Replaced)
	}
	for _, name := range j.WAL {
		if name == "." || !fs.ValidPath(name) || strings.Contains(name, "/") {
			return nil, fmt.Errorf("%q is not the name of a WAL file", name)
		}
	}
	return j, nil
}

// InterruptedRestore names the directory of the backup whose restore ResumeRestore would complete, or gives "". It
// changes nothing.
func (l Layout) InterruptedRestore() (backup string, err error) {
	j, err := l.readJournal()
	if j == nil || err != nil {
		return "", err
	}
	return j.Backup, nil
}

// journal says what a restore of b will do.
func (b Backup) journal(l Layout) *restoreJournal {
	j := &restoreJournal{
		Format: journalFormat, Backup: b.Path, ID: b.ID, SeparateWAL: l.SeparateWAL(), Replaced: l.newReplaced(),
	}
	for _, f := range b.Manifest.Files {
		if name, found := strings.CutPrefix(f.Path, walName+"/"); found && !strings.Contains(name, "/") {
			j.WAL = append(j.WAL, name)
		}
		j.Version = j.Version || f.Path == versionName
	}
	return j
}

// newReplaced finds a name that is not in use.
func (l Layout) newReplaced() string {
	for when := now().UTC(); ; when = when.Add(time.Second) {
		name := "replaced-" + when.Format(idTime)
		taken := slices.ContainsFunc(l.roots(), func(root string) bool {
			return exists(filepath.Join(workIn(root), name))
		})
		if !taken {
			return name
		}
	}
}

// marker is a file inside a restored member directory until the restore is done, with restoreJournal.Replaced in it.
// It tells the restored directory from the one that it replaces, wherever a crash leaves the two.
const marker = ".restored-by-etcd-migrate"

// mark puts the marker into a prepared member directory. The marker keeps the directory's time, which changes with
// it.
func (j *restoreJournal) mark(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, marker)
	if err := WriteFile(name, []byte(j.Replaced), 0o600); err != nil {
		return err
	}
	return os.Chtimes(name, time.Time{}, info.ModTime())
}

// marked reports whether dir is the member directory of this restore.
func (j *restoreJournal) marked(dir string) (bool, error) {
	text, err := readSmall(filepath.Join(dir, marker))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return string(text) == j.Replaced, err
}

// unmarkMember takes the marker out of the live member directory, if it is still there.
func unmarkMember(dir string) error {
	name := filepath.Join(dir, marker)
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := remove(name); err != nil {
		return err
	}
	if err := os.Chtimes(dir, time.Time{}, info.ModTime()); err != nil {
		return err
	}
	return SyncDir(dir)
}
