//go:build amd64

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/migrate/raftlog"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// stage is what there is between two steps: version.txt and the journal are written, and the next step has changed nothing.
type stage struct {
	path    string // of copies of the roots
	changes int    // how many the step makes that begins here
	rest    rest
}

// rest is what must be the same between two steps, whatever has been killed before: TestKilled says why that is enough.
type rest struct {
	Outcome outcome
	Journal map[string]any
	State   migrate.State
	// V2 and V3 are the digests of all records without a TTL, with all their fields, in each of the stores.
	V2, V3 string
}

// open runs the command once undisturbed, and keeps what there is between each two steps.
func (sc *scenario) open(t *testing.T) {
	t.Helper()
	if sc.stages != nil {
		return // by an earlier test
	}
	sc.layOut(t)
	sc.kept = workshop.dir(t, quick())
	sc.stages = []stage{sc.keep(t, "0")}
	var seen points
	stepDone := false
	tr := tracer{
		roots: sc.roots,
		enter: func(c *call) action {
			sc.calls = append(sc.calls, event{call: c})
			if stepDone && sc.isNextStep(c) {
				stepDone = false
				next := sc.keep(t, strconv.Itoa(len(sc.stages)))
				next.rest, _ = sc.rest(t, "undisturbed")
				sc.stages = append(sc.stages, next)
			}
			if seen.one(c) {
				sc.stages[len(sc.stages)-1].changes++
			}
			return goOn
		},
		exit: func(c *call, ret int64) {
			sc.calls = append(sc.calls, event{c, true, ret})
			stepDone = stepDone || sc.endsStep(c, ret)
		},
	}
	sc.trace(t, &tr, sc.args, "the undisturbed run")
	if sc.again != nil {
		sc.run(t, sc.again, "the undisturbed run")
	}
	sc.want = sc.outcome(t, "undisturbed")

	sc.begin(t, sc.stages[0])
	began := time.Now()
	sc.run(t, sc.args, "the undisturbed run")
	sc.took = time.Since(began)
	sc.run(t, sc.redo(), "the command, given twice")
	sc.compare(t, "undisturbed")
}

// keep copies what there is.
func (sc *scenario) keep(t *testing.T, name string) stage {
	t.Helper()
	s := stage{path: filepath.Join(sc.kept, name)}
	for i, root := range sc.roots {
		copyDir(t, root, s.root(i))
	}
	return s
}

// begin makes the data dir what it was at the beginning of a stage.
func (sc *scenario) begin(t *testing.T, s stage) {
	t.Helper()
	for i, root := range sc.roots {
		copyDir(t, s.root(i), root)
	}
}

func (s stage) root(i int) string { return filepath.Join(s.path, strconv.Itoa(i)) }

// endsStep reports whether a call that has been made ends a step: it has written version.txt. Before the journal is written, a
// run only corrects that.
func (sc *scenario) endsStep(c *call, ret int64) bool {
	return ret == 0 && c.op == "rename" && c.to == filepath.Join(sc.dir, "version.txt") && sc.args[0] != "backup"
}

// isNextStep reports whether a call after one that ends a step belongs to the next one: it is not about the journal or backups.
func (sc *scenario) isNextStep(c *call) bool {
	return c.changes() && !strings.HasPrefix(c.path, filepath.Join(sc.dir, "etcd-migrate")) && !strings.HasPrefix(c.path, sc.backupDir())
}

func (sc *scenario) journal() string { return filepath.Join(sc.dir, "etcd-migrate/migration.json") }

// readJournal gives the journal's fields, nil if there is none.
func (sc *scenario) readJournal(t *testing.T) (fields map[string]any) {
	t.Helper()
	if err := datadir.ReadJSON(sc.journal(), &fields); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return fields
}

func (sc *scenario) version() string {
	text, _ := os.ReadFile(filepath.Join(sc.dir, "version.txt")) // "" if there is none
	return string(text)
}

