package migrate

import (
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
)

// TestLeasesEndInTheirTime: a lease that is gone after a step, with keys or without, must have had the time to end.
func TestLeasesEndInTheirTime(t *testing.T) {
	const lease = 7
	var before, after keyspace.Fingerprint
	before.Add(keyspace.Record{Key: []byte("a"), Value: []byte("x"), Created: 1, Modified: 1, Version: 1, Lease: lease})
	s := Step{Kind: StepUpgrade, From: parse("3.4.31/etcd3"), To: parse("3.5.35/etcd3")}
	for name, tc := range map[string]struct {
		side *sideData
		took time.Duration
		st   State
		ok   bool
	}{
		"over":                       {&sideData{left: map[int64]int64{lease: 5}}, 6 * time.Second, State{}, true},
		"over, by the seconds":       {&sideData{left: map[int64]int64{lease: 5}}, 4 * time.Second, State{}, true},
		"an hour":                    {&sideData{left: map[int64]int64{lease: 3600}}, 10 * time.Second, State{}, false},
		"an hour, most of it over":   {&sideData{left: map[int64]int64{lease: 3600}}, 10 * time.Second, State{checkpoints: map[int64]int64{lease: 8}}, true},
		"an hour, little of it over": {&sideData{left: map[int64]int64{lease: 3600}}, 10 * time.Second, State{checkpoints: map[int64]int64{lease: 3000}}, false},
		"no such lease":              {&sideData{left: map[int64]int64{8: 1}}, 10 * time.Second, State{}, false},
		"no db":                      {nil, 10 * time.Second, State{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := &Migrator{Request: Request{Now: time.Now}, st: tc.st}
			if err := m.prove(s, &before, &after, tc.side, tc.took, &StepReport{}); (err == nil) != tc.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}
