package golden

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// longest is the length of the longest value that a list holds itself; of others it holds the digest.
const longest = 80

// Shorten gives the content with digests in the place of long values, as a list has it.
func Shorten(c pathtest.Content) pathtest.Content {
	c.Keys = maps.Clone(c.Keys)
	for name, k := range c.Keys {
		if len(k.Value) > longest {
			k.Value = fmt.Sprintf("%d bytes, sha256 %x", len(k.Value), sha256.Sum256([]byte(k.Value)))
			c.Keys[name] = k
		}
	}
	return c
}

// WriteList writes what an etcd of that version served: a line about all of it, then a line for each key, with tabs
// between key, value, created, modified, lease (hexadecimal), its TTL in seconds, and expiry.
func WriteList(w io.Writer, v versionfile.Version, c pathtest.Content) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "%s\tread %s\trevision %d\n", v, c.Read.UTC().Format(time.RFC3339Nano), c.Revision)
	c = Shorten(c)
	for _, name := range slices.Sorted(maps.Keys(c.Keys)) {
		k := c.Keys[name]
		expiry := "-"
		if !k.Expiry.IsZero() {
			expiry = k.Expiry.UTC().Format(time.RFC3339Nano)
		}
		fmt.Fprintf(b, "%s\t%s\t%d\t%d\t%x\t%d\t%s\n", strconv.QuoteToASCII(name), strconv.QuoteToASCII(k.Value), k.Created, k.Modified,
			k.Lease, k.TTL, expiry)
	}
	return b.Flush()
}

// ReadList is the reverse of WriteList.
func ReadList(r io.Reader) (v versionfile.Version, c pathtest.Content, err error) {
	lines := bufio.NewScanner(r)
	lines.Scan()
	var version, read string
	if _, err := fmt.Sscanf(lines.Text(), "%s\tread %s\trevision %d", &version, &read, &c.Revision); err != nil {
		return v, c, fmt.Errorf("line 1: %w", err)
	}
	if v, err = versionfile.Parse(version); err != nil {
		return v, c, fmt.Errorf("line 1: %w", err)
	}
	if c.Read, err = time.Parse(time.RFC3339Nano, read); err != nil {
		return v, c, fmt.Errorf("line 1: %w", err)
	}
	c.Keys = map[string]pathtest.Key{}
	for n := 2; lines.Scan(); n++ {
		name, k, err := parseLine(lines.Text())
		if err != nil {
			return v, c, fmt.Errorf("line %d: %w", n, err)
		}
		c.Keys[name] = k
	}
	return v, c, lines.Err()
}

func parseLine(line string) (name string, k pathtest.Key, err error) {
	f := strings.Split(line, "\t")
	if len(f) != 7 {
		return "", k, fmt.Errorf("%d fields, want 7", len(f))
	}
	if name, err = strconv.Unquote(f[0]); err != nil {
		return "", k, err
	}
	if k.Value, err = strconv.Unquote(f[1]); err != nil {
		return "", k, err
	}
	for i, n := range []*int64{&k.Created, &k.Modified, &k.Lease, &k.TTL} {
		base := 10
		if n == &k.Lease {
			base = 16
		}
		if *n, err = strconv.ParseInt(f[2+i], base, 64); err != nil {
			return "", k, err
		}
	}
	if f[6] != "-" {
		k.Expiry, err = time.Parse(time.RFC3339Nano, f[6])
	}
	return name, k, err
}
