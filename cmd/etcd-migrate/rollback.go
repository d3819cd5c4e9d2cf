package main

import (
	"context"
	"fmt"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

// rollbackCmd takes what migrate takes, and only goes back.
type rollbackCmd struct {
	migrateCmd
}

func (c *rollbackCmd) Help() string {
	return `Goes back one minor at a time, offline: the data dir's log and version fields are written anew, and where the older
etcd is at hand, it is run on them before the step counts. From 3.0 on down, keys move back to the v2 store, with their
revisions and TTLs. What v2 cannot hold is counted and refused, before anything is changed.

A rollback keeps what was written since the upgrade. To have exactly what was there before it, restore the backup:
see ` + "`etcd-migrate backup restore`" + `.`
}

func (c *rollbackCmd) Run(ctx context.Context) error {
	r, err := c.request(c.Target, etcdSettings{DataDir: c.DataDir, WALDir: c.WALDir, Name: c.Name})
	if err != nil {
		return err
	}
	st, plan, err := migrate.New(r).Plan(ctx)
	if err != nil {
		return err
	}
	if plan.Forward() {
		return &migrate.Error{Kind: migrate.Refused, Op: "roll back",
			Err:  fmt.Errorf("the data is at %s, which is not above the target %s", st.Version, plan.Target),
			Hint: "to go on to a newer version, give `etcd-migrate migrate`"}
	}
	c.AllowRollback = true
	return c.migrateCmd.Run(ctx)
}
