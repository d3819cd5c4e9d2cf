// Package cluster is what a member that is being migrated knows of the other members of its cluster: which etcd each of them
// runs right now, and whether they hold the same data. It asks them at their peer URLs, where every etcd from 2.2 on answers
// /version and from 3.4 on /members/hashkv, with the certificates that the members show each other.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Member is another member of the cluster.
type Member struct {
	ID       string // hexadecimal
	Name     string // may be empty
	PeerURLs []string
}

func (m Member) String() string {
	if m.Name == "" {
		return m.ID
	}
	return m.Name
}

// Status is what a member answers.
type Status struct {
	Member
	// Server is the etcd that it runs, Cluster the cluster version that it knows. Both are zero if Err is set.
	Server, Cluster versionfile.Release
	Err             error
}

// String says it for a person: "m2 (etcd 3.4.31)", "m3 (not reachable)".
func (s Status) String() string {
	if s.Err != nil {
		return fmt.Sprintf("%s (not reachable: %v)", s.Member, s.Err)
	}
	return fmt.Sprintf("%s (etcd %s)", s.Member, s.Server)
}

// Peers are the other members of a cluster.
type Peers struct {
	mu      sync.Mutex
	members []Member
	client  *http.Client
}

// askTimeout is how long a member may take for an answer, but for hashes, which need a pass over its store.
const (
	askTimeout  = 3 * time.Second
	hashTimeout = 10 * time.Minute
)

// New gives the peers, which are asked with the certificates of settings.
func New(members []Member, settings *member.Peers) (*Peers, error) {
	config, err := settings.TLS()
	if err != nil {
		return nil, err
	}
	return &Peers{members: members, client: &http.Client{
		Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, // no proxy: members are asked directly
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}}, nil
}

// Status asks all of them at once, in the order in which they were given.
func (p *Peers) Status(ctx context.Context) []Status { return p.status(ctx, p.Members()) }

func (p *Peers) status(ctx context.Context, members []Member) []Status {
	all := make([]Status, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() { all[i] = p.ask(ctx, m) })
	}
	wg.Wait()
	return all
}

func (p *Peers) ask(ctx context.Context, m Member) Status {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var v struct {
		Server  string `json:"etcdserver"`
		Cluster string `json:"etcdcluster"`
	}
	s := Status{Member: m}
	if s.Err = p.get(ctx, m, "/version", nil, &v); s.Err == nil {
		s.Server, s.Err = versionfile.ParseRelease(v.Server)
		s.Cluster, _ = versionfile.ParseRelease(v.Cluster) // "not_decided" in a cluster that has just begun
	}
	return s
}

// ClusterID asks a member which cluster it belongs to, in hexadecimal.
func (p *Peers) ClusterID(ctx context.Context, m Member) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := errors.New("it has no peer URL")
	for _, u := range m.PeerURLs {
		var req *http.Request
		if req, err = http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(u, "/")+"/members", nil); err != nil {
			continue
		}
		var res *http.Response
		if res, err = p.client.Do(req); err != nil {
			continue
		}
		_ = res.Body.Close()
		if id := res.Header.Get("X-Etcd-Cluster-ID"); id != "" {
			return id, nil
		}
		err = fmt.Errorf("GET %s: no cluster ID in the answer", req.URL)
	}
	return "", err
}

// Members are those that New was given, or Update.
func (p *Peers) Members() []Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.members
}

// Update takes others for the members from now on.
func (p *Peers) Update(members []Member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members = members
}

// List asks a member who the members of its cluster are.
func (p *Peers) List(ctx context.Context, m Member) ([]Member, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var list []struct {
		ID       uint64   `json:"id"`
		Name     string   `json:"name"`
		PeerURLs []string `json:"peerURLs"`
	}
	if err := p.get(ctx, m, "/members", nil, &list); err != nil {
		return nil, err
	}
	var members []Member
	for _, v := range list {
		members = append(members, Member{ID: strconv.FormatUint(v.ID, 16), Name: v.Name, PeerURLs: v.PeerURLs})
	}
	return members, nil
}

// Hash is the digest of a member's v3 store at a revision.
type Hash struct {
	Hash    uint32
	Compact int64 // the revision at which the store is compacted; hashes are comparable only if these are equal
}

// ErrRevision says that the member does not have that revision: not yet, or no longer.
var ErrRevision = errors.New("the member does not have that revision")

// Hash asks a member of 3.4 or newer. Revision 0 means its newest; the one that it is of comes back.
func (p *Peers) Hash(ctx context.Context, m Member, revision int64) (Hash, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, hashTimeout)
	defer cancel()
	var res etcdserverpb.HashKVResponse
	err := p.get(ctx, m, "/members/hashkv", &etcdserverpb.HashKVRequest{Revision: revision}, &res)
	if err == nil && res.Header != nil {
		revision = res.Header.Revision
	}
	return Hash{Hash: res.Hash, Compact: res.CompactRevision}, revision, err
}

// get tries the member's URLs one after the other.
func (p *Peers) get(ctx context.Context, m Member, path string, body, into any) error {
	err := errors.New("it has no peer URL")
	for _, u := range m.PeerURLs {
		if err = p.getFrom(ctx, strings.TrimSuffix(u, "/")+path, body, into); err == nil || errors.Is(err, ErrRevision) {
			return err
		}
	}
	return err
}

func (p *Peers) getFrom(ctx context.Context, url string, body, into any) error {
	var content bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&content).Encode(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, &content)
	if err != nil {
		return err
	}
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	switch {
	case err != nil:
		return fmt.Errorf("GET %s: %w", url, err)
	case res.StatusCode == http.StatusBadRequest && bytes.Contains(answer, []byte("revision")):
		return ErrRevision
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("GET %s: %s", url, res.Status)
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("GET %s: %w", url, err)
	}
	return nil
}
