package migrate

import (
	"context"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize/english"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Leftovers says what becomes of keys, users and roles in the v2 store that the v3 store does not have, in data whose
// keys are in the v3 store. Etcd 3.6 and later refuse data with any of them.
type Leftovers string

// The choices. The empty string means LeftoversRefuse.
const (
	LeftoversRefuse  Leftovers = "refuse"
	LeftoversDiscard Leftovers = "discard"
)

// ParseLeftovers reads one of the choices, and takes an empty string for LeftoversRefuse.
func ParseLeftovers(s string) (Leftovers, error) {
	switch l := Leftovers(s); l {
	case "":
		return LeftoversRefuse, nil
	case LeftoversRefuse, LeftoversDiscard:
		return l, nil
	}
	return "", fmt.Errorf("%q is not one of %s, %s", s, LeftoversRefuse, LeftoversDiscard)
}

// Discards counts what is deleted from the v2 store though it is nowhere else.
type Discards struct {
	Keys  int `json:"keys"`
	Users int `json:"users,omitempty"`
	Roles int `json:"roles,omitempty"`
}

func (d Discards) String() string {
	var parts []string
	if d.Keys > 0 {
		parts = append(parts, english.Plural(d.Keys, "key", ""))
	}
	if d.Users+d.Roles > 0 {
		parts = append(parts, english.Plural(d.Users, "user", "")+" and "+english.Plural(d.Roles, "role", "")+" of v2 authentication")
	}
	return strings.Join(parts, ", ")
}

// leftovers is what the v2 store has and the v3 store has not.
func (st State) leftovers() Discards {
	d := Discards{Users: len(st.V2.Users), Roles: len(st.V2.Roles)}
	if st.Version.Storage == versionfile.Etcd3 {
		d.Keys = st.V2.Unconverted
	}
	return d
}

// leftoverKeys and leftoverAuth name examples of them.
func (st State) leftoverKeys() []Names {
	return names("keys of the v2 store", st.V2.Examples, st.V2.Unconverted)
}

func (st State) leftoverAuth() []Names { return usersAndRoles("v2", st.V2.Users, st.V2.Roles) }

func usersAndRoles(api string, users, roles []string) []Names {
	return append(names("users of the "+api+" API", users, len(users)), names("roles of the "+api+" API", roles, len(roles))...)
}

// namesOf gives examples of what would be lost.
func (st State) namesOf(p convert.Problem) []Names {
	switch p.Loss {
	case convert.LossV2Auth:
		return st.leftoverAuth()
	case convert.LossV3Auth:
		return usersAndRoles("v3", st.V3.Users, st.V3.Roles)
	}
	return names(string(p.Loss), p.Keys, int(p.Count))
}

// checkLeftovers refuses to go beyond 3.5 with things in the v2 store that are nowhere else: etcd 3.6 does not start on
// them, and what has not been carried over must not be thrown away silently. And it refuses to guess which of two stores that
// are both in use is the users' own: a client of the other one would see an empty cluster.
func checkLeftovers(st State, target versionfile.Version, choice Leftovers) error {
	left := st.leftovers()
	auth := st.V2.Auth > 0 || st.V2.AuthEnabled
	if choice == LeftoversDiscard {
		if st.V2.AuthEnabled && (target.Storage == versionfile.Etcd3 || st.Version.Storage == versionfile.Etcd3) {
			return refuse(fmt.Errorf("authentication of the v2 API is enabled, so its users and roles cannot be discarded: %s", left),
				fmt.Sprintf("start etcd %s on the data%s, give `ETCDCTL_API=2 etcdctl --username root auth disable`, stop it, and migrate again",
					st.Version.Minor(), withV2(st.Version.Minor()))).naming(st.leftoverAuth())
		}
		return nil
	}
	if st.VersionFile == nil && left.Keys > 0 {
		at := st.Version.Release
		return refuse(fmt.Errorf("the v2 store holds %s, %d of them not in the v3 store, the v3 store holds %d, and there is no version.txt to say which store is in use",
			english.Plural(st.V2.Keys, "key", ""), left.Keys, st.V3.Keys),
			fmt.Sprintf("if it is the v3 store, write %s/etcd3 to version.txt, or discard what is in the v2 store with --v2-leftovers=discard; "+
				"if it is the v2 store, write %s/etcd2, and its keys take the place of those in the v3 store", at, at)).naming(st.leftoverKeys())
	}
	if target.Minor().Compare(v2Until) <= 0 {
		return nil
	}
	const found = "the v2 store still holds %s, and etcd 3.6 and later refuse such a data dir"
	if left.Keys > 0 {
		return refuse(fmt.Errorf("the v2 store holds %s beside the v3 data, %d of them not in the v3 store; etcd 3.6 and later refuse such a data dir",
			english.Plural(st.V2.Keys, "key", ""), left.Keys),
			fmt.Sprintf("if nobody needs them, discard them with --v2-leftovers=discard (the backup keeps them); to look at them, start etcd %s on the data%s "+
				"and give `ETCDCTL_API=2 etcdctl ls -r`; or choose a target up to 3.5, where they do no harm", st.Version.Minor(), withV2(st.Version.Minor()))).naming(st.leftoverKeys())
	}
	if auth {
		return refuse(fmt.Errorf(found, left),
			"v2 users and roles have no exact counterpart in v3: note them down, discard them with --v2-leftovers=discard, and create them anew "+
				"with `etcdctl user add`, `etcdctl role add` and `etcdctl auth enable`").naming(st.leftoverAuth())
	}
	return nil
}

// withV2 is the flag that an etcd needs in order to serve the v2 API.
func withV2(m versionfile.Minor) string {
	if m.AtLeast(3, 4) && !v2Until.Less(m) {
		return " with --enable-v2"
	}
	return ""
}

// emptyV2 adds the step that empties the v2 store.
func (b *planner) emptyV2(st State, bin binaries.Binary) {
	const refuses = "etcd 3.6 refuses what is left there"
	left := st.leftovers()
	if b.discard && (left.Keys > 0 || st.V2.Auth > 0) {
		b.run(StepEmptyV2, bin, "as asked, this is deleted from the v2 store though it is nowhere else: "+left.String()+"; "+refuses)
		b.plan.Steps[len(b.plan.Steps)-1].Discards = &left
	} else {
		b.run(StepEmptyV2, bin, "the v3 store holds all that is in the v2 store; "+refuses)
	}
	b.leftovers = false
}

// emptyV2 gives what empties the v2 store: of keys, and if so asked, of users and roles.
func (m *Migrator) emptyV2(ctx context.Context, s Step, cfg member.Config) (func(*member.Etcd) error, error) {
	data, err := m.readLog()
	if err != nil {
		return nil, err
	}
	discard := m.V2Leftovers == LeftoversDiscard
	if a := data.tree.Auth(); discard && m.st.several() && len(a.Users)+len(a.Roles) > 0 {
		// An etcd that lags and gets a raft snapshot from its leader keeps in memory what the snapshot has not under /2, where users
		// and roles are. It would then delete them a second time, which ends the etcds of members at 3.6. Started again, it knows.
		cfg.SnapshotCount = noSnapshots // see runEtcd
		if err := m.running(ctx, cfg, func(etcd *member.Etcd) error { return m.ready(ctx, s, etcd) }); err != nil {
			return nil, err
		}
		m.log = nil
		if data, err = m.readLog(); err != nil {
			return nil, err
		}
	}
	topLevel, auth := data.tree.TopLevel(), data.tree.Auth()
	if m.st.several() {
		topLevel = append(topLevel, member.MarksV2)
	}
	return func(etcd *member.Etcd) error {
		if discard {
			if err := etcd.EmptyV2Auth(ctx, auth.Users, auth.Roles); err != nil {
				return err
			}
		}
		return etcd.EmptyV2(ctx, topLevel)
	}, nil
}
