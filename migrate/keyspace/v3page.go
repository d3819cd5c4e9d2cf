package keyspace

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The page format of bbolt, file format version 2, which is what every etcd 3.x writes. Its source is
// go.etcd.io/bbolt/internal/common: page.go, meta.go, bucket.go. Numbers are in the byte order of the machine.
//
// The pages are read here and not through bbolt because bbolt trusts the file. One branch page that leads back to itself
// makes its cursor take memory until the process is killed, an offset beyond the page reads whatever lies there in
// memory, and a file that shrinks under the mapping is a fault. Here every page comes from a bounded read, no page is
// entered twice, and keys must ascend, so damage is an error that names the page.
const (
	v3PageHeader = 16 // id 8, flags 2, count 2, overflow 4
	v3Element    = 16 // leaf: flags 4, pos 4, ksize 4, vsize 4; branch: pos 4, ksize 4, page id 8
	v3MetaSize   = 64
	// v3BucketHeader is what a bucket's value starts with: the id of its root page 8, its sequence 8. A root of 0 means
	// that the bucket's only page follows.
	v3BucketHeader = 16

	v3BranchPage = 0x01
	v3LeafPage   = 0x02
	v3BucketFlag = 0x01 // on a leaf element: its value is a bucket

	v3Magic   = 0xED0CDAED
	v3Version = 2

	// v3MaxDepth is far above what a real tree reaches: a branch page has at least two children.
	v3MaxDepth = 32
)

var v3Order = binary.NativeEndian

// v3Pages is the page tree of one bbolt file, as its newest valid meta page describes it.
type v3Pages struct {
	r        io.ReaderAt
	pageSize uint64
	used     uint64 // pages below this id are in use or on the free list: bbolt's high water mark
	root     uint64
	txid     uint64
	// ctx, if set, ends every walk.
	ctx context.Context
}

// v3Bucket is one bucket: a tree of pages, or a single leaf page kept inside its parent's value.
type v3Bucket struct {
	root   uint64
	inline []byte
}

func openV3Pages(r io.ReaderAt, size int64) (*v3Pages, error) {
	best, err := readV3Meta(r, 0)
	if err != nil {
		// The first meta page is torn. The second one starts at an unknown page size, of which bbolt allows these.
		for shift := 10; shift <= 24 && best == nil; shift++ {
			best, _ = readV3Meta(r, 1<<shift)
		}
		if best == nil {
			return nil, fmt.Errorf("neither meta page is valid: %w", err)
		}
	} else if second, err := readV3Meta(r, int64(best.pageSize)); err == nil && second.txid > best.txid {
		best = second
	}
	if best.used > uint64(size)/best.pageSize {
		return nil, fmt.Errorf("cut short: it has %d bytes, and %d pages of %d bytes are in use",
			size, best.used, best.pageSize)
	}
	return best, nil
}

func readV3Meta(r io.ReaderAt, offset int64) (*v3Pages, error) {
	page := make([]byte, v3PageHeader+v3MetaSize)
	if _, err := r.ReadAt(page, offset); err != nil {
		return nil, fmt.Errorf("read meta page at offset %d: %w", offset, err)
	}
	m := page[v3PageHeader:]
	sum := fnv.New64a()
	sum.Write(m[:v3MetaSize-8])
	p := &v3Pages{
		r:        r,
		pageSize: uint64(v3Order.Uint32(m[8:])),
		root:     v3Order.Uint64(m[16:]), // 24: the root bucket's sequence, 32: the free list's page
		used:     v3Order.Uint64(m[40:]),
		txid:     v3Order.Uint64(m[48:]),
	}
	switch {
	case v3Order.Uint32(m) != v3Magic:
		return nil, fmt.Errorf("no bbolt file: wrong magic number at offset %d", offset)
	case v3Order.Uint32(m[4:]) != v3Version:
		return nil, fmt.Errorf("bbolt file format %d is unknown", v3Order.Uint32(m[4:]))
	case v3Order.Uint64(m[v3MetaSize-8:]) != sum.Sum64():
		return nil, fmt.Errorf("meta page at offset %d has a wrong checksum", offset)
	case p.pageSize < 1<<10 || p.pageSize > 1<<24 || p.pageSize&(p.pageSize-1) != 0:
		return nil, fmt.Errorf("meta page at offset %d has page size %d", offset, p.pageSize)
	}
	return p, nil
}

