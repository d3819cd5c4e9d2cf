package migrate

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

func have(releases ...string) binaries.Set {
	s := binaries.Set{Dir: "/bin"}
	for _, r := range releases {
		s = s.With(binaries.Binary{Path: "/bin/etcd-" + r, Release: parse(r + "/etcd3").Release})
	}
	return s
}

var all = have("2.2.5", "2.3.8", "3.0.17", "3.1.20", "3.2.32", "3.3.27", "3.4.31", "3.5.35", "3.6.16", "3.7.3")

func parse(s string) versionfile.Version {
	v, err := versionfile.Parse(s)
	if err != nil {
		panic(err)
	}
	return v
}

// at is the state of a member with some keys in the store that its version names.
func at(version string, change ...func(*State)) State {
	st := State{DataDir: "/data", Presence: Present, Version: parse(version), VersionFile: new(parse(version))}
	if st.Version.Storage == versionfile.Etcd2 {
		st.V2 = V2State{Keys: 10, Unconverted: 10, Index: 20}
	} else {
		st.V3 = V3State{Keys: 10, Revision: 20}
	}
	for _, c := range change {
		c(&st)
	}
	return st
}

func steps(p Plan) []string {
	var out []string
	for _, s := range p.Steps {
		by := ""
		if s.Binary != "" {
			by = " by " + strings.TrimPrefix(s.Binary, "/bin/")
		}
		out = append(out, fmt.Sprintf("%s %s%s", s.Kind, s.To, by))
	}
	return out
}

