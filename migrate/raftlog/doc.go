// Package raftlog reads the raft snapshot and the write-ahead log (WAL) of a stopped member, as any etcd from 2.2 to 3.7
// leaves them. It only reads: where etcd itself would rename a broken snapshot or cut a torn log before it starts, this
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
// The last state record of the log decides. Etcd does not write such a record to disk for every commit (from 2.3 on it
// stays in memory until the next entry), so after a crash the log usually ends with entries that were acknowledged to a
// client and yet lie beyond the recorded commit. A sole voter commits all of them when it next starts; in a cluster the
// other members decide. Each leaves them out, Summary counts them and EachUncommitted shows them. To settle them, start
// and stop the etcd that wrote the log.
//
// # Memory
//
// Open reads the log once, for the end of it and for the places where a new leader rewrote entries. Each reads it again
// and hands out each entry as soon as it is read, because by then it knows which ones will stand. Nothing is collected:
// memory does not grow with the log.
package raftlog
