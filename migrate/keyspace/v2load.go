package keyspace

import (
	"container/heap"
	"errors"
	"fmt"
	"strings"
	"time"
)

// LoadTree reads a v2 store from the JSON that etcd saves it as: the data of a raft snapshot. The JSON is that of
// encoding/json for etcd's store and node structs (v2store.store, v2store.node) of 2.2 to 3.7; the order of the fields
// does not matter, and those that hold no content, such as WatcherHub and Stats, are skipped. Like etcd it keeps what
// has expired, until a SYNC entry.
//
// The tree keeps using the bytes of snapshot, which must not be changed later: to copy the names and values out of it
// would double what the tree itself needs.
func LoadTree(snapshot []byte) (*Tree, error) {
	p := treeParser{data: snapshot}
	t, err := p.store()
	if err != nil {
		return nil, fmt.Errorf("read v2 store at offset %d of its %d bytes: %w", p.at, len(snapshot), err)
	}
	return t, nil
}

// treeMaxDepth limits how deep directories nest. What encoding/json takes is far below.
const treeMaxDepth = 100_000

func (p *treeParser) store() (*Tree, error) {
	t := &Tree{}
	indexed := false
	err := p.object(func() error {
		field, _, err := p.raw()
		if err != nil {
			return err
		}
		switch string(field) {
		case "Root":
			return p.field(func() (err error) { t.root, err = p.node(); return err })
		case "CurrentIndex":
			indexed = true
			return p.field(func() (err error) { t.index, err = p.number(); return err })
		}
		return p.field(p.skip)
	})
	if err != nil {
		return nil, err
	}
	p.space()
	switch {
	case p.at != len(p.data):
		return nil, errors.New("something follows its end")
	case t.root == nil || !indexed:
		return nil, errors.New("it has no Root or no CurrentIndex")
	case !t.root.isDir():
		return nil, errors.New("its Root is no directory")
	}
	t.addNamespaces()
	for _, n := range []*treeNode{t.root, t.root.children["0"], t.root.children["1"]} {
		if !n.isDir() || n.ttl != nil {
			return nil, errors.New("its Root, /0 or /1 is no directory that stays")
		}
	}
	if p.ttls > 0 {
		t.ttls = make(treeHeap, 0, p.ttls)
		t.collectExpiries(t.root)
	}
	return t, nil
}

// collectExpiries puts everything below a directory that expires on the heap.
func (t *Tree) collectExpiries(dir *treeNode) {
	for name, child := range dir.children {
		if child.isDir() {
			t.collectExpiries(child)
		}
		if e := child.ttl; e != nil {
			e.node, e.parent, e.name = child, dir, name
			heap.Push(&t.ttls, e)
		}
	}
}

func (p *treeParser) node() (*treeNode, error) {
	n := &treeNode{}
	err := p.object(func() error {
		field, _, err := p.raw()
		if err != nil {
			return err
		}
		switch string(field) {
		case "CreatedIndex":
			return p.field(func() (err error) { n.created, err = p.number(); return err })
		case "ModifiedIndex":
			return p.field(func() (err error) { n.modified, err = p.number(); return err })
		case "ExpireTime":
			return p.field(func() error { return p.expiry(n) })
		case "Value":
			return p.field(func() (err error) { n.value, err = p.text(); return err })
		case "Children":
			return p.field(func() (err error) { n.children, err = p.children(); return err })
		}
		return p.field(p.skip)
	})
	return n, err
}

// children reads a directory's children: null makes the node a key.
func (p *treeParser) children() (map[string]*treeNode, error) {
	p.space()
	if strings.HasPrefix(treeString(p.data[p.at:]), "null") {
		p.at += len("null")
		return nil, nil
	}
	if p.depth++; p.depth > treeMaxDepth {
		return nil, fmt.Errorf("directories nest more than %d deep", treeMaxDepth)
	}
	defer func() { p.depth-- }()

	children := map[string]*treeNode{}
	err := p.object(func() error {
		name, err := p.text()
		if err != nil {
			return err
		}
		if name == "" || strings.Contains(name, "/") {
			return errors.New("a name in a directory is empty or has a slash in it")
		}
		// Two names that were not valid UTF-8 can come to be one in the JSON. Etcd then keeps the last, too.
		return p.field(func() (err error) { children[name], err = p.node(); return err })
	})
	return children, err
}

// treePermanent is the zero time.Time in JSON, by far the most frequent ExpireTime.
const treePermanent = "0001-01-01T00:00:00Z"

func (p *treeParser) expiry(n *treeNode) error {
	raw, _, err := p.raw()
	if err != nil || string(raw) == treePermanent {
		return err
	}
	var expiry time.Time
	if err := expiry.UnmarshalText(raw); err != nil {
		return errors.New("an ExpireTime is no time")
	}
	if !expiry.IsZero() {
		n.ttl = &treeTTL{expiry: expiry.UTC()}
		p.ttls++
	}
	return nil
}
