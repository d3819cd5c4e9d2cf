package migrate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/datadir"
	"github.com/etcd-migrate/etcd-migrate/migrate/keyspace"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// image is a data dir in memory: the content of each file by its path.
type image map[string][]byte

// sample is a data dir that a real etcd has written, and what is in it.
type sample struct {
	name   string
	files  image
	keys   int
	print  string // fingerprint
	target versionfile.Version
	back   versionfile.Version // of a rollback, zero for none
}

// planted is in every key and value of the samples, so that it can be looked for in errors.
const planted = "Zqx7Planted"

// samples lets etcds write them.
func samples(t testing.TB, set binaries.Set) []sample {
	t.Helper()
	parse := func(s string) versionfile.Version {
		v, err := versionfile.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	var all []sample
	for _, s := range []struct {
		minor   string
		storage versionfile.Storage
		flags   []string
		target  string
		back    string
		cut     bool // the log into several segments
	}{
		{"2.3", versionfile.Etcd2, []string{"--snapshot-count", "15"}, "3.0.17/etcd3", "2.2.5/etcd2", false},
		{"2.3", versionfile.Etcd2, nil, "3.7.3/etcd3", "2.2.5/etcd2", false},
		{"3.0", versionfile.Etcd2, []string{"--snapshot-count", "40"}, "3.0.17/etcd3", "2.3.8/etcd2", false},
		{"3.0", versionfile.Etcd2, nil, "3.0.17/etcd3", "2.3.8/etcd2", true},
		{"3.4", versionfile.Etcd3, []string{"--snapshot-count", "40"}, "3.5.35/etcd3", "3.3.27/etcd3", false},
		{"3.5", versionfile.Etcd3, nil, "3.7.3/etcd3", "3.4.31/etcd3", true},
		{"3.7", versionfile.Etcd3, []string{"--snapshot-count", "40"}, "3.7.3/etcd3", "3.6.16/etcd3", false},
	} {
		m, err := versionfile.ParseMinor(s.minor)
		if err != nil {
			t.Fatal(err)
		}
		bin, _ := set.Newest(m)
		dir := filepath.Join(t.TempDir(), "etcd")
		etcd, err := pathtest.Start(t.Context(), bin, dir, s.flags...)
		if err != nil {
			t.Fatal(err)
		}
		fillSample(t, etcd, s.storage)
		awaitVersion(t, etcd, s.minor)
		if err := etcd.Stop(); err != nil {
			t.Fatal(err)
		}
		if s.cut {
			cutLog(t, filepath.Join(dir, "member", "wal"))
		}
		v := versionfile.Version{Release: bin.Release, Storage: s.storage}
		if err := versionfile.Write(dir, v); err != nil {
			t.Fatal(err)
		}
		one := sample{name: s.minor + "/" + string(s.storage) + strings.Join(s.flags, "=") + map[bool]string{true: " in segments"}[s.cut], files: load(t, dir), target: parse(s.target), back: parse(s.back)}
		one.measure(t, set)
		all = append(all, one)
	}
	return all
}

// cutLog writes the log anew, in segments of some ten entries: etcd's own have 64 MiB.
func cutLog(t testing.TB, dir string) {
	t.Helper()
	defer func(size int64) { wal.SegmentSizeBytes = size }(wal.SegmentSizeBytes)
	wal.SegmentSizeBytes = 2048
	old, err := wal.OpenForRead(zap.NewNop(), dir, walpb.Snapshot{})
	if err != nil {
		t.Fatal(err)
	}
	metadata, state, entries, err := old.ReadAll()
	_ = old.Close() // opened for reading
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		t.Fatal(err)
	}
	w, err := wal.Create(zap.NewNop(), dir, metadata)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		state.Commit = e.Index
		if err := w.Save(state, []raftpb.Entry{e}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func awaitVersion(t testing.TB, s *pathtest.Server, minor string) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		res, err := http.Get(s.URL + "/version")
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		_, err = b.ReadFrom(res.Body)
		res.Body.Close()
		if err == nil && strings.Contains(b.String(), `"etcdcluster":"`+minor) {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("etcd says %s, %v", b.String(), err)
		}
	}
}

