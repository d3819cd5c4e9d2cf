package keyspace

import (
	"container/heap"
	"fmt"
	"path"
	"strings"
	"time"
)

// Tree is the content of a member's v2 store: what its snapshot holds and what the raft entries after it do, applied as
// etcd applies them, to the last index. Beside the users' keys below /1 it holds the membership below /0 and the v2
// users and roles below /2.
//
// It gives the same as etcd's own store (server/v3/etcdserver/api/v2store), which it is tested against, in a fraction
// of the time and memory because it keeps no events, no watchers and no paths.
//
// What is left to chance in etcd is so here, too: of a directory and a key in it that expire at the very same
// nanosecond, either can go first, and if it is the key then the index is one higher. A Tree is not for concurrent use.
type Tree struct {
	root  *treeNode
	index uint64
	ttls  treeHeap
}

// treeNode is a key, or a directory if it has a map of children, even an empty one. There can be millions, so a node
// knows neither its name nor its parent; those that expire have both in their treeTTL.
type treeNode struct {
	value             string
	created, modified uint64
	children          map[string]*treeNode
	ttl               *treeTTL // nil for a node that stays
}

func newTreeDir(index uint64) *treeNode {
	return &treeNode{created: index, modified: index, children: map[string]*treeNode{}}
}

func (n *treeNode) isDir() bool { return n.children != nil }

// matches is the condition of compareAndSwap and compareAndDelete. An empty value and index 0 are no condition.
func (n *treeNode) matches(prevValue string, prevIndex uint64) bool {
	return (prevIndex == 0 || n.modified == prevIndex) && (prevValue == "" || n.value == prevValue)
}

// treeMinExpiry is the earliest time that creates a node with an expiry: etcd takes anything earlier for none at all.
// It does so for created and set nodes only; a compareAndSwap or an update does give a key an expiry in 1970.
var treeMinExpiry = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// NewTree gives the store of a member that has applied nothing yet: the directories /0 and /1, at index 0.
func NewTree() *Tree {
	t := &Tree{root: newTreeDir(0)}
	t.addNamespaces()
	return t
}

func (t *Tree) addNamespaces() {
	for _, name := range []string{"0", "1"} {
		if t.root.children[name] == nil {
			t.root.children[name] = newTreeDir(0)
		}
	}
}

// Index is the index of the last change, X-Etcd-Index in the answers of the v2 API.
func (t *Tree) Index() uint64 { return t.index }

// treeClean is path.Clean(path.Join("/", p)), which etcd applies to every path, without the allocation.
func treeClean(p string) string {
	if p == "" || p[0] != '/' {
		p = "/" + p
	}
	return path.Clean(p)
}

// treeReadOnly names the directories that no request can change. /2 is not among them.
func treeReadOnly(clean string) bool { return clean == "/" || clean == "/0" || clean == "/1" }

// find gives the node at a clean path with its parent and its name there, or nil. The root has no parent.
func (t *Tree) find(clean string) (n, parent *treeNode, name string) {
	n = t.root
	for rest := clean[1:]; rest != ""; {
		name, rest, _ = strings.Cut(rest, "/")
		parent, n = n, n.children[name]
		if n == nil {
			return nil, nil, ""
		}
	}
	return n, parent, name
}

// value gives the value of a key at a clean path, "" for a directory.
func (t *Tree) value(clean string) (v string, found bool) {
	n, _, _ := t.find(clean)
	if n == nil {
		return "", false
	}
	return n.value, true
}

// create makes a key or a directory and the directories above it. An existing key is replaced if replace is set and is
// in the way if not; an existing directory is always in the way, and so is a key among the directories above. With
// unique, the node is made below p under a name that sorts in the order of creation.
func (t *Tree) create(p string, dir bool, value string, unique, replace bool, expiry time.Time) {
	next := t.index + 1
	if unique {
		p += "/" + fmt.Sprintf("%020d", next)
	}
	p = treeClean(p)
	if treeReadOnly(p) {
		return
	}
	if expiry.Before(treeMinExpiry) {
		expiry = time.Time{}
	}
	slash := strings.LastIndexByte(p, '/')
	parent, name := t.root, p[slash+1:]
	for rest := strings.TrimPrefix(p[:slash], "/"); rest != ""; {
		var elem string
		elem, rest, _ = strings.Cut(rest, "/")
		child := parent.children[elem]
		switch {
		case child == nil: // from here down nothing exists, so nothing can be in the way any more
			child = newTreeDir(next)
			parent.children[strings.Clone(elem)] = child
		case !child.isDir():
			return
		}
		parent = child
	}

	n := parent.children[name]
	switch {
	case n == nil:
		n = &treeNode{}
		name = strings.Clone(name) // not to keep the whole path
		parent.children[name] = n
	case !replace || n.isDir():
		return
	}
	n.value, n.created, n.modified = value, next, next
	if dir {
		n.value, n.children = "", map[string]*treeNode{}
	}
	t.setExpiry(n, parent, name, expiry)
	t.index = next
}