// buckets reads the root bucket, whose values are the buckets.
func (p *v3Pages) buckets() (map[string]v3Bucket, error) {
	buckets := make(map[string]v3Bucket)
	_, err := p.walk(v3Bucket{root: p.root}, v3BucketFlag, false, func(k, v []byte) error {
		if len(v) < v3BucketHeader {
			return fmt.Errorf("bucket %q has a header of %d bytes", k, len(v))
		}
		b := v3Bucket{root: v3Order.Uint64(v)}
		if b.root == 0 {
			b.inline = bytes.Clone(v[v3BucketHeader:])
			if len(b.inline) < v3PageHeader || v3Order.Uint16(b.inline[8:]) != v3LeafPage {
				return fmt.Errorf("bucket %q has no leaf page", k)
			}
		}
		buckets[string(k)] = b
		return nil
	})
	return buckets, err
}

// errV3Stop ends a walk early without being an error.
var errV3Stop = errors.New("stop")

// walk calls fn for every element of a bucket, in ascending order of the keys or in descending order, and gives the
// number of pages that the bucket occupies. Elements must have the given flags. Key and value are valid during the call.
func (p *v3Pages) walk(b v3Bucket, flags uint32, descending bool, fn func(k, v []byte) error) (pages uint64, err error) {
	return p.walkUnseen(b, make([]uint64, p.used/64+1), flags, descending, fn)
}

func (p *v3Pages) ended() error {
	if p.ctx != nil && p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	return nil
}

// walkUnseen is walk, and refuses pages that are in seen, to which it adds its own: no page is part of two buckets.
func (p *v3Pages) walkUnseen(b v3Bucket, seen []uint64, flags uint32, descending bool, fn func(k, v []byte) error) (pages uint64, err error) {
	w := v3Walk{p: p, flags: flags, descending: descending, fn: fn, seen: seen}
	switch ended := p.ended(); {
	case ended != nil:
		err = ended
	case b.inline != nil:
		err = w.leaf(0, b.inline)
	default:
		err = w.page(b.root, 0)
	}
	if errors.Is(err, errV3Stop) {
		err = nil
	}
	return w.pages, err
}

type v3Walk struct {
	p          *v3Pages
	flags      uint32
	descending bool
	fn         func(k, v []byte) error
	seen       []uint64 // one bit per page
	last       []byte   // the key before, if started
	started    bool
	buffers    [v3MaxDepth][]byte
	pages      uint64
}

func (w *v3Walk) page(id uint64, depth int) error {
	if err := w.p.ended(); err != nil {
		return err
	}
	page, err := w.read(id, depth)
	if err != nil {
		return err
	}
	switch kind := v3Order.Uint16(page[8:]); kind {
	case v3LeafPage:
		return w.leaf(id, page)
	case v3BranchPage:
		return w.branch(id, page, depth)
	default:
		return fmt.Errorf("page %d is of the unexpected type %#x", id, kind)
	}
}

