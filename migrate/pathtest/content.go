package pathtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Key is what a client sees of one key.
type Key struct {
	Value             string
	Created, Modified int64
	Expiry            time.Time // zero if it stays, or if the etcd cannot tell (3.0)
	Lease             int64     // ID, 0 for none and for the v2 store
}

// Content is all that a client sees, by key.
type Content map[string]Key

// expirySlack is how far two readings of one expiry may be apart: the v3 API counts in whole seconds that remain, from a
// start that is a moment later.
const expirySlack = 5 * time.Second

// Compare names what differs between what an etcd held before and after. Keys that had to expire meanwhile, at now, must
// be gone, and no others. At most ten differences are named, none with a value.
func Compare(before, after Content, now time.Time) []string {
	var diffs []string
	say := func(format string, args ...any) { diffs = append(diffs, fmt.Sprintf(format, args...)) }
	for _, k := range slices.Sorted(maps.Keys(before)) {
		b := before[k]
		a, ok := after[k]
		switch {
		case !ok && !b.Expiry.IsZero() && b.Expiry.Before(now):
		case !ok:
			say("key %.80q is lost", k)
		case a.Value != b.Value:
			say("key %.80q has another value, of %d bytes instead of %d", k, len(a.Value), len(b.Value))
		case a.Created != b.Created || a.Modified != b.Modified:
			say("key %.80q was created at %d and modified at %d, and now at %d and %d", k, b.Created, b.Modified, a.Created, a.Modified)
		case b.Lease != 0 && a.Lease != b.Lease:
			say("key %.80q has lease %x instead of %x", k, a.Lease, b.Lease)
		case b.Lease != 0 && b.Expiry.IsZero():
		case a.Expiry.IsZero() != b.Expiry.IsZero(), a.Expiry.Sub(b.Expiry).Abs() > expirySlack:
			say("key %.80q expires at %s instead of %s", k, a.Expiry.Format(time.RFC3339), b.Expiry.Format(time.RFC3339))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(after)) {
		if _, ok := before[k]; !ok {
			say("key %.80q was not there before", k)
		}
	}
	const most = 10
	if len(diffs) > most {
		diffs = append(diffs[:most], fmt.Sprintf("and %d more", len(diffs)-most))
	}
	return diffs
}

// v2Node is a node as the v2 API answers.
type v2Node struct {
	Key           string     `json:"key"`
	Value         string     `json:"value"`
	Dir           bool       `json:"dir"`
	Expiration    *time.Time `json:"expiration"`
	CreatedIndex  int64      `json:"createdIndex"`
	ModifiedIndex int64      `json:"modifiedIndex"`
	Nodes         []v2Node   `json:"nodes"`
}

// V2 makes one request of the v2 API and gives the answer's status and body. The form may be nil.
func (s *Server) V2(ctx context.Context, method, key string, form url.Values) (int, []byte, error) {
	u := s.URL + "/v2/keys" + escape(key)
	var body io.Reader
	if method == http.MethodGet || method == http.MethodDelete {
		u += "?" + form.Encode()
	} else {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, b, err
}

func escape(key string) string {
	parts := strings.Split(key, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

// ReadV2 reads everything below the root, and below the given hidden keys and directories, which no listing shows.
func (s *Server) ReadV2(ctx context.Context, hidden ...string) (Content, error) {
	content := Content{}
	for _, key := range append([]string{"/"}, hidden...) {
		status, body, err := s.V2(ctx, http.MethodGet, key, url.Values{"recursive": {"true"}})
		if err != nil {
			return nil, err
		}
		if status != http.StatusOK {
			return nil, fmt.Errorf("read %q: %d %s", key, status, body)
		}
		var answer struct{ Node v2Node }
		d := json.NewDecoder(bytes.NewReader(body))
		if err := d.Decode(&answer); err != nil {
			return nil, fmt.Errorf("read %q: %w", key, err)
		}
		content.add(answer.Node, time.Time{})
	}
	return content, nil
}

// add takes a node and all below it; a directory's expiry ends what is in it, too.
func (c Content) add(n v2Node, above time.Time) {
	expiry := above
	if n.Expiration != nil && (expiry.IsZero() || n.Expiration.Before(expiry)) {
		expiry = *n.Expiration
	}
	if !n.Dir {
		c[n.Key] = Key{Value: n.Value, Created: n.CreatedIndex, Modified: n.ModifiedIndex, Expiry: expiry}
		return
	}
	for _, child := range n.Nodes {
		c.add(child, expiry)
	}
}

// ReadV3 reads all keys of the v3 store.
func (s *Server) ReadV3(ctx context.Context) (Content, error) {
	c, err := s.V3()
	if err != nil {
		return nil, err
	}
	return ReadV3(ctx, c)
}

// ReadV3 reads all keys of the v3 store that a client reaches.
func ReadV3(ctx context.Context, c *clientv3.Client) (Content, error) {
	const page = 1000
	content, expiries := Content{}, map[int64]time.Time{}
	for from := "\x00"; ; {
		res, err := c.Get(ctx, from, clientv3.WithFromKey(), clientv3.WithLimit(page))
		if err != nil {
			return nil, err
		}
		for _, kv := range res.Kvs {
			k := Key{Value: string(kv.Value), Created: kv.CreateRevision, Modified: kv.ModRevision, Lease: kv.Lease}
			if _, known := expiries[kv.Lease]; !known && kv.Lease != 0 {
				lease, err := c.TimeToLive(ctx, clientv3.LeaseID(kv.Lease))
				switch {
				case status.Code(err) == codes.Unimplemented:
					expiries[kv.Lease] = time.Time{}
				case err != nil:
					return nil, err
				default:
					expiries[kv.Lease] = time.Now().Add(time.Duration(lease.TTL) * time.Second)
				}
			}
			k.Expiry = expiries[kv.Lease]
			content[string(kv.Key)] = k
		}
		if !res.More {
			return content, nil
		}
		from = string(res.Kvs[len(res.Kvs)-1].Key) + "\x00"
	}
}
