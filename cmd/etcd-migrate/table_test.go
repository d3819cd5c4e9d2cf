package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"text/tabwriter"
)

// workshop has directories that tests share. withTable removes them.
var workshop directories

type directories struct {
	mu  sync.Mutex
	all []string
}

// dir makes one, below another directory if that is not "".
func (d *directories) dir(t *testing.T, below string) string {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	name, err := os.MkdirTemp(below, "etcd-migrate-test")
	if err != nil {
		t.Fatal(err)
	}
	d.all = append(d.all, name)
	return name
}

func (d *directories) remove() {
	for _, name := range d.all {
		_ = os.RemoveAll(name)
	}
}

// row is a line of the table that `make crash` prints.
type row struct {
	scenario      string
	kills, faults int // faults are errors of the disk
	reruns        int
	records       int // in each data dir
	lost          int
	backupsLost   int
}

// rows collects the rows of all tests.
type rows struct {
	mu  sync.Mutex
	all []row
}

var table rows

func (r *rows) add(one row) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, one)
}

func (r *rows) print(to io.Writer) {
	if len(r.all) == 0 {
		return
	}
	w := tabwriter.NewWriter(to, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SCENARIO\tKILLS\tDISK ERRORS\tRERUNS\tRECORDS\tRECORDS LOST\tBACKUPS LOST")
	sum := row{scenario: "all"}
	for _, one := range append(r.all, row{}) {
		if one.scenario == "" {
			one = sum
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\n", one.scenario, one.kills, one.faults, one.reruns, one.records, one.lost, one.backupsLost)
		sum.kills += one.kills
		sum.faults += one.faults
		sum.reruns += one.reruns
		sum.records = max(sum.records, one.records)
		sum.lost += one.lost
		sum.backupsLost += one.backupsLost
	}
	_ = w.Flush()
}
