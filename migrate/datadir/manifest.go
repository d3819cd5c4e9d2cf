package datadir

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// manifestFormat is the format of manifest.json that this program writes, and the only one that it reads.
const manifestFormat = 1

// Manifest is a backup's manifest.json: what is in the backup, and where it came from.
type Manifest struct {
	Format  int                 `json:"format"`
	ID      string              `json:"id"`
	Version versionfile.Version `json:"version"` // of the data; empty if nobody knew
	Reason  string              `json:"reason"`  // why the backup was made, in words
	Tool    string              `json:"tool"`    // the version of etcd-migrate that made it
	Created time.Time           `json:"created"`
	// Member is the id of cluster and member in hexadecimal, "c/m"; empty if nobody knew. The data dirs of members that
	// share a directory for their backups often have the same path.
	Member      string `json:"member,omitempty"`
	DataDir     string `json:"dataDir"`
	WALDir      string `json:"walDir"`
	SeparateWAL bool   `json:"separateWAL"`
	Bytes       int64  `json:"bytes"` // the sum of the files' sizes
	Files       []File `json:"files"` // directories before what is in them
	// Digest is the SHA-256 of manifest.json itself with this digest taken out of its quotes, in hexadecimal. It
	// finds damage; it does not stop somebody who wants to change a backup.
	Digest string `json:"digest"`
}

// backupID matches the names of backups: a time in UTC, then the version or "unknown".
var backupID = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z-[0-9A-Za-z.-]+$`)

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// encode gives the text of manifest.json and sets the digest.
func (m *Manifest) encode() ([]byte, error) {
	m.Digest = ""
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	data = append(data, '\n')
	sum := sha256.Sum256(data)
	m.Digest = hex.EncodeToString(sum[:])
	return bytes.Replace(data, digestField(""), digestField(m.Digest), 1), nil
}

// digestField is the digest as it stands in the text. The text inside a JSON string cannot look like it, because a
// quote is escaped there.
func digestField(digest string) []byte { return []byte(`"digest": "` + digest + `"`) }

// parseManifest reads the text of a manifest.json. It refuses everything that this program would not have written,
// paths that lead out of the backup above all.
func parseManifest(data []byte) (Manifest, error) {
	// A newer format may have other fields, so the number is looked at before the rest.
	var format struct{ Format int }
	if err := json.Unmarshal(data, &format); err != nil {
		return Manifest{}, err
	}
	if format.Format != manifestFormat {
		return Manifest{}, formatError(format.Format, manifestFormat)
	}
	var m Manifest
	if err := decodeJSON(data, &m); err != nil {
		return Manifest{}, err
	}
	sum := sha256.Sum256(bytes.Replace(data, digestField(m.Digest), digestField(""), 1))
	if digest := hex.EncodeToString(sum[:]); digest != m.Digest {
		return Manifest{}, fmt.Errorf("it has been changed: its digest is %s and should be %q", digest, m.Digest)
	}
	if err := m.check(); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

func formatError(got, known int) error {
	return fmt.Errorf("its format is %d, and this program knows format %d only", got, known)
}

func (m *Manifest) check() error {
	if !backupID.MatchString(m.ID) {
		return fmt.Errorf("%q is not the id of a backup", m.ID)
	}
	seen := map[string]File{}
	var sum int64
	for _, f := range m.Files {
		if err := f.check(m.SeparateWAL); err != nil {
			return err
		}
		if _, twice := seen[f.Path]; twice {
			return fmt.Errorf("it lists %q twice", f.Path)
		}
		if parent := path.Dir(f.Path); parent != "." && !seen[parent].Dir {
			return fmt.Errorf("it lists %q but not the directory that it is in", f.Path)
		}
		seen[f.Path] = f
		if sum += f.Size; sum < 0 {
			return errors.New("the sizes of its files make no sense")
		}
	}
	if !seen[memberName].Dir || seen[walName].Dir != m.SeparateWAL {
		return errors.New("it does not list the directories that a backup has")
	}
	if sum != m.Bytes {
		return fmt.Errorf("its files have %d bytes and should have %d", sum, m.Bytes)
	}
	return nil
}

func (f File) check(separateWAL bool) error {
	top, _, below := strings.Cut(f.Path, "/")
	known := top == memberName || top == walName && separateWAL || top == versionName && !below && !f.Dir
	switch {
	case !fs.ValidPath(f.Path) || strings.ContainsRune(f.Path, 0) || !known:
		return fmt.Errorf("it lists %q, which cannot be in a backup", f.Path)
	case !below && top != versionName && !f.Dir:
		return fmt.Errorf("it lists %q as a file", f.Path)
	case f.Size < 0 || f.Dir && f.Size != 0:
		return fmt.Errorf("it lists %q with a size of %d", f.Path, f.Size)
	case f.Mode > 0o7777:
		return fmt.Errorf("it lists %q with a mode of %o", f.Path, uint32(f.Mode))
	case f.Dir != (f.SHA256 == "") || !f.Dir && !hexDigest.MatchString(f.SHA256):
		return fmt.Errorf("it lists %q with a SHA-256 of %q", f.Path, f.SHA256)
	}
	return nil
}
