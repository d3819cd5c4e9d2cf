package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/pathtest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// TestProbes asks a whole migration and the etcd that it becomes, over and over, as a kubelet does, but without a pause.
func TestProbes(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	certFlags, client := certificates(t)
	for scheme, flags := range map[string][]string{"http": nil, "https": certFlags} {
		t.Run(scheme, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "etcd")
			bin, _ := set.Newest(versionfile.Minors()[0])
			s, err := pathtest.Start(t.Context(), bin, dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.FillV2(t.Context(), 500); err != nil {
				t.Fatal(err)
			}
			if err := s.Stop(); err != nil {
				t.Fatal(err)
			}
			target, _ := set.Newest(versionfile.Minor{Major: 3, Minor: 6})
			probe := scheme + "://" + freeAddress(t)
			clients := scheme + "://" + freeAddress(t)
			peers := "http://" + freeAddress(t)
			log := &syncBuffer{}
			cmd := exec.Command(os.Args[0], append([]string{"run", "--bin-dir", set.Dir, "--", target.Path, "--name", pathtest.Name, "--data-dir", dir,
				"--listen-client-urls", clients, "--advertise-client-urls", clients, "--listen-peer-urls", peers,
				"--listen-metrics-urls", probe}, flags...)...)
			cmd.Env = append(os.Environ(), asMain+"=1")
			cmd.Stdout, cmd.Stderr = log, log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Signal(syscall.SIGTERM)
				_ = cmd.Wait()
			}()
			// What is answered, in order, without repetitions: first nothing, then the migration, then nothing, then etcd.
			var phases []string
			var metrics string
			for deadline := time.Now().Add(2 * time.Minute); ; {
				if time.Now().After(deadline) {
					t.Fatalf("etcd does not answer: %v\n%s", phases, log)
				}
				phase := "nobody"
				if code, body, err := get(client, probe+"/readyz"); err == nil {
					phase = "etcd"
					if strings.HasPrefix(body, "migrating: ") {
						phase = "migration"
					}
					// An etcd is not ready before it has a leader.
					if code != http.StatusOK && phase == "migration" {
						t.Errorf("readyz: %d %s", code, body)
					}
				}
				if phase == "migration" {
					if _, body, err := get(client, probe+"/metrics"); err == nil && strings.Contains(body, "etcd_migrate_step{") {
						metrics = body
					}
				}
				if len(phases) == 0 || phases[len(phases)-1] != phase {
					phases = append(phases, phase)
				}
				if phase == "etcd" {
					break
				}
			}
			if got := strings.Join(phases, " "); got != "nobody migration nobody etcd" && got != "migration nobody etcd" {
				t.Errorf("answered by %s", got)
			}
			for _, want := range []string{"etcd_migrate_steps 10", "etcd_migrate_steps_done ", "etcd_migrate_copied_bytes_total ",
				"etcd_migrate_records_total ", "etcd_migrate_started_timestamp_seconds 1.", "etcd_migrate_last_progress_timestamp_seconds 1.",
				`of="10",to="3.`} {
				if !strings.Contains(metrics, want) {
					t.Errorf("no %s in the metrics:\n%s", want, metrics)
				}
			}
			if strings.Contains(metrics, "etcd_migrate_copied_bytes_total 0") {
				t.Error("no byte of the backup was counted")
			}
			if strings.Contains(log.String(), "probes are not answered") {
				t.Error(log)
			}
		})
	}
}

