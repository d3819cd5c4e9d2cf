package keyspace

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"
)

// LoadTree reads a v2 store from the JSON that etcd saves it as: the data of a raft snapshot. The JSON is that of
// encoding/json for etcd's store and node structs (v2store.store, v2store.node) of 2.2 to 3.7; the order of the fields
// does not matter, and those that hold no content, such as WatcherHub and Stats, are skipped. Like etcd it keeps what
// has expired, until a SYNC entry.
//
// The tree keeps using snapshot, which must not be changed later: a million keys that are also copied would need half
// as much memory again.
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

// treeParser reads JSON from a position on. encoding/json would take 20 times as long and need a map of structs first.
type treeParser struct {
	data  []byte
	at    int
	depth int
	ttls  int // nodes with an expiry
}

var errTreeCutOff = errors.New("it is cut off")

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
			child.ttl = nil
			t.setExpiry(child, dir, name, e.expiry)
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
			return fmt.Errorf("%q is no name in a directory", name)
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
		return fmt.Errorf("read ExpireTime: %w", err)
	}
	if !expiry.IsZero() {
		n.ttl = &treeTTL{expiry: expiry.UTC()}
		p.ttls++
	}
	return nil
}

// object reads an object; member reads one name and its value.
func (p *treeParser) object(member func() error) error {
	if err := p.expect('{'); err != nil {
		return err
	}
	if p.next() == '}' {
		p.at++
		return nil
	}
	for {
		if err := member(); err != nil {
			return err
		}
		switch p.next() {
		case '}':
			p.at++
			return nil
		case ',':
			p.at++
		case 0:
			return errTreeCutOff
		default:
			return errors.New("a comma or a closing brace is missing")
		}
	}
}

// field reads the colon after a name and then the value.
func (p *treeParser) field(value func() error) error {
	if err := p.expect(':'); err != nil {
		return err
	}
	return value()
}

func (p *treeParser) space() {
	for p.at < len(p.data) {
		switch p.data[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// next gives the next byte that is not white space, 0 at the end.
func (p *treeParser) next() byte {
	p.space()
	if p.at == len(p.data) {
		return 0
	}
	return p.data[p.at]
}

func (p *treeParser) expect(c byte) error {
	switch got := p.next(); {
	case got == c:
		p.at++
		return nil
	case p.at == len(p.data):
		return errTreeCutOff
	default:
		return fmt.Errorf("%q is where %q should be", got, c)
	}
}

// number reads an index, which must fit a revision of the v3 store.
func (p *treeParser) number() (uint64, error) {
	p.space()
	start, n := p.at, uint64(0)
	for ; p.at < len(p.data); p.at++ {
		digit := p.data[p.at] - '0'
		if digit > 9 {
			break
		}
		if n > (math.MaxInt64-uint64(digit))/10 {
			return 0, errors.New("an index is too large")
		}
		n = n*10 + uint64(digit)
	}
	if p.at == start {
		return 0, errors.New("an index is no number")
	}
	return n, nil
}

// raw reads a string and gives what is between its quotes. Plain means that it stands there as it is: no escapes, and
// valid UTF-8.
func (p *treeParser) raw() (s []byte, plain bool, err error) {
	if err := p.expect('"'); err != nil {
		return nil, false, err
	}
	start, plain, ascii := p.at, true, true
	for i := start; i < len(p.data); i++ {
		switch c := p.data[i]; {
		case c == '"':
			s, p.at = p.data[start:i], i+1
			return s, plain && (ascii || utf8.Valid(s)), nil
		case c == '\\':
			plain = false
			i++
		case c < ' ':
			p.at = i
			return nil, false, errors.New("a string has a control character in it")
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	p.at = len(p.data)
	return nil, false, errTreeCutOff
}

// text reads a string and leaves what is not plain to encoding/json: its escapes and its ways with invalid UTF-8.
func (p *treeParser) text() (string, error) {
	raw, plain, err := p.raw()
	if err != nil || plain {
		return treeString(raw), err
	}
	end := p.at
	var s string
	if err := json.Unmarshal(p.data[end-len(raw)-2:end], &s); err != nil {
		return "", fmt.Errorf("read string: %w", err)
	}
	return s, nil
}

// treeString is a string on the bytes of the snapshot, which nobody changes.
func treeString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// skip passes over a value without content. It only looks for its end.
func (p *treeParser) skip() error {
	for depth := 0; ; {
		switch c := p.next(); c {
		case 0:
			return errTreeCutOff
		case '"':
			if _, _, err := p.raw(); err != nil {
				return err
			}
		case '{', '[':
			p.at++
			depth++
			continue
		case '}', ']':
			if depth == 0 {
				return errors.New("a value is missing")
			}
			p.at++
			depth--
		case ',', ':':
			if depth == 0 {
				return errors.New("a value is missing")
			}
			p.at++
			continue
		default: // a number or a word
			for p.at < len(p.data) && !strings.ContainsRune(",:{}[]\" \t\n\r", rune(p.data[p.at])) {
				p.at++
			}
		}
		if depth == 0 {
			return nil
		}
	}
}
