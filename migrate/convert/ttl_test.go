package convert

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// TestTTLDirectory: keys below the directory that have no TTL get one, all others keep what they have.
func TestTTLDirectory(t *testing.T) {
	tree := keyspace.NewTree()
	for _, path := range []string{"/registry/events/a", "/registry/events/b/c", "/registry/eventsource", "/registry/pods/a"} {
		must(t, tree.ApplyV2(put(path, "v")))
	}
	own := put("/registry/events/own", "v")
	own.Expiration = now.Add(10 * time.Minute).UnixNano()
	must(t, tree.ApplyV2(own))

	for _, directory := range []string{"/registry/events", "/registry/events/"} {
		p := params(t, tree)
		p.TTLDirectory, p.TTL = directory, time.Hour
		report, err := ToV3(context.Background(), p)
		must(t, err)
		if report.TTLs != 3 || report.Given != 2 || report.Leases != 2 {
			t.Errorf("%d TTLs, %d of them given, in %d leases; want 3, 2, 2", report.TTLs, report.Given, report.Leases)
		}
		db, err := keyspace.OpenDB(p.DB)
		must(t, err)
		leases, err := db.Leases()
		must(t, err)
		got := map[string]int64{}
		must(t, db.Each(func(r keyspace.Record) error {
			got[string(r.Key)] = leases[r.Lease]
			return nil
		}))
		must(t, db.Close())
		// A TTL of a key's own is counted in whole seconds from the one that Now lies in.
		want := map[string]int64{
			"/registry/events/a": 3600, "/registry/events/b/c": 3600, "/registry/events/own": 601,
			"/registry/eventsource": 0, "/registry/pods/a": 0,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		// A run that was killed before it could note that it had converted does so again, later.
		p.Now = p.Now.Add(time.Minute)
		if _, err := ToV3(context.Background(), p); err != nil {
			t.Errorf("once more: %v", err)
		}
	}
}
