package pathtest

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"
)

// TestCompare has every kind of difference, and what looks like one and is none.
func TestCompare(t *testing.T) {
	read := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	const between = time.Minute
	end := func(seconds int) time.Time { return read.Add(time.Duration(seconds) * time.Second) }
	plain := Key{Value: "secret", Created: 3, Modified: 5}
	with := func(change func(*Key)) Key {
		k := plain
		change(&k)
		return k
	}
	expires := func(seconds int) Key { return with(func(k *Key) { k.Expiry = end(seconds) }) }
	leased := func(id, ttl int64, seconds int) Key {
		return with(func(k *Key) {
			k.Lease, k.TTL = id, ttl
			if seconds != 0 {
				k.Expiry = end(seconds)
			}
		})
	}
	gone := Key{Created: -1}
	for name, c := range map[string]struct {
		before, after Key
		want          string // in the only difference; empty for none
	}{
		"the same":                             {plain, plain, ""},
		"lost":                                 {plain, gone, "is lost"},
		"new":                                  {gone, plain, "was not there before"},
		"another value":                        {plain, with(func(k *Key) { k.Value = "secret2" }), "another value, of 7 bytes instead of 6"},
		"another value of the same size":       {plain, with(func(k *Key) { k.Value = "sekret" }), "another value"},
		"created":                              {plain, with(func(k *Key) { k.Created = 4 }), "created at 3 and modified at 5, and now at 4 and 5"},
		"modified":                             {plain, with(func(k *Key) { k.Modified = 6 }), "and now at 3 and 6"},
		"TTL ended":                            {expires(30), gone, ""},
		"gone before its TTL ended":            {expires(90), gone, "is lost"},
		"TTL lost":                             {expires(3600), plain, "expires at"},
		"TTL that was not there":               {plain, expires(3600), "expires at"},
		"v2: the same expiry":                  {expires(3600), expires(3600), ""},
		"v2: expires too early":                {expires(3600), expires(3590), "expires at"},
		"v2: expires too late":                 {expires(3600), expires(3600 + 70), "expires at"},
		"v2 to v3: counted anew":               {expires(3600), leased(7, 3600, 3600+50), ""},
		"v2 to v3: too early":                  {expires(3600), leased(7, 3600, 3000), "expires at"},
		"v2 to v3: too late":                   {expires(3600), leased(7, 9999, 9999), "expires at"},
		"v2 to 3.0, which cannot tell":         {expires(3600), leased(7, 0, 0), ""},
		"v3: the same lease":                   {leased(7, 600, 600), leased(7, 600, 640), ""},
		"v3: another lease":                    {leased(7, 600, 600), leased(8, 600, 640), "lease 8 of 600 s instead of 7"},
		"v3: another TTL":                      {leased(7, 600, 600), leased(7, 900, 900), "lease 7 of 900 s instead of 7 of 600 s"},
		"v3: lease lost":                       {leased(7, 600, 600), plain, "lease 0"},
		"v3: lease that was not there":         {plain, leased(7, 600, 600), "expires at"},
		"3.0 to 3.1: the TTL can be told":      {leased(7, 0, 0), leased(7, 600, 600), ""},
		"v3 to v2: expiry from the lease":      {leased(7, 600, 600), expires(640), ""},
		"v3 to v2: too early":                  {leased(7, 600, 600), expires(300), "had a lease of 600 s"},
		"v3 to v2: too late":                   {leased(7, 600, 600), expires(1200), "had a lease of 600 s"},
		"3.0 to v2, of a lease it cannot tell": {leased(7, 0, 0), expires(9999), ""},
	} {
		t.Run(name, func(t *testing.T) {
			side := func(k Key, at time.Time) Content {
				content := Content{Keys: map[string]Key{"/other": plain}, Revision: 9, Read: at}
				if k != gone {
					content.Keys["/k"] = k
				}
				return content
			}
			got := Compare(side(c.before, read), side(c.after, read.Add(between)))
			if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
				t.Errorf("%q, want %q", got, c.want)
			}
			if strings.Contains(strings.Join(got, ""), "secret") || strings.Contains(strings.Join(got, ""), "sekret") {
				t.Errorf("a value is told: %q", got)
			}
		})
	}
}

