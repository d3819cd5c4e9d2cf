package datadir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func init() {
	// Restore a backup, with an end at the n-th call if n is not 0.
	children["restore"] = func(args []string) error {
		if err := killAt(args[3]); err != nil {
			return err
		}
		if args[4] == "no exchange" {
			noExchange()
		}
		_, err := OpenBackup(args[2]).Restore(context.Background(), Layout{DataDir: args[0], WALDir: args[1]}, nil)
		return err
	}
}

// ran reports whether the child came to its end, or else was killed as it was told to.
func ran(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err == nil {
		return true
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the child ends with %v: %s", err, out)
	}
	return false
}

// checkBackups wants every backup that can be seen to be whole, and gives their number.
func checkBackups(t *testing.T, l Layout, when string) int {
	t.Helper()
	all, err := ListBackups(l.BackupsDir(""))
	must(t, err)
	for _, b := range all {
		if err := b.Verify(context.Background(), nil); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	return len(all)
}

// Killed at any of its calls, CreateBackup leaves the source as it was and no half backup, and the next one works.
func TestCreateBackupKilled(t *testing.T) {
	for n, ended := 1, false; !ended; n++ {
		l := makeMember(t, quickDir(t), n%2 == 0)
		was := tree(t, l.DataDir, workName)
		ended = ran(t, child(t, "backup", l.DataDir, l.WALDir, fmt.Sprint(n)))
		when := fmt.Sprintf("killed at call %d", n)
		if diff := cmp.Diff(was, tree(t, l.DataDir, workName)); diff != "" {
			t.Errorf("%s: the source has changed: %s", when, diff)
		}
		found := checkBackups(t, l, when)
		mustBackup(t, l)
		if again := checkBackups(t, l, when); again != found+1 {
			t.Errorf("%s: there are %d backups and then %d", when, found, again)
		}
		if left := names(t, l.BackupsDir("")); len(left) != found+1 {
			t.Errorf("%s: there is %v", when, left)
		}
	}
}

// Whatever fails in CreateBackup, the error tells, the source is unchanged, there is no half backup, and it can be
// repeated.
func TestCreateBackupFaults(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO} {
		for n, ended := 1, false; !ended; n++ {
			l := makeMember(t, quickDir(t), n%2 == 0)
			was := tree(t, l.DataDir, workName)
			failed := failAt(t, n, n%3 == 0, errno)
			_, err := CreateBackup(context.Background(), l, l.BackupsDir(""), testMeta, nil)
			before = func(string, string) error { return nil }
			when := fmt.Sprintf("%v in %s", errno, *failed)
			ended = *failed == ""
			switch {
			case err == nil && !ended && !strings.HasPrefix(*failed, "clone"):
				t.Errorf("%s gives no error", when)
			case err != nil && (!errors.Is(err, errno) || !strings.Contains(err.Error(), l.DataDir)):
				t.Errorf("%s gives %v", when, err)
			}
			if diff := cmp.Diff(was, tree(t, l.DataDir, workName)); diff != "" {
				t.Errorf("%s: the source has changed: %s", when, diff)
			}
			found := checkBackups(t, l, when)
			if err != nil && found != 0 && n%3 != 0 {
				t.Errorf("%s: a failed backup is there", when)
			}
			if err != nil && n%3 != 0 && exists(l.BackupsDir("")) && len(names(t, l.BackupsDir(""))) != 0 {
				t.Errorf("%s: there is %v", when, names(t, l.BackupsDir("")))
			}
			mustBackup(t, l)
			if again := checkBackups(t, l, when); again != found+1 || len(names(t, l.BackupsDir(""))) != again {
				t.Errorf("%s: there are %d backups and then %v", when, found, names(t, l.BackupsDir("")))
			}
		}
	}
}

// restoreCase is a member that has moved on since its backup.
type restoreCase struct {
	l                    Layout
	b                    Backup
	want, old            map[string]state
	separate, noExchange bool
}

func newRestoreCase(t *testing.T, separate, without bool) restoreCase {
	t.Helper()
	c := restoreCase{l: makeMember(t, quickDir(t), separate), separate: separate, noExchange: without}
	c.want = memberTree(t, c.l)
	c.b = mustBackup(t, c.l)
	// Some WAL files are new, some have changed, some are gone.
	writeMember(t, c.l, "new ", "3.0.17/etcd3",
		"0000000000000001-0000000000000010.wal", "0000000000000002-0000000000000020.wal")
	c.old = memberTree(t, c.l)
	return c
}