// goOn gives the command again, and stops it at the next stage: where version.txt says what it does at some stage, and not at
// the first step of this run, and the step after that has changed nothing. What there is then must be what the undisturbed run
// had left there. A run that has less to do than that must end as the undisturbed one.
func (sc *scenario) goOn(t *testing.T, where string) {
	t.Helper()
	journal, begun := false, "" // whether it has been written, which a run does before its first step, and version.txt then
	var reached []stage         // a step can leave version.txt as it was
	stopped := false
	tr := tracer{
		roots: sc.roots,
		enter: func(c *call) action {
			if stopped = len(reached) > 0 && sc.isNextStep(c); stopped {
				return kill
			}
			return goOn
		},
		exit: func(c *call, ret int64) {
			switch {
			case !journal && c.to == sc.journal() && ret == 0:
				journal, begun = true, sc.version()
			case journal && sc.endsStep(c, ret) && sc.version() != begun:
				reached = sc.stagesAt(sc.version())
			}
		},
	}
	cmd, said := sc.command(t, sc.redo())
	end := tr.run(t, cmd)
	sc.row.reruns++
	switch {
	case !stopped && (!end.Exited() || end.ExitStatus() != exitOK):
		t.Fatalf("%s: %v ends with %v\n%s", where, cmd.Args, end, said())
	case !stopped:
		sc.compareEnd(t, where)
	default:
		where += ", and stopped when version.txt said " + sc.version()
		sc.check(t, where)
		sc.compareStage(t, where, reached)
	}
}

// stagesAt gives the stages at which version.txt says that.
func (sc *scenario) stagesAt(version string) (all []stage) {
	for _, s := range sc.stages[1:] {
		if s.rest.Outcome.Version == version {
			all = append(all, s)
		}
	}
	return all
}

// compareStage wants what there is to be what there was at one of the stages.
func (sc *scenario) compareStage(t *testing.T, where string, stages []stage) {
	t.Helper()
	got, content := sc.rest(t, where)
	diff := ""
	for _, s := range stages {
		if sc.converts() {
			got.settle(s.rest)
		}
		if diff = cmp.Diff(s.rest, got, cmpopts.IgnoreUnexported(migrate.State{})); diff == "" {
			break
		}
	}
	if diff != "" {
		sc.row.backupsLost += max(0, len(stages[0].rest.Outcome.Backups)-len(got.Outcome.Backups))
		t.Errorf("%s: there is not what an undisturbed run leaves there: %s", where, diff)
	}
	sc.report(t, where, pathtest.Compare(sc.content, content))
}

// converts reports whether the scenario brings v2 data to the v3 store.
func (sc *scenario) converts() bool { return sc.from == sc.old || sc.from == sc.material.v2 }

// settle takes a revision that is up to three higher or lower for the wanted one. That of converted data goes on from the index of the v2
// store, which each start of an etcd raises, and one that misses its own election is started once more.
func (r *rest) settle(want rest) {
	have, more := r.State.V3.Revision, r.State.V3.Revision-want.State.V3.Revision
	if more == 0 || more < -3 || more > 3 {
		return
	}
	if r.State.V3.CompactRevision == have {
		r.State.V3.CompactRevision = want.State.V3.Revision
	}
	journals := []map[string]any{r.Journal}
	made, _ := r.Journal["made"].([]any)
	for _, v := range made {
		db, _ := v.(map[string]any)
		journals = append(journals, db)
	}
	for _, j := range journals {
		if j["revision"] == float64(have) {
			j["revision"] = float64(want.State.V3.Revision)
		}
	}
	r.State.V3.Revision = want.State.V3.Revision
}

// rest reads what there is between two steps, without an etcd, and the content of the store with the users' keys.
func (sc *scenario) rest(t *testing.T, where string) (rest, pathtest.Content) {
	t.Helper()
	r := rest{Outcome: sc.outcome(t, where), Journal: sc.readJournal(t)}
	delete(r.Journal, "began")
	delete(r.Journal, "from") // which each run sets to what it finds
	backup, _ := r.Journal["backup"].(string)
	r.Journal["backup"] = filepath.Base(backup)
	l, err := datadir.NewLayout(sc.dir, "")
	if sc.elsewhere {
		l, err = datadir.NewLayout(sc.dir, sc.walDir())
	}
	if err == nil {
		r.State, err = migrate.Inspect(t.Context(), l, time.Now())
	}
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	r.State = sameAgain(r.State)
	content, v2, err := contentOfV2(l)
	if err == nil {
		r.V2 = v2
		var v3 pathtest.Content
		if v3, r.V3, err = contentOfV3(l); r.State.Version.Storage == versionfile.Etcd3 {
			content = v3
		}
	}
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	return r, content
}

