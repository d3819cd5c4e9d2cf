package main

import "context"

// rollbackCmd takes what migrate takes, and only goes back.
type rollbackCmd struct {
	migrateCmd
}

func (c *rollbackCmd) Help() string {
	return `Goes back one minor at a time, offline: the data dir's log and version fields are written anew, and where the older
etcd is at hand, it is run on them before the step counts. From 3.0 on down, keys move back to the v2 store, with their
revisions and TTLs. What v2 cannot hold is counted and refused, before anything is changed.

A rollback keeps what was written since the upgrade. To have exactly what was there before it, restore the backup:
see ` + "`etcd-migrate backup restore --help`" + `.`
}

func (c *rollbackCmd) Run(ctx context.Context) error {
	c.AllowRollback = true
	return c.do(ctx, true)
}
