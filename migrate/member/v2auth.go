package member

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// EmptyV2Auth deletes the given users and roles of the v2 API's authentication, which must be disabled. Those that are
// not there are no error, and nothing is then written to the log. What EmptyV2 says of the disk and of Config.V2 holds here, too.
func (e *Etcd) EmptyV2Auth(ctx context.Context, users, roles []string) error {
	ctx, done := e.whileRunning(ctx)
	defer done()
	for _, kind := range []struct {
		name  string
		names []string
	}{{"users", users}, {"roles", roles}} {
		for i, name := range kind.names {
			if err := e.deleteV2Auth(ctx, kind.name, name); err != nil {
				return e.explain(ctx, fmt.Sprintf("delete %d of the %d %s of the v2 API", i+1, len(kind.names), kind.name), err)
			}
		}
	}
	return nil
}

// deleteV2Auth deletes a user or role, if it is there.
func (e *Etcd) deleteV2Auth(ctx context.Context, kind, name string) error {
	return e.deleteIfPresent(ctx, func(ctx context.Context) (bool, error) {
		return e.v2Auth(ctx, http.MethodGet, kind, name)
	}, func(ctx context.Context) error {
		_, err := e.v2Auth(ctx, http.MethodDelete, kind, name)
		return err
	})
}

// v2Auth makes a request for a user or role, and reports whether it is there.
func (e *Etcd) v2Auth(ctx context.Context, method, kind, name string) (present bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, e.url()+"/v2/auth/"+kind+"/"+url.PathEscape(name), nil)
	if err != nil {
		return false, err
	}
	res, err := e.client.Do(req)
	if err != nil {
		return false, withoutURL(err)
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusOK:
		return true, nil
	case res.StatusCode == http.StatusNotFound:
		return false, nil
	case res.StatusCode < http.StatusInternalServerError:
		return false, finalError{fmt.Errorf("it answers %s", res.Status)}
	}
	return false, fmt.Errorf("it answers %s", res.Status)
}
