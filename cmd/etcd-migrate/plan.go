package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

type planCmd struct {
	dataFlags
	Target string `group:"migration" name:"target-version" required:"" env:"TARGET_VERSION" placeholder:"VERSION" help:"Where to go: a minor such as ${newest} (its newest release at hand), or a release such as ${newest}.3."`
	migrationFlags
	Output string `group:"output" short:"o" enum:"table,json" default:"table" help:"table or json, on standard output."`
}

// planOutput is what `plan -o json` prints.
type planOutput struct {
	State migrate.State `json:"state"`
	migrate.Plan
}

func (c *planCmd) Run(ctx context.Context) error {
	r, err := c.request(c.Target, etcdSettings{DataDir: c.DataDir, WALDir: c.WALDir, Name: c.Name})
	if err != nil {
		return err
	}
	st, plan, err := migrate.New(r).Plan(ctx)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return writeJSON(planOutput{st, plan})
	}
	return printPlan(st, plan)
}

func printPlan(st migrate.State, p migrate.Plan) error {
	if st.Presence == migrate.Fresh {
		fmt.Printf("%s holds no member's data: an etcd started on it begins an empty cluster.\n", st.DataDir)
	} else {
		fmt.Printf("%s is at %s:\n", st.DataDir, st.Version)
		for _, e := range st.Evidence {
			fmt.Printf("  %s says %s\n", e.Source, e.Says)
		}
	}
	if len(p.Steps) == 0 {
		fmt.Printf("Nothing to do to reach %s.\n", p.Target)
		return nil
	}
	if p.Back() {
		fmt.Printf("\nThis is a rollback: it needs --allow-rollback, or `etcd-migrate rollback`.\n")
	}
	fmt.Printf("\n%s to reach %s:\n\n", plural(len(p.Steps), "step"), p.Target)
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  \tSTEP\tVERSION.TXT AFTER IT\tDONE BY\tWHY")
	for i, s := range p.Steps {
		by := "etcd-migrate"
		if s.Binary != "" {
			by = filepath.Base(s.Binary)
		}
		fmt.Fprintf(w, "  %d\t%s\t%s\t%s\t%s\n", i+1, s.Kind, s.To, by, s.Why)
	}
	return w.Flush()
}