// checkInterrupted checks what holds at any instant of a restore.
func (c restoreCase) checkInterrupted(t *testing.T, when string) {
	t.Helper()
	if checkBackups(t, c.l, when) != 1 {
		t.Errorf("%s: the backup is gone", when)
	}
	wals, err := walFiles(c.l.WALDir)
	must(t, err)
	if (len(wals) == 0 || !exists(c.l.DB())) && !c.noExchange {
		t.Errorf("%s: a part of the member is missing, and etcd would start an empty cluster", when)
	}
	interrupted, err := c.l.InterruptedRestore()
	must(t, err)
	if now := memberTree(t, c.l); interrupted == "" && !cmp.Equal(now, c.old) && !cmp.Equal(now, c.want) {
		t.Errorf("%s: the member is neither old nor new, and no journal says so: %s", when, cmp.Diff(c.want, now))
	} else if interrupted != "" && interrupted != c.b.Path {
		t.Errorf("%s: the journal names %s", when, interrupted)
	}
}

// checkRestored wants the member as in the backup, the old one aside, and nothing else.
func (c restoreCase) checkRestored(t *testing.T, when string, replaced []string) {
	t.Helper()
	if diff := cmp.Diff(c.want, memberTree(t, c.l)); diff != "" {
		t.Errorf("%s: the member is not the one of the backup: %s", when, diff)
	}
	roots := c.l.roots()
	if len(replaced) != len(roots) {
		t.Fatalf("%s: replaced is in %v", when, replaced)
	}
	aside := Layout{DataDir: replaced[0], WALDir: filepath.Join(replaced[0], "member/wal")}
	if c.separate {
		aside.WALDir = replaced[1]
	}
	if diff := cmp.Diff(c.old, memberTree(t, aside)); diff != "" {
		t.Errorf("%s: what was replaced has changed: %s", when, diff)
	}
	if diff := cmp.Diff([]string{"backups", filepath.Base(replaced[0])}, names(t, c.l.WorkDir())); diff != "" {
		t.Errorf("%s: %s", when, diff)
	}
	if c.separate {
		if diff := cmp.Diff([]string{filepath.Base(replaced[1])}, names(t, workIn(c.l.WALDir))); diff != "" {
			t.Errorf("%s: %s", when, diff)
		}
	}
	checkBackups(t, c.l, when)
}

func TestRestore(t *testing.T) {
	for _, separate := range []bool{false, true} {
		c := newRestoreCase(t, separate, false)
		around := tree(t, c.l.DataDir, memberName, workName)
		var last, total int64
		replaced, err := c.b.Restore(context.Background(), c.l, func(d, n int64) { last, total = d, n })
		must(t, err)
		c.checkRestored(t, "restored", replaced)
		if last != c.b.Manifest.Bytes || total != last {
			t.Errorf("%d of %d bytes are reported, want %d", last, total, c.b.Manifest.Bytes)
		}
		delete(around, versionName)
		now := tree(t, c.l.DataDir, memberName, workName)
		delete(now, versionName)
		if diff := cmp.Diff(around, now); diff != "" {
			t.Errorf("what is around the member has changed: %s", diff)
		}
	}
}

// The marker of an earlier restore does not make the next one believe that it is done.
func TestRestoreOverStaleMarker(t *testing.T) {
	c := newRestoreCase(t, false, false)
	stale := &restoreJournal{Replaced: "replaced-20250102T150405Z"}
	must(t, stale.mark(c.l.MemberDir()))
	replaced, err := c.b.Restore(context.Background(), c.l, nil)
	must(t, err)
	if diff := cmp.Diff(c.want, memberTree(t, c.l)); diff != "" {
		t.Error(diff)
	}
	if !exists(filepath.Join(replaced[0], memberName, marker)) {
		t.Error("what was replaced is not complete")
	}
}

