package keyspace

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Each calls fn with every key that a client of the v2 API has stored, hidden ones included, in the bytewise order of
// the keys, and stops at the first error, which it gives back as it is. Keys that are expired at now, by themselves or
// with a directory above them, are left out. Directories are no records: their expiry is in that of their keys.
func (t *Tree) Each(now time.Time, fn func(Record) error) error {
	w := treeWalk{now: now, fn: fn}
	if users := t.root.children["1"]; users != nil {
		return w.node(users, time.Time{})
	}
	return nil
}

type treeWalk struct {
	now        time.Time
	fn         func(Record) error
	key, value []byte
}

// node hands out what is at w.key, given the earliest expiry of the directories above.
func (w *treeWalk) node(n *treeNode, expiry time.Time) error {
	if n.ttl.expiredAt(w.now) {
		return nil
	}
	if n.ttl != nil && (expiry.IsZero() || n.ttl.expiry.Before(expiry)) {
		expiry = n.ttl.expiry
	}
	if !n.isDir() {
		w.value = append(w.value[:0], n.value...)
		return w.fn(Record{
			Key: w.key, Value: w.value,
			Created: int64(n.created), Modified: int64(n.modified), Version: 1,
			Expiry: expiry,
		})
	}
	above := len(w.key)
	for _, c := range n.sorted() {
		w.key = append(append(w.key[:above], '/'), strings.TrimSuffix(c.name, "/")...)
		if err := w.node(c.node, expiry); err != nil {
			return err
		}
	}
	w.key = w.key[:above]
	return nil
}

type treeChild struct {
	name string // of a directory with a slash at its end
	node *treeNode
}

// sorted gives the children in the order in which the keys at and below them come. A directory "a" comes after a key
// "a-b", because "/a/" is greater than "/a-".
func (n *treeNode) sorted() []treeChild {
	children := make([]treeChild, 0, len(n.children))
	for name, child := range n.children {
		if child.isDir() {
			name += "/"
		}
		children = append(children, treeChild{name, child})
	}
	slices.SortFunc(children, func(a, b treeChild) int { return strings.Compare(a.name, b.name) })
	return children
}

// V2Stats counts what the clients of the v2 API have stored.
type V2Stats struct {
	Keys      int   // as many as Each gives
	Bytes     int64 // of these keys and their values
	TTLs      int   // of these keys, those with an expiry of their own or above them
	Hidden    int   // of these keys, those with a path element that starts with "_": no listing shows them
	Expired   int   // keys that Each leaves out
	Dirs      int   // directories that are not expired
	EmptyDirs int   // of these, those with no key and no directory in them that is not expired
	NotUTF8   int   // of the keys, those whose path or value is not valid UTF-8: only the log can hold them, no raft snapshot
}

// Stats counts what there is at now.
func (t *Tree) Stats(now time.Time) V2Stats {
	c := treeCount{now: now}
	if users := t.root.children["1"]; users != nil {
		for name, child := range users.children {
			c.node(child, len("/")+len(name), traits{name[0] == '_', child.ttl != nil, child.ttl.expiredAt(now), !utf8.ValidString(name)})
		}
	}
	return c.V2Stats
}

type treeCount struct {
	V2Stats
	now time.Time
}

// traits are what a node is by itself or with a directory above it.
type traits struct{ hidden, ttl, expired, notUTF8 bool }

// node counts a node and what is below it, given the length of its path.
func (c *treeCount) node(n *treeNode, length int, is traits) {
	if n.isDir() {
		empty := true
		for name, child := range n.children {
			gone := child.ttl.expiredAt(c.now)
			empty = empty && gone
			c.node(child, length+len("/")+len(name), traits{is.hidden || name[0] == '_', is.ttl || child.ttl != nil, is.expired || gone,
				is.notUTF8 || !utf8.ValidString(name)})
		}
		if !is.expired {
			c.Dirs++
			if empty {
				c.EmptyDirs++
			}
		}
		return
	}
	if is.expired {
		c.Expired++
		return
	}
	c.Keys++
	c.Bytes += int64(length + len(n.value))
	if is.ttl {
		c.TTLs++
	}
	if is.hidden {
		c.Hidden++
	}
	if is.notUTF8 || !utf8.ValidString(n.value) {
		c.NotUTF8++
	}
}

// TopLevel gives the names of the keys and directories directly below the root that clients see, sorted, hidden and
// expired ones included: what has to be deleted to empty the store.
func (t *Tree) TopLevel() []string {
	users, _, _ := t.find("/1")
	if users == nil {
		return nil
	}
	return users.names()
}

// V2Auth is what the v2 store knows of the v2 API's users. Etcd 3.6 and later refuse data with any of them.
type V2Auth struct {
	Enabled      bool
	Users, Roles []string // names, sorted
}

// Auth gives the v2 users and roles, without their passwords and permissions.
func (t *Tree) Auth() V2Auth {
	var a V2Auth
	enabled, _ := t.value("/2/enabled")
	a.Enabled = enabled == "true"
	if users, _, _ := t.find("/2/users"); users != nil {
		a.Users = users.names()
	}
	if roles, _, _ := t.find("/2/roles"); roles != nil {
		a.Roles = roles.names()
	}
	return a
}

func (n *treeNode) names() []string {
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
