package pathtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
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
	// Lease and TTL are the lease's ID and the TTL in seconds that it was granted, 0 for none and in the v2 store. An etcd
	// begins to count a TTL anew at each start.
	Lease, TTL int64
}

// Content is all that a client sees.
type Content struct {
	Keys map[string]Key
	// Revision is the v3 store's revision, or the v2 store's index. It is what watchers go by, so it must never fall.
	Revision int64
	Read     time.Time // when it was read
}

// Compare names what differs between what an etcd held before and after. Keys whose TTL has ended in the meantime must be
// gone, and no others; no key may end earlier than it had to, nor later than a TTL that is counted anew from some moment
// in the meantime. At most ten differences are named, none with a value.
func Compare(before, after Content) []string {
	var diffs []string
	say := func(format string, args ...any) { diffs = append(diffs, fmt.Sprintf(format, args...)) }
	between := after.Read.Sub(before.Read)
	for _, k := range slices.Sorted(maps.Keys(before.Keys)) {
		b := before.Keys[k]
		a, ok := after.Keys[k]
		switch {
		case !ok && !b.Expiry.IsZero() && b.Expiry.Before(after.Read):
		case !ok:
			say("key %.80q is lost", k)
		case a.Value != b.Value:
			say("key %.80q has another value, of %d bytes instead of %d", k, len(a.Value), len(b.Value))
		case a.Created != b.Created || a.Modified != b.Modified:
			say("key %.80q was created at %d and modified at %d, and now at %d and %d", k, b.Created, b.Modified, a.Created, a.Modified)
		case b.Lease != 0 && a.Lease == 0 && !a.Expiry.IsZero(): // gone back to the v2 store
			if ends := before.Read.Add(time.Duration(b.TTL) * time.Second); b.TTL != 0 && !sameExpiry(ends, a.Expiry, between) {
				say("key %.80q expires at %s, and had a lease of %d s", k, a.Expiry.Format(time.RFC3339), b.TTL)
			}
		case b.Lease != 0 && (a.Lease != b.Lease || b.TTL != 0 && a.TTL != 0 && a.TTL != b.TTL):
			say("key %.80q has lease %x of %d s instead of %x of %d s", k, a.Lease, a.TTL, b.Lease, b.TTL)
		case b.Lease == 0 && a.Lease != 0 && a.TTL == 0 && !b.Expiry.IsZero(): // 3.0 cannot tell
		case b.Lease == 0 && !sameExpiry(b.Expiry, a.Expiry, between):
			say("key %.80q expires at %s instead of %s", k, a.Expiry.Format(time.RFC3339), b.Expiry.Format(time.RFC3339))
		}
	}
	if after.Revision < before.Revision {
		say("the revision has fallen from %d to %d", before.Revision, after.Revision)
	}
	for _, k := range slices.Sorted(maps.Keys(after.Keys)) {
		if _, ok := before.Keys[k]; !ok {
			say("key %.80q was not there before", k)
		}
	}
	const most = 10
	if len(diffs) > most {
		diffs = append(diffs[:most], fmt.Sprintf("and %d more", len(diffs)-most))
	}
	return diffs
}

