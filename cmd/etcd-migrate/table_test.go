package main

import (
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
)

// workshop is a directory that tests share, and withTable removes; "" as long as there is none.
var workshop string

// row is a line of the table that `make crash` prints.
type row struct {
	scenario      string
	kills, reruns int
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
	fmt.Fprintln(w, "SCENARIO\tKILLS\tRERUNS\tRECORDS\tRECORDS LOST\tBACKUPS LOST")
	for _, one := range r.all {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\n", one.scenario, one.kills, one.reruns, one.records, one.lost, one.backupsLost)
	}
	_ = w.Flush()
}
