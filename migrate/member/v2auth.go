package member

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// EmptyV2Auth deletes the given users and roles of the v2 API's authentication, which must be disabled. Those that are
// not there are no error. What EmptyV2 says of the disk and of Config.V2 holds here, too.
func (e *Etcd) EmptyV2Auth(ctx context.Context, users, roles []string) error {
	ctx, done := e.whileRunning(ctx)
	defer done()
	for _, kind := range []struct {
		name  string
		names []string
	}{{"users", users}, {"roles", roles}} {
		for i, name := range kind.names {
			err := insist(ctx, func(ctx context.Context) error { return e.deleteV2Auth(ctx, kind.name, name) })
			if err != nil {
				return e.explain(ctx, fmt.Sprintf("delete %d of the %d %s of the v2 API", i+1, len(kind.names), kind.name), err)
			}
		}
	}
	return nil
}

func (e *Etcd) deleteV2Auth(ctx context.Context, kind, name string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, e.url()+"/v2/auth/"+kind+"/"+url.PathEscape(name), nil)
	if err != nil {
		return err
	}
	res, err := e.client.Do(req)
	if err != nil {
		return withoutURL(err)
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusOK, res.StatusCode == http.StatusNotFound:
		return nil
	case res.StatusCode < http.StatusInternalServerError:
		return finalError{fmt.Errorf("it answers %s", res.Status)}
	}
	return fmt.Errorf("it answers %s", res.Status)
}
