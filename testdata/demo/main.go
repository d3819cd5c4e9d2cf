// Command demo shows the main job on real data: it lets etcd 2.2 write a data dir, runs `etcd-migrate run … -- etcd` of
// the newest etcd on it, as a container's entrypoint would, reads everything back from that etcd, and compares.
//
// usage: go run ./testdata/demo BIN      BIN holds etcd-migrate and etcd/etcd-<version>
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

const plainKeys = 500

func main() {
	if err := demo(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(bin string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	etcds, err := binaries.Find(filepath.Join(bin, "etcd"))
	if err != nil {
		return err
	}
	oldest, ok := etcds.Newest(versionfile.Minors()[0])
	if !ok {
		return errors.New("no etcd 2.2; run `make binaries`")
	}
	newest := etcds.Binaries[len(etcds.Binaries)-1]
	scratch, err := os.MkdirTemp("", "etcd-migrate-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	dir := filepath.Join(scratch, "etcd")

	fmt.Printf("1. etcd %s writes a data dir: keys, directories, TTLs, hidden keys, a queue\n", oldest.Release)
	before, err := writeOld(ctx, oldest, dir)
	if err != nil {
		return err
	}

	client := "http://" + mustFreeAddress()
	fmt.Printf("2. etcd-migrate run -- etcd-%s --data-dir=… --listen-client-urls=%s\n\n", newest.Release, client)
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "etcd-migrate"), "run", "--bin-dir", etcds.Dir, "--log-format", "json", "--",
		newest.Path, "--name", pathtest.Name, "--data-dir", dir, "--log-level", "error",
		"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", "http://"+mustFreeAddress())
	var log strings.Builder
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	after, err := readNew(ctx, client, ended)
	took := time.Since(began)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, log.String())
	}
	printSteps(log.String())

	fmt.Printf("\n3. the same process is now etcd %s, %.1f s after it was started as etcd-migrate; it answers:\n\n", newest.Release, took.Seconds())
	diffs := pathtest.Compare(before, after)
	printCounts(before, after, oldest, newest, len(diffs))
	_ = cmd.Process.Signal(syscall.SIGTERM)
	<-ended
	versionTxt, err := os.ReadFile(filepath.Join(dir, versionfile.Name))
	if err != nil {
		return err
	}
	fmt.Printf("\n   version.txt: %s\n", versionTxt)
	if len(diffs) > 0 {
		return fmt.Errorf("not the same as before:\n  %s", strings.Join(diffs, "\n  "))
	}
	fmt.Println("   Every key, value, created and modified revision and TTL is what it was.")
	return nil
}

func writeOld(ctx context.Context, etcd binaries.Binary, dir string) (pathtest.Content, error) {
	server, err := pathtest.Start(ctx, etcd, dir)
	if err != nil {
		return pathtest.Content{}, err
	}
	err = server.FillV2(ctx, plainKeys)
	var content pathtest.Content
	if err == nil {
		content, err = server.ReadV2(ctx, pathtest.Hidden...)
	}
	return content, errors.Join(err, server.Stop())
}

// readNew waits for the etcd that etcd-migrate becomes, and reads everything from it.
func readNew(ctx context.Context, url string, ended <-chan error) (pathtest.Content, error) {
	for {
		select {
		case err := <-ended:
			return pathtest.Content{}, fmt.Errorf("etcd-migrate ended: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
		if conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://")); err == nil {
			_ = conn.Close()
			break
		}
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop(), MaxCallRecvMsgSize: 1 << 30})
	if err != nil {
		return pathtest.Content{}, err
	}
	defer c.Close()
	return pathtest.ReadV3(ctx, c)
}

// printSteps makes a table of the log lines that tell of finished steps.
func printSteps(log string) {
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "   step\tversion.txt after it\tseconds\tkeys\tfingerprint")
	for line := range strings.Lines(log) {
		var e struct {
			Msg, Kind, VersionTxt, Fingerprint string
			Step, Of, Keys                     int
			Seconds                            float64
		}
		if json.Unmarshal([]byte(line), &e) == nil && e.Msg == "step done" {
			fmt.Fprintf(w, "   %d/%d %s\t%s\t%.2f\t%d\t%s\n", e.Step, e.Of, e.Kind, e.VersionTxt, e.Seconds, e.Keys, e.Fingerprint)
		}
	}
	_ = w.Flush()
}

func printCounts(before, after pathtest.Content, from, to binaries.Binary, diffs int) {
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', 0)
	fmt.Fprintf(w, "   \tetcd %s (v2 API)\tetcd %s (v3 API)\n", from.Release, to.Release)
	b, a := count(before), count(after)
	fmt.Fprintf(w, "   keys\t%d\t%d\n", b.keys, a.keys)
	fmt.Fprintf(w, "   with a TTL\t%d\t%d\n", b.ttls, a.ttls)
	fmt.Fprintf(w, "   bytes of values\t%d\t%d\n", b.bytes, a.bytes)
	fmt.Fprintf(w, "   newest modified revision\t%d\t%d\n", b.newest, a.newest)
	fmt.Fprintf(w, "   differences\t\t%d\n", diffs)
	_ = w.Flush()
}

type counts struct {
	keys, ttls, bytes int
	newest            int64
}

func count(content pathtest.Content) (c counts) {
	for _, k := range content.Keys {
		c.keys++
		c.bytes += len(k.Value)
		c.newest = max(c.newest, k.Modified)
		if !k.Expiry.IsZero() {
			c.ttls++
		}
	}
	return c
}

func mustFreeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}
