package keyspace

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Save writes the tree as JSON that every etcd from 2.2 to 3.5 takes for a v2 store that it saved itself: the data of a
// raft snapshot, see LoadTree. It writes the same bytes at every call and keeps none of them. Strings that are not valid
// UTF-8 come out changed, as they do from etcd.
//
// The history of events is not part of a Tree. So the JSON says that it begins after the current index: who watches
// from an older one is told that it is cleared (error 401), and lists anew. An empty history that says nothing, as that
// of a new store, would let such a watch wait and miss all that was written in between.
func (t *Tree) Save(w io.Writer) error {
	s := treeSaver{Writer: bufio.NewWriterSize(w, 64<<10)}
	s.WriteString(`{"Root":`)
	s.path = append(s.path, '/')
	s.node(t.root)
	s.number(`,"WatcherHub":{"EventHistory":{"StartIndex":`, t.index+1)
	s.number(`,"LastIndex":`, t.index)
	s.number(`}},"CurrentIndex":`, t.index)
	s.WriteString(`,"Stats":{},"CurrentVersion":2}`) // the version is that of the API: defaultVersion in etcd's store.go
	if err := s.Flush(); err != nil {                // a bufio.Writer remembers the first error
		return fmt.Errorf("write v2 store: %w", err)
	}
	return nil
}

type treeSaver struct {
	*bufio.Writer
	path []byte // of the node being written
}

// node writes a node as encoding/json would write etcd's v2store.node.
func (s *treeSaver) node(n *treeNode) {
	s.WriteString(`{"Path":`)
	s.text(string(s.path))
	s.number(`,"CreatedIndex":`, n.created)
	s.number(`,"ModifiedIndex":`, n.modified)
	s.WriteString(`,"ExpireTime":"`)
	if n.ttl == nil {
		s.WriteString(treePermanent)
	} else {
		s.Write(n.ttl.expiry.UTC().AppendFormat(s.AvailableBuffer(), time.RFC3339Nano))
	}
	s.WriteString(`","Value":`)
	s.text(n.value)
	s.WriteString(`,"Children":`)
	if n.isDir() {
		s.children(n)
	} else {
		s.WriteString("null")
	}
	s.WriteByte('}')
}

func (s *treeSaver) number(field string, n uint64) {
	s.WriteString(field)
	s.Write(strconv.AppendUint(s.AvailableBuffer(), n, 10))
}

func (s *treeSaver) children(n *treeNode) {
	own := len(s.path)
	if own > 1 { // below the root
		s.path = append(s.path, '/')
	}
	above := len(s.path)
	s.WriteByte('{')
	for i, name := range n.names() {
		if i > 0 {
			s.WriteByte(',')
		}
		s.text(name)
		s.WriteByte(':')
		s.path = append(s.path[:above], name...)
		s.node(n.children[name])
	}
	s.WriteByte('}')
	s.path = s.path[:own]
}

// text writes a string. Most stand as they are; the others are left to encoding/json.
func (s *treeSaver) text(v string) {
	plain, ascii := true, true
	for i := 0; i < len(v) && plain; i++ {
		c := v[i]
		plain = c >= ' ' && c != '"' && c != '\\'
		ascii = ascii && c < utf8.RuneSelf
	}
	if plain && (ascii || utf8.ValidString(v)) {
		s.WriteByte('"')
		s.WriteString(v)
		s.WriteByte('"')
		return
	}
	raw, _ := json.Marshal(v) // of a string it cannot fail
	s.Write(raw)
}

// SetClusterVersion makes the cluster be at that minor, without counting the index up.
func (t *Tree) SetClusterVersion(m versionfile.Minor) {
	v := m.String() + ".0"
	if n, _, _ := t.find(treeVersionPath); n != nil && !n.isDir() {
		n.value = v
		return
	}
	t.create(treeVersionPath, false, v, false, true, time.Time{})
}

// Clear removes all that users have stored.
func (t *Tree) Clear() {
	users := t.root.children["1"]
	t.forgetExpiries(users)
	users.children = map[string]*treeNode{}
}

// Forget removes a name of the top level that clients see, with all below it, without counting the index up.
func (t *Tree) Forget(name string) {
	if n, parent, last := t.find("/1/" + name); n != nil {
		t.remove(n, parent, last)
	}
}

// RaiseIndex makes the index at least that much.
func (t *Tree) RaiseIndex(index uint64) { t.index = max(t.index, index) }

// FitsV2 reports whether the v2 store can have this key: a clean path below the root, in UTF-8. A key with a piece in it
// that etcd takes for the path of a member's attributes does not fit: the first write to it would stop etcd for good.
func FitsV2(key []byte) bool {
	k := string(key)
	attributes := bytes.Contains(key, []byte("/0/members/")) && treeAttributesPath.MatchString(k)
	return len(k) > 1 && k[0] == '/' && path.Clean(k) == k && utf8.ValidString(k) && !attributes
}

// Put stores a record with its own indexes and expiry, and makes the directories above it. The key must be one that
// FitsV2. What is in the tree already must be there by Put, too, and no key twice.
//
// No key can be the directory of another. Of two such keys the upper one gives way, in whichever order they come: Put
// gives it, and nil if there is none.
func (t *Tree) Put(r Record) (displaced []byte) {
	key := string(r.Key)
	created, modified := uint64(r.Created), uint64(r.Modified)
	slash := strings.LastIndexByte(key, '/')
	dir := t.root.children["1"]
	for at := 0; at < slash; {
		end := at + 1 + strings.IndexByte(key[at+1:], '/')
		name := key[at+1 : end]
		child := dir.children[name]
		if child != nil && !child.isDir() {
			displaced = []byte(key[:end])
			t.forgetExpiries(child)
			child = nil
		}
		if child == nil {
			child = newTreeDir(created)
			dir.children[strings.Clone(name)] = child
		}
		// A directory is as old as the oldest key put below it, in whichever order they come.
		child.created = min(child.created, created)
		child.modified = child.created
		dir, at = child, end
	}
	name := strings.Clone(key[slash+1:])
	if dir.children[name] != nil {
		return r.Key
	}
	n := &treeNode{value: string(r.Value), created: created, modified: modified}
	dir.children[name] = n
	t.setExpiry(n, dir, name, r.Expiry)
	return displaced
}
