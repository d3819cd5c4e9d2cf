package raftlog

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// v2Keys and v3Keys are the keys that the entries write.
func v2Keys(entries []Entry) (keys []string) {
	for _, e := range entries {
		if e.Kind == V2 && e.V2.Method == "PUT" {
			keys = append(keys, strings.TrimPrefix(e.V2.Path, "/1"))
		}
	}
	return keys
}

func v3Keys(entries []Entry) (keys []string) {
	for _, e := range entries {
		if e.Kind == V3 && e.V3.Put != nil {
			keys = append(keys, string(e.V3.Put.Key))
		}
	}
	return keys
}

func missing(want, have []string) (gone []string) {
	for _, k := range want {
		if !slices.Contains(have, k) {
			gone = append(gone, k)
		}
	}
	return gone
}

// check compares a member's log with what etcd reads, and looks for the keys: those of the v2 API in the snapshot or
// the entries, those of the v3 API in the entries if there is no snapshot.
func check(t *testing.T, snapDir, walDir string, v2, v3 []string) ours {
	t.Helper()
	r, err := compare(t, snapDir, walDir)
	if err != nil {
		t.Fatal(err)
	}
	entries := append(slices.Clone(r.entries), r.afterwards...)
	have := v2Keys(entries)
	for _, k := range v2 {
		if strings.Contains(r.SnapData, `"/1`+k+`"`) {
			have = append(have, k)
		}
	}
	if gone := missing(v2, have); len(gone) > 0 {
		t.Errorf("v2 keys are missing: %v", gone)
	}
	if gone := missing(v3, v3Keys(entries)); len(gone) > 0 && r.SnapIndex == 0 {
		t.Errorf("v3 keys are missing: %v", gone)
	}
	return r
}

// checkStopped is check for a member that was not killed: nothing is left undone. A member that is killed while it
// saves a snapshot leaves an empty or cut file, or one that the WAL does not know, and so does etcd 2.2 when it is stopped: it
// is the last one that does not wait for the goroutine that saves it. oldest is the first version that ran on the data.
func checkStopped(t *testing.T, oldest, snapDir, walDir string, v2, v3 []string) ours {
	t.Helper()
	r := check(t, snapDir, walDir, v2, v3)
	unsaved := len(r.snapshot.Skipped) > 0 && !strings.HasPrefix(oldest, "2.2.")
	if r.summary.Torn != "" || unsaved || r.summary.Uncommitted > 0 {
		t.Errorf("torn %q, skipped %q, %d uncommitted", r.summary.Torn, r.snapshot.Skipped, r.summary.Uncommitted)
	}
	return r
}

// TestEveryMinor reads what each minor leaves behind when it is killed and when it is stopped, without and with raft
// snapshots, in a WAL directory of its own.
func TestEveryMinor(t *testing.T) {
	for _, version := range versions {
		for name, flags := range map[string][]string{"default": nil, "snapshots": {"--snapshot-count", "5"}} {
			t.Run(version+"/"+name, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				flags := append(slices.Clone(flags), "--wal-dir", filepath.Join(t.TempDir(), "wal"))
				e := start(t, version, dir, flags...)
				v2, v3 := e.put("killed", 12)
				// Before 3.4.21 and 3.5.5 a member that is alone acknowledges a write while it still saves it, and a
				// kill can lose it (etcd-io/etcd issue 14370). The write after it finds it saved.
				e.put("unsaved", 1)
				e.kill()
				r := check(t, e.snap, e.wal, v2, v3)
				late := append(v2Keys(r.afterwards), v3Keys(r.afterwards)...)
				if version < "3.6" && len(late) > 0 { // a member that is alone saves entry and commit together
					t.Errorf("acknowledged keys are not committed: %v", late)
				}

				e = start(t, version, dir, flags...)
				more2, more3 := e.put("stopped", 7)
				e.stop()
				r = checkStopped(t, version, e.snap, e.wal, append(v2, more2...), append(v3, more3...))
				if (name == "snapshots") != (r.SnapIndex > 0) {
					t.Errorf("the snapshot has index %d", r.SnapIndex)
				}
				if name == "snapshots" && !slices.Equal(r.snapshot.ConfState.Voters, []uint64{r.NodeID}) {
					t.Errorf("the snapshot's voters are %x, the member is %x", r.snapshot.ConfState.Voters, r.NodeID)
				}
				if name == "default" && r.entries[0].ConfChange.NodeID != r.NodeID {
					t.Errorf("the first entry adds %v, the member is %x", r.entries[0].ConfChange, r.NodeID)
				}
			})
		}
	}
}

// TestUpgradedMember reads a log that one etcd after the other has written to: in the first the framing changes in the
// middle of a file.
func TestUpgradedMember(t *testing.T) {
	for name, path := range map[string]struct{ versions, flags []string }{
		// 3.5 would not serve the v3 API: the log still holds the cluster version 2.2.
		"one log":          {versions[:7], nil},
		"snapshots":        {versions[:8], []string{"--snapshot-count", "5"}},
		"snapshots to 3.7": {versions[6:], []string{"--snapshot-count", "5"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			var v2, v3 []string
			for _, version := range path.versions {
				e := start(t, version, dir, path.flags...)
				more2, more3 := e.put(version, 7)
				v2, v3 = append(v2, more2...), append(v3, more3...)
				e.stop()
				checkStopped(t, path.versions[0], e.snap, e.wal, v2, v3)
			}
		})
	}
}

