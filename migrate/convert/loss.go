package convert

import (
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// Loss names a kind of loss that a conversion can bring.
type Loss string

// The losses that can be accepted.
const (
	// LossV3Keys: keys that the v3 store holds beside those of the v2 store would be gone.
	LossV3Keys Loss = "v3-keys"
	// LossV2Auth: the v2 API's users and roles stay behind. The v3 store would be open to everybody.
	LossV2Auth Loss = "v2-auth"
	// LossOverQuota: the db would be larger than its quota, and etcd would refuse to write until that is raised.
	LossOverQuota Loss = "over-quota"
)

// MaxExamples is how many keys are named of each kind of problem.
const MaxExamples = 3

// Tally counts keys and keeps the first few as examples.
type Tally struct {
	Count int64
	Keys  []string
}

// Add counts a key.
func (t *Tally) Add(key []byte) {
	if t.Count++; len(t.Keys) < MaxExamples {
		t.Keys = append(t.Keys, string(key[:min(len(key), 80)]))
	}
}

// Problem is something that would be lost.
type Problem struct {
	Loss  Loss   `json:"loss"`
	Count int64  `json:"count"` // of keys, of users and roles, of bytes beyond the quota
	Text  string `json:"text"`
	// Keys are the first of the keys, at most MaxExamples, each cut at 80 bytes. They are for a person at a terminal: they
	// are in no text, log or report.
	Keys []string `json:"-"`
}

// defaultQuota is etcd's own: DefaultQuotaBytes in server/v3/storage/quota.go.
const defaultQuota = 2 << 30

func (c *conversion) problems() ([]Problem, error) {
	var ps []Problem
	replaced, err := c.replacedKeys()
	if err != nil {
		return nil, err
	}
	if n := replaced.Count; n > 0 {
		ps = append(ps, Problem{Loss: LossV3Keys, Count: n, Keys: replaced.Keys, Text: fmt.Sprintf(
			"the v3 store already holds %s that the conversion would replace", english.Plural(int(n), "key", ""))})
	}
	auth := c.Tree.Auth()
	if n := len(auth.Users) + len(auth.Roles); n > 0 || auth.Enabled {
		state := "disabled"
		if auth.Enabled {
			state = "enabled"
		}
		ps = append(ps, Problem{Loss: LossV2Auth, Count: int64(n), Text: fmt.Sprintf(
			"the v2 API has %s and %s, and its authentication is %s: they cannot be carried over, "+
				"and the v3 API would ask for no password", english.Plural(len(auth.Users), "user", ""), english.Plural(len(auth.Roles), "role", ""), state)})
	}
	quota := c.QuotaBytes
	if quota == 0 {
		quota = defaultQuota
	}
	if size := c.size(); quota > 0 && size > quota {
		ps = append(ps, Problem{Loss: LossOverQuota, Count: size - quota, Text: fmt.Sprintf(
			"the db would take %s and its quota is %s: etcd would accept no writes before that is raised",
			humanize.IBytes(uint64(size)), humanize.IBytes(uint64(quota)))})
	}
	return ps, nil
}

// replacedKeys counts the keys of the existing db, unless they are what this very conversion makes: then an earlier run
// was killed between the rename and the end of the step. Leases may have ended since.
func (c *conversion) replacedKeys() (replaced Tally, err error) {
	if c.old == nil || c.again != nil {
		return replaced, nil
	}
	old, err := keyspace.FingerprintDB(c.old)
	if err != nil || keyspace.Compare(old, &c.before).Kept() {
		return replaced, err
	}
	err = c.old.Each(func(r keyspace.Record) error {
		replaced.Add(r.Key)
		return nil
	})
	return replaced, err
}
