package pathtest_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// An etcd 2.3 writes a data dir, it is migrated along a path of three versions, and an etcd 3.7 must serve all that the
// 2.3 has served.
func Example() {
	ctx := context.Background()
	etcds, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR")) // empty: bin/etcd, here or above
	if err != nil {
		log.Fatal(err)
	}
	scratch, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(scratch)
	dir := filepath.Join(scratch, "etcd")

	bin, err := pathtest.Newest(etcds, "2.3")
	if err != nil {
		log.Fatal(err)
	}
	server, err := pathtest.Start(ctx, bin, dir)
	if err != nil {
		log.Fatal(err)
	}
	if err := server.FillV2(ctx, 100); err != nil {
		log.Fatal(err)
	}
	before, err := server.ReadV2(ctx, pathtest.Hidden...)
	if err != nil {
		log.Fatal(err)
	}
	if err := server.Stop(); err != nil {
		log.Fatal(err)
	}

	for _, minor := range []string{"3.0", "3.4", "3.7"} {
		target, err := migrate.ResolveTarget(minor, "", etcds)
		if err != nil {
			log.Fatal(err)
		}
		report, err := migrate.New(migrate.Request{DataDir: dir, Target: target, Binaries: etcds}).Run(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %d steps\n", minor, len(report.Steps))
	}

	if bin, err = pathtest.Newest(etcds, "3.7"); err != nil {
		log.Fatal(err)
	}
	if server, err = pathtest.Start(ctx, bin, dir); err != nil {
		log.Fatal(err)
	}
	defer server.Kill()
	after, err := server.ReadV3(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("differences:", len(pathtest.Compare(before, after)))
	// Output:
	// 3.0: 3 steps
	// 3.4: 4 steps
	// 3.7: 3 steps
	// differences: 0
}

// Compare tells what is lost or changed, with the key and without its value.
func ExampleCompare() {
	read := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	before := pathtest.Content{Revision: 7, Read: read, Keys: map[string]pathtest.Key{
		"/a": {Value: "1", Created: 4, Modified: 4},
		"/b": {Value: "2", Created: 5, Modified: 6},
		"/c": {Value: "3", Created: 7, Modified: 7, Expiry: read.Add(30 * time.Second)},
	}}
	after := pathtest.Content{Revision: 7, Read: read.Add(time.Minute), Keys: map[string]pathtest.Key{
		"/b": {Value: "2", Created: 5, Modified: 5},
	}}
	for _, difference := range pathtest.Compare(before, after) {
		fmt.Println(difference)
	}
	// Output:
	// key "/a" is lost
	// key "/b" was created at 5 and modified at 6, and now at 5 and 5
}
