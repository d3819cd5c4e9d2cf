package migrate

// SetSnapshotCount changes when private etcds write raft snapshots, and gives what changes it back.
func SetSnapshotCount(n uint64) (undo func()) {
	old := snapshotCount
	snapshotCount = n
	return func() { snapshotCount = old }
}

// SetFreeSpace makes every file system have that much room.
func SetFreeSpace(n uint64) (undo func()) {
	old := freeSpace
	freeSpace = func(string) (uint64, error) { return n, nil }
	return func() { freeSpace = old }
}
