package member

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
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
		Value string `json:"value"`
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
// other name, and none of these. The names come without a slash. Names that are not there are no error, and nothing is then
// written to the log: another member may have emptied the store already and run 3.6, which panics on entries of the v2 API.
// Hidden names, those that begin with an underscore, are not listed by etcd, so only the caller can know all of them.
//
// The store is empty on disk only after a raft snapshot: see ForceSnapshot. On 3.4 and 3.5 it needs Config.V2.
func (e *Etcd) EmptyV2(ctx context.Context, topLevel []string) error {
	m := e.cfg.Release.Minor()
	if m.AtLeast(3, 4) && !e.cfg.V2 {
		return fmt.Errorf("empty the v2 store: etcd %s was started without its v2 API", e.cfg.Release)
	}
	ctx, done := e.whileRunning(ctx)
	defer done()
	if slices.ContainsFunc(topLevel, func(name string) bool { return name == "" || name == "." || name == ".." }) {
		return errors.New("empty the v2 store: no such name can exist")
	}
	for i, name := range topLevel {
		if err := e.deleteV2(ctx, name); err != nil {
			return e.explain(ctx, fmt.Sprintf("delete name %d of the %d at the top of the v2 store", i+1, len(topLevel)), err)
		}
	}
	var left int
	err := insist(ctx, func(ctx context.Context) error {
		root, err := e.getV2(ctx, "")
		if err == nil {
			left = len(root.Node.Nodes)
		}
		return err
	})
	if err != nil {
		return e.explain(ctx, "list the v2 store", err)
	}
	if left > 0 {
		return fmt.Errorf("empty the v2 store: %d names are left", left)
	}
	return nil
}

// deleteV2 deletes a name with all below it, if it is there. A large subtree can take longer than etcd waits for its own answer,
// and then the next try finds out what became of it.
func (e *Etcd) deleteV2(ctx context.Context, name string) error {
	return e.deleteIfPresent(ctx, func(ctx context.Context) (bool, error) {
		a, err := e.getV2(ctx, name)
		return err == nil && !a.notFound(), err
	}, func(ctx context.Context) error {
		_, err := e.requestV2(ctx, http.MethodDelete, name, url.Values{"recursive": {"true"}})
		return err
	})
}

// deleteIfPresent deletes until what it is about is not there any more. It looks without an entry in the log, as far as this
// member knows, and just before it deletes: entries of the v2 API end the etcds of members that run 3.6 already, and one that
// does has deleted all of it. The caller has made a write before, and so knows what the others had done until then. After a
// try that failed, which can be for the want of a leader because one of them has left for 3.6, that write is made again.
func (e *Etcd) deleteIfPresent(ctx context.Context, present func(context.Context) (bool, error), remove func(context.Context) error) error {
	again := false
	return insist(ctx, func(ctx context.Context) error {
		if again {
			if err := e.write(ctx); err != nil {
				return err
			}
		}
		again = true
		if there, err := present(ctx); err != nil || !there {
			return err
		}
		if err := remove(ctx); err != nil {
			return err
		}
		there, err := present(ctx)
		if err == nil && there {
			err = errors.New("it is still there")
		}
		return err
	})
}

// getV2 asks for a name, as far as this member knows: without an entry in the log.
func (e *Etcd) getV2(ctx context.Context, name string) (*answer, error) {
	return e.requestV2(ctx, http.MethodGet, name, nil)
}

// requestV2 gives only what says that the name is there or not.
func (e *Etcd) requestV2(ctx context.Context, method, name string, query url.Values) (*answer, error) {
	a, err := e.v2(ctx, method, name, query)
	switch {
	case err != nil:
		return nil, err
	case a.status == http.StatusOK, a.notFound():
		return a, nil
	case a.status < http.StatusInternalServerError:
		return nil, finalError{a.err()}
	}
	return nil, a.err()
}
