package main

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/dustin/go-humanize"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

type rehearseCmd struct {
	dataFlags
	Target string `group:"migration" name:"target-version" required:"" env:"TARGET_VERSION" placeholder:"VERSION" help:"Where to go, as for migrate."`
	migrationFlags
	outputFlags
	Scratch string `group:"migration" placeholder:"DIR" env:"SCRATCH_DIR" help:"Directory for the copy, which is removed afterwards; so is one that a killed rehearsal of the same user has left. Default: the one for temporary files."`
	Output  string `group:"output" short:"o" env:"OUTPUT_FORMAT" enum:"table,json" default:"table" help:"table or json, on standard output."`
}

func (c *rehearseCmd) Run(ctx context.Context) error {
	r, err := c.request(c.Target, etcdSettings{DataDir: c.DataDir, WALDir: c.WALDir, Name: c.Name})
	if err != nil {
		return err
	}
	out := newOutput(c.outputFlags)
	r.Observer, r.Log = out.observe, out.log
	rehearsal, err := migrate.Rehearse(ctx, r, c.Scratch)
	out.endBar()
	if rehearsal == nil || rehearsal.Report == nil {
		return err
	}
	if c.Output == "json" {
		if jsonErr := writeJSON(rehearsal); jsonErr != nil {
			return jsonErr
		}
		return err
	}
	if printErr := printRehearsal(rehearsal); printErr != nil {
		return printErr
	}
	return err
}

func printRehearsal(r *migrate.Rehearsal) error {
	size := func(n int64) string { return humanize.IBytes(uint64(n)) }
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STEP\tVERSION.TXT AFTER IT\tSECONDS\tSIZE BEFORE\tSIZE AFTER\tPEAK DISK\tPEAK MEMORY\tKEYS\tTTLS ENDED\tFINGERPRINT")
	for i, s := range r.Report.Steps {
		c := r.Costs[i]
		fmt.Fprintf(w, "%s\t%s\t%.2f\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", s.Kind, s.To, s.Seconds,
			size(c.BytesBefore), size(c.BytesAfter), size(c.PeakBytes), size(c.PeakMemoryBytes), s.Keys, s.TTLsEnded, s.Fingerprint)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Printf("\nfrom %s to %s: %s before, %d after\n", r.Report.From, r.Report.Target, plural(r.Report.KeysBefore, "key"), r.Report.KeysAfter)
	fmt.Printf("expected downtime: %.1f s, of which the backup takes %.1f s; the start of the target etcd comes on top\n",
		r.DowntimeSeconds, r.Report.BackupSeconds)
	if r.BackupElsewhere != "" {
		fmt.Printf("The backup was made beside the copy: how long it takes in %s was not measured.\n", r.BackupElsewhere)
	}
	fmt.Printf("disk: %s before, %s at most with the backup; memory: %s at most\n", size(r.Bytes), size(r.PeakBytes), size(r.PeakMemoryBytes))
	return nil
}
