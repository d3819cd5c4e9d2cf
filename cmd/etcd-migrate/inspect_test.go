package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

// TestInspectTable: what decides about a migration is in the table, too, and not only in the JSON.
func TestInspectTable(t *testing.T) {
	st := migrate.State{
		Presence: migrate.Present,
		Log:      migrate.LogState{Entries: map[string]int{"V3": 7, "V2": 3}, V2Entries: map[string]int{"SYNC": 1, "PUT": 2}, Foreign: 1},
		V2:       migrate.V2State{Keys: 5, Unconverted: 4},
		V3: migrate.V3State{Present: true, Auth: 3, AuthEnabled: true, Downgrade: "3.5.0",
			Members: []migrate.Member{{ID: "1a", Name: "gone", Learner: true}}},
	}
	table := printed(t, func() error { return printState(st) })
	for _, want := range []string{
		`entries after it: 3 V2, 7 V3`, `v2 API: 2 PUT, 1 SYNC; etcd 3.7 panics on them, and 3.6 on 1 of them`,
		`4 keys are not in the v3 store`, `3 users and roles, authentication enabled: true`, `a downgrade to etcd 3.5.0 is enabled`,
		`the db knows learner 1a "gone"`,
	} {
		if !regexp.MustCompile(want).MatchString(table) {
			t.Errorf("the table does not say %q:\n%s", want, table)
		}
	}
}

// printed gives what a function prints.
func printed(t *testing.T, do func() error) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "stdout")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stdout := os.Stdout
	os.Stdout = f
	err = do()
	os.Stdout = stdout
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
