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

// TestKeysOfSeveralEndByTheLeadersClock: of several members, one whose clock is behind sees keys end before their time. That is
// no failed proof if the store has gone on.
func TestKeysOfSeveralEndByTheLeadersClock(t *testing.T) {
	now := time.Now()
	permanent := keyspace.Record{Key: []byte("a"), Value: []byte("x"), Created: 1, Modified: 1}
	ends := keyspace.Record{Key: []byte("b"), Value: []byte("x"), Created: 2, Modified: 2, Expiry: now.Add(20 * time.Second)}
	var before, ended, changed keyspace.Fingerprint
	before.Add(permanent)
	before.Add(ends)
	ended.Add(permanent)
	s := Step{Kind: StepUpgrade, From: parse("2.3.8/etcd2"), To: parse("3.0.17/etcd2")}
	for _, tc := range []struct {
		members    int
		after      *keyspace.Fingerprint
		ok         bool
		replicated bool
	}{
		{1, &ended, false, false},
		{3, &ended, true, false},
		{1, &changed, false, false},
		{3, &changed, true, true},
	} {
		m := &Migrator{Request: Request{Now: func() time.Time { return now }}, st: State{Members: make([]Member, tc.members)}, step: 2}
		m.plan.Steps, m.together = make([]Step, 3), true
		var result StepReport
		if err := m.prove(s, &before, tc.after, nil, time.Second, &result); (err == nil) != tc.ok || result.Replicated != tc.replicated {
			t.Errorf("%d members: got %v, replicated %v", tc.members, err, result.Replicated)
		}
	}
	if proveIndex(7, 7) == nil || proveIndex(7, 6) == nil || proveIndex(7, 8) != nil {
		t.Error("other keys at the same index are taken for replicated ones")
	}
}
