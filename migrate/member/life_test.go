package member

import (
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
)

// stores is what a running etcd's two stores hold and who its members are. What an etcd does not have is left empty.
type stores struct {
	V2Index, V2Tree string
	V2Members       string
	Revision        int64
	Hash            uint32
	V3Members       string
}

func readStores(t *testing.T, e *Etcd) (s stores) {
	t.Helper()
	m := e.cfg.Release.Minor()
	if !m.AtLeast(3, 4) || e.cfg.V2 {
		body, header := request(t, e.client, "GET", e.url()+"/v2/keys/?recursive=true&sorted=true", "")
		s.V2Tree, s.V2Index = body, header.Get("X-Etcd-Index")
		s.V2Members, _ = request(t, e.client, "GET", e.url()+"/v2/members", "")
	}
	if !e.cfg.hasV3() {
		return s
	}
	c, err := e.V3()
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Get(soon(t), "", clientv3.WithFromKey())
	if err != nil {
		t.Fatal(err)
	}
	s.Revision = res.Header.Revision
	if m.AtLeast(3, 3) {
		hash, err := c.HashKV(soon(t), c.Endpoints()[0], 0)
		if err != nil {
			t.Fatal(err)
		}
		s.Hash = hash.Hash
	}
	s.V3Members = v3Members(t, c)
	return s
}

