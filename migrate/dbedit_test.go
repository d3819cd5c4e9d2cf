package migrate_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// What etcd's own tests do to the db because the releases that left it like that have long been mended
// (tests/e2e/zombie_member_test.go and etcd-io/etcd pull request 19636).

// editMembers changes the db's bucket of members.
func editMembers(t *testing.T, dir string, edit func(b *bbolt.Bucket) error) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, "member", "snap", "db"), 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bbolt.Tx) error { return edit(tx.Bucket([]byte("members"))) }))
	must(t, db.Close())
}

func addZombie(t *testing.T, dir string) {
	t.Helper()
	editMembers(t, dir, func(b *bbolt.Bucket) error {
		return b.Put([]byte("dead00000000beef"), []byte(
			`{"id":16045481047390994159,"peerURLs":["http://127.0.0.1:1"],"name":"gone","clientURLs":["http://127.0.0.1:2"]}`))
	})
}

func markLearner(t *testing.T, dir string) {
	t.Helper()
	editMembers(t, dir, func(b *bbolt.Bucket) error {
		k, v := b.Cursor().First()
		var m map[string]any
		d := json.NewDecoder(bytes.NewReader(v))
		d.UseNumber()
		if err := d.Decode(&m); err != nil {
			return err
		}
		m["isLearner"] = true
		edited, err := json.Marshal(m)
		if err != nil {
			return err
		}
		return b.Put(append([]byte(nil), k...), edited)
	})
}

// tear leaves the first bytes of a record at the end of the log, as a power loss does. Up to 2.3 the file ends there; later ones
// have been given their full size before, and their records are padded.
func tear(t *testing.T, dir string) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	must(t, err)
	name := logs[len(logs)-1]
	b, err := os.ReadFile(name)
	must(t, err)
	end := len(bytes.TrimRight(b, "\x00"))
	if end = (end + 7) / 8 * 8; end+8 > len(b) {
		end = len(b)
		b = append(b, make([]byte, 8)...)
	}
	binary.LittleEndian.PutUint64(b[end:], 64)
	must(t, os.WriteFile(name, b, 0o600))
}
