package main

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

func TestTrackerAlive(t *testing.T) {
	clock := time.Unix(1000, 0)
	tr := newTracker(5*time.Minute, 15*time.Minute)
	tr.now = func() time.Time { return clock }
	plan := &migrate.Plan{Steps: []migrate.Step{{Kind: migrate.StepUpgrade, Binary: "/etcd-3.6.16"}, {Kind: migrate.StepRecord}}}
	for i, s := range []struct {
		event *migrate.Event
		after time.Duration
		alive bool
		says  string
	}{
		{&migrate.Event{Kind: migrate.EventBegun}, 5 * time.Minute, true, "preparing"},
		{nil, time.Second, false, "no progress for 5m1s: preparing"},
		{&migrate.Event{Kind: migrate.EventPlanned, Plan: plan}, 0, true, "preparing"},
		{&migrate.Event{Kind: migrate.EventProgress, What: "backup", Unit: migrate.UnitBytes, Done: 10, Total: 30}, 4 * time.Minute, true, "preparing"},
		{&migrate.Event{Kind: migrate.EventProgress, What: "backup", Unit: migrate.UnitBytes, Done: 30, Total: 30}, 6 * time.Minute, false, "preparing"},
		{&migrate.Event{Kind: migrate.EventStepStarted, Plan: plan, Step: 1}, 20 * time.Minute, true, "step 1 of 2, upgrade to"},
		{nil, time.Second, false, "no progress for 20m1s: step 1 of 2"},
		{&migrate.Event{Kind: migrate.EventProgress, What: "etcd", Unit: migrate.UnitLines, Done: 7}, 20 * time.Minute, true, "step 1"},
		{&migrate.Event{Kind: migrate.EventStepDone, Step: 1}, 6 * time.Minute, false, "preparing"},
		{&migrate.Event{Kind: migrate.EventStepStarted, Plan: plan, Step: 2}, 6 * time.Minute, false, "step 2 of 2, record"}, // no etcd makes it
		{&migrate.Event{Kind: migrate.EventStepDone, Step: 2}, 0, true, "migrated"},
	} {
		if s.event != nil {
			tr.observe(*s.event)
		}
		clock = clock.Add(s.after)
		if alive, says := tr.alive(); alive != s.alive || !strings.Contains(says, s.says) {
			t.Errorf("%d: alive %t: %s", i, alive, says)
		}
	}
}

func TestTrackerCounts(t *testing.T) {
	tr := newTracker(time.Minute, time.Minute)
	plan := &migrate.Plan{Steps: []migrate.Step{{Kind: migrate.StepUpgrade}}}
	for _, e := range []migrate.Event{
		{What: "backup", Unit: migrate.UnitBytes, Done: 100, Total: 300},
		{What: "backup", Unit: migrate.UnitBytes, Done: 300, Total: 300},
		{What: "backup", Unit: migrate.UnitBytes, Done: 300, Total: 300}, // of an empty file
		{What: "prove", Unit: migrate.UnitRecords, Done: 4, Total: 5},
		{What: "prove", Unit: migrate.UnitRecords, Done: 5, Total: 5},
		{What: "etcd", Unit: migrate.UnitLines, Done: 8},
		{What: "etcd", Unit: migrate.UnitLines, Done: 20},
		{What: "etcd", Unit: migrate.UnitLines, Done: 3}, // another etcd
		{Kind: migrate.EventStepStarted, Plan: plan, Step: 1},
		{What: "prove", Unit: migrate.UnitRecords, Done: 5, Total: 5},
	} {
		if e.Kind == "" {
			e.Kind = migrate.EventProgress
		}
		tr.observe(e)
	}
	for unit, want := range map[string]int64{migrate.UnitBytes: 300, migrate.UnitRecords: 10, migrate.UnitLines: 23} {
		if got := tr.look().work[unit]; got != want {
			t.Errorf("%d %s instead of %d", got, unit, want)
		}
	}
}

func TestTerminationMessage(t *testing.T) {
	long := errors.New(strings.Repeat("ü\n", 5000))
	for name, tc := range map[string]struct {
		err  error
		want []string
	}{
		"usage": {usagef("no etcd"), []string{"etcd-migrate: no etcd"}},
		"failed": {&migrate.Error{Kind: migrate.Failed, Op: "step 2", Err: errors.New("it broke"), Data: "the data is at 3.5", Backup: "/b", Hint: "do this"},
			[]string{"etcd-migrate: step 2: it broke; the data is at 3.5; the untouched copy from before is /b; do this"}},
		"refused": {&migrate.Error{Kind: migrate.Refused, Err: errors.New("no"), Hint: "do that"}, []string{"no; nothing has been changed; do that"}},
		"long":    {&migrate.Error{Kind: migrate.Failed, Err: long, Backup: "/b", Hint: "do this"}, []string{"etcd-migrate: ü ü", "…; ", "/b; do this"}},
	} {
		got := terminationMessage(tc.err)
		for _, want := range tc.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q is not in %q", name, want, got)
			}
		}
		if len(got) > maxTerminationMessage || !utf8.ValidString(got) || strings.Contains(got, "\n") {
			t.Errorf("%s: %d bytes: %q", name, len(got), got)
		}
	}
}