func TestPlan(t *testing.T) {
	for name, tc := range map[string]struct {
		state  State
		target string
		have   binaries.Set
		want   []string
	}{
		"the whole way": {at("2.2.1/etcd2"), "3.7.3/etcd3", all, []string{
			"upgrade 2.3.8/etcd2 by etcd-2.3.8",
			"upgrade 3.0.17/etcd2 by etcd-3.0.17",
			"convert 3.0.17/etcd3",
			"empty-v2 3.0.17/etcd3 by etcd-3.0.17",
			"upgrade 3.1.20/etcd3 by etcd-3.1.20",
			"upgrade 3.2.32/etcd3 by etcd-3.2.32",
			"upgrade 3.3.27/etcd3 by etcd-3.3.27",
			"upgrade 3.4.31/etcd3 by etcd-3.4.31",
			"upgrade 3.5.35/etcd3 by etcd-3.5.35",
			"upgrade 3.6.16/etcd3 by etcd-3.6.16",
			"upgrade 3.7.3/etcd3 by etcd-3.7.3",
		}},
		"nothing to do": {at("3.7.3/etcd3"), "3.7.3/etcd3", binaries.Set{}, nil},
		"only the patch release differs": {at("3.7.1/etcd3"), "3.7.3/etcd3", binaries.Set{}, []string{
			"record 3.7.3/etcd3",
		}},
		"an older patch release": {at("3.7.3/etcd3"), "3.7.1/etcd3", binaries.Set{}, []string{
			"record 3.7.1/etcd3",
		}},
		"only the storage differs": {at("3.0.17/etcd2"), "3.0.17/etcd3", have("3.0.17"), []string{
			"convert 3.0.17/etcd3",
			"empty-v2 3.0.17/etcd3 by etcd-3.0.17",
		}},
		"the v2 store is emptied by the next etcd if the data's own is not there": {
			at("3.1.20/etcd2"), "3.3.27/etcd3", have("3.2.32", "3.3.27"), []string{
				"convert 3.1.20/etcd3",
				"upgrade 3.2.32/etcd3 by etcd-3.2.32",
				"empty-v2 3.2.32/etcd3 by etcd-3.2.32",
				"upgrade 3.3.27/etcd3 by etcd-3.3.27",
			}},
		"the v2 store stays in use": {at("2.2.5/etcd2"), "3.1.20/etcd2", all, []string{
			"upgrade 2.3.8/etcd2 by etcd-2.3.8",
			"upgrade 3.0.17/etcd2 by etcd-3.0.17",
			"upgrade 3.1.20/etcd2 by etcd-3.1.20",
		}},
		"the newest patch on the way, the exact one at the end": {
			at("3.4.3/etcd3"), "3.6.5/etcd3", have("3.5.30", "3.5.35", "3.6.5", "3.6.16"), []string{
				"upgrade 3.5.35/etcd3 by etcd-3.5.35",
				"upgrade 3.6.5/etcd3 by etcd-3.6.5",
			}},
		"not stopped cleanly": {at("3.4.3/etcd3", func(st *State) { st.Log.PendingV3 = 3 }), "3.5.35/etcd3", all, []string{
			"replay 3.4.31/etcd3 by etcd-3.4.31",
			"upgrade 3.5.35/etcd3 by etcd-3.5.35",
		}},
		"not stopped cleanly, and its etcd is not there": {
			at("3.4.3/etcd3", func(st *State) { st.Log.Uncommitted = 1 }), "3.5.35/etcd3", have("3.5.35"), []string{
				"upgrade 3.5.35/etcd3 by etcd-3.5.35",
			}},
		"killed between the conversion and the emptying": {
			at("3.0.17/etcd3", func(st *State) { st.V2 = V2State{Keys: 10, TopLevel: 2} }), "3.1.20/etcd3", all, []string{
				"empty-v2 3.0.17/etcd3 by etcd-3.0.17",
				"upgrade 3.1.20/etcd3 by etcd-3.1.20",
			}},
		"back by one minor": {at("3.6.1/etcd3"), "3.5.35/etcd3", all, []string{
			"downgrade 3.5.35/etcd3 by etcd-3.5.35",
		}},
		"all the way back": {at("3.7.3/etcd3"), "2.2.5/etcd2", have("3.0.17", "2.2.5"), []string{
			"downgrade 3.6.0/etcd3", "downgrade 3.5.0/etcd3", "downgrade 3.4.0/etcd3", "downgrade 3.3.0/etcd3",
			"downgrade 3.2.0/etcd3", "downgrade 3.1.0/etcd3", "downgrade 3.0.17/etcd3 by etcd-3.0.17",
			"convert-back 3.0.17/etcd2",
			"downgrade 2.3.0/etcd2", "downgrade 2.2.5/etcd2 by etcd-2.2.5",
		}},
		"back to the v2 store of a 3.x": {at("3.6.1/etcd3"), "3.5.35/etcd2", all, []string{
			"downgrade 3.5.35/etcd3 by etcd-3.5.35",
			"convert-back 3.5.35/etcd2",
		}},
		"back after a kill in the conversion": {
			at("3.0.17/etcd3", func(st *State) { st.V2 = V2State{Keys: 10, TopLevel: 2} }), "2.3.8/etcd2", all, []string{
				"convert-back 3.0.17/etcd2",
				"downgrade 2.3.8/etcd2 by etcd-2.3.8",
			}},
		"back after a kill": {at("3.6.1/etcd3", func(st *State) { st.Log.PendingV3 = 1 }), "3.5.35/etcd3", all, []string{
			"replay 3.6.16/etcd3 by etcd-3.6.16",
			"downgrade 3.5.35/etcd3 by etcd-3.5.35",
		}},
		"empty directories in the v2 store": {
			at("3.5.35/etcd3", func(st *State) { st.V2 = V2State{TopLevel: 1, EmptyDirs: 1} }), "3.6.16/etcd3", all, []string{
				"empty-v2 3.5.35/etcd3 by etcd-3.5.35",
				"upgrade 3.6.16/etcd3 by etcd-3.6.16",
			}},
		"what v3 does not hold stays where it is below 3.6": {
			at("3.4.31/etcd3", func(st *State) { st.V2 = V2State{Keys: 10, TopLevel: 2, Unconverted: 1} }), "3.5.35/etcd3", all, []string{
				"upgrade 3.5.35/etcd3 by etcd-3.5.35",
			}},
		"fresh":                       {State{Presence: Fresh}, "3.7.3/etcd3", binaries.Set{}, []string{"record 3.7.3/etcd3"}},
		"fresh, and recorded already": {State{Presence: Fresh, VersionFile: new(parse("3.7.3/etcd3")), firstStart: true}, "3.7.3/etcd3", binaries.Set{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := MakePlan(tc.state, parse(tc.target), tc.have, LeftoversRefuse)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, steps(p)); diff != "" {
				t.Error(diff)
			}
			from := tc.state.Version
			for i, s := range p.Steps {
				if s.From != from {
					t.Errorf("step %d starts at %s, and the one before it ended at %s", i+1, s.From, from)
				}
				if s.Why == "" {
					t.Errorf("step %d does not say why", i+1)
				}
				from = s.To
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		state  State
		target string
		have   binaries.Set
		want   []string // of the error
	}{
		"a target it does not know":     {at("3.6.1/etcd3"), "3.9.1/etcd3", all, []string{"3.9.1", "2.2 to 3.7"}},
		"data it does not know":         {at("2.1.0/etcd2"), "3.7.3/etcd3", all, []string{"2.1.0", "by the etcds of its own time"}},
		"etcd3 on 2.x":                  {at("2.2.1/etcd2"), "2.3.8/etcd3", all, []string{"no v3 store"}},
		"etcd2 on 3.6":                  {at("3.5.1/etcd2"), "3.6.16/etcd2", all, []string{"no longer serves the v2 store"}},
		"a minor that is not there":     {at("3.2.1/etcd3"), "3.5.35/etcd3", have("3.3.27", "3.5.35"), []string{"needs an etcd 3.4", "etcd 3.3.27, 3.5.35 in /bin", "--bin-dir"}},
		"a patch that is not there":     {at("3.4.1/etcd3"), "3.5.34/etcd3", all, []string{"needs etcd 3.5.34"}},
		"no etcd to empty the v2 store": {at("3.5.1/etcd2"), "3.6.16/etcd3", have("3.6.16"), []string{"needs an etcd 3.5"}},
		"a conversion that would miss what is only in the log": {
			at("3.1.0/etcd2", func(st *State) { st.Log.Uncommitted = 1 }), "3.2.32/etcd3", have("3.2.32"), []string{"needs an etcd 3.1"}},
		"keys in the v2 store that v3 does not hold": {
			at("3.4.31/etcd3", func(st *State) { st.V2 = V2State{Keys: 10, TopLevel: 2, Unconverted: 3} }), "3.6.16/etcd3", all,
			[]string{"10 keys", "3 of them not in the v3 store", "--enable-v2", "--v2-leftovers=discard"}},
		"users in the v2 store": {
			at("3.4.31/etcd3", v2Users), "3.6.16/etcd3", all,
			[]string{"1 user and 1 role", "etcdctl user add", "--v2-leftovers=discard"}},
		"a version.txt without a member, even that of the target": {
			State{DataDir: "/data", Presence: Fresh, VersionFile: new(parse("3.6.16/etcd3"))}, "3.6.16/etcd3", all,
			[]string{"/data holds no member's data", "remove version.txt"}},
		"a version.txt without a member": {
			State{DataDir: "/data", Presence: Fresh, VersionFile: new(parse("3.5.1/etcd3"))}, "3.6.16/etcd3", all,
			[]string{"/data holds no member's data", "3.5.1/etcd3", "remove version.txt"}},
		"what the data itself forbids": {
			at("3.4.31/etcd3", func(st *State) { st.block("db-missing", "the db is gone", "restore a backup") }), "3.6.16/etcd3", all,
			[]string{"the db is gone", "db-missing", "restore a backup"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := MakePlan(tc.state, parse(tc.target), tc.have, LeftoversRefuse)
			var e *Error
			if !errors.As(err, &e) || e.Kind != Refused || e.Hint == "" {
				t.Fatalf("got %v, want a refusal with a hint", err)
			}
			for _, want := range append(tc.want, "nothing has been changed") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func v2Users(st *State) {
	st.V2.Auth, st.V2.Users, st.V2.Roles = 2, []string{"root"}, []string{"guest"}
}

// TestPlanDiscards: what is nowhere else goes only if asked, and then the plan counts it.
func TestPlanDiscards(t *testing.T) {
	keys := func(st *State) {
		st.V2 = V2State{Keys: 10, TopLevel: 2, Unconverted: 3, Examples: []string{"/a", "/b"}}
	}
	for name, tc := range map[string]struct {
		state  State
		target string
		want   []string
		says   []string
	}{
		"keys": {at("3.4.31/etcd3", keys), "3.6.16/etcd3",
			[]string{"empty-v2 3.4.31/etcd3 by etcd-3.4.31", "upgrade 3.5.35/etcd3 by etcd-3.5.35", "upgrade 3.6.16/etcd3 by etcd-3.6.16"},
			[]string{"deleted from the v2 store though it is nowhere else: 3 keys; "}},
		"keys, below 3.6": {at("3.4.31/etcd3", keys), "3.4.31/etcd3", []string{"empty-v2 3.4.31/etcd3 by etcd-3.4.31"}, []string{"3 keys"}},
		"users": {at("3.5.1/etcd3", v2Users), "3.6.16/etcd3",
			[]string{"empty-v2 3.5.35/etcd3 by etcd-3.5.35", "upgrade 3.6.16/etcd3 by etcd-3.6.16"},
			[]string{"1 user and 1 role"}},
		"users, with a conversion": {at("3.5.1/etcd2", v2Users), "3.6.16/etcd3",
			[]string{"convert 3.5.1/etcd3", "empty-v2 3.5.35/etcd3 by etcd-3.5.35", "upgrade 3.6.16/etcd3 by etcd-3.6.16"},
			[]string{"1 user and 1 role"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := MakePlan(tc.state, parse(tc.target), all, LeftoversDiscard)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, steps(p)); diff != "" {
				t.Error(diff)
			}
			for _, s := range p.Steps {
				if s.Kind != StepEmptyV2 {
					continue
				}
				for _, want := range tc.says {
					if s.Discards == nil || !strings.Contains(s.Why, want) {
						t.Errorf("%q with %+v does not say %q", s.Why, s.Discards, want)
					}
				}
			}
		})
	}
	enabled := at("3.5.1/etcd3", v2Users, func(st *State) { st.V2.AuthEnabled = true })
	_, err := MakePlan(enabled, parse("3.6.16/etcd3"), all, LeftoversDiscard)
	if KindOf(err) != Refused || !strings.Contains(err.Error(), "auth disable") || !strings.Contains(err.Error(), "--enable-v2") {
		t.Errorf("with v2 authentication enabled: %v", err)
	}
}

// TestPlanSettles: the data's own etcd runs once more where the next one would stumble over what it has left.
func TestPlanSettles(t *testing.T) {
	replay := func(v string) []string { return []string{"replay " + v + "/etcd3 by etcd-" + v} }
	for name, tc := range map[string]struct {
		state  State
		target string
		first  []string // nil for an upgrade at once
	}{
		"a 2.x snapshot before 3.5": {at("3.4.31/etcd3", func(st *State) { st.Log.FirstVersion = "2.3.0" }), "3.5.35/etcd3", replay("3.4.31")},
		"a 2.x snapshot at 3.5":     {at("3.5.1/etcd3", func(st *State) { st.Log.FirstVersion = "2.3.0" }), "3.6.16/etcd3", replay("3.5.35")},
		"a 2.x snapshot before 3.4": {at("3.3.1/etcd3", func(st *State) { st.Log.FirstVersion = "2.3.0" }), "3.5.35/etcd3", nil},
		"a 3.x snapshot":            {at("3.4.31/etcd3", func(st *State) { st.Log.FirstVersion = "3.4.0" }), "3.5.35/etcd3", nil},
		"a db behind at 3.0": {at("3.0.17/etcd3", func(st *State) { st.V3.Present, st.Log.SnapshotIndex = true, 9 }),
			"3.1.20/etcd3", replay("3.0.17")},
		"SYNC before 3.6":       {at("3.5.1/etcd3", func(st *State) { st.Log.Foreign = 1 }), "3.6.16/etcd3", replay("3.5.35")},
		"publishing before 3.6": {at("3.5.1/etcd3", v2Entries), "3.6.16/etcd3", nil},
		"publishing before 3.7": {at("3.6.5/etcd3", v2Entries), "3.7.3/etcd3", replay("3.6.16")},
		"a zombie before 3.6": {at("3.5.1/etcd3", func(st *State) {
			st.Members, st.V3.Members = []Member{{ID: "a"}}, []Member{{ID: "a"}, {ID: "b"}}
		}), "3.6.16/etcd3", replay("3.5.35")},
		"a learner before 3.6": {at("3.5.1/etcd3", func(st *State) {
			st.Members, st.V3.Members = []Member{{ID: "a"}}, []Member{{ID: "a", Learner: true}}
		}), "3.6.16/etcd3", replay("3.5.35")},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := MakePlan(tc.state, parse(tc.target), all, LeftoversRefuse)
			if err != nil {
				t.Fatal(err)
			}
			got := steps(p)
			if tc.first == nil && strings.HasPrefix(got[0], "replay") || tc.first != nil && got[0] != tc.first[0] {
				t.Errorf("begins with %s, want %v", got[0], tc.first)
			}
		})
	}
	_, err := MakePlan(at("3.6.5/etcd3", v2Entries), parse("3.7.3/etcd3"), have("3.7.3"), LeftoversRefuse)
	if KindOf(err) != Refused || !strings.Contains(err.Error(), "needs an etcd 3.6") {
		t.Errorf("without the etcd that settles: %v", err)
	}
}

func v2Entries(st *State) { st.Log.V2Entries = map[string]int{"PUT": 1} }

// TestPlanFromEverywhere checks what must hold for every pair of minors: one minor at a time, and version.txt at the
// target in the end.
func TestPlanFromEverywhere(t *testing.T) {
	minors := versionfile.Minors()
	for i, from := range minors {
		for _, to := range minors[i:] {
			bin, _ := all.Newest(to)
			target := versionfile.Version{Release: bin.Release, Storage: to.Storage()}
			st := at(fmt.Sprintf("%s.1/%s", from, from.Storage()))
			p, err := MakePlan(st, target, all, LeftoversRefuse)
			if err != nil {
				t.Errorf("%s to %s: %v", from, to, err)
				continue
			}
			minor, version := from, st.Version
			for _, s := range p.Steps {
				if next, _ := minor.Next(); s.To.Minor() != minor && s.To.Minor() != next {
					t.Errorf("%s to %s: step %v leaves a minor out", from, to, s)
				}
				minor, version = s.To.Minor(), s.To
			}
			if version != target {
				t.Errorf("%s to %s: ends at %s", from, to, version)
			}
		}
	}
}

func TestResolveTarget(t *testing.T) {
	for in, want := range map[string]string{
		"3.7": "3.7.3/etcd3", "3.7.1": "3.7.1/etcd3", "2.3": "2.3.8/etcd2", "3.0": "3.0.17/etcd3",
	} {
		if got, err := ResolveTarget(in, "", all); err != nil || got != parse(want) {
			t.Errorf("ResolveTarget(%q) = %v, %v; want %s", in, got, err, want)
		}
	}
	if got, err := ResolveTarget("3.1", "etcd2", all); err != nil || got != parse("3.1.20/etcd2") {
		t.Errorf("with a storage: %v, %v", got, err)
	}
	for in, want := range map[string]string{
		"": "neither a minor", "latest": "neither a minor", "3": "neither a minor", "3.9": "not a target this program knows",
	} {
		if _, err := ResolveTarget(in, "", all); err == nil || !strings.Contains(err.Error(), want) || KindOf(err) != Refused {
			t.Errorf("ResolveTarget(%q): %v", in, err)
		}
	}
	if _, err := ResolveTarget("3.6", "", have("3.7.3")); err == nil || !strings.Contains(err.Error(), "etcd 3.7.3 in /bin") {
		t.Errorf("without the binary: %v", err)
	}
	if _, err := ResolveTarget("3.6", "etcd4", all); err == nil || !strings.Contains(err.Error(), "etcd2, etcd3") {
		t.Errorf("with an unknown storage: %v", err)
	}
}

// TestPlanOfSeveral: nothing that only a member alone can do, and every etcd that the members need to agree.
func TestPlanOfSeveral(t *testing.T) {
	several := func(st *State) {
		st.Members = []Member{{ID: "1"}, {ID: "2"}, {ID: "3"}}
		st.Member = st.Members[0]
		st.Log.Uncommitted = 2
	}
	uncompared := func(st *State) { st.uncompared = true }
	notUTF8 := func(st *State) { st.V2.NotUTF8 = 1 }
	for name, tc := range map[string]struct {
		state  State
		target string
		want   []string
	}{
		"up": {at("3.5.35/etcd3", several), "3.7.3/etcd3", []string{
			"upgrade 3.6.16/etcd3 by etcd-3.6.16", "upgrade 3.7.3/etcd3 by etcd-3.7.3",
		}},
		"etcd2": {at("2.3.8/etcd2", several), "3.0.17/etcd3", []string{
			"upgrade 3.0.17/etcd2 by etcd-3.0.17", "convert 3.0.17/etcd3 by etcd-3.0.17", "empty-v2 3.0.17/etcd3 by etcd-3.0.17",
		}},
		"back": {at("3.7.3/etcd3", several), "3.5.35/etcd3", []string{
			"replay 3.7.3/etcd3 by etcd-3.7.3", "downgrade 3.6.16/etcd3", "downgrade 3.5.35/etcd3 by etcd-3.5.35",
		}},
		"back, agreed": {at("3.7.3/etcd3", several, func(st *State) { st.left = true }), "3.6.16/etcd3", []string{
			"downgrade 3.6.16/etcd3 by etcd-3.6.16",
		}},
		"at the target, not compared":           {at("3.7.3/etcd3", several, uncompared), "3.7.3/etcd3", []string{"replay 3.7.3/etcd3 by etcd-3.7.3"}},
		"at another patch, not compared":        {at("3.7.1/etcd3", several, uncompared), "3.7.3/etcd3", []string{"replay 3.7.3/etcd3 by etcd-3.7.3"}},
		"before the target, not compared":       {at("3.6.16/etcd3", several, uncompared), "3.7.3/etcd3", []string{"upgrade 3.7.3/etcd3 by etcd-3.7.3"}},
		"bytes that are not UTF-8, and no etcd": {at("2.2.1/etcd2", several, notUTF8), "2.2.5/etcd2", []string{"record 2.2.5/etcd2"}},
		"one that cannot compare":               {at("3.3.27/etcd3", several, uncompared), "3.3.27/etcd3", nil},
	} {
		p, err := MakePlan(tc.state, parse(tc.target), all, LeftoversRefuse)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(tc.want, steps(p)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for name, tc := range map[string]struct {
		state  State
		target string
		have   binaries.Set
	}{
		"no etcd to agree with":    {at("3.7.3/etcd3", several), "3.6.16/etcd3", have("3.6.16")},
		"no etcd to go back to":    {at("3.7.3/etcd3", several), "3.6.16/etcd3", have("3.7.3")},
		"bytes that are not UTF-8": {at("2.2.1/etcd2", several, notUTF8), "3.0.17/etcd3", all},
		"none to convert with":     {at("3.3.27/etcd2", several), "3.4.31/etcd3", have("3.4.31")},
	} {
		if _, err := MakePlan(tc.state, parse(tc.target), tc.have, LeftoversRefuse); KindOf(err) != Refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}