// TestNoProbes sees that there is no listener where there is nothing to do, by taking its address away.
func TestNoProbes(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the etcd binaries")
	}
	set, err := pathtest.Binaries(os.Getenv("ETCD_MIGRATE_BIN_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "etcd")
	bin, _ := set.Newest(versionfile.Minor{Major: 3, Minor: 6})
	s, err := pathtest.Start(t.Context(), bin, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.FillV3(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	etcd := filepath.Join(t.TempDir(), "etcd")
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --version ] && echo 'etcd Version: %s'\nexit 0\n", bin.Release)
	if err := os.WriteFile(etcd, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	// The first one writes version.txt, and cannot listen. That stops nothing.
	for _, warns := range []bool{true, false} {
		cmd := exec.Command(os.Args[0], "run", "--bin-dir", set.Dir, "--", etcd, "--data-dir", dir, "--listen-metrics-urls=http://"+taken.Addr().String())
		cmd.Env = append(os.Environ(), asMain+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(out), "probes are not answered") != warns {
			t.Errorf("%v, warns %t:\n%s", err, !warns, out)
		}
	}
}

// TestStalledProbes asks when there is no progress any more.
func TestStalledProbes(t *testing.T) {
	p, err := probeFlags{StallTimeout: durationValue(time.Minute)}.probes(etcdSettings{}, time.Minute, func(s string) { t.Error(s) })
	if err != nil {
		t.Fatal(err)
	}
	for _, stalled := range []bool{false, true} {
		want := http.StatusOK
		if stalled {
			p.now = func() time.Time { return time.Now().Add(2 * time.Minute) }
			want = http.StatusServiceUnavailable
		}
		for _, path := range []string{"/livez", "/readyz", "/health"} {
			w := httptest.NewRecorder()
			p.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			if w.Code != want {
				t.Errorf("stalled %t: %s says %d %s", stalled, path, w.Code, w.Body)
			}
			if health := fmt.Sprintf(`"health":"%t"`, !stalled); path == "/health" && !strings.Contains(w.Body.String(), health) {
				t.Errorf("no %s in %s", health, w.Body)
			}
		}
	}
}

func TestProbeAddresses(t *testing.T) {
	for _, tc := range []struct {
		flag, etcd string
		want       string
		usage      bool
		warns      bool
	}{
		{flag: "", etcd: "", want: ""},
		{flag: "", etcd: "http://127.0.0.1:2381,http://[::1]:2381", want: "http://127.0.0.1:2381 http://[::1]:2381"},
		{flag: "none", etcd: "http://127.0.0.1:2381", want: ""},
		{flag: "http://0.0.0.0:9", etcd: "http://127.0.0.1:2381", want: "http://0.0.0.0:9"},
		{flag: "127.0.0.1:2381", usage: true},
		{flag: "ftp://127.0.0.1:2381", usage: true},
		{flag: "http://127.0.0.1", usage: true},
		{etcd: "unix://metrics", warns: true},
	} {
		warned := false
		p, err := probeFlags{ProbeListen: tc.flag}.probes(etcdSettings{MetricsURLs: tc.etcd}, 0, func(string) { warned = true })
		if (err != nil) != tc.usage || warned != tc.warns {
			t.Errorf("%+v: %v, warned %t", tc, err, warned)
		}
		if err != nil {
			continue
		}
		var got []string
		for _, u := range p.urls {
			got = append(got, u.String())
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
	// Without a certificate there is no https, and that is said.
	warned := ""
	p, err := probeFlags{ProbeListen: "https://127.0.0.1:0"}.probes(etcdSettings{}, 0, func(s string) { warned = s })
	if err != nil {
		t.Fatal(err)
	}
	p.observe(migrate.Event{Kind: migrate.EventBegun})
	p.close()
	if !strings.Contains(warned, "--cert-file") {
		t.Errorf("warned: %q", warned)
	}
}

func get(client *http.Client, url string) (int, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

func freeAddress(t *testing.T) string {
	t.Helper()
	return strings.TrimPrefix(freeURL(t), "http://")
}

// certificates makes a certificate that is its own CA, etcd's flags for it, and a client that has it.
func certificates(t *testing.T) (flags []string, client *http.Client) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.WriteFile(certFile, certPEM, 0o600), os.WriteFile(keyFile, keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	return []string{"--cert-file", certFile, "--key-file", keyFile, "--trusted-ca-file", certFile, "--client-cert-auth"},
		&http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}}
}

// syncBuffer takes the output of a process while somebody reads it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
