package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// A plan is made from what is known of the data, without looking at it or at any etcd.
func ExampleMakePlan() {
	at, err := versionfile.Parse("2.3.8/etcd2")
	if err != nil {
		log.Fatal(err)
	}
	etcds := binaries.Set{Dir: "/usr/local/bin"}
	for _, number := range []string{"2.3.8", "3.0.17", "3.1.20", "3.2.32"} {
		release, err := versionfile.ParseRelease(number)
		if err != nil {
			log.Fatal(err)
		}
		etcds.Binaries = append(etcds.Binaries, binaries.Binary{Path: etcds.Dir + "/etcd-" + number, Release: release})
	}
	state := migrate.State{Presence: migrate.Present, Version: at, V2: migrate.V2State{Keys: 2, TopLevel: 1}}

	target, err := migrate.ResolveTarget("3.1", "", etcds)
	if err != nil {
		log.Fatal(err)
	}
	plan, err := migrate.MakePlan(state, target, etcds, migrate.LeftoversRefuse)
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range plan.Steps {
		fmt.Println(s.Kind, "to", s.To, filepath.Base(s.Binary))
	}

	// A plan that cannot be made is refused, with what to do about it.
	_, err = migrate.ResolveTarget("3.4", "", etcds)
	fmt.Println(err)
	// Output:
	// upgrade to 3.0.17/etcd2 etcd-3.0.17
	// convert to 3.0.17/etcd3 .
	// empty-v2 to 3.0.17/etcd3 etcd-3.0.17
	// upgrade to 3.1.20/etcd3 etcd-3.1.20
	// target version 3.4: there is no etcd of that minor among etcd 2.3.8, 3.0.17, 3.1.20, 3.2.32 in /usr/local/bin; nothing has been changed; put etcd-3.4.<patch> into /usr/local/bin, or name another directory with --bin-dir
}

// Plan looks at the data and says what Run would do. It changes nothing, and the same Migrator can Run afterwards.
func ExampleMigrator_Plan() {
	etcds, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		log.Fatal(err)
	}
	dir, remove := exampleData(etcds, "3.4")
	defer remove()

	target, err := migrate.ResolveTarget("3.6", "", etcds)
	if err != nil {
		log.Fatal(err)
	}
	m := migrate.New(migrate.Request{DataDir: dir, Target: target, Binaries: etcds})
	state, plan, err := m.Plan(context.Background())
	if err != nil {
		log.Fatal(err) // an *Error: what stands in the way, and what to do about it
	}
	fmt.Println(state.V3.Keys, "keys at etcd", state.Version.Minor())
	for _, s := range plan.Steps {
		fmt.Println(s.Kind, "to", s.To.Minor())
	}
	// Output:
	// 33 keys at etcd 3.4
	// upgrade to 3.5
	// upgrade to 3.6
}

// A migration tells an Observer how it goes, and ends with a Report. It can be killed at any moment, and run again.
func ExampleMigrator_Run() {
	ctx := context.Background()
	etcds, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		log.Fatal(err)
	}
	dir, remove := exampleData(etcds, "3.4")
	defer remove()

	target, err := migrate.ResolveTarget("3.6", "", etcds)
	if err != nil {
		log.Fatal(err)
	}
	m := migrate.New(migrate.Request{
		DataDir: dir, Target: target, Binaries: etcds,
		Observer: func(e migrate.Event) {
			switch e.Kind {
			case migrate.EventInspected:
				fmt.Println("the data is at", e.State.Version.Minor())
			case migrate.EventStepStarted:
				fmt.Printf("%d/%d %s to %s\n", e.Step, len(e.Plan.Steps), e.Plan.Steps[e.Step-1].Kind, e.Plan.Steps[e.Step-1].To.Minor())
			case migrate.EventProgress: // only of what takes long
				fmt.Fprintf(os.Stderr, "%s: %d of %d %s\n", e.What, e.Done, e.Total, e.Unit)
			case migrate.EventStepDone:
				fmt.Printf("%d keys, and nothing changed: %v\n", e.Result.Keys, e.Result.Fingerprint == e.Result.FingerprintBefore)
			}
		},
	})
	report, err := m.Run(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("version.txt is at", report.Target.Minor(), "and there is a backup:", report.Backup != "")
	// Output:
	// the data is at 3.4
	// 1/2 upgrade to 3.5
	// 33 keys, and nothing changed: true
	// 2/2 upgrade to 3.6
	// 33 keys, and nothing changed: true
	// version.txt is at 3.6 and there is a backup: true
}

// What is wrong is told by an *Error. A refusal comes before anything has been changed.
func ExampleError() {
	etcds, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		log.Fatal(err)
	}
	dir, remove := exampleData(etcds, "3.5")
	defer remove()

	older, err := migrate.ResolveTarget("3.4", "", etcds)
	if err != nil {
		log.Fatal(err)
	}
	_, err = migrate.New(migrate.Request{DataDir: dir, Target: older, Binaries: etcds}).Run(context.Background())
	var e *migrate.Error
	if errors.As(err, &e) && e.Kind == migrate.Refused {
		fmt.Println("refused:", e.Hint)
	}
	// Output:
	// refused: if you mean to go back, allow it with --allow-rollback (ALLOW_ROLLBACK=true) or give `etcd-migrate rollback`; if not, start the etcd that the data belongs to
}

// A Report has the proof of each step: a digest over all records before and after it.
func ExampleReport() {
	etcds, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		log.Fatal(err)
	}
	dir, remove := exampleData(etcds, "3.6")
	defer remove()

	older, err := migrate.ResolveTarget("3.4", "", etcds)
	if err != nil {
		log.Fatal(err)
	}
	r := migrate.Request{DataDir: dir, Target: older, Binaries: etcds, AllowRollback: true}
	report, err := migrate.New(r).Run(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range report.Steps {
		fmt.Println(s.Kind, "from", s.From.Minor(), "to", s.To.Minor(), "proven:", s.Fingerprint == s.FingerprintBefore)
	}
	fmt.Println("keys lost:", report.KeysBefore-report.KeysAfter)
	// Output:
	// downgrade from 3.6 to 3.5 proven: true
	// downgrade from 3.5 to 3.4 proven: true
	// keys lost: 0
}

// exampleData has an etcd write a data dir.
func exampleData(etcds binaries.Set, minor string) (dir string, remove func()) {
	ctx := context.Background()
	bin, err := pathtest.Newest(etcds, minor)
	if err != nil {
		log.Fatal(err)
	}
	scratch, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	dir = filepath.Join(scratch, "etcd")
	server, err := pathtest.Start(ctx, bin, dir)
	if err != nil {
		log.Fatal(err)
	}
	if err := server.FillJSON(ctx, 20); err != nil {
		log.Fatal(err)
	}
	if err := server.Stop(); err != nil {
		log.Fatal(err)
	}
	return dir, func() { os.RemoveAll(scratch) }
}