// sameExpiry allows for whole seconds, rounded down when the v3 API tells what remains and up when a lease is made, and
// for the etcd minimum of a TTL, 2 s.
func sameExpiry(before, after time.Time, between time.Duration) bool {
	if before.IsZero() || after.IsZero() {
		return before.IsZero() && after.IsZero()
	}
	later := after.Sub(before)
	return later > -time.Second && later < between+3*time.Second
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

// errNoV2 is what an etcd without the v2 API answers: its page for an unknown path would be taken for an answer of the store.
var errNoV2 = errors.New("does not serve the v2 API: 2.2 to 3.3 do, 3.4 and 3.5 with the flag --enable-v2, and none from 3.6 on")

// V2 makes one request of the v2 API and gives the answer's status and body. The form may be nil. An etcd that does not
// serve the v2 API is an error: 2.2 to 3.3 do, 3.4 and 3.5 do with the flag --enable-v2, and none from 3.6 on does.
func (s *Server) V2(ctx context.Context, method, key string, form url.Values) (status int, body []byte, err error) {
	status, body, _, err = s.v2(ctx, method, key, form)
	return status, body, err
}

// v2 gives the store's index, too.
func (s *Server) v2(ctx context.Context, method, key string, form url.Values) (status int, answer []byte, index int64, err error) {
	u := s.URL + "/v2/keys" + escape(key)
	var body io.Reader
	if method == http.MethodGet || method == http.MethodDelete {
		u += "?" + form.Encode()
	} else {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return 0, nil, 0, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, 0, err
	}
	defer res.Body.Close()
	index, _ = strconv.ParseInt(res.Header.Get("X-Etcd-Index"), 10, 64) // errors have none
	answer, err = io.ReadAll(res.Body)
	if err == nil && res.StatusCode == http.StatusNotFound && !noKey(answer) {
		err = fmt.Errorf("etcd %s %w", s.Release, errNoV2)
	}
	return res.StatusCode, answer, index, err
}

// noKey reports whether a 404 is the v2 store's own answer that there is no such key.
func noKey(answer []byte) bool {
	var e struct{ ErrorCode int }
	return json.Unmarshal(answer, &e) == nil && e.ErrorCode == 100
}

func escape(key string) string {
	parts := strings.Split(key, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

// ReadV2 reads everything below the root, and below the given hidden keys and directories, which no listing shows. Of
// these, some may be gone. It works with the etcds that V2 works with.
func (s *Server) ReadV2(ctx context.Context, hidden ...string) (Content, error) {
	content := Content{Keys: map[string]Key{}, Read: time.Now()}
	for _, key := range append([]string{"/"}, hidden...) {
		status, body, index, err := s.v2(ctx, http.MethodGet, key, url.Values{"recursive": {"true"}})
		if err != nil {
			return Content{}, err
		}
		if status == http.StatusNotFound {
			continue
		}
		if status != http.StatusOK {
			return Content{}, fmt.Errorf("read %q: %d %s", key, status, body)
		}
		var answer struct{ Node v2Node }
		d := json.NewDecoder(bytes.NewReader(body))
		if err := d.Decode(&answer); err != nil {
			return Content{}, fmt.Errorf("read %q: %w", key, err)
		}
		content.add(answer.Node, time.Time{})
		content.Revision = max(content.Revision, index)
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
		c.Keys[n.Key] = Key{Value: n.Value, Created: n.CreatedIndex, Modified: n.ModifiedIndex, Expiry: expiry}
		return
	}
	for _, child := range n.Nodes {
		c.add(child, expiry)
	}
}

// ReadV3 reads all keys of the v3 store, of an etcd from 3.0 on. Etcd 3.0 does not tell when a lease ends.
func (s *Server) ReadV3(ctx context.Context) (Content, error) {
	c, err := s.V3()
	if err != nil {
		return Content{}, err
	}
	return ReadV3(ctx, c)
}

// ReadV3 reads all keys of the v3 store that a client reaches.
func ReadV3(ctx context.Context, c *clientv3.Client) (Content, error) {
	const page = 1000
	content, leases := Content{Keys: map[string]Key{}, Read: time.Now()}, map[int64]Key{}
	for from := "\x00"; ; {
		res, err := c.Get(ctx, from, clientv3.WithFromKey(), clientv3.WithLimit(page))
		if err != nil {
			return Content{}, err
		}
		content.Revision = res.Header.Revision
		for _, kv := range res.Kvs {
			k := Key{Value: string(kv.Value), Created: kv.CreateRevision, Modified: kv.ModRevision, Lease: kv.Lease}
			lease, known := leases[kv.Lease]
			if !known && kv.Lease != 0 {
				if lease, err = readLease(ctx, c, kv.Lease); err != nil {
					return Content{}, err
				}
				leases[kv.Lease] = lease
			}
			k.Expiry, k.TTL = lease.Expiry, lease.TTL
			content.Keys[string(kv.Key)] = k
		}
		if !res.More {
			return content, nil
		}
		from = string(res.Kvs[len(res.Kvs)-1].Key) + "\x00"
	}
}

// readLease gives expiry and TTL of a lease; 3.0 cannot tell them.
func readLease(ctx context.Context, c *clientv3.Client, id int64) (Key, error) {
	lease, err := c.TimeToLive(ctx, clientv3.LeaseID(id))
	if status.Code(err) == codes.Unimplemented {
		return Key{}, nil
	}
	if err != nil {
		return Key{}, err
	}
	return Key{Expiry: time.Now().Add(time.Duration(lease.TTL) * time.Second), TTL: lease.GrantedTTL}, nil
}
