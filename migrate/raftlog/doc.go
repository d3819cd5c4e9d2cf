// Package raftlog reads the raft snapshot and the write-ahead log (WAL) of a stopped member, as any etcd from 2.2 to 3.7
// leaves them, and can put a new snapshot at the log's end that makes all before it void: see Replacement. Reading changes
// nothing: where etcd itself would rename a broken snapshot or cut a torn log before it starts, this
// package reads past the damage and says so.
//
// The state of a member is the data of its snapshot plus the log's committed entries after it:
//
//	log, err := raftlog.Open(snapDir, walDir)
//	restore(log.Snapshot().Data)
//	summary, err := log.Each(apply)
//
// # What is committed
//
// The last state record of the log decides, but a killed member's log can end with entries that lie beyond it although
// a client was told that they are written. A record that only raises the commit is not written to disk at once (from 2.3
// on). Up to 3.5 a member that is alone saves entry and commit together; from 3.6 on it does not, and in a cluster no
// member ever did. When it next starts, a member that is alone commits all of them; in a cluster the other members
// decide. Each leaves these entries out, Summary counts them and EachUncommitted shows them. To settle them, start and
// stop the etcd that wrote the log.
//
// What is not in the log cannot be read from it: before 3.4.21 and 3.5.5 a member that is alone could acknowledge a write
// and be killed before it was in the log (etcd-io/etcd issue 14370).
//
// # Memory
//
// Open reads the log once, for the end of it and for the places where a new leader rewrote entries. Each reads it again
// and hands out each entry as soon as it is read, because by then it knows which ones will stand. Nothing is collected:
// memory does not grow with the log.
package raftlog