// TestBackup reads what the etcdctl of 2.x makes of a data dir, before and after etcd has started on it.
func TestBackup(t *testing.T) {
	for name, flags := range map[string][]string{"default": nil, "snapshots": {"--snapshot-count", "5"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, backup := t.TempDir(), filepath.Join(t.TempDir(), "backup")
			e := start(t, "2.3.8", dir, flags...)
			v2, _ := e.put("a", 12)
			e.stop()
			run(t, "etcdctl-2.3.8", "backup", "--data-dir", dir, "--backup-dir", backup)
			original := checkStopped(t, "2.3.8", e.snap, e.wal, v2, nil)
			copied := checkStopped(t, "2.3.8", filepath.Join(backup, "member/snap"), filepath.Join(backup, "member/wal"), v2, nil)
			if copied.NodeID == original.NodeID || copied.ClusterID == original.ClusterID {
				t.Error("the backup has the IDs of the original")
			}
			if !slices.Equal(copied.Committed, original.Committed) {
				t.Error("the backup has other entries than the original")
			}

			e = start(t, "2.3.8", backup, append(slices.Clone(flags), "--force-new-cluster")...)
			more, _ := e.put("b", 7)
			e.stop()
			checkStopped(t, "2.3.8", e.snap, e.wal, append(v2, more...), nil)
		})
	}
}

// TestSnapshotRestore reads the logs that the tools of etcd 3 make from a db.
func TestSnapshotRestore(t *testing.T) {
	e := start(t, "3.4.31", t.TempDir())
	e.put("a", 3)
	e.stop()
	for _, tool := range []string{"etcdctl-3.4.31", "etcdutl-3.5.35", "etcdutl-3.6.16"} {
		t.Run(tool, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "restored")
			run(t, tool, "snapshot", "restore", filepath.Join(e.snap, "db"), "--skip-hash-check", "--data-dir", dir)
			r := checkStopped(t, strings.SplitN(tool, "-", 2)[1], filepath.Join(dir, "member/snap"), filepath.Join(dir, "member/wal"), nil, nil)
			if r.SnapIndex == 0 || len(r.Committed) > 0 {
				t.Errorf("the log is not only a snapshot: %+v", r.reading)
			}
		})
	}
}

// TestLostQuorum has a leader accept an entry that no other member ever sees, and then a new cluster forced from its
// data, which drops the entry and writes others in its place.
func TestLostQuorum(t *testing.T) {
	for _, version := range []string{"2.3.8", "3.3.27"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			peers := map[string]string{"n": freeURL(t), "m": freeURL(t)}
			dirs := map[string]string{"n": t.TempDir(), "m": t.TempDir()}
			members := map[string]*etcd{}
			for name, peer := range peers {
				members[name] = startMember(t, version, dirs[name], peer, "--name", name, "--election-timeout", "1000",
					"--initial-cluster", "n="+peers["n"]+",m="+peers["m"])
			}
			members["n"].putV2("/kept", "v")
			leader, follower := "n", "m"
			members["n"].until("have a leader", func() error {
				if leads := members["n"].leads(); leads == members["m"].leads() {
					return errors.New("none or both say so")
				} else if !leads {
					leader, follower = "m", "n"
				}
				return nil
			})
			members[follower].kill()
			members[leader].until("have it in its log", func() error {
				members[leader].proposeV2("/lost")
				return members[leader].logs("/lost")
			})
			members[leader].kill()

			e := members[leader]
			r := check(t, e.snap, e.wal, []string{"/kept"}, nil)
			if !slices.Contains(v2Keys(r.afterwards), "/lost") || slices.Contains(v2Keys(r.entries), "/lost") {
				t.Fatalf("committed %v, uncommitted %v", v2Keys(r.entries), v2Keys(r.afterwards))
			}
			check(t, members[follower].snap, members[follower].wal, []string{"/kept"}, nil)

			e = start(t, version, dirs[leader], "--name", leader, "--force-new-cluster")
			e.putV2("/later", "v")
			e.stop()
			r = checkStopped(t, version, e.snap, e.wal, []string{"/kept", "/later"}, nil)
			if slices.Contains(v2Keys(r.entries), "/lost") {
				t.Error("the uncommitted entry is back")
			}
		})
	}
}

// TestEmptySnapshotFile is what a full disk leaves of 2.x: etcd-io/etcd issue 5518.
func TestEmptySnapshotFile(t *testing.T) {
	t.Parallel()
	e := start(t, "2.3.8", t.TempDir(), "--snapshot-count", "5")
	v2, _ := e.put("a", 20)
	e.stop()
	names, err := listSnapshots(e.snap)
	if err != nil || len(names) < 2 {
		t.Fatal(names, err)
	}
	newest := filepath.Join(e.snap, names[0])
	if err := os.Truncate(newest, 0); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{newest, newest + ".broken"} { // etcd renames it during the first comparison
		r, err := compare(t, e.snap, e.wal)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.snapshot.Skipped) != 1 || !strings.HasPrefix(r.snapshot.Skipped[0], path+": ") {
			t.Errorf("skipped %q, want %s", r.snapshot.Skipped, path)
		}
		if filepath.Base(r.snapshot.Path) != names[1] {
			t.Errorf("took %s, want %s", r.snapshot.Path, names[1])
		}
		var have []string
		for _, k := range v2 {
			if strings.Contains(r.SnapData, `"/1`+k+`"`) {
				have = append(have, k)
			}
		}
		if gone := missing(v2, append(have, v2Keys(r.entries)...)); len(gone) > 0 {
			t.Errorf("keys are missing: %v", gone)
		}
	}
}
