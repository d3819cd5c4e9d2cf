package pathtest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Hidden are the keys and directories of FillV2 that no listing shows.
var Hidden = []string{"/_hidden", "/registry/_secrets"}

// FillV2 stores n plain keys and, after them, what is hard to carry over: TTLs of keys and of directories, in-order keys,
// hidden keys, deep directories, odd names, a large value, empty values, changed, refused and deleted keys. With n at or
// below 0 these are all. It works with the etcds that V2 works with.
func (s *Server) FillV2(ctx context.Context, n int) error {
	w := v2Writer{s: s, ctx: ctx}
	for i := range n {
		w.put(fmt.Sprintf("/registry/pods/default/pod-%05d", i), url.Values{"value": {fmt.Sprintf(`{"kind":"Pod","n":%d}`, i)}})
	}
	for i := range 20 {
		w.put(fmt.Sprintf("/registry/events/default/event-%02d", i), url.Values{"value": {`{"kind":"Event"}`}, "ttl": {strconv.Itoa(3600 + i)}})
	}
	w.put("/registry/leases/short", url.Values{"value": {"gone soon"}, "ttl": {"2"}})
	w.put("/registry/leases/long", url.Values{"value": {"ten years"}, "ttl": {strconv.Itoa(10 * 365 * 24 * 3600)}})
	w.put("/registry/sessions", url.Values{"dir": {"true"}, "ttl": {"7200"}})
	w.put("/registry/sessions/a", url.Values{"value": {"as long as its directory"}})
	w.put("/registry/sessions/b", url.Values{"value": {"shorter"}, "ttl": {"600"}})
	w.put("/registry/empty-dir", url.Values{"dir": {"true"}})
	for i := range 5 {
		w.do(http.MethodPost, "/queue", url.Values{"value": {strconv.Itoa(i)}})
	}
	w.put("/_hidden", url.Values{"value": {"not listed"}})
	w.put("/registry/_secrets/deep/inside", url.Values{"value": {"not listed either"}})
	w.put("/deep"+strings.Repeat("/d", 24), url.Values{"value": {"25 deep"}})
	w.put("/odd/with space and % and ?#", url.Values{"value": {"odd name"}})
	w.put("/odd/ünïcödé-键", url.Values{"value": {"значение \x01\x02\t\"quoted\" \\ </script>"}})
	w.put("/odd/empty", url.Values{"value": {""}})
	w.put("/odd/large", url.Values{"value": {strings.Repeat("0123456789", 90<<10)}})
	for i := range 3 {
		w.put("/changed", url.Values{"value": {strconv.Itoa(i)}})
	}
	w.put("/changed", url.Values{"value": {"swapped"}, "prevValue": {"2"}})
	w.refuse(http.MethodPut, "/changed", url.Values{"value": {"wrong"}, "prevValue": {"none"}})
	w.refuse(http.MethodPut, "/changed", url.Values{"value": {"wrong"}, "prevExist": {"false"}})
	w.put("/compared", url.Values{"value": {"1"}})
	w.refuse(http.MethodDelete, "/compared", url.Values{"prevValue": {"2"}})
	w.put("/compared-and-deleted", url.Values{"value": {"1"}})
	w.do(http.MethodDelete, "/compared-and-deleted", url.Values{"prevValue": {"1"}})
	w.put("/deleted/a/b", url.Values{"value": {"1"}})
	w.do(http.MethodDelete, "/deleted", url.Values{"recursive": {"true"}})
	w.put("/deleted-and-back", url.Values{"value": {"1"}})
	w.do(http.MethodDelete, "/deleted-and-back", nil)
	w.put("/deleted-and-back", url.Values{"value": {"2"}})
	return w.err
}

// v2Writer keeps the first error.
type v2Writer struct {
	s   *Server
	ctx context.Context
	err error
}

func (w *v2Writer) do(method, key string, form url.Values) int {
	if w.err != nil {
		return 0
	}
	status, body, err := w.s.V2(w.ctx, method, key, form)
	if err == nil && status >= 400 && status != http.StatusPreconditionFailed {
		err = fmt.Errorf("%s %q: %d %s", method, key, status, body)
	}
	w.err = err
	return status
}

func (w *v2Writer) put(key string, form url.Values) { w.do(http.MethodPut, key, form) }

// refuse makes a request whose condition does not hold.
func (w *v2Writer) refuse(method, key string, form url.Values) {
	if status := w.do(method, key, form); w.err == nil && status != http.StatusPreconditionFailed {
		w.err = fmt.Errorf("%s %q %v was not refused: %d", method, key, form, status)
	}
}

