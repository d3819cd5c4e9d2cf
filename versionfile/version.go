// Package versionfile knows what an etcd version is and how it is kept in a data directory's version.txt.
//
// The file was introduced by the etcd image of Kubernetes 1.6 and is read and written here exactly as that image's tools
// did: one line without a newline, for example
//
//	3.0.17/etcd3
//
// The part before the slash is the etcd release that last made a step on the data, the part after it says which API's
// store holds the user's keys. See docs/formats/version.txt.md.
package versionfile

import (
	"cmp"
	"fmt"
	"strings"

	goversion "github.com/hashicorp/go-version"
)

// Storage says which API's store holds the user's keys.
type Storage string

// The two storages. No other values are valid in a version.txt.
const (
	Etcd2 Storage = "etcd2"
	Etcd3 Storage = "etcd3"
)

// ParseStorage accepts "etcd2" and "etcd3".
func ParseStorage(s string) (Storage, error) {
	switch Storage(s) {
	case Etcd2, Etcd3:
		return Storage(s), nil
	}
	return "", fmt.Errorf("storage %q is not one of etcd2, etcd3", s)
}

// Minor is an etcd minor release line, 2.2 to 3.7. Etcd data moves one minor at a time.
type Minor struct {
	Major, Minor int
}

// String gives "3.4".
func (m Minor) String() string { return fmt.Sprintf("%d.%d", m.Major, m.Minor) }

// Compare is negative, zero or positive as m is older than, equal to or newer than o.
func (m Minor) Compare(o Minor) int {
	return cmp.Or(cmp.Compare(m.Major, o.Major), cmp.Compare(m.Minor, o.Minor))
}

// Less reports whether m is older than o.
func (m Minor) Less(o Minor) bool { return m.Compare(o) < 0 }

// AtLeast reports whether m is not older than major.minor.
func (m Minor) AtLeast(major, minor int) bool { return m.Compare(Minor{major, minor}) >= 0 }

// Storage is the storage that a cluster of this minor uses by default: etcd3 from 3.0 on.
func (m Minor) Storage() Storage {
	if m.Major >= 3 {
		return Etcd3
	}
	return Etcd2
}

// lines are the minor release lines of etcd that exist between the oldest and the newest one that this program knows.
var lines = []Minor{
	{2, 2}, {2, 3},
	{3, 0}, {3, 1}, {3, 2}, {3, 3}, {3, 4}, {3, 5}, {3, 6}, {3, 7},
}

// Minors gives all known minors, oldest first.
func Minors() []Minor { return append([]Minor(nil), lines...) }

// Known reports whether this program knows how to handle data of this minor.
func (m Minor) Known() bool { return m.index() >= 0 }

// Next is the minor that follows m, and whether there is a known one.
func (m Minor) Next() (Minor, bool) {
	i := m.index()
	if i < 0 || i+1 == len(lines) {
		return Minor{}, false
	}
	return lines[i+1], true
}

// Previous is the known minor before m, or m itself if there is none.
func (m Minor) Previous() Minor {
	if i := m.index(); i > 0 {
		return lines[i-1]
	}
	return m
}

func (m Minor) index() int {
	for i, l := range lines {
		if l == m {
			return i
		}
	}
	return -1
}

// ParseMinor reads "3.4". A patch number is an error.
func ParseMinor(s string) (Minor, error) {
	v, err := parse(s)
	if err != nil {
		return Minor{}, err
	}
	if strings.Count(s, ".") != 1 || v.Prerelease() != "" {
		return Minor{}, fmt.Errorf("%q is not a minor version such as 3.4", s)
	}
	return release(v).Minor(), nil
}

// Release is one etcd release, for example 3.5.35 or 3.6.0-rc.3. Two releases are the same if they are ==.
type Release struct {
	Line  Minor
	Patch int
	Pre   string // "rc.3" in 3.6.0-rc.3, else empty
}

// ParseRelease reads major.minor.patch, with an optional pre-release.
func ParseRelease(s string) (Release, error) {
	v, err := parse(s)
	if err != nil {
		return Release{}, err
	}
	core, _, _ := strings.Cut(s, "-")
	if strings.Count(core, ".") != 2 {
		return Release{}, fmt.Errorf("%q is not a version such as 3.5.35: it needs major, minor and patch", s)
	}
	return release(v), nil
}

func parse(s string) (*goversion.Version, error) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return nil, fmt.Errorf("%q is not a version such as 3.5.35", s)
	}
	v, err := goversion.NewSemver(s)
	if err != nil || v.Metadata() != "" || len(v.Segments()) > 3 {
		return nil, fmt.Errorf("%q is not a version such as 3.5.35", s)
	}
	return v, nil
}

func release(v *goversion.Version) Release {
	n := v.Segments()
	return Release{Line: Minor{n[0], n[1]}, Patch: n[2], Pre: v.Prerelease()}
}

// Minor is the minor release line that r belongs to.
func (r Release) Minor() Minor { return r.Line }

// IsZero reports whether r is no release at all.
func (r Release) IsZero() bool { return r == Release{} }

// Compare is negative, zero or positive as r is older than, equal to or newer than o. A pre-release comes before its
// release, as semantic versioning has it.
func (r Release) Compare(o Release) int {
	if c := cmp.Or(r.Minor().Compare(o.Minor()), cmp.Compare(r.Patch, o.Patch)); c != 0 || r.Pre == o.Pre {
		return c
	}
	return goversion.Must(goversion.NewSemver(r.String())).Compare(goversion.Must(goversion.NewSemver(o.String())))
}

// String gives "3.5.35".
func (r Release) String() string {
	s := fmt.Sprintf("%s.%d", r.Line, r.Patch)
	if r.Pre != "" {
		s += "-" + r.Pre
	}
	return s
}

// MarshalText writes r as String does, so that JSON shows "3.5.35".
func (r Release) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (r *Release) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRelease(string(b))
	return err
}

// Version is what a version.txt holds: a release and the storage of the user's keys. Two versions are the same if they
// are ==.
type Version struct {
	Release Release
	Storage Storage
}

// Default is what data is taken for that has no version.txt and says nothing else: the version that Kubernetes shipped
// before the file existed.
var Default = Version{Release{Line: Minor{2, 2}, Patch: 1}, Etcd2}

// Parse reads the content of a version.txt. A missing storage means etcd2, as in the Kubernetes tools, because only
// images from before etcd3 wrote the file without one.
func Parse(s string) (Version, error) {
	number, storage, found := strings.Cut(strings.TrimSpace(s), "/")
	r, err := ParseRelease(number)
	if err != nil {
		return Version{}, err
	}
	v := Version{Release: r, Storage: Etcd2}
	if found {
		if v.Storage, err = ParseStorage(storage); err != nil {
			return Version{}, err
		}
	}
	return v, nil
}

// Minor is the minor release line of the version.
func (v Version) Minor() Minor { return v.Release.Minor() }

// IsZero reports whether v is no version at all.
func (v Version) IsZero() bool { return v == Version{} }

// String gives "3.0.17/etcd3", and nothing for no version at all.
func (v Version) String() string {
	if v.IsZero() {
		return ""
	}
	return v.Release.String() + "/" + string(v.Storage)
}

// MarshalText writes v as String does.
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (v *Version) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*v = Version{}
		return nil
	}
	*v, err = Parse(string(b))
	return err
}
