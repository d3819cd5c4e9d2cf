package migrate

import (
	"os"
	"strings"
	"testing"

	"github.com/etcd-migrate/etcd-migrate/binaries"
)

// TestBadReleases: none makes a step between, and the reason is told; a target is the user's choice, and is warned of.
func TestBadReleases(t *testing.T) {
	for bad, says := range map[string][]string{
		"3.3.21": {"etcd#11918", "etcd-3.3.25"}, "3.3.23": {"etcd#12144"}, "3.3.24": {"etcd#12144"},
		"3.4.8": {"etcd#11918", "etcd-3.4.13"}, "3.4.10": {"etcd#12144"}, "3.4.11": {"etcd#12144"},
		"3.5.0": {"etcd#13766"}, "3.5.2": {"etcd#13766"}, "3.5.3": {"etcd#20967"}, "3.5.25": {"etcd#20967", "etcd-3.5.26 or a newer one of that minor into /bin"},
		"3.6.0": {"etcd#20496"}, "3.6.4": {"etcd#20496", "etcd-3.6.5"},
		"3.3.22": nil, "3.4.9": nil, "3.4.13": nil, "3.5.26": nil, "3.6.5": nil,
	} {
		target := parse(bad + "/etcd3")
		with := all
		for _, b := range all.Binaries {
			if b.Release.Minor() == target.Minor() {
				with = binaries.Set{Dir: all.Dir}
				for _, other := range all.Binaries {
					if other != b {
						with.Binaries = append(with.Binaries, other)
					}
				}
			}
		}
		with = with.With(binaries.Binary{Path: "/bin/etcd-" + bad, Release: target.Release})
		_, err := MakePlan(at("3.2.32/etcd3"), parse("3.7.3/etcd3"), with, LeftoversRefuse)
		if (err == nil) != (says == nil) || err != nil && KindOf(err) != Refused {
			t.Errorf("through %s: %v", bad, err)
		}
		for _, w := range append(says, bad) {
			if err != nil && !strings.Contains(err.Error(), w) {
				t.Errorf("through %s: %q does not say %q", bad, err, w)
			}
		}
		st := at("3.2.32/etcd3")
		if _, err := MakePlan(st, target, with, LeftoversRefuse); err != nil {
			t.Errorf("to %s: %v", bad, err)
		}
		if st.noteTarget(target); (len(st.Problems) == 0) != (says == nil) {
			t.Errorf("to %s: the notes are %v", bad, st.Problems)
		}
	}
	if contributing, err := os.ReadFile("../CONTRIBUTING.md"); err != nil || !strings.Contains(strings.ReplaceAll(string(contributing), "\n", " "),
		"3.3.21, 3.3.23, 3.3.24, 3.4.8, 3.4.10, 3.4.11, 3.5.0 to 3.5.25 or 3.6.0 to 3.6.4") {
		t.Errorf("CONTRIBUTING.md has another list: %v", err)
	}
}
