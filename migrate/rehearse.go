package migrate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// Rehearsal is what a migration of a copy has shown.
type Rehearsal struct {
	Report *Report `json:"report"`
	// Bytes is what the data takes on disk; BytesAfter what it takes after each step, PeakBytes the most that the copy and
	// its backup took together.
	Bytes      int64   `json:"bytes"`
	BytesAfter []int64 `json:"bytesAfter"`
	PeakBytes  int64   `json:"peakBytes"`
	// CopySeconds is how long the copy took; it is no part of the real migration.
	CopySeconds float64 `json:"copySeconds"`
	// DowntimeSeconds is how long the real migration will take, on this machine: the backup and all steps. What the
	// target etcd needs to start comes on top.
	DowntimeSeconds float64 `json:"downtimeSeconds"`
	// PeakMemoryBytes is the most that this process or any of the etcds took.
	PeakMemoryBytes int64 `json:"peakMemoryBytes"`
}

// Rehearse does on a copy, in a new directory below scratch, all that Run would do, and removes it again. The data itself
// is only read, and proven to be what it was. No etcd may run on it.
func Rehearse(ctx context.Context, r Request, scratch string) (rehearsal *Rehearsal, err error) {
	m := New(r)
	if err := m.open(); err != nil {
		return nil, err
	}
	if err := m.layout.LiveEtcd(); err != nil {
		return nil, held(err)
	}
	dir, err := os.MkdirTemp(scratch, "etcd-migrate-rehearsal-")
	if err != nil {
		return nil, refuse(err, "name a directory for the copy that can be written to")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := ownLike(dir, m.layout.DataDir); err != nil {
		return nil, refuse(err, "the copy must belong to the user that the data belongs to")
	}
	began := m.now()
	copied, files, err := copyMember(ctx, m.layout, dir)
	if err != nil {
		return nil, refuse(err, "name a directory with more room for the copy")
	}

	rehearsal = &Rehearsal{CopySeconds: m.now().Sub(began).Seconds(), BytesAfter: []int64{}}
	r.DataDir, r.WALDir, r.BackupDir = copied.DataDir, "", ""
	r.Peers = nil // a copy must never meet the real cluster: it would pass for the member itself
	if copied.SeparateWAL() {
		r.WALDir = copied.WALDir
	}
	observer := r.Observer
	r.Observer = func(e Event) {
		if e.Kind == EventStepDone {
			rehearsal.BytesAfter = append(rehearsal.BytesAfter, usage(copied))
		}
		if observer != nil {
			observer(e)
		}
	}
	rehearsal.Bytes = usage(copied)
	stop := rehearsal.watchDisk(dir)
	rehearsal.Report, err = New(r).Run(ctx)
	stop()
	rehearsal.PeakMemoryBytes = peakMemory()
	if rehearsal.Report != nil {
		rehearsal.DowntimeSeconds = rehearsal.Report.Seconds
	}
	for path, digest := range files {
		if now, hashErr := hashFile(path); hashErr != nil || now != digest {
			err = errors.Join(err, fmt.Errorf("%s is not what it was when the rehearsal began (%w): is somebody else using the data dir?", path, hashErr))
		}
	}
	return rehearsal, err
}

// copyMember copies the member to dir, and gives the digests of the files that were copied, by their path.
func copyMember(ctx context.Context, l datadir.Layout, dir string) (copied datadir.Layout, digests map[string]string, err error) {
	copied.DataDir = filepath.Join(dir, "data")
	copied.WALDir = filepath.Join(copied.MemberDir(), "wal")
	if err := errors.Join(os.Mkdir(copied.DataDir, 0o700), ownLike(copied.DataDir, l.DataDir)); err != nil {
		return copied, nil, err
	}
	from := map[string]string{l.MemberDir(): copied.MemberDir()}
	if l.SeparateWAL() {
		copied.WALDir = filepath.Join(dir, "wal")
		from[l.WALDir] = copied.WALDir
	}
	if _, err := os.Stat(l.VersionFile()); err == nil {
		from[l.VersionFile()] = copied.VersionFile()
	}
	digests = map[string]string{}
	for src, dst := range from {
		files, err := datadir.CopyTree(ctx, dst, src, datadir.CopyOptions{Hash: true})
		if err != nil {
			return copied, nil, err
		}
		for _, f := range files {
			if !f.Dir {
				digests[filepath.Join(src, filepath.FromSlash(f.Path))] = f.SHA256
			}
		}
	}
	return copied, digests, nil
}

// ownLike gives a directory the owner of another, if we are root: a private etcd runs as that user.
func ownLike(dir, model string) error {
	info, err := os.Stat(model)
	if err != nil || os.Geteuid() != 0 {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	return os.Chown(dir, int(st.Uid), int(st.Gid))
}

// watchDisk notes the most that dir takes, until stop is called.
func (r *Rehearsal) watchDisk(dir string) (stop func()) {
	const often = 50 * time.Millisecond
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			r.PeakBytes = max(r.PeakBytes, diskUse(dir))
			select {
			case <-done:
				return
			case <-time.After(often):
			}
		}
	}()
	return func() {
		close(done)
		<-stopped
	}
}

// diskUse is what the files in dir take. Files come and go meanwhile.
func diskUse(dir string) (bytes int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // gone
		}
		if info, err := d.Info(); err == nil {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return bytes
}

func usage(l datadir.Layout) int64 {
	n, err := l.Usage()
	if err != nil {
		return 0
	}
	return int64(n)
}

// peakMemory is the larger of our own peak and that of the largest child.
func peakMemory() int64 {
	var children syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &children) // cannot fail
	return max(ownPeakMemory(), children.Maxrss*1024)
}

func ownPeakMemory() int64 {
	var self syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &self) // cannot fail
	return self.Maxrss * 1024
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
