package migrate

import (
	"os"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// TestWalkTogether: a member that is started again with one step left still walks with the others, but not if that migration
// was given up and somebody has written since: then it may be one of a rolling upgrade.
func TestWalkTogether(t *testing.T) {
	var now, since keyspace.Fingerprint
	since.Add(keyspace.Record{Key: []byte("a"), Value: []byte("x"), Created: 1, Modified: 1, Version: 1})
	upgrade, replay := Step{Kind: StepUpgrade}, Step{Kind: StepReplay}
	for name, tc := range map[string]struct {
		steps   []Step
		journal *journal
		want    bool
	}{
		"two steps":                  {[]Step{upgrade, upgrade}, nil, true},
		"one step":                   {[]Step{upgrade}, nil, false},
		"one step left":              {[]Step{upgrade}, &journal{Together: true, Permanent: now.Permanent()}, true},
		"one of a rolling upgrade":   {[]Step{upgrade}, &journal{Permanent: now.Permanent()}, false},
		"one after it was given up":  {[]Step{upgrade}, &journal{Together: true, Permanent: since.Permanent()}, false},
		"to compare, others write":   {[]Step{replay}, &journal{Together: true, Permanent: since.Permanent()}, true},
		"to compare, rolling update": {[]Step{replay}, &journal{Permanent: now.Permanent()}, false},
	} {
		l := datadir.Layout{DataDir: t.TempDir()}
		if tc.journal != nil {
			tc.journal.Format = 1
			if err := os.MkdirAll(l.WorkDir(), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := datadir.WriteJSON(journalPath(l), tc.journal); err != nil {
				t.Fatal(err)
			}
		}
		m := &Migrator{layout: l, plan: Plan{Steps: tc.steps}}
		if got := m.walkTogether(&now); got != tc.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