func TestCompareRevision(t *testing.T) {
	if got := Compare(Content{Revision: 5}, Content{Revision: 4}); len(got) != 1 || got[0] != "the revision has fallen from 5 to 4" {
		t.Errorf("%q", got)
	}
	if got := Compare(Content{Revision: 5}, Content{Revision: 6}); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestCompareNamesTen(t *testing.T) {
	before := Content{Keys: map[string]Key{}}
	for i := range 13 {
		before.Keys[fmt.Sprint(i)] = Key{}
	}
	if got := Compare(before, Content{}); len(got) != 11 || got[10] != "and 3 more" {
		t.Errorf("%q", got)
	}
}

// TestNotices changes real data in each way that a client can, and sees that every change is noticed.
func TestNotices(t *testing.T) {
	s := Serve(t, etcd(t, "3.6"), t.TempDir())
	ctx := t.Context()
	if err := s.FillJSON(ctx, 5); err != nil {
		t.Fatal(err)
	}
	c, err := s.V3()
	if err != nil {
		t.Fatal(err)
	}
	before, err := s.ReadV3(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for key, change := range map[string]func() error{
		"/registry/changed":                   func() error { _, err := c.Put(ctx, "/registry/changed", "2"); return err }, // the same value
		"/registry/large":                     func() error { _, err := c.Delete(ctx, "/registry/large"); return err },
		"/registry/new":                       func() error { _, err := c.Put(ctx, "/registry/new", ""); return err },
		"/registry/events/default/event-1":    func() error { _, err := c.Put(ctx, "/registry/events/default/event-1", `"leased"`); return err },
		"/registry/pods/default/pod-00003":    func() error { _, err := c.Put(ctx, "/registry/pods/default/pod-00003", "x"); return err },
		"/registry/recreated":                 func() error { _, err := c.Delete(ctx, "/registry/recreated"); return err },
		"/registry/events/default/other-expi": func() error { return nil },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		after, err := s.ReadV3(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if diffs := Compare(before, after); (len(diffs) == 1 && strings.Contains(diffs[0], key)) == strings.HasSuffix(key, "-expi") {
			t.Errorf("%s: %q", key, diffs)
		}
		before = after
	}
}

// TestWorkloads reads every workload back from every minor that takes it, and again after a restart and a kill.
func TestWorkloads(t *testing.T) {
	for _, minor := range []string{"2.2", "3.0", "3.4", "3.7"} {
		t.Run(minor, func(t *testing.T) {
			t.Parallel()
			bin, dir := etcd(t, minor), t.TempDir()
			fill, read := (*Server).FillV3, (*Server).ReadV3
			if bin.Release.Line.Major == 2 {
				fill = (*Server).FillV2
				read = func(s *Server, ctx context.Context) (Content, error) { return s.ReadV2(ctx, Hidden...) }
			}
			s := Serve(t, bin, dir)
			if err := fill(s, t.Context(), 5); err != nil {
				t.Fatal(err)
			}
			before, err := read(s, t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if before.Revision == 0 || len(before.Keys) < 20 {
				t.Errorf("%d keys at revision %d", len(before.Keys), before.Revision)
			}
			if err := s.Kill(); err != nil {
				t.Fatal(err)
			}
			s = Serve(t, bin, dir)
			after, err := read(s, t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range Compare(before, after) {
				t.Error(d)
			}
			if err := s.WriteOnce(t.Context()); err != nil {
				t.Error(err)
			}
			written, err := read(s, t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diffs := Compare(after, written); len(diffs) != 1 || !strings.Contains(diffs[0], "/pathtest/written") || written.Revision <= after.Revision {
				t.Errorf("%q, revision %d and then %d", diffs, after.Revision, written.Revision)
			}
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReadPages reads more keys than come in one answer.
func TestReadPages(t *testing.T) {
	s := Serve(t, etcd(t, "3.7"), t.TempDir())
	if err := s.FillJSON(t.Context(), 1200); err != nil {
		t.Fatal(err)
	}
	content, err := s.ReadV3(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pods := 0
	for key := range maps.Keys(content.Keys) {
		if strings.HasPrefix(key, "/registry/pods/") {
			pods++
		}
	}
	if pods != 1200 {
		t.Errorf("%d of 1200 keys were read", pods)
	}
}