// set is create with replace, except that a refresh needs the key and keeps its value.
func (t *Tree) set(p string, dir bool, value string, refresh bool, expiry time.Time) {
	if refresh {
		n, _, _ := t.find(treeClean(p))
		if n == nil {
			return
		}
		value = n.value
	}
	t.create(p, dir, value, false, true, expiry)
}

// update changes the value and the expiry of a key, or the expiry of a directory.
//
// Etcd 2.2 to 3.4 change a directory's expiry, count the index up and leave the directory's modifiedIndex alone. Since
// 3.5 the request fails and does nothing. Which etcd applied an entry is not in the log; the cluster version at the
// entry is, and follows the etcd's version within seconds of a start. What this rule cannot know is that 3.5 was started
// on entries of 3.4 that no snapshot covers: it applies them again in its own way, and loses what 3.4 had done.
func (t *Tree) update(p, value string, refresh bool, expiry time.Time) {
	p = treeClean(p)
	n, parent, name := t.find(p)
	if treeReadOnly(p) || n == nil {
		return
	}
	if n.isDir() {
		if value != "" || t.clusterAtLeast(3, 5) {
			return
		}
	} else {
		t.write(n, value, refresh)
	}
	t.setExpiry(n, parent, name, expiry)
	t.index++
}

func (t *Tree) compareAndSwap(p, prevValue string, prevIndex uint64, value string, refresh bool, expiry time.Time) {
	p = treeClean(p)
	n, parent, name := t.find(p)
	if treeReadOnly(p) || n == nil || n.isDir() || !n.matches(prevValue, prevIndex) {
		return
	}
	t.write(n, value, refresh)
	t.setExpiry(n, parent, name, expiry)
	t.index++
}

// write gives a key a new value, or with refresh its old one. The caller counts the index up.
func (t *Tree) write(n *treeNode, value string, refresh bool) {
	if !refresh {
		n.value = value
	}
	n.modified = t.index + 1
}

// delete removes a key, an empty directory if dir is set, or any directory if recursive is set.
func (t *Tree) delete(p string, dir, recursive bool) {
	p = treeClean(p)
	n, parent, name := t.find(p)
	if treeReadOnly(p) || n == nil {
		return
	}
	if n.isDir() && !recursive && (!dir || len(n.children) != 0) {
		return
	}
	t.remove(n, parent, name)
	t.index++
}

func (t *Tree) compareAndDelete(p, prevValue string, prevIndex uint64) {
	n, parent, name := t.find(treeClean(p))
	if n == nil || n.isDir() || !n.matches(prevValue, prevIndex) {
		return
	}
	t.remove(n, parent, name)
	t.index++
}

func (t *Tree) remove(n, parent *treeNode, name string) {
	t.forgetExpiries(n)
	delete(parent.children, name)
}

// forgetExpiries takes a node and everything below it off the heap.
func (t *Tree) forgetExpiries(n *treeNode) {
	if len(t.ttls) == 0 {
		return
	}
	for _, child := range n.children {
		t.forgetExpiries(child)
	}
	if n.ttl != nil {
		heap.Remove(&t.ttls, n.ttl.at)
		n.ttl = nil
	}
}

// expire removes what has expired at the cutoff, counting the index up for each node on the heap: a directory counts
// once, whatever is in it.
func (t *Tree) expire(cutoff time.Time) {
	for len(t.ttls) > 0 && t.ttls[0].expiredAt(cutoff) {
		e := heap.Pop(&t.ttls).(*treeTTL)
		e.node.ttl = nil
		t.remove(e.node, e.parent, e.name)
		t.index++
	}
}

// setExpiry sets when a node expires; the zero time is never.
func (t *Tree) setExpiry(n, parent *treeNode, name string, expiry time.Time) {
	if n.ttl != nil {
		heap.Remove(&t.ttls, n.ttl.at)
	}
	switch {
	case expiry.IsZero():
		n.ttl = nil
		return
	case n.ttl == nil:
		n.ttl = &treeTTL{node: n, parent: parent, name: strings.Clone(name)}
	}
	n.ttl.expiry = expiry
	heap.Push(&t.ttls, n.ttl)
}

// treeTTL is what only a node with an expiry needs.
type treeTTL struct {
	expiry       time.Time
	node, parent *treeNode
	name         string
	at           int // in the heap
}

// expiredAt says as etcd does that a node is gone at its expiry, not only after it. A nil TTL never is.
func (e *treeTTL) expiredAt(now time.Time) bool { return e != nil && !e.expiry.After(now) }

// treeHeap is a container/heap with the earliest expiry first. It makes the same moves as etcd's heap, so that equal
// expiries come off it in the same order.
type treeHeap []*treeTTL

func (h treeHeap) Len() int           { return len(h) }
func (h treeHeap) Less(i, j int) bool { return h[i].expiry.Before(h[j].expiry) }
func (h treeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }

func (h *treeHeap) Push(x any) {
	e := x.(*treeTTL)
	e.at = len(*h)
	*h = append(*h, e)
}

func (h *treeHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return e
}
