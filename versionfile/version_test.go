package versionfile

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	etcd3 := func(s string) Version {
		r, err := ParseRelease(s)
		if err != nil {
			t.Fatal(err)
		}
		return Version{r, Etcd3}
	}
	for in, want := range map[string]Version{
		"3.0.17/etcd3":      etcd3("3.0.17"),
		"3.0.17/etcd3\n":    etcd3("3.0.17"),
		" 3.0.17/etcd3 \n":  etcd3("3.0.17"),
		"2.2.1":             Default,
		"2.2.1\n":           Default,
		"2.2.1/etcd2":       Default,
		"3.6.0-rc.3/etcd3":  etcd3("3.6.0-rc.3"),
		"3.10.100/etcd3":    etcd3("3.10.100"),
		"3.5.0-alpha/etcd3": etcd3("3.5.0-alpha"),
	} {
		got, err := Parse(in)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "\n", "garbage", "3.0", "3", "3.0.17/", "3.0.17/etcd4", "3.0.17/etcd3/x", "/etcd3", "v3.0.17/etcd3",
		"3.0.17.1/etcd3", "3.0.x/etcd3", "3.0.17 /etcd3", "-1.0.0", "3.0.17+build/etcd3", "3.0.17/ETCD3",
		"99999999999999999999.0.0", "\x00\x00\x00", "3.0.17/etcd3\x00",
	} {
		if got, err := Parse(in); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", in, got)
		}
	}
}

func TestReleaseOrder(t *testing.T) {
	ordered := []string{"2.2.1", "2.2.5", "2.3.8", "3.0.17", "3.4.9", "3.4.10", "3.6.0-alpha.0", "3.6.0-rc.1", "3.6.0", "3.6.1", "3.10.0"}
	for i, a := range ordered {
		for j, b := range ordered {
			ra, err := ParseRelease(a)
			if err != nil {
				t.Fatal(err)
			}
			rb, err := ParseRelease(b)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := sign(ra.Compare(rb)), sign(i-j); got != want {
				t.Errorf("%s.Compare(%s) = %d, want %d", a, b, got, want)
			}
			if (ra == rb) != (i == j) {
				t.Errorf("%s == %s is %v", a, b, ra == rb)
			}
		}
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestMinors(t *testing.T) {
	all := Minors()
	for i, m := range all {
		if !m.Known() {
			t.Errorf("%s is not known", m)
		}
		back, err := ParseMinor(m.String())
		if err != nil || back != m {
			t.Errorf("ParseMinor(%q) = %v, %v", m.String(), back, err)
		}
		next, ok := m.Next()
		if last := i == len(all)-1; ok == last || (!last && next != all[i+1]) {
			t.Errorf("%s.Next() = %v, %v", m, next, ok)
		}
	}
	if all[0].Previous() != all[0] || all[1].Previous() != all[0] || (Minor{3, 0}).Previous() != (Minor{2, 3}) {
		t.Error("Previous is wrong")
	}
	if (Minor{2, 1}).Known() || (Minor{4, 0}).Known() {
		t.Error("a minor without a release line is known")
	}
	for _, s := range []string{"", "3", "3.4.5", "3.4-rc.1", "x.y", "3.4 "} {
		if m, err := ParseMinor(s); err == nil {
			t.Errorf("ParseMinor(%q) = %v, want an error", s, m)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"3.0.17/etcd3", "2.2.1", "3.6.0-rc.3/etcd3\n", "", "garbage/etcd2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(v.String())
		if err != nil || again != v {
			t.Fatalf("%q reads as %v, which reads as %v, %v", s, v, again, err)
		}
		if strings.ContainsAny(v.String(), "\n \x00") {
			t.Fatalf("%q reads as %q", s, v.String())
		}
	})
}