// With the member, the WAL files or version.txt missing on one side, a restore adds or removes them.
func TestRestoreOfMissingParts(t *testing.T) {
	for _, separate := range []bool{false, true} {
		c := newRestoreCase(t, separate, false)
		must(t, os.RemoveAll(c.l.MemberDir()))
		must(t, os.Remove(c.l.VersionFile()))
		wals, err := walFiles(c.l.WALDir)
		must(t, err)
		for _, name := range wals {
			must(t, os.Remove(name))
		}
		replaced, err := c.b.Restore(context.Background(), c.l, nil)
		must(t, err)
		if len(replaced) != 0 {
			t.Errorf("replaced is in %v", replaced)
		}
		if diff := cmp.Diff(c.want, memberTree(t, c.l)); diff != "" {
			t.Error(diff)
		}
		if left := names(t, c.l.WALDir); separate && len(left) != 3 {
			t.Errorf("the WAL dir has %v", left)
		}

		writeMember(t, c.l, "none ", "")
		want := memberTree(t, c.l)
		b := mustBackup(t, c.l)
		writeMember(t, c.l, "other ", "3.7.3/etcd3")
		replaced, err = b.Restore(context.Background(), c.l, nil)
		must(t, err)
		if diff := cmp.Diff(want, memberTree(t, c.l)); diff != "" || !exists(filepath.Join(replaced[0], versionName)) {
			t.Error(diff)
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	plain, separate := newRestoreCase(t, false, false), newRestoreCase(t, true, false)
	other := Layout{DataDir: plain.l.DataDir, WALDir: separate.l.WALDir}
	_, err := plain.b.Restore(context.Background(), other, nil)
	checkError(t, err, "the backup has its WAL in member/wal, but the member has a separate WAL dir")
	other = Layout{DataDir: plain.l.DataDir, WALDir: plain.l.WALDir}
	_, err = separate.b.Restore(context.Background(), other, nil)
	checkError(t, err, "the backup has a separate WAL dir, which was "+separate.l.WALDir)
	_, err = plain.b.Restore(context.Background(), Layout{"/none", "/none/member/wal"}, nil)
	checkError(t, err, "/none: no such file or directory")
	f, err := os.Open(plain.l.DB())
	must(t, err)
	defer f.Close()
	must(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	_, err = plain.b.Restore(context.Background(), plain.l, nil)
	if heldErr := (*HeldError)(nil); !errors.As(err, &heldErr) {
		t.Errorf("with a running etcd a restore gives %v", err)
	}
	if diff := cmp.Diff(plain.old, memberTree(t, plain.l)); diff != "" {
		t.Errorf("the member has changed: %s", diff)
	}
	if diff := cmp.Diff([]string{"backups", "migration.json"}, names(t, plain.l.WorkDir())); diff != "" {
		t.Error(diff)
	}
}

// Killed at any of its calls, a restore leaves the old member, the new one, or one that ResumeRestore or another
// Restore completes.
func TestRestoreKilled(t *testing.T) {
	for _, separate := range []bool{false, true} {
		for _, exchange := range []string{"exchange", "no exchange"} {
			t.Run(fmt.Sprintf("separate WAL %v, %s", separate, exchange), func(t *testing.T) {
				t.Parallel()
				for n, ended := 1, false; !ended; n++ {
					c := newRestoreCase(t, separate, exchange != "exchange")
					ended = ran(t, child(t, "restore", c.l.DataDir, c.l.WALDir, c.b.Path, fmt.Sprint(n), exchange))
					when := fmt.Sprintf("killed at call %d", n)
					c.checkInterrupted(t, when)
					c.finish(t, when, n%4 == 0)
				}
			})
		}
	}
}

// finish completes an interrupted restore and checks the result.
func (c restoreCase) finish(t *testing.T, when string, again bool) {
	t.Helper()
	if again {
		// What a full restore replaces is the old member, or the new one if the interrupted restore got that far.
		_, err := c.b.Restore(context.Background(), c.l, nil)
		must(t, err)
		if diff := cmp.Diff(c.want, memberTree(t, c.l)); diff != "" {
			t.Errorf("%s and restored again: %s", when, diff)
		}
		return
	}
	interrupted, err := c.l.InterruptedRestore()
	must(t, err)
	id, replaced, err := c.l.ResumeRestore()
	must(t, err)
	if (id == c.b.ID) != (interrupted != "") {
		t.Errorf("%s: resumed is %q of %q", when, id, interrupted)
	}
	for _, name := range names(t, c.l.WorkDir()) {
		if strings.Contains(name, "restore") {
			t.Errorf("%s: %s is left of the restore", when, name)
		}
	}
	if exists(prepared(c.l.WALDir)) {
		t.Errorf("%s: something is left of the restore in the WAL dir", when)
	}
	if id != "" {
		c.checkRestored(t, when, replaced)
	} else if now := memberTree(t, c.l); !cmp.Equal(now, c.old) && !cmp.Equal(now, c.want) {
		t.Errorf("%s: the member is neither old nor new: %s", when, cmp.Diff(c.want, now))
	}
}

// Whatever fails in a restore, the error tells, and the member is the old one or a restore under way. A second
// failure on the way to completing it changes nothing about that.
func TestRestoreFaults(t *testing.T) {
	for _, without := range []bool{false, true} {
		for n, ended := 1, false; !ended; n++ {
			c := newRestoreCase(t, n%2 == 0, without)
			failed := failAt(t, n, n%4 > 1, syscall.EIO)
			if without {
				noExchange()
			}
			_, err := c.b.Restore(context.Background(), c.l, nil)
			before = func(string, string) error { return nil }
			when := "failed " + *failed
			ended = *failed == ""
			op, _, _ := strings.Cut(*failed, " ")
			if err == nil && !ended && op != "clone" && op != "link" || err != nil && !errors.Is(err, syscall.EIO) {
				t.Errorf("%s gives %v", when, err)
			}
			c.checkInterrupted(t, when)
			if interrupted, _ := c.l.InterruptedRestore(); interrupted != "" {
				failed := failAt(t, 1+n%17, true, syscall.EIO)
				if without {
					noExchange()
				}
				if _, _, err := c.l.ResumeRestore(); err != nil && !errors.Is(err, syscall.EIO) {
					t.Errorf("%s, then %s gives %v", when, *failed, err)
				}
				before = func(string, string) error { return nil }
				when += ", then " + *failed
				c.checkInterrupted(t, when)
			} else if err != nil && n%4 < 2 && !cmp.Equal(memberTree(t, c.l), c.old) {
				t.Errorf("%s: the restore failed, but not without a trace", when)
			}
			c.finish(t, when, n%5 == 0)
		}
	}
}

// If somebody removes what an interrupted restore needs, that is told, and another restore begins anew.
func TestRestoreWithPreparedGone(t *testing.T) {
	c := newRestoreCase(t, true, false)
	setBefore(t, func(op, path string) error {
		if op == "exchange" {
			// The process ends here: nothing is cleared up.
			before = func(string, string) error { return syscall.EIO }
			return syscall.EIO
		}
		return nil
	})
	if _, err := c.b.Restore(context.Background(), c.l, nil); err == nil {
		t.Fatal("it did not fail")
	}
	before = func(string, string) error { return nil }
	must(t, os.Rename(prepared(c.l.DataDir)+"/member", c.l.DataDir+"/../gone"))
	_, _, err := c.l.ResumeRestore()
	checkError(t, err, "complete the interrupted restore of backup "+c.b.Path+": what it had prepared is gone")
	must(t, os.WriteFile(prepared(c.l.DataDir)+"/precious", nil, 0o600))
	replaced, err := c.b.Restore(context.Background(), c.l, nil)
	must(t, err)
	if diff := cmp.Diff(c.want, memberTree(t, c.l)); diff != "" {
		t.Error(diff)
	}
	found, err := filepath.Glob(c.l.WorkDir() + "/replaced-*/restore.tmp/precious")
	must(t, err)
	if len(found) != 1 || len(replaced) != 2 {
		t.Errorf("replaced is in %v, and what was left in %v", replaced, found)
	}
}

// Another Restore completes an interrupted one of another backup before its own.
func TestRestoreAfterInterruptedOther(t *testing.T) {
	c := newRestoreCase(t, true, false)
	second := mustBackup(t, c.l)
	failed := ""
	setBefore(t, func(op, path string) error {
		if op == "rename" && path == c.l.VersionFile() {
			failed = path
		}
		if failed != "" {
			return syscall.EIO
		}
		return nil
	})
	_, err := c.b.Restore(context.Background(), c.l, nil)
	checkError(t, err, "version.txt")
	before = func(string, string) error { return nil }
	_, err = CreateBackup(context.Background(), c.l, c.l.BackupsDir(""), testMeta, nil)
	checkError(t, err, "a restore of backup "+c.b.Path+" was interrupted")
	other := Layout{DataDir: c.l.DataDir, WALDir: c.l.MemberDir() + "/wal"}
	_, _, err = other.ResumeRestore()
	checkError(t, err, "it was begun with another setting of --wal-dir")
	replaced, err := second.Restore(context.Background(), c.l, nil)
	must(t, err)
	if len(replaced) != 4 {
		t.Errorf("replaced is in %v", replaced)
	}
	if diff := cmp.Diff(c.old, memberTree(t, c.l)); diff != "" {
		t.Error(diff)
	}
}
