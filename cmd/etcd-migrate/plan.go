package main

import (
	"context"
	"errors"
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
	Output string `group:"output" short:"o" env:"OUTPUT_FORMAT" enum:"table,json" default:"table" help:"table or json, on standard output."`
}

func (c *planCmd) Help() string {
	return `The exit code is 3 if migrate would refuse it: for a loss, for a rollback without --allow-rollback, for want of room or of
an etcd on the way. The plan is shown all the same, if there is one. Whether the files can be written to is not asked: a
read-only copy will do.`
}

// planOutput is what `plan -o json` prints: see docs/formats/plan.md.
type planOutput struct {
	State migrate.State `json:"state"`
	migrate.Plan
	Refusal *refusal `json:"refusal,omitempty"`
}

// refusal is why migrate would not do it.
type refusal struct {
	Op    string `json:"op,omitempty"`
	Error string `json:"error"`
	Hint  string `json:"hint"`
}

func (c *planCmd) Run(ctx context.Context, names namePrinter) error {
	r, err := c.request(c.Target, etcdSettings{DataDir: c.DataDir, WALDir: c.WALDir, Name: c.Name})
	if err != nil {
		return err
	}
	st, plan, err := migrate.New(r).Plan(ctx)
	var refused *migrate.Error
	if errors.As(err, &refused); err != nil && (refused == nil || refused.Kind != migrate.Refused || st.DataDir == "") {
		return err // there is nothing to show
	}
	made := err == nil || len(plan.Steps) > 0
	var printErr error
	switch {
	case c.Output == "json":
		out := planOutput{State: st, Plan: plan}
		if refused != nil {
			out.Refusal = &refusal{refused.Op, refused.Err.Error(), refused.Hint}
		}
		printErr = writeJSON(out)
	case made:
		printErr = printPlan(st, plan)
	}
	if printErr != nil {
		return printErr
	}
	for _, p := range st.Problems {
		if made { // else what stands in its way is named, and that alone
			names.print(p.Names)
		}
	}
	return err
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
	printProblems(st)
	if len(p.Steps) == 0 {
		fmt.Printf("Nothing to do to reach %s.\n", p.Target)
		return nil
	}
	if p.Back() {
		fmt.Printf("\nThis is a rollback.\n")
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
