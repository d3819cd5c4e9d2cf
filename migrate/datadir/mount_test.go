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

	"golang.org/x/sys/unix"
)

// These run in a process with a mount namespace of its own, so that their file systems are gone with it.

func init() {
	children["mounts"] = mounts
	children["small-volume"] = smallVolume
}

func inNamespace(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := child(t, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		t.Skip("this user may not make mount namespaces")
	}
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func mount(dir, options string) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return unix.Mount("tmpfs", dir, "tmpfs", 0, options)
}

func TestSmallVolume(t *testing.T) { inNamespace(t, "small-volume", t.TempDir()) }

// Too little space is seen before it is used up, a volume that fills up meanwhile gives an error that says so, and a
// read-only one too. Nothing is left behind.
func smallVolume(args []string) error {
	dir := filepath.Join(args[0], "volume")
	if err := mount(dir, "size=8m"); err != nil {
		return err
	}
	l, err := NewLayout(dir, "")
	if err != nil {
		return err
	}
	for _, name := range []string{l.SnapDir(), l.WALDir} {
		if err := os.MkdirAll(name, 0o700); err != nil {
			return err
		}
	}
	write := func(name string, size int) error {
		return os.WriteFile(name, []byte(strings.Repeat("x", size)), 0o600)
	}
	if err := errors.Join(write(l.DB(), 1<<20), write(l.WALDir+"/0.wal", 1<<20)); err != nil {
		return err
	}
	filler := filepath.Join(dir, "filler")
	backup := func() error {
		_, err := CreateBackup(context.Background(), l, l.BackupsDir(""), testMeta, nil)
		return err
	}

	if err := write(filler, 5<<20); err != nil {
		return err
	}
	usage, err := l.Usage()
	if err != nil || usage != 2<<20 {
		return fmt.Errorf("the usage is %d, %w", usage, err)
	}
	space := (*SpaceError)(nil)
	if err := backup(); !errors.As(err, &space) || !errors.Is(err, unix.ENOSPC) || space.Need != 2<<20 || space.Free > 1<<20 {
		return fmt.Errorf("with too little space a backup gives %w", err)
	} else if !strings.Contains(err.Error(), "needs 2.0 MiB, and its file system has ") {
		return fmt.Errorf("the error is %w", err)
	}
	if err := os.Remove(filler); err != nil {
		return err
	}

	// The space goes away while the backup is made.
	before = func(op, path string) error {
		if op == "write" && !exists(filler) {
			write(filler, 8<<20)
		}
		return nil
	}
	err = backup()
	before = func(string, string) error { return nil }
	if !errors.Is(err, unix.ENOSPC) || errors.As(err, &space) && space.Need == 0 {
		return fmt.Errorf("on a full volume a backup gives %w", err)
	}
	if left, err := os.ReadDir(l.BackupsDir("")); err != nil || len(left) > 0 {
		return fmt.Errorf("left behind: %v, %w", left, err)
	}
	if err := errors.Join(os.Remove(filler), backup()); err != nil {
		return err
	}

	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if err := backup(); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), dir) {
		return fmt.Errorf("on a read-only volume a backup gives %w", err)
	}
	if err := l.LiveEtcd(); err != nil {
		return err
	}
	unlock, err := l.Lock()
	if err != nil {
		return err
	}
	return unlock()
}

func TestMounts(t *testing.T) {
	root := t.TempDir()
	for _, separate := range []bool{false, true} {
		l := makeMember(t, filepath.Join(root, fmt.Sprint(separate)), separate)
		b := mustBackup(t, l)
		inNamespace(t, "mounts", l.DataDir, l.WALDir, b.Path)
	}
}

// A restore works where the data dir, the separate WAL dir and the backups are volumes of their own, and refuses a
// volume inside of what it would have to rename.
func mounts(args []string) error {
	l := Layout{DataDir: args[0], WALDir: args[1]}
	original := OpenBackup(args[2])
	// A copy of the backup in a third place, because the mounts hide it.
	backups := filepath.Join(filepath.Dir(l.DataDir), "elsewhere")
	if err := mount(backups, ""); err != nil {
		return err
	}
	b := filepath.Join(backups, original.ID)
	if _, err := CopyTree(context.Background(), b, original.Path, CopyOptions{}); err != nil {
		return err
	}
	for _, dir := range l.roots() {
		if err := mount(dir, ""); err != nil {
			return err
		}
	}
	restore := func() ([]string, error) { return OpenBackup(b).Restore(context.Background(), l, nil) }
	for i := range 2 { // into empty volumes, and over a member
		replaced, err := restore()
		if err != nil {
			return err
		}
		if want := i * len(l.roots()); len(replaced) != want {
			return fmt.Errorf("restore %d replaced %v", i, replaced)
		}
		again, err := CreateBackup(context.Background(), l, filepath.Join(backups, "again"), testMeta, nil)
		if err != nil {
			return err
		}
		for i, f := range again.Manifest.Files {
			if want := original.Manifest.Files[i]; f != want && f.Path != walName {
				return fmt.Errorf("%+v has become %+v", want, f)
			}
		}
	}
	inside := filepath.Join(l.MemberDir(), "a mount\twith odd letters")
	if err := mount(inside, ""); err != nil {
		return err
	}
	if _, err := restore(); err == nil || !strings.Contains(err.Error(), inside+" is a mount point") {
		return fmt.Errorf("with a volume inside a restore gives %w", err)
	}
	if same, err := SameFileSystem(inside, inside); !same || err != nil {
		return fmt.Errorf("a directory is on another file system than itself: %v, %w", same, err)
	}
	if same, err := SameFileSystem(inside, l.MemberDir()); same || err != nil {
		return fmt.Errorf("a mount is on the same file system: %v, %w", same, err)
	}
	if same, err := SameFileSystem(l.WorkDir()+"/none/x", l.MemberDir()); !same || err != nil {
		return fmt.Errorf("one volume is on one file system: %v, %w", same, err)
	}
	return nil
}

// An ordinary user who may only read gets an error that says so, and can ask what there is to know.
func TestReadOnlyUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	root := t.TempDir()
	must(t, os.Chmod(filepath.Dir(root), 0o755))
	l := makeMember(t, root, false)
	for name := range tree(t, root) {
		must(t, os.Chmod(filepath.Join(root, name), 0o755))
	}
	binary := filepath.Join(root, "test")
	if _, err := CopyTree(context.Background(), binary, os.Args[0], CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		cmd := child(t, name, args...)
		cmd.Path = binary
		nobody(cmd)
		out, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out)
	}
	if out := run("backup", l.DataDir, l.WALDir, "0"); !strings.Contains(out, "permission denied") ||
		!strings.Contains(out, l.WorkDir()) {
		t.Errorf("a backup gives %q", out)
	}
	if out := run("live", l.DataDir, l.WALDir); out != "" {
		t.Errorf("asking for etcd gives %q", out)
	}
	f, err := os.Open(l.DB())
	must(t, err)
	defer f.Close()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	if out := run("live", l.DataDir, l.WALDir); !strings.Contains(out, l.DB()+" is locked by a process that cannot be seen") {
		t.Errorf("asking for etcd gives %q", out)
	}
}
