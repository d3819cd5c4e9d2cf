package migrate

import (
	"fmt"

	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Presence says whether there is a member's data at all.
type Presence string

const (
	// Fresh is a data dir that no member has written to: missing, empty, or with nothing of etcd's in it.
	Fresh Presence = "fresh"
	// Present is a data dir with a member's data.
	Present Presence = "present"
)

// State is what Inspect finds out about a stopped member. It is plain data: Plan decides on nothing else.
type State struct {
	DataDir  string   `json:"dataDir"`
	WALDir   string   `json:"walDir"`
	Presence Presence `json:"presence"`

	// Version is what the data is taken to be at, with what it was concluded from in Evidence. Zero if Fresh.
	Version  versionfile.Version `json:"version"`
	Evidence []Evidence          `json:"evidence"`
	// VersionFile is what version.txt holds, nil without one.
	VersionFile *versionfile.Version `json:"versionFile"`

	Member  Member   `json:"member"`
	Members []Member `json:"members"`
	Log     LogState `json:"log"`
	V2      V2State  `json:"v2"`
	V3      V3State  `json:"v3"`

	Problems []Problem `json:"problems"`

	// firstStart says that a fresh data dir's version.txt is that of a first start that has not got to a member yet.
	firstStart bool
	// checkpoints are what etcd has noted in the log to be left of leases, in seconds by lease ID.
	checkpoints map[int64]int64
	// left says that the members have agreed from where to go back, and that this one has noted it down.
	left bool
	// uncompared says that an earlier run has not got to comparing the data with the other members'.
	uncompared bool
	// unrun is the minor that an earlier run has made the data one of, or was about to, and whose etcd has not run on it.
	unrun string
	// converted says that a member of several has converted its v2 store.
	converted bool
	// made is what conversions have put into the place of the v3 store, or were about to.
	made []convert.Made
	// convertedBack says that a rollback to the v2 store is under way.
	convertedBack bool
}

// Evidence is one place that says something about the version.
type Evidence struct {
	Source string `json:"source"` // "version.txt", "cluster version in the db", …
	Says   string `json:"says"`
}

// Member is a member of the cluster as the data knows it.
type Member struct {
	ID         string   `json:"id"` // hexadecimal, as etcd prints it
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
	Learner    bool     `json:"learner,omitempty"`
}

// LogState is the raft log's position.
type LogState struct {
	ClusterID     string `json:"clusterID"`
	SnapshotIndex uint64 `json:"snapshotIndex"` // of the newest raft snapshot, 0 without one
	Index         uint64 `json:"index"`         // of the last committed entry
	Term          uint64 `json:"term"`
	// Uncommitted counts the entries beyond it. A member that is alone commits them when it starts: an acknowledged write
	// can be among them, because etcd flushes its commit index late.
	Uncommitted int `json:"uncommitted"`
	// PendingV3 counts committed writes to the v3 store that have not reached the db.
	PendingV3 int `json:"pendingV3"`
	// Torn is where a power loss cut the log off, empty for a whole one.
	Torn string `json:"torn,omitempty"`
	// FirstVersion is the cluster version that an etcd meets first when it starts: that in the newest raft snapshot, or
	// else the first that the log sets. Etcd 3.5 never serves the v3 API if it is of 2.x.
	FirstVersion string `json:"firstVersion,omitempty"`
	// V2Entries counts the entries after the newest raft snapshot that are in the format of the v2 API, by method. Etcd
	// writes some of its own accord. 3.7 panics on any of them, and 3.6 on those that Foreign counts.
	V2Entries map[string]int `json:"v2Entries,omitempty"`
	Foreign   int            `json:"foreign,omitempty"`
	// Entries counts all entries after the newest raft snapshot by kind.
	Entries map[string]int `json:"entries,omitempty"`
}

// Unapplied counts the entries that etcd will apply when it starts: it was not stopped cleanly.
func (l LogState) Unapplied() int { return l.PendingV3 + l.Uncommitted }

// V2State is the v2 store.
type V2State struct {
	Keys      int    `json:"keys"`
	Bytes     int64  `json:"bytes"`
	TTLs      int    `json:"ttls"`
	Hidden    int    `json:"hidden"`
	Expired   int    `json:"expired"`
	EmptyDirs int    `json:"emptyDirs"`
	NotUTF8   int    `json:"notUTF8"` // of the keys: only the log can hold them, a raft snapshot replaces the bytes
	Index     uint64 `json:"index"`
	// Auth counts the users and roles of v2 authentication.
	Auth        int  `json:"auth"`
	AuthEnabled bool `json:"authEnabled"`
	// TopLevel counts what is directly below the root, empty and expired directories included.
	TopLevel int `json:"topLevel"`
	// Unconverted counts the keys that the v3 store does not hold with the same value and the same indexes.
	Unconverted int `json:"unconverted"`
	// Examples are the first of those keys in alphabetical order, at most MaxNames. Like all that users have named, they are
	// in no report.
	Examples []string `json:"-"`
	// Users and Roles are the names that Auth counts.
	Users  []string  `json:"-"`
	Roles  []string  `json:"-"`
	Values Encodings `json:"values"`
}

// Encodings counts values by what they begin with.
type Encodings struct {
	JSON     int `json:"json"`     // an object or an array, by its first and last byte
	Protobuf int `json:"protobuf"` // with the prefix that Kubernetes gives its values: "k8s" and a zero byte
	Other    int `json:"other"`    // anything else, and empty values
}

// V3State is the v3 store.
type V3State struct {
	Present         bool     `json:"present"` // member/snap/db exists
	Keys            int      `json:"keys"`
	Revision        int64    `json:"revision"`
	CompactRevision int64    `json:"compactRevision"`
	Leases          int      `json:"leases"`
	ConsistentIndex uint64   `json:"consistentIndex"`
	StorageVersion  string   `json:"storageVersion,omitempty"`
	ClusterVersion  string   `json:"clusterVersion,omitempty"`
	Alarms          []string `json:"alarms"`
	AuthEnabled     bool     `json:"authEnabled"`
	SizeBytes       int64    `json:"sizeBytes"`
	// FreeBytes is the part of it that holds nothing and would go in a defragmentation.
	FreeBytes int64 `json:"freeBytes"`
	// Members are those that the db knows, nil if it knows none. State.Members are those of the v2 store, if it has any:
	// etcd up to 3.5 goes by these, and 3.6 and later by the db's.
	Members []Member `json:"members,omitempty"`
	Users   []string `json:"-"`
	Roles   []string `json:"-"`
	// Auth counts the users and roles.
	Auth int `json:"auth"`
	// Downgrade is the version that `etcdctl downgrade enable` was given, until that is done or cancelled.
	Downgrade string    `json:"downgrade,omitempty"`
	Values    Encodings `json:"values"`
}

// Problem is something about the data that a person should know before a migration.
type Problem struct {
	// Code names the problem for programs; see docs/troubleshooting.md.
	Code string `json:"code"`
	Text string `json:"text"`
	Hint string `json:"hint"`
	// Blocking means that no plan is made while the problem is there.
	Blocking bool `json:"blocking"`
	// Names are examples of what it is about: see Error.
	Names []Names `json:"-"`
}

func (p *Problem) Error() string { return fmt.Sprintf("%s (%s)", p.Text, p.Code) }

// blocking gives the first problem that allows no plan, nil without one.
func (st State) blocking() *Problem {
	for i := range st.Problems {
		if st.Problems[i].Blocking {
			return &st.Problems[i]
		}
	}
	return nil
}