// FillV3 stores n plain keys in the v3 store and, after them, what is hard to carry over: leases, binary keys and values,
// a large value, empty values, transactions, changed and deleted keys. With n at or below 0 these are all. It works with
// etcds from 3.0 on.
func (s *Server) FillV3(ctx context.Context, n int) error {
	c, err := s.V3()
	if err != nil {
		return err
	}
	w := v3Writer{c: c, ctx: ctx}
	for i := range n {
		w.put(fmt.Sprintf("/registry/pods/default/pod-%05d", i), fmt.Sprintf("k8s\x00\n\x09\n\x02v1\x12\x03Pod %d", i))
	}
	for i := range 5 {
		w.leased(3600+int64(i), fmt.Sprintf("/registry/events/default/event-%d", i), fmt.Sprintf("/registry/events/default/other-%d", i))
	}
	if s.Release.Line.AtLeast(3, 1) { // 3.0 does not tell when a lease ends
		w.leased(1, "/registry/leases/short")
	}
	w.leased(10*365*24*3600, "/registry/leases/long")
	w.put("no slash in front", "1")
	w.put("/a", "a key that is the directory of another")
	w.put("/a/b", "1")
	w.put("\x00\xff\xfe binary", "\xff\xfe\x00")
	w.put("/odd/ünïcödé-键", "значение")
	w.put("/odd/empty", "")
	w.put("/odd/large", strings.Repeat("0123456789", 90<<10))
	for i := range 3 {
		w.put("/changed", strconv.Itoa(i))
	}
	w.put("/deleted", "1")
	w.delete("/deleted")
	w.put("/deleted-and-back", "1")
	w.delete("/deleted-and-back")
	w.put("/deleted-and-back", "2")
	if w.err == nil {
		_, w.err = c.Txn(ctx).Then(clientv3.OpPut("/txn/a", "1"), clientv3.OpPut("/txn/b", "2")).Commit()
	}
	return w.err
}

// FillJSON stores n plain keys in the v3 store and, after them, what a rollback to the v2 store has to get right: leases,
// a large value, changed, deleted and recreated keys. All values are JSON and all keys are paths, as in a Kubernetes
// cluster that can still go back. With n at or below 0 there are no plain keys. It works with etcds from 3.0 on.
func (s *Server) FillJSON(ctx context.Context, n int) error {
	c, err := s.V3()
	if err != nil {
		return err
	}
	w := v3Writer{c: c, ctx: ctx}
	for i := range n {
		w.put(fmt.Sprintf("/registry/pods/default/pod-%05d", i), fmt.Sprintf(`{"kind":"Pod","n":%d}`, i))
	}
	for i := range 5 {
		w.leased(3600+int64(i), fmt.Sprintf("/registry/events/default/event-%d", i), fmt.Sprintf("/registry/events/default/other-%d", i))
	}
	w.put("/registry/large", `"`+strings.Repeat("0123456789", 90<<10)+`"`)
	for i := range 3 {
		w.put("/registry/changed", strconv.Itoa(i))
	}
	w.put("/registry/deleted/a", "1")
	w.put("/registry/deleted/b", "1")
	w.delete("/registry/deleted/a")
	w.delete("/registry/deleted/b")
	w.put("/registry/recreated", "1")
	w.delete("/registry/recreated")
	w.put("/registry/recreated", "2")
	return w.err
}

type v3Writer struct {
	c   *clientv3.Client
	ctx context.Context
	err error
}

func (w *v3Writer) put(key, value string, opts ...clientv3.OpOption) {
	w.insist(func() error {
		_, err := w.c.Put(w.ctx, key, value, opts...)
		return err
	})
}

// insist tries again for a while where the members of a cluster have lost each other, as they do on a busy machine.
func (w *v3Writer) insist(do func() error) {
	if w.err != nil {
		return
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		w.err = do()
		var said rpctypes.EtcdError
		unavailable := status.Code(w.err) == codes.Unavailable || errors.As(w.err, &said) && said.Code() == codes.Unavailable
		if !unavailable || time.Now().After(deadline) {
			return
		}
	}
}

func (w *v3Writer) delete(key string) {
	w.insist(func() error {
		_, err := w.c.Delete(w.ctx, key)
		return err
	})
}

func (w *v3Writer) leased(ttl int64, keys ...string) {
	for range 5 {
		var lease *clientv3.LeaseGrantResponse
		w.insist(func() (err error) {
			lease, err = w.c.Grant(w.ctx, ttl)
			return err
		})
		if w.err != nil {
			return
		}
		for _, k := range keys {
			w.put(k, `"leased"`, clientv3.WithLease(lease.ID))
		}
		if !errors.Is(w.err, rpctypes.ErrLeaseNotFound) {
			return
		}
		w.err = nil // a short one that has ended before its key was there
	}
	w.err = rpctypes.ErrLeaseNotFound
}