// read gives the page with its overflow pages. It is valid until the next page at the same depth is read.
func (w *v3Walk) read(id uint64, depth int) ([]byte, error) {
	if id < 2 || id >= w.p.used { // 0 and 1 are the meta pages
		return nil, fmt.Errorf("page %d lies outside of the %d pages in use", id, w.p.used)
	}
	if depth == v3MaxDepth {
		return nil, fmt.Errorf("page %d is more than %d levels deep", id, v3MaxDepth)
	}
	page, err := w.fill(w.buffers[depth], id, 0, w.p.pageSize)
	if err != nil {
		return nil, err
	}
	if own := v3Order.Uint64(page); own != id {
		return nil, fmt.Errorf("page %d calls itself page %d", id, own)
	}
	n := 1 + uint64(v3Order.Uint32(page[12:]))
	if n > w.p.used-id || n > 1+v3End(page)/w.p.pageSize {
		return nil, fmt.Errorf("page %d claims %d pages, which is more than it fills", id, n)
	}
	for i := id; i < id+n; i++ {
		if w.seen[i/64]&(1<<(i%64)) != 0 {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		w.seen[i/64] |= 1 << (i % 64)
	}
	w.pages += n
	if n > 1 {
		if page, err = w.fill(page, id, w.p.pageSize, n*w.p.pageSize); err != nil {
			return nil, err
		}
	}
	w.buffers[depth] = page
	return page, nil
}

// fill reads the bytes between from and end of a page into buf, which grows if it must.
func (w *v3Walk) fill(buf []byte, id, from, end uint64) ([]byte, error) {
	if uint64(cap(buf)) < end {
		buf = append(make([]byte, 0, end), buf[:from]...)
	}
	buf = buf[:end]
	offset := int64(id*w.p.pageSize + from)
	if _, err := w.p.r.ReadAt(buf[from:], offset); err != nil {
		return nil, fmt.Errorf("read page %d at offset %d: %w", id, offset, err)
	}
	return buf, nil
}

func (w *v3Walk) branch(id uint64, page []byte, depth int) error {
	n := v3Count(page)
	if v3PageHeader+n*v3Element > len(page) {
		return fmt.Errorf("page %d has no room for %d elements", id, n)
	}
	if err := v3Dense(id, page, n, v3BranchElement); err != nil {
		return err
	}
	for i := range n {
		e := v3PageHeader + w.index(i, n)*v3Element
		if err := w.page(v3Order.Uint64(page[e+8:]), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (w *v3Walk) leaf(id uint64, page []byte) error {
	n := v3Count(page)
	if v3PageHeader+n*v3Element > len(page) {
		return fmt.Errorf("page %d has no room for %d elements", id, n)
	}
	if err := v3Dense(id, page, n, func(page []byte, i int) (from, end uint64) {
		_, from, _, end = v3LeafElement(page, i)
		return from, end
	}); err != nil {
		return err
	}
	for i := range n {
		e := w.index(i, n)
		flags, from, mid, end := v3LeafElement(page, e)
		if end > uint64(len(page)) {
			return fmt.Errorf("page %d: element %d ends at byte %d of %d", id, e, end, len(page))
		}
		if flags != w.flags {
			return fmt.Errorf("page %d: element %d has flags %#x, not %#x", id, e, flags, w.flags)
		}
		key := page[from:mid]
		if c := bytes.Compare(key, w.last); w.started && (c == 0 || (c < 0) != w.descending) {
			return fmt.Errorf("page %d: element %d is out of order", id, e)
		}
		w.started, w.last = true, append(w.last[:0], key...)
		if err := w.fn(key, page[mid:end]); err != nil {
			return err
		}
	}
	return nil
}

// v3Dense refuses a page whose n elements do not lie one after another right behind their headers, which is how bbolt
// writes them (node.write): then the page has lost some, or has some too many.
func v3Dense(id uint64, page []byte, n int, element func(page []byte, i int) (from, end uint64)) error {
	if first := page[v3PageHeader:]; n == 0 && len(first) >= v3Element && !bytes.Equal(first[:v3Element], make([]byte, v3Element)) {
		return fmt.Errorf("page %d has no elements by its count, and holds some", id)
	}
	next := uint64(v3PageHeader + n*v3Element)
	for i := range n {
		from, end := element(page, i)
		if from != next {
			return fmt.Errorf("page %d: element %d of %d begins at byte %d, not %d", id, i, n, from, next)
		}
		next = end
	}
	return nil
}

// index is the place of the i-th of n elements in the direction of the walk.
func (w *v3Walk) index(i, n int) int {
	if w.descending {
		return n - 1 - i
	}
	return i
}

func v3Count(page []byte) int { return int(v3Order.Uint16(page[10:])) }

// v3LeafElement gives the flags of element i, where its key starts, where its value starts, and where that ends.
func v3LeafElement(page []byte, i int) (flags uint32, from, mid, end uint64) {
	start := v3PageHeader + i*v3Element
	e := page[start : start+v3Element]
	from = uint64(start) + uint64(v3Order.Uint32(e[4:])) // pos counts from the element itself
	mid = from + uint64(v3Order.Uint32(e[8:]))
	return v3Order.Uint32(e), from, mid, mid + uint64(v3Order.Uint32(e[12:]))
}

// v3BranchElement gives where the key of element i of a branch page starts and ends.
func v3BranchElement(page []byte, i int) (from, end uint64) {
	start := v3PageHeader + i*v3Element
	from = uint64(start) + uint64(v3Order.Uint32(page[start:]))
	return from, from + uint64(v3Order.Uint32(page[start+4:]))
}

// v3End is where the elements of a page end, as far as the page without its overflow pages says. It keeps a wrong number
// of overflow pages from taking as much memory as the file is large.
func v3End(page []byte) (end uint64) {
	for i := range min(v3Count(page), len(page)/v3Element-1) {
		_, _, _, elementEnd := v3LeafElement(page, i)
		if v3Order.Uint16(page[8:]) == v3BranchPage {
			_, elementEnd = v3BranchElement(page, i)
		}
		end = max(end, elementEnd)
	}
	return end
}
