package keyspace

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
)

// treeParser reads JSON from a position on. encoding/json, reading into structs like etcd's own, takes about eight times
// as long.
type treeParser struct {
	data    []byte
	at      int
	depth   int    // of directories
	ttls    int    // nodes with an expiry
	scratch []byte // for strings that are not plain
}

var (
	errTreeCutOff = errors.New("it is cut off")
	errTreeEscape = errors.New("a string has an escape in it that JSON does not know")
)

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

// text reads a string. What is not plain is copied, with the same result as in encoding/json: each byte that is not
// UTF-8 and each half of a surrogate pair becomes U+FFFD.
func (p *treeParser) text() (string, error) {
	raw, plain, err := p.raw()
	if err != nil || plain {
		return treeString(raw), err
	}
	p.scratch = p.scratch[:0]
	for i := 0; i < len(raw); {
		c := raw[i]
		switch {
		case c >= utf8.RuneSelf:
			r, size := utf8.DecodeRune(raw[i:])
			p.scratch = utf8.AppendRune(p.scratch, r)
			i += size
		case c != '\\':
			p.scratch = append(p.scratch, c)
			i++
		case raw[i+1] == 'u':
			r, size := treeUnicode(raw[i:])
			if size == 0 {
				return "", errTreeEscape
			}
			p.scratch = utf8.AppendRune(p.scratch, r)
			i += size
		default:
			at := strings.IndexByte(`"\/bfnrt`, raw[i+1])
			if at < 0 {
				return "", errTreeEscape
			}
			p.scratch = append(p.scratch, "\"\\/\b\f\n\r\t"[at])
			i += len(`\n`)
		}
	}
	return string(p.scratch), nil
}

// treeUnicode decodes the \uXXXX that s begins with, and with it a second one if the two are a surrogate pair.
func treeUnicode(s []byte) (r rune, size int) {
	unit := func(s []byte) (rune, bool) {
		if len(s) < len(`\u0000`) || s[0] != '\\' || s[1] != 'u' {
			return 0, false
		}
		u, err := strconv.ParseUint(treeString(s[2:6]), 16, 16)
		return rune(u), err == nil
	}
	r, ok := unit(s)
	if !ok {
		return 0, 0
	}
	size = len(`\u0000`)
	if !utf16.IsSurrogate(r) {
		return r, size
	}
	low, _ := unit(s[size:])
	if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
		size *= 2
	}
	return r, size
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
