package migrate

import (
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
)

// measure gives an Observer that notes what each step takes, and tells another one what it has not been told of the data itself.
func (r *Rehearsal) measure(copied datadir.Layout, disk *diskWatch, observer func(Event)) func(Event) {
	before := r.Bytes
	return func(e Event) {
		switch e.Kind {
		case EventInspected, EventPlanned:
			return
		case EventStepStarted:
			r.PeakBytes = max(r.PeakBytes, disk.peakSinceLast())
		case EventStepDone:
			cost := StepCost{BytesBefore: before, BytesAfter: usage(copied), PeakBytes: disk.peakSinceLast(), PeakMemoryBytes: e.Result.PeakMemoryBytes}
			before, r.PeakBytes = cost.BytesAfter, max(r.PeakBytes, cost.PeakBytes)
			r.Costs = append(r.Costs, cost)
		}
		if observer != nil {
			observer(e)
		}
	}
}

// diskWatch looks again and again at what a directory takes on disk.
type diskWatch struct {
	dir           string
	done, stopped chan struct{}

	mu   sync.Mutex
	peak int64
}

func watchDisk(dir string) *diskWatch {
	const often = 20 * time.Millisecond
	w := &diskWatch{dir: dir, done: make(chan struct{}), stopped: make(chan struct{})}
	go func() {
		defer close(w.stopped)
		for {
			w.look()
			select {
			case <-w.done:
				return
			case <-time.After(often):
			}
		}
	}()
	return w
}

func (w *diskWatch) look() {
	n := diskUse(w.dir)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peak = max(w.peak, n)
}

// peakSinceLast is the most that it took since the last call.
func (w *diskWatch) peakSinceLast() int64 {
	w.look()
	w.mu.Lock()
	defer w.mu.Unlock()
	peak := w.peak
	w.peak = 0
	return peak
}

// stop ends the watch and gives the most since the last call of peakSinceLast.
func (w *diskWatch) stop() int64 {
	close(w.done)
	<-w.stopped
	return w.peakSinceLast()
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