// sameAgain leaves out of a state what each start of an etcd changes, because it depends on where the newest raft snapshot is
// and what follows it, and what ends with TTLs: the records themselves are compared.
func sameAgain(st migrate.State) migrate.State {
	st.Evidence = nil // of which the version is concluded
	st.Log = migrate.LogState{ClusterID: st.Log.ClusterID, PendingV3: st.Log.PendingV3, Torn: st.Log.Torn, FirstVersion: st.Log.FirstVersion}
	st.V2 = migrate.V2State{NotUTF8: st.V2.NotUTF8, Auth: st.V2.Auth, AuthEnabled: st.V2.AuthEnabled, TopLevel: st.V2.TopLevel}
	st.DataDir, st.WALDir = "", "" // a data dir can be moved
	st.V3.Keys, st.V3.Leases, st.V3.Values = 0, 0, migrate.Encodings{}
	st.V3.ConsistentIndex, st.V3.SizeBytes, st.V3.FreeBytes = 0, 0, 0
	return st
}

// contentOfV2 reads the v2 store from the log, as an etcd serves it, and gives the digest of what has no TTL.
func contentOfV2(l datadir.Layout) (content pathtest.Content, digest string, err error) {
	content = pathtest.Content{Keys: map[string]pathtest.Key{}, Read: time.Now()}
	log, err := raftlog.Open(l.SnapDir(), l.WALDir)
	if err != nil {
		return content, "", err
	}
	tree := keyspace.NewTree()
	if s := log.Snapshot(); s.Index > 0 {
		if tree, err = keyspace.LoadTree(s.Data); err != nil {
			return content, "", err
		}
	}
	if _, err := log.Each(func(e raftlog.Entry) error {
		switch e.Kind {
		case raftlog.V2:
			return tree.ApplyV2(e.V2)
		case raftlog.V3:
			return tree.ApplyV3(e.V3)
		case raftlog.ConfChange:
			return tree.ApplyConfChange(e.ConfChange)
		}
		return nil
	}); err != nil {
		return content, "", err
	}
	var all keyspace.Fingerprint
	err = tree.Each(content.Read, func(r keyspace.Record) error {
		all.Add(r)
		content.Keys[string(r.Key)] = pathtest.Key{Value: string(r.Value), Created: r.Created, Modified: r.Modified, Expiry: r.Expiry}
		return nil
	})
	content.Revision = int64(tree.Index())
	return content, all.Permanent(), err
}

// contentOfV3 reads the db, with leases that count anew from now on, and gives the digest of what has none.
func contentOfV3(l datadir.Layout) (content pathtest.Content, digest string, err error) {
	content = pathtest.Content{Keys: map[string]pathtest.Key{}, Read: time.Now()}
	db, err := keyspace.OpenDB(l.DB())
	if errors.Is(err, fs.ErrNotExist) {
		return content, "", nil
	}
	if err != nil {
		return content, "", err
	}
	defer db.Close()
	leases, err := db.Leases()
	if err != nil {
		return content, "", err
	}
	var all keyspace.Fingerprint
	err = db.Each(func(r keyspace.Record) error {
		all.Add(r)
		k := pathtest.Key{Value: string(r.Value), Created: r.Created, Modified: r.Modified, Lease: r.Lease, TTL: leases[r.Lease]}
		if k.TTL > 0 {
			k.Expiry = content.Read.Add(time.Duration(k.TTL) * time.Second)
		}
		content.Keys[string(r.Key)] = k
		return nil
	})
	info, infoErr := db.Info()
	content.Revision = info.Revision
	return content, all.Permanent(), errors.Join(err, infoErr)
}
