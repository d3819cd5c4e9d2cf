package matrix_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/etcd-migrate/etcd-migrate/migrate/matrix"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
)

// Every way between etcd 3.6 and 3.7, up and down, on the built-in workload.
func ExampleRun() {
	etcds, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR")) // empty: bin/etcd, here or above
	if err != nil {
		log.Fatal(err)
	}
	versions, err := matrix.Select(matrix.Versions(etcds, false), []string{"3.6", "3.7"})
	if err != nil {
		log.Fatal(err)
	}
	scratch, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(scratch)

	report, err := matrix.Run(context.Background(), matrix.Options{
		Binaries: etcds, From: versions, To: versions, Keys: 10, WorkDir: scratch,
		Observer: func(e matrix.Event) {
			if e.Result != nil {
				fmt.Fprintf(os.Stderr, "%d/%d %s: %s\n", e.Done, e.Total, e.Pair, e.Result.Outcome)
			}
		},
	})
	if err != nil {
		log.Fatal(err) // an *Error of package migrate; how the pairs ended is in the report
	}
	for _, r := range report.Results {
		fmt.Println(r.From.Minor(), "to", r.To.Minor(), r.Outcome) // r.Reason says why, if not passed
	}
	fmt.Println("not run:", report.NotRun())
	// report.WriteHTML and report.WriteJUnit write it for a browser and for a continuous integration.

	// Output:
	// 3.6 to 3.7 passed
	// 3.7 to 3.6 passed
	// not run: 0
}
