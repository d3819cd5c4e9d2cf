package member

import (
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// ErrEnded is wrapped by the Error of an etcd that ended unasked, or in another way than asked.
var ErrEnded = errors.New("etcd ended unexpectedly")

// Error says what is known of an etcd that ended unasked or did not do what it had to. It wraps what went wrong:
// ErrEnded, the error of a context, or what the last try was answered.
type Error struct {
	Release versionfile.Release
	// Status is how it ended, for example "exit status 1" or "signal: killed"; "running" if it has not.
	Status string
	// LastLines are what it printed last that tells of errors, oldest first, at most 20 lines. Lines that could hold
	// keys or values are left out, and so may be part of what etcd had to say.
	LastLines []string
	// Hint says what this looks like and what to do about it, "" if it looks like nothing known.
	Hint string
	Err  error

	telling string // the line that says most, for Error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("etcd %s: %v (%s)", e.Release, e.Err, e.Status)
	if e.telling != "" {
		s += ": " + e.telling
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// running is the Status of an etcd that has not ended.
const running = "running"

// fail makes an Error from what the etcd printed so far.
func (e *Etcd) fail(status string, err error) *Error {
	output := e.output.bytes()
	f := &Error{Release: e.cfg.Release, Status: status, LastLines: lastWords(output, e.cfg.DataDir, e.cfg.WALDir), Err: err}
	// Anything that etcd printed can be the reason why it hangs, but why it ended is most often in its last words.
	var says string
	if f.Hint, says = hint(err.Error() + "\n" + strings.Join(f.LastLines, "\n")); f.Hint == "" {
		f.Hint, says = hint(string(output))
	}
	if f.Hint == "" && status == "signal: killed" {
		f.Hint = "it was killed from outside: most often that means that memory ran out"
	}
	if n := len(f.LastLines); n > 0 && status != running {
		f.telling = f.LastLines[n-1]
	}
	for _, line := range f.LastLines { // what comes last is often a consequence of what gave the hint
		if says != "" && strings.Contains(line, says) {
			f.telling = line
		}
	}
	return f
}

// hints are what etcd is known to print last, with what is behind it and what helps. The first one that is found
// counts, so what is more special comes first.
var hints = []struct {
	says []string // any of them
	hint string
}{
	{[]string{"detected disallowed v2 WAL"},
		"the raft log still holds entries in the v2 format after its last snapshot: run the last etcd 3.5 on the data " +
			"again, without --enable-v2, until it has written a snapshot"},
	{[]string{"illegal v2store content", "disallowed custom content in v2store"},
		"the v2 store still holds keys, users or roles, which etcd 3.6 refuses: convert or remove them with etcd 3.5 or " +
			"older and let that write a snapshot"},
	{[]string{rpctypes.ErrNotCapable.Error()},
		"if this lasts, the newest raft snapshot says that the cluster is at 2.x, which etcd 3.5 does not get over: let it " +
			"write a new one by quorum reads with the v2 API (--enable-v2, a small --snapshot-count) and start it again"},
	{[]string{"unmarshal should never fail"},
		"the raft log holds entries that this etcd cannot read: if an older etcd wrote them, run that minor again until " +
			"it has written a snapshot"},
	{[]string{"of the backend is missing"},
		"member/snap/db is missing although the cluster was at 3.x: restore the data dir from a backup; another start " +
			"would begin with an empty store"},
	{[]string{"failed to find database snapshot file", "database snapshot file path error", "does not match with snapshot"},
		"member/snap/db is older than the newest raft snapshot: if it was lost, restore the data dir from a backup; if " +
			"not, run the etcd of the minor before until it has written a snapshot"},
	{[]string{"cannot be downgraded", "invalid downgrade", "experimental-v3demo cannot be disabled",
		"makeslice: len out of range"},
		"a newer etcd has already used this data: go on with that minor, or restore a backup from before"},
	{[]string{"Failed to validate schema"},
		"the data's storage version does not belong to this minor: a newer etcd has already used it, or an older one was " +
			"not given the time to finish"},
	{[]string{"too many learner"},
		"a member that was promoted is still marked as a learner: run the last etcd 3.5 on the data first"},
	{[]string{"crc mismatch", "wal: snapshot not found", "max entry size limit exceeded", "wal: slice bounds out of range"},
		"the raft log is damaged: restore the data dir from a backup"},
	{[]string{"file already locked"}, "another etcd is running on this data dir: stop it first"},
	{[]string{"another etcd process is", "flocked by another process"}, // and it waits, from 3.0 on; said after 10 s
		"another etcd is running on this data dir, or the db takes long to load"},
	{[]string{"no space left on device", "disk quota exceeded"},
		"the disk is full: make room for the data dir and the raft log"},
	{[]string{"read-only file system"}, "the data dir is on a file system that is mounted read-only"},
	{[]string{"permission denied", "operation not permitted", "error listing data dir"},
		"the user that etcd runs as may not read or write the data dir: see its owner and modes"},
	{[]string{"address already in use"}, "no port could be had on 127.0.0.1"},
	{[]string{"flag provided but not defined"},
		"the binary does not know a flag that every etcd of its minor knows: it is not what it is taken for"},
	{[]string{"conflicting environment variable"}, "etcd found one of its settings in the environment"},
	{[]string{"encoding alphabet includes duplicate symbols"},
		"the etcd binary was built with a Go that is too new for it: 2.2 to 3.2 need Go 1.21"},
	{[]string{"permanently removed", "the member has been removed"},
		"this member has been removed from its cluster while it was down: add it anew with `etcdctl member add` and an empty data dir"},
	{[]string{"cannot allocate memory", "out of memory"}, "there is not enough memory"},
}

// hint finds the hint for what was said, and the words that gave it.
func hint(said string) (hint, says string) {
	for _, h := range hints {
		for _, s := range h.says {
			if strings.Contains(said, s) {
				return h.hint, s
			}
		}
	}
	return "", ""
}
