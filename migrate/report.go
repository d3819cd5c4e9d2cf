package migrate

import (
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/cluster"
	"github.com/etcd-migrate/etcd-migrate/migrate/convert"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Report is what a migration did.
type Report struct {
	Tool    string              `json:"tool"`
	DataDir string              `json:"dataDir"`
	From    versionfile.Version `json:"from"` // as the data was found; zero for a fresh data dir
	Target  versionfile.Version `json:"target"`
	Began   time.Time           `json:"began"`
	Seconds float64             `json:"seconds"` // all in all, also of a run that has failed
	// Backup is the path of the untouched copy from before the first step, empty if no step needed one.
	Backup string `json:"backup"`
	// Pruned are the older backups that were removed when the migration was done.
	Pruned        []string `json:"pruned,omitempty"`
	BackupSeconds float64  `json:"backupSeconds"`
	// Steps are those that are done. After an error they are fewer than the plan has.
	Steps []StepReport `json:"steps"`
	// KeysBefore and KeysAfter count the keys in the store that Storage of From and Target name. They differ by the keys
	// whose TTL has ended, and by losses that were accepted.
	KeysBefore int `json:"keysBefore"`
	KeysAfter  int `json:"keysAfter"`
	// Conversion tells of the step from etcd2 to etcd3, ConversionBack of the step from etcd3 to etcd2; nil without one.
	ConversionBack *convert.V2Report `json:"conversionBack,omitempty"`
	Conversion     *convert.Report   `json:"conversion,omitempty"`
	// PeakMemoryBytes is the most that this process took, without the etcds.
	PeakMemoryBytes int64 `json:"peakMemoryBytes"`
	State           State `json:"state"` // as it was found
}

// begin notes what the migration starts from.
func (r *Report) begin(st State, p Plan) {
	r.From, r.State = p.From, st
	r.KeysBefore = st.V3.Keys
	if p.From.Storage == versionfile.Etcd2 {
		r.KeysBefore = st.V2.Keys
	}
	r.KeysAfter = r.KeysBefore
}

// Changed reports whether any step was done.
func (r *Report) Changed() bool { return r != nil && len(r.Steps) > 0 }

// StepReport is what one step did, and the proof that it lost nothing.
type StepReport struct {
	Step
	Seconds float64 `json:"seconds"`
	Keys    int     `json:"keys"` // after the step
	// Fingerprint is the digest over all records after the step.
	Fingerprint string `json:"fingerprint"`
	// FingerprintBefore is the one before it. They are equal unless TTLs ended or log entries were replayed meanwhile.
	FingerprintBefore string `json:"fingerprintBefore"`
	// PeakMemoryBytes is the most that the step's etcd took, or this program until then, if that is more.
	PeakMemoryBytes int64 `json:"peakMemoryBytes"`
	// TTLsEnded counts the keys that are gone because their TTL ended during the step.
	TTLsEnded int `json:"ttlsEnded"`
	// Replayed counts the committed log entries that the step's etcd applied, on data of an etcd that was killed.
	Replayed int `json:"replayed,omitempty"`
	// Replicated says that the records before and after the step cannot be compared, because other members of the cluster
	// have written to it meanwhile, or had before and this one lagged behind.
	Replicated bool `json:"replicated,omitempty"`
	// Agreement says with which other members the data was compared after the step, nil if it was not.
	Agreement *cluster.Agreement `json:"agreement,omitempty"`
	// LeasesEnded counts the leases that are gone, with keys or without.
	LeasesEnded int `json:"leasesEnded,omitempty"`
}
