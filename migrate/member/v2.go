package member

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// absentKey is a key of the v2 store that nobody has.
const absentKey = "_etcd-migrate-asks-for-a-key-that-is-not-there"

// keyNotFound is the error code of the v2 API for a key that does not exist (etcd's error/error.go).
const keyNotFound = 100

// answer is what the v2 API answers.
type answer struct {
	status    int
	ErrorCode int    `json:"errorCode"`
	Message   string `json:"message"`
	Node      struct {
		Nodes []struct {
			Key string `json:"key"`
		} `json:"nodes"`
	} `json:"node"`
}

func (a *answer) notFound() bool {
	return a.status == http.StatusNotFound && a.ErrorCode == keyNotFound
}

func (a *answer) err() error {
	return fmt.Errorf("%s %s", http.StatusText(a.status), a.Message)
}

// v2 makes a request for a key of the top level, "" for the root.
func (e *Etcd) v2(ctx context.Context, method, name string, query url.Values) (*answer, error) {
	u := e.url() + "/v2/keys/" + url.PathEscape(name) + "?" + query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return nil, err
	}
	res, err := e.client.Do(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	defer res.Body.Close()
	a := &answer{status: res.StatusCode}
	if err := json.NewDecoder(res.Body).Decode(a); err != nil {
		return nil, fmt.Errorf("v2 API answers %s, and not in JSON: %w", res.Status, err)
	}
	return a, nil
}

// withoutURL takes the URL out of the error of a request: with the v2 API, it has a key in it.
func withoutURL(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return fmt.Errorf("%s: %w", e.Op, e.Err)
	}
	return err
}

// writeV2 is Write with the v2 API: a quorum read goes through the log.
func (e *Etcd) writeV2(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	a, err := e.v2(ctx, http.MethodGet, absentKey, url.Values{"quorum": {"true"}})
	switch {
	case err != nil:
		return fmt.Errorf("raft write: %w", err)
	case a.status == http.StatusOK, a.notFound():
		return nil
	case a.status == http.StatusUnauthorized && e.cfg.Release.Minor().Major == 2:
		return e.awaitSync(ctx)
	}
	return fmt.Errorf("raft write: %w", a.err())
}

// awaitSync waits for an entry that etcd 2.x itself appends every 500 ms (SYNC), because with v2 auth enabled it wants a
// password for everything else that goes through the log, and there is no other way to prove that it can be written.
func (e *Etcd) awaitSync(ctx context.Context) error {
	first, err := e.committedV2(ctx)
	if err != nil {
		return err
	}
	return insist(ctx, func(ctx context.Context) error {
		now, err := e.committedV2(ctx)
		if err == nil && now == first {
			err = fmt.Errorf("nothing was committed after raft index %d", first)
		}
		return err
	})
}

// committedV2 is committed without the v3 API.
func (e *Etcd) committedV2(ctx context.Context) (uint64, error) {
	var vars struct {
		Raft struct {
			Commit uint64 `json:"commit"`
		} `json:"raft.status"`
	}
	if err := e.getJSON(ctx, "/debug/vars", &vars); err != nil {
		return 0, fmt.Errorf("ask for the raft index: %w", err)
	}
	return vars.Raft.Commit, nil
}

// EmptyV2 deletes the given names of the v2 store's top level with all below them, and proves that nothing is left: no
// other name, and none of these. The names come without a slash. Names that are not there are no error. Hidden names,
// those that begin with an underscore, are not listed by etcd, so only the caller can know all of them.
//
// The store is empty on disk only after a raft snapshot: see ForceSnapshot. On 3.4 and 3.5 it needs Config.V2.
func (e *Etcd) EmptyV2(ctx context.Context, topLevel []string) error {
	m := e.cfg.Release.Minor()
	if m.AtLeast(3, 4) && !e.cfg.V2 {
		return fmt.Errorf("empty the v2 store: etcd %s was started without its v2 API", e.cfg.Release)
	}
	ctx, done := e.whileRunning(ctx)
	defer done()
	for i, name := range topLevel {
		if err := e.deleteV2(ctx, name); err != nil {
			return e.explain(ctx, fmt.Sprintf("delete name %d of the %d at the top of the v2 store", i+1, len(topLevel)), err)
		}
	}
	// Other members of the cluster may be on their way to the next minor, and then there is no leader for a moment.
	var a *answer
	err := insist(ctx, func(ctx context.Context) (err error) {
		a, err = e.v2(ctx, http.MethodGet, "", url.Values{"quorum": {"true"}})
		switch {
		case err != nil || a.status == http.StatusOK:
			return err
		case a.status < http.StatusInternalServerError:
			return finalError{a.err()}
		}
		return a.err()
	})
	if err != nil {
		return e.explain(ctx, "list the v2 store", err)
	}
	if n := len(a.Node.Nodes); n > 0 {
		return fmt.Errorf("empty the v2 store: %d names are left", n)
	}
	return nil
}

// deleteV2 deletes a name until it is not there. A large subtree can take longer than etcd waits for its own answer, and
// then the next try finds out what became of it.
func (e *Etcd) deleteV2(ctx context.Context, name string) error {
	if name == "" || name == "." || name == ".." {
		return errors.New("no such name can exist")
	}
	return insist(ctx, func(ctx context.Context) error {
		a, err := e.v2(ctx, http.MethodDelete, name, url.Values{"recursive": {"true"}})
		if err == nil && a.status == http.StatusOK {
			a, err = e.v2(ctx, http.MethodGet, name, url.Values{"quorum": {"true"}})
		}
		switch {
		case err != nil:
			return err
		case a.notFound():
			return nil
		case a.status < http.StatusInternalServerError:
			return finalError{a.err()}
		}
		return a.err()
	})
}
