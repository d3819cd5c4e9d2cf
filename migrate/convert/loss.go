package convert

import (
	"fmt"

	"github.com/dustin/go-humanize"

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
	keys, err := c.replacedKeys()
	if err != nil {
		return nil, err
	}
	if keys > 0 {
		ps = append(ps, Problem{Loss: LossV3Keys, Count: keys, Text: fmt.Sprintf(
			"the v3 store already holds %d keys that the conversion would replace", keys)})
	}
	auth := c.Tree.Auth()
	if n := len(auth.Users) + len(auth.Roles); n > 0 || auth.Enabled {
		state := "disabled"
		if auth.Enabled {
			state = "enabled"
		}
		ps = append(ps, Problem{Loss: LossV2Auth, Count: int64(n), Text: fmt.Sprintf(
			"the v2 API has %d users and %d roles, and its authentication is %s: they cannot be carried over, "+
				"and the v3 API would ask for no password", len(auth.Users), len(auth.Roles), state)})
	}
	quota := c.QuotaBytes
	if quota == 0 {
		quota = defaultQuota
	}
	if size := c.size(); size > quota {
		ps = append(ps, Problem{Loss: LossOverQuota, Count: size - quota, Text: fmt.Sprintf(
			"the db would take %s and its quota is %s: etcd would accept no writes before that is raised",
			humanize.IBytes(uint64(size)), humanize.IBytes(uint64(quota)))})
	}
	return ps, nil
}

// replacedKeys counts the keys of the existing db, unless they are what this very conversion makes: then an earlier run
// was killed between the rename and the end of the step. Leases may have ended since.
func (c *conversion) replacedKeys() (int64, error) {
	if c.old == nil {
		return 0, nil
	}
	old, err := keyspace.FingerprintDB(c.old)
	if err != nil {
		return 0, err
	}
	if old.Records > 0 && keyspace.Compare(old, &c.before).Kept() {
		return 0, nil
	}
	return old.Records, nil
}