func v3Members(t *testing.T, c *clientv3.Client) string {
	t.Helper()
	members, err := c.MemberList(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(members.Members)
}

// buckets reads from a stopped member's db what users have put there, in full.
func buckets(t *testing.T, dataDir string) map[string]string {
	t.Helper()
	content := map[string]string{}
	view(t, dataDir, func(tx *bolt.Tx) {
		for _, name := range []string{"key", "lease", "auth", "authUsers", "authRoles", "alarm"} {
			bucket := tx.Bucket([]byte(name))
			if bucket == nil {
				continue
			}
			_ = bucket.ForEach(func(k, v []byte) error {
				content[fmt.Sprintf("%s %x", name, k)] = string(v)
				return nil
			})
		}
	})
	return content
}

func consistentIndex(t *testing.T, dataDir string) (index uint64) {
	t.Helper()
	view(t, dataDir, func(tx *bolt.Tx) {
		if v := tx.Bucket([]byte("meta")).Get([]byte("consistent_index")); len(v) == 8 {
			index = binary.BigEndian.Uint64(v)
		}
	})
	return index
}

func view(t *testing.T, dataDir string, read func(*bolt.Tx)) {
	t.Helper()
	path := filepath.Join(dataDir, "member", "snap", "db")
	db, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.View(func(tx *bolt.Tx) error { read(tx); return nil }); err != nil {
		t.Fatal(err)
	}
}

// fill makes a member as an operator has it, with keys in every store that its release has.
func fill(t *testing.T, r, dataDir string) (members string) {
	t.Helper()
	m := release(t, r).Minor()
	var flags []string
	hasV2 := !m.AtLeast(3, 6)
	if m.AtLeast(3, 4) && hasV2 {
		flags = append(flags, "--enable-v2")
	}
	p := startPlain(t, r, dataDir, flags...)
	defer p.stop()
	if hasV2 {
		for i := range 5 {
			request(t, httpPlain, "PUT", fmt.Sprintf("%s/v2/keys/dir/%d", p.url, i), "value=x")
		}
		request(t, httpPlain, "PUT", p.url+"/v2/keys/_hidden", "value=y")
		members, _ = request(t, httpPlain, "GET", p.url+"/v2/members", "")
	}
	if m.AtLeast(3, 0) {
		etcdctl3(t, r, p)
	}
	if m.AtLeast(3, 1) {
		c := p.v3(t)
		lease, err := c.Grant(soon(t), 3600)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"/a", "b\x00", "/registry/pods/x"} {
			if _, err := c.Put(soon(t), key, "value", clientv3.WithLease(lease.ID)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Delete(soon(t), "/a"); err != nil {
			t.Fatal(err)
		}
		members += v3Members(t, c)
	}
	return members
}

// TestLeavesNoTrace runs everything that makes a step, on a member that was made by an operator's etcd.
func TestLeavesNoTrace(t *testing.T) {
	each(t, "", "", func(t *testing.T, r string) {
		t.Parallel()
		m := release(t, r).Minor()
		dir := filepath.Join(t.TempDir(), "data")
		membersBefore := fill(t, r, dir)
		var before map[string]string
		if m.AtLeast(3, 0) {
			if before = buckets(t, dir); len(before) == 0 {
				t.Fatal("there is nothing in the db to leave alone")
			}
		}

		cfg := plainMember
		cfg.DataDir, cfg.SnapshotCount, cfg.QuotaBytes = dir, 3, 1<<30
		cfg.V2 = m.AtLeast(3, 0) && !m.AtLeast(3, 6)
		e := startReady(t, r, cfg)
		storesBefore := readStores(t, e)
		if got := storesBefore.V2Members + storesBefore.V3Members; got != membersBefore {
			t.Errorf("the start changed the membership\nfrom %s\nto   %s", membersBefore, got)
		}
		for range 3 {
			from, err := e.committed(soon(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Write(soon(t)); err != nil {
				t.Fatal(err)
			}
			awaitIndex(t, e, from+1)
		}
		from, err := e.committed(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		index := forceSnapshot(t, e)
		synced := uint64(time.Since(began) / (500 * time.Millisecond)) // how often a leader up to 3.0 writes to let TTLs end
		if most := from + 2 + cfg.SnapshotCount + 2 + synced; index < from || index > most {
			t.Errorf("the snapshot is at %d, want %d to %d", index, from, most)
		}
		if again := forceSnapshot(t, e); again <= index {
			t.Errorf("the second snapshot is at %d, the first was at %d", again, index)
		} else {
			index = again
		}
		if diff := cmp.Diff(storesBefore, readStores(t, e)); diff != "" {
			t.Errorf("writes and snapshots changed a store:\n%s", diff)
		}
		stop(t, e)

		recorded, err := wal.ValidSnapshotEntries(zap.NewNop(), filepath.Join(dir, "member", "wal"))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(recorded); n == 0 || recorded[n-1].Index < index {
			t.Errorf("the raft log knows the snapshots %v, want %d among them", recorded, index)
		}
		if m.AtLeast(3, 0) {
			if diff := cmp.Diff(before, buckets(t, dir)); diff != "" {
				t.Errorf("the db has changed:\n%s", diff)
			}
			if got := consistentIndex(t, dir); got < index {
				t.Errorf("the db is at %d, behind the snapshot at %d", got, index)
			}
		}

		// The operator's own etcd finds it as it was.
		var flags []string
		if cfg.V2 && m.AtLeast(3, 4) {
			flags = append(flags, "--enable-v2")
		}
		p := startPlain(t, r, dir, flags...)
		members := ""
		if !m.AtLeast(3, 6) {
			members, _ = request(t, httpPlain, "GET", p.url+"/v2/members", "")
		}
		if m.AtLeast(3, 1) {
			members += v3Members(t, p.v3(t))
		}
		if members != membersBefore {
			t.Errorf("the membership has changed\nfrom %s\nto   %s", membersBefore, members)
		}
		p.stop()
	})
}

// awaitIndex waits until the raft index that an etcd tells is at least the wanted one, which some tell a little late.
// Etcd 2.x and 3.0 make entries of their own all the time, newer ones must not be further than that.
func awaitIndex(t *testing.T, e *Etcd, want uint64) {
	t.Helper()
	for ctx := soon(t); ; time.Sleep(time.Millisecond) {
		got, err := e.committed(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if got > want && e.cfg.hasV3() {
			t.Fatalf("one write made %d entries", got-want+1)
		}
		if got >= want {
			return
		}
	}
}

// TestWholeWay goes from 2.2 to 3.7 with nothing but what this package does at each step.
func TestWholeWay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	fill(t, "2.2.5", dir)
	var v2Tree string
	var revision int64
	each(t, "", "", func(t *testing.T, r string) {
		cfg := plainMember
		cfg.DataDir, cfg.SnapshotCount, cfg.V2 = dir, 3, r == "3.4.31" || r == "3.5.35"
		e := startReady(t, r, cfg)
		s := readStores(t, e)
		if r == releases[0] {
			v2Tree = s.V2Tree
		} else if s.V2Tree != v2Tree && s.V2Tree != "" {
			t.Errorf("the v2 store has become %s\nfrom %s", s.V2Tree, v2Tree)
		}
		if !strings.Contains(s.V2Members+s.V3Members, "https://10.1.2.3:2379") {
			t.Errorf("members are %s %s", s.V2Members, s.V3Members)
		}
		if r == "3.1.20" {
			c, err := e.V3()
			if err != nil {
				t.Fatal(err)
			}
			put, err := c.Put(soon(t), "/new", "x")
			if err != nil {
				t.Fatal(err)
			}
			revision = put.Header.Revision
		} else if s.Revision != revision && e.cfg.hasV3() {
			t.Errorf("the revision is %d, want %d", s.Revision, revision)
		}
		if r == "3.5.35" {
			if err := e.EmptyV2(soon(t), []string{"dir", "_hidden"}); err != nil {
				t.Fatal(err)
			}
		}
		forceSnapshot(t, e)
		stop(t, e)
	})
}

func TestForceSnapshotNeedsACount(t *testing.T) {
	e := startReady(t, "3.5.35", Config{})
	if _, err := e.ForceSnapshot(soon(t)); err == nil || !strings.Contains(err.Error(), "without a snapshot count") {
		t.Errorf("got %v", err)
	}
	stop(t, e)
}

func TestForceSnapshotGivesUp(t *testing.T) {
	e := startReady(t, "3.5.35", Config{SnapshotCount: 1 << 40})
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := e.ForceSnapshot(ctx); err == nil {
		t.Error("there is a snapshot that cannot be")
	} else {
		wantError(t, err, running, "")
	}
	stop(t, e)
}

// TestNewSnapshot is about files in the snap dir that are no news.
func TestNewSnapshot(t *testing.T) {
	e := &Etcd{cfg: Config{DataDir: t.TempDir()}}
	if s, err := snapshots(e.snapDir()); err != nil || len(s) != 0 {
		t.Errorf("got %v, %v from a dir that is not there", s, err)
	}
	writeFiles(t, e.snapDir(), "0000000000000002-00000000000000ff.snap", "0000000000000002-0000000000000010.snap")
	before, err := snapshots(e.snapDir())
	if err != nil || len(before) != 2 {
		t.Fatal(before, err)
	}
	writeFiles(t, e.snapDir(), "0000000000000002-0000000000000020.snap.db", "db", "2-22.snap",
		"0000000000000002-0000000000000021.snap.broken", "0000000000000002-0000000000000008.snap")
	if path, index, err := e.newSnapshot(before, 9); path != "" || err != nil {
		t.Errorf("got %s %d %v, want none", path, index, err)
	}
	writeFiles(t, e.snapDir(), "0000000000000002-0000000000000011.snap", "0000000000000003-0000000000000012.snap")
	path, index, err := e.newSnapshot(before, 9)
	if filepath.Base(path) != "0000000000000003-0000000000000012.snap" || index != 0x12 || err != nil {
		t.Errorf("got %s %d %v", path, index, err)
	}
}

// BenchmarkStep measures one step on a small member: until it is ready, and all of it. Its ns/op is the whole step.
func BenchmarkStep(b *testing.B) {
	for _, r := range releases {
		b.Run(r, func(b *testing.B) {
			cfg := plainMember
			cfg.DataDir, cfg.SnapshotCount = filepath.Join(b.TempDir(), "data"), 3
			stop(b, startReady(b, r, cfg))
			var ready, whole []time.Duration
			for b.Loop() {
				started := time.Now()
				e := startReady(b, r, cfg)
				ready = append(ready, time.Since(started))
				forceSnapshot(b, e)
				stop(b, e)
				whole = append(whole, time.Since(started))
			}
			b.ReportMetric(median(ready), "ready-ms")
			b.ReportMetric(median(whole), "step-ms")
		})
	}
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Microseconds()) / 1000
}
