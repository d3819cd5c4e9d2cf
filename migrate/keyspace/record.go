// Package keyspace gives what a stopped member stores as one stream of records, whichever store holds it: the tree of
// the v2 store, or the buckets of the v3 store. It knows no files but the db, which it only reads.
package keyspace

import "time"

// Record is one stored key as both stores know it. Key and Value are valid only during the call that hands them out.
type Record struct {
	// Key is the user's key: in the v2 store the path as a client of the v2 API names it, "/registry/pods/a".
	Key, Value []byte
	// Created and Modified are the v2 store's createdIndex and modifiedIndex, the v3 store's create and mod revision.
	Created, Modified int64
	// Version counts the writes since the key was created. The v2 store does not know it: 1.
	Version int64
	// Expiry is when the v2 store drops the key: its own expiry or the earliest of the directories above it. Zero for
	// a key that stays, and always zero for a key of the v3 store, whose leases know a duration only.
	Expiry time.Time
	// Lease is the lease ID of a key of the v3 store, 0 for none and for keys of the v2 store.
	Lease int64
}
