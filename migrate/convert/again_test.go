package convert

import (
	"errors"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// remembers makes a conversion note what it makes, as a journal does: the last one, and the one that it replaces.
func remembers(p *Params, fail *error) {
	p.Publish = func(made Made, replaces *Made) error {
		p.Earlier = []Made{made}
		if replaces != nil {
			p.Earlier = append(p.Earlier, *replaces)
		}
		return *fail
	}
}

// TestAgain converts, has the v2 store changed, and converts again, which is killed before the new db takes its place: the one
// after that still knows the first one's.
func TestAgain(t *testing.T) {
	v2 := tree(t, 10, 10, 3)
	p := params(t, v2)
	var fail error
	remembers(&p, &fail)
	_, err := ToV3(t.Context(), p)
	must(t, err)
	must(t, v2.ApplyV2(put("/since", "1")))
	fail = errors.New("killed")
	if _, err := ToV3(t.Context(), p); !errors.Is(err, fail) {
		t.Fatalf("published: %v", err)
	}
	onlyDB(t, p)
	must(t, v2.ApplyV2(put("/again", "1")))
	fail = nil
	report, err := ToV3(t.Context(), p)
	must(t, err)
	if len(report.Lost) > 0 || report.Records != 12 {
		t.Errorf("%+v", report)
	}
	p.Earlier = nil
	must(t, v2.ApplyV2(put("/unknown", "1")))
	if problems, err := Check(p); err != nil || len(problems) != 1 || problems[0].Loss != LossV3Keys {
		t.Errorf("without what was made before: %+v, %v", problems, err)
	}
}

// TestAgainRevision: what has become of the first conversion's db meanwhile raises the revision that the second one goes on from,
// but not where the other members of a cluster would go on from another one.
func TestAgainRevision(t *testing.T) {
	for name, several := range map[string]bool{"single": false, "several": true} {
		t.Run(name, func(t *testing.T) {
			v2 := tree(t, 10, 10, 0)
			p := params(t, v2)
			p.Several = several
			var fail error
			remembers(&p, &fail)
			first, err := ToV3(t.Context(), p)
			must(t, err)
			edit(t, p.DB, func(tx *bolt.Tx) error { // a key that came and went
				key := append(revision(first.Revision+30, 0), 't')
				return tx.Bucket([]byte("key")).Put(key, []byte(v3Key(0, "gone", 0)[string(revision(0, 0))]))
			})
			must(t, v2.ApplyV2(put("/since", "1")))
			want := first.Revision + 30
			if several {
				want = int64(v2.Index())
			}
			if report, err := ToV3(t.Context(), p); err != nil || report.Revision != want {
				t.Errorf("revision %d, %v, want %d", report.Revision, err, want)
			}
		})
	}
}

// TestNotAgain: a store that users have written to is none that a conversion has made, also if all of its keys have leases, and
// none of those of the v2 store would stay.
func TestNotAgain(t *testing.T) {
	v2 := tree(t, 50, 10, 1)
	p := params(t, v2)
	fail := errors.New("killed")
	remembers(&p, &fail)
	if _, err := ToV3(t.Context(), p); !errors.Is(err, fail) {
		t.Fatalf("published: %v", err)
	}
	makeDB(t, p.DB, map[string]map[string]string{"key": v3Key(3, "theirs", 77)})
	if problems, err := Check(p); err != nil || len(problems) != 1 || problems[0].Loss != LossV3Keys {
		t.Errorf("%+v, %v", problems, err)
	}
}

func edit(t *testing.T, path string, do func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	must(t, err)
	must(t, db.Update(do))
	must(t, db.Close())
}
