package main

import (
	"context"
	"encoding/json"
	"os"
)

type migrateCmd struct {
	dataFlags
	Target string `group:"migration" name:"target-version" required:"" env:"TARGET_VERSION" placeholder:"VERSION" help:"Where to go: a minor such as ${newest} (its newest release at hand), or a release such as ${newest}.3."`
	migrationFlags
	outputFlags
	Output string `group:"output" short:"o" env:"OUTPUT_FORMAT" enum:"none,json" default:"none" help:"json: the report, on standard output."`
}

func (c *migrateCmd) Run(ctx context.Context) error { return c.do(ctx, false) }

func (c *migrateCmd) do(ctx context.Context, backOnly bool) error {
	r, err := c.request(c.Target, etcdSettings{DataDir: c.DataDir, WALDir: c.WALDir, Name: c.Name})
	if err != nil {
		return err
	}
	r.BackOnly = backOnly
	report, err := c.run(ctx, r)
	if report != nil && c.Output == "json" {
		if err := writeJSON(report); err != nil {
			return err
		}
	}
	return err
}

func writeJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
