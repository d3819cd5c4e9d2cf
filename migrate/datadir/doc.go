// Package datadir handles the files of one stopped member: where they are, who holds them, copying, replacing,
// syncing, free space, backups and restores. It knows nothing about what is inside etcd's files.
//
// This is the layout on disk; docs/formats/work-dir.md and docs/formats/backup-manifest.md have the details:
//
//	<data dir>/             may be a mount point: never renamed, never removed; only entries inside it are
//	  member/snap, member/wal   etcd's; a separate WAL dir holds the *.wal files directly
//	  version.txt               see package versionfile
//	  etcd-migrate/             the work dir, ours, 0700
//	    migration.json          the journal of a migration under way; its content belongs to package migrate
//	    restore.json            the journal of a restore under way
//	    restore.tmp/            what that restore has prepared
//	    replaced-<time>/        what a finished restore replaced
//	    backups/<id>/           unless the user named another place
//	      manifest.json  member/  wal/ (only of a separate WAL dir)  version.txt
//	<separate WAL dir>/     may be a mount point too
//	  *.wal                     etcd's
//	  etcd-migrate/             restore.tmp/ and replaced-<time>/ of this directory, during and after a restore
//
// Whoever changes anything in a data dir holds its lock, see [Layout.Lock]. The functions here do not take it
// themselves.
//
// Writing is ordered so that killing the program at any instant loses nothing: build beside, fsync, check, rename,
// fsync the parent directory. Linux only.
package datadir