// fillSample writes some sixty keys, over and over, with some deleted.
func fillSample(t testing.TB, s *pathtest.Server, storage versionfile.Storage) {
	t.Helper()
	for i := range 80 {
		key, value := fmt.Sprintf("/%s/%02d", planted, i%60), fmt.Sprintf(`{"%s":%d}`, planted, i)
		if storage == versionfile.Etcd2 {
			status, body, err := s.V2(t.Context(), http.MethodPut, key, url.Values{"value": {value}})
			if err != nil || status >= 300 {
				t.Fatal(status, string(body), err)
			}
			continue
		}
		c, err := s.V3()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
		if i%10 == 9 {
			if _, err := c.Delete(t.Context(), fmt.Sprintf("/%s/%02d", planted, i%60-3)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// load reads a data dir, and leaves out most of the zeros at the end of a segment: they cost time and hold nothing.
func load(t testing.TB, dir string) image {
	t.Helper()
	files := image{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.HasSuffix(path, ".wal") {
			end := len(bytes.TrimRight(b, "\x00"))
			b = b[:min(len(b), (end+16<<10)&^4095)]
		}
		if strings.HasSuffix(path, ".tmp") { // a segment made ahead
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		files[rel] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (i image) names() []string {
	var names []string
	for name := range i {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (i image) store(t testing.TB, dir string) {
	t.Helper()
	for name, b := range i {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

func (i image) equal(t testing.TB, dir string) bool {
	t.Helper()
	n := 0
	same := true
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		n++
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		want, ok := i[rel]
		same = same && ok && bytes.Equal(b, want)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return same && n == len(i)
}

// damage is one thing that has gone wrong with a file.
type damage struct {
	file string
	kind int
	at   int
	n    int
	b    byte
}

const kinds = 12

func (d damage) String() string {
	return fmt.Sprintf("%s of %s at %d, %d bytes, %#x", [kinds]string{"truncation", "bit flip", "bit flip", "zeros", "overwriting", "deletion",
		"duplication", "exchange", "swap of blocks", "append", "a sector of zeros", "an empty file"}[d.kind], d.file, d.at, d.n, d.b)
}

// apply gives the damaged image. It can be the same as before: a zero over a zero.
func (i image) apply(d damage) image {
	damaged := image{}
	for name, b := range i {
		damaged[name] = b
	}
	b := bytes.Clone(i[d.file])
	end := min(d.at+d.n, len(b))
	switch d.kind {
	case 0:
		b = b[:d.at]
	case 1, 2:
		if len(b) > 0 {
			b[d.at] ^= 1 << (d.b % 8)
		}
	case 3:
		clear(b[d.at:end])
	case 4:
		for j := d.at; j < end; j++ {
			b[j] = d.b ^ byte(j*7)
		}
	case 5:
		delete(damaged, d.file)
		return damaged
	case 6: // also under the name that follows
		damaged[successor(d.file)] = b
	case 7:
		names := i.names()
		other := names[d.at%len(names)]
		damaged[other], b = b, damaged[other]
	case 8:
		from, to := d.at&^511, d.n*512%max(len(b), 1)&^511
		if from+512 <= len(b) && to+512 <= len(b) {
			block := bytes.Clone(b[from : from+512])
			copy(b[from:], b[to:to+512])
			copy(b[to:], block)
		}
	case 9:
		b = append(b, bytes.Repeat([]byte{d.b}, d.n)...)
	case 10:
		from := d.at &^ 511
		clear(b[from:min(from+512, len(b))])
	case 11:
		b = nil
	}
	damaged[d.file] = b
	return damaged
}

// successor is the name of the next segment or snapshot, or of a copy.
func successor(name string) string {
	dir, base := filepath.Split(name)
	base, ext, _ := strings.Cut(base, ".")
	a, b, ok := strings.Cut(base, "-")
	n, err := strconv.ParseUint(a, 16, 64)
	m, err2 := strconv.ParseUint(b, 16, 64)
	if !ok || err != nil || err2 != nil {
		return name + ".copy"
	}
	return fmt.Sprintf("%s%016x-%016x.%s", dir, n+1, m+1, ext)
}

// pick makes damage from random numbers, most of it where there is data.
func pick(names []string, files image, file, kind, at, n uint32, b byte) damage {
	d := damage{file: names[int(file)%len(names)], kind: int(kind % kinds), n: 1 + int(n%5000), b: b}
	content := files[d.file]
	written := len(bytes.TrimRight(content, "\x00"))
	if at%16 == 0 {
		written = len(content)
	}
	d.at = int(at>>4) % max(written, 1)
	return d
}

func (s *sample) request(t testing.TB, set binaries.Set, dir string, back bool) migrate.Request {
	r := migrate.Request{DataDir: dir, Target: s.target, Binaries: set, AllowRollback: back}
	if back {
		r.Target = s.back
	}
	return r
}

// measure notes what is in the undamaged sample.
func (s *sample) measure(t testing.TB, set binaries.Set) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "etcd")
	s.files.store(t, dir)
	for _, back := range []bool{true, false} {
		st, print, err := migrate.Preflight(t.Context(), s.request(t, set, dir, back))
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if s.keys, s.print = int(print.Records), print.String(); s.keys < 50 || st.Presence != migrate.Present {
			t.Fatalf("%s: %d keys, %+v", s.name, s.keys, st)
		}
	}
}

// checkDamaged puts the damaged data dir into dir, has it looked at, and says what is wrong with what comes of it.
func (s *sample) checkDamaged(t testing.TB, set binaries.Set, dir string, d damage) (accepted bool, wrong string) {
	t.Helper()
	damaged := s.files.apply(d)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	damaged.store(t, dir)
	for _, back := range []bool{false, true} {
		st, print, err := s.look(t, set, dir, back)
		switch {
		case strings.Contains(fmt.Sprint(err), "panic:"), strings.Contains(fmt.Sprint(err), "took"):
			return false, err.Error()
		case err != nil && strings.Contains(err.Error(), planted):
			return false, "a key or a value is in the error: " + err.Error()
		case !damaged.equal(t, dir):
			return false, fmt.Sprintf("the dir has changed (%v)", err)
		case err != nil && migrate.KindOf(err) != migrate.Refused:
			return false, fmt.Sprintf("it is not refused, but fails: %v", err)
		case err != nil && !strings.Contains(err.Error(), dir) && !strings.Contains(err.Error(), "version.txt") && !namesEnough(err):
			return false, fmt.Sprintf("the error names no file: %v", err)
		case err != nil:
			continue
		case st.Presence != migrate.Present:
			return true, "it is taken for fresh"
		}
		accepted = true
		if print.String() != s.print && !s.mayDiffer(d, st, print) {
			return true, fmt.Sprintf("%d keys, fingerprint %s, instead of %d, %s; torn: %q", print.Records, print, s.keys, s.print, st.Log.Torn)
		}
	}
	return accepted, ""
}

// namesEnough: these say what contradicts what, which is no single file.
func namesEnough(err error) bool {
	for _, s := range []string{"the two stores differ", "the data is at", "cluster of", "nothing in the data says", "the data only says"} {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return false
}

// mayDiffer says what damage cannot be told from what a crash leaves, or cannot be seen at all.
func (s *sample) mayDiffer(d damage, st migrate.State, print *keyspace.Fingerprint) bool {
	if filepath.Base(d.file) == "db" {
		if st.Log.PendingV3 > 0 {
			return true // of the two meta pages the newer is damaged; the log has what the db was before, and etcd applies it
		}
		// There are no checksums in a db, so a changed byte in a key or a value is not seen. No record may be missing.
		if d.kind == 1 || d.kind == 2 {
			return int(print.Records) >= s.keys-1 // a key can come to be another's
		}
		return int(print.Records) >= s.keys
	}
	// The end of the last segment is what a power loss takes. Where v3 has the keys, the db says how far it must reach.
	if !strings.HasSuffix(d.file, ".wal") || st.Version.Storage != versionfile.Etcd2 || int(print.Records) > s.keys {
		return false
	}
	names := s.files.names()
	if last := slices.IndexFunc(names, func(n string) bool { return strings.HasSuffix(n, ".wal") && n > d.file }); last >= 0 {
		return false
	}
	if d.kind == 5 || d.kind == 11 {
		return true
	}
	const lastWrites = 1024 // bytes
	end := len(bytes.TrimRight(s.files[d.file], "\x00"))
	return d.kind == 0 || d.at+lastWrites > end || (d.kind == 3 || d.kind == 4) && d.at+d.n+lastWrites > end
}

// look runs Preflight with limits of time and memory.
func (s *sample) look(t testing.TB, set binaries.Set, dir string, back bool) (st migrate.State, print *keyspace.Fingerprint, err error) {
	const (
		mostTime   = 20 * time.Second
		mostMemory = 512 << 20
	)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithTimeout(t.Context(), mostTime)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		st, print, err = migrate.Preflight(ctx, s.request(t, set, dir, back))
	}()
	select {
	case <-done:
	case <-time.After(2 * mostTime):
		panic("it does not end") // with all stacks
	}
	if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > mostMemory {
		err = fmt.Errorf("it took %d MiB of memory", (after.TotalAlloc-before.TotalAlloc)>>20)
	}
	return st, print, err
}

// TestDamage damages real data dirs in many ways, always the same ones: ETCD_MIGRATE_DAMAGE says how many of each sample,
// and `make damage` makes them many. None may be changed, taken for fresh, or accepted with fewer records than it had.
func TestDamage(t *testing.T) {
	set := etcds(t)
	n := 150
	if s := os.Getenv("ETCD_MIGRATE_DAMAGE"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range samples(t, set) {
		t.Run(s.name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(uint64(i), 6))
			dir := filepath.Join(t.TempDir(), "etcd")
			names, accepted := s.files.names(), 0
			for range n {
				d := pick(names, s.files, random.Uint32(), random.Uint32(), random.Uint32(), random.Uint32(), byte(random.Uint32()))
				ok, wrong := s.checkDamaged(t, set, dir, d)
				if wrong != "" {
					t.Errorf("%s: %s", d, wrong)
				}
				if ok {
					accepted++
				}
			}
			t.Logf("%d of %d damaged data dirs were refused", n-accepted, n)
		})
	}
}

// FuzzDamage is TestDamage with what the fuzzer thinks of.
func FuzzDamage(f *testing.F) {
	if testing.Short() {
		f.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		f.Fatal(err)
	}
	all := samples(f, set)
	for kind := range uint32(kinds) {
		f.Add(kind, kind, kind, kind<<8, kind, byte(kind))
	}
	f.Fuzz(func(t *testing.T, which, file, kind, at, n uint32, b byte) {
		s := all[int(which)%len(all)]
		d := pick(s.files.names(), s.files, file, kind, at, n, b)
		if _, wrong := s.checkDamaged(t, set, filepath.Join(t.TempDir(), "etcd"), d); wrong != "" {
			t.Errorf("%s: %s: %s", s.name, d, wrong)
		}
	})
}

// TestDamagedBackup damages a backup in many ways: a restore of it is refused and changes nothing, or gives what was backed
// up. Its manifest and its files prove each other.
func TestDamagedBackup(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "2.3", versionfile.Etcd2, "--snapshot-count", "15")
	l, err := datadir.NewLayout(m.dir, "")
	must(t, err)
	made, err := datadir.CreateBackup(t.Context(), l, l.BackupsDir(""), datadir.Meta{Version: m.version}, nil)
	must(t, err)
	files, member := load(t, made.Path), load(t, l.MemberDir()) // 2.3 makes no segments that are zeros mostly
	random, names, dir := rand.New(rand.NewPCG(9, 6)), files.names(), filepath.Join(l.BackupsDir(""), "damaged")
	restored := 0
	undamaged := datadir.OpenBackup(made.Path)
	must(t, os.RemoveAll(dir))
	files.store(t, dir)
	must(t, os.RemoveAll(made.Path))
	must(t, os.Rename(dir, made.Path))
	_, err = undamaged.Restore(t.Context(), l, nil)
	must(t, err)
	for range 60 {
		d := pick(names, files, random.Uint32(), random.Uint32(), random.Uint32(), random.Uint32(), byte(random.Uint32()))
		must(t, os.RemoveAll(dir))
		files.apply(d).store(t, dir)
		must(t, os.Rename(dir, made.Path+".x"))
		must(t, os.RemoveAll(made.Path))
		must(t, os.Rename(made.Path+".x", made.Path))
		b := datadir.OpenBackup(made.Path)
		if _, err := b.Restore(t.Context(), l, nil); err == nil {
			restored++
		} else if !strings.Contains(err.Error(), made.Path) {
			t.Errorf("%s: the error names no file: %v", d, err)
		}
		now := load(t, l.MemberDir())
		for name, b := range member {
			if !bytes.Equal(b, now[name]) {
				t.Fatalf("%s: %s is not what was backed up", d, name)
			}
		}
		if len(now) != len(member) {
			t.Fatalf("%s: the member has the files %q", d, now.names())
		}
	}
	t.Logf("%d of 60 were restored", restored)
}

// TestDamagedJournal: a journal can say that a proof has failed, so what cannot be read is not taken for none.
func TestDamagedJournal(t *testing.T) {
	set := etcds(t)
	m := write(t, set, "3.5", versionfile.Etcd3)
	journal := filepath.Join(m.dir, "etcd-migrate", migrate.JournalName)
	must(t, datadir.MkdirAll(filepath.Dir(journal)))
	for _, content := range []string{"", "{", `{"format":2}`, "\x00\x00\x00\x00", `{"format":1}x`} {
		must(t, os.WriteFile(journal, []byte(content), 0o600))
		refusedUnchanged(t, m, m.request(t, "3.6"), journal, "etcd-migrate backup restore --data-dir "+m.dir)
	}
}
