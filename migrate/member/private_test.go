package member

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// listeners gives the TCP addresses that a process listens on, from /proc.
func listeners(t *testing.T, pid int) (addresses []string) {
	t.Helper()
	sockets := map[string]bool{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatal(fds, err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil {
			sockets[link] = true
		}
	}
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Fields(lines.Text()) // see proc(5): 1 is the local address, 3 the state, 9 the inode
			if len(fields) < 10 || fields[3] != "0A" || !sockets["socket:["+fields[9]+"]"] {
				continue
			}
			host, port, _ := strings.Cut(fields[1], ":")
			ip, err := hex.DecodeString(host)
			if err != nil || len(ip) != 4 {
				t.Fatalf("etcd listens on %s", fields[1]) // not IPv4
			}
			n, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			addresses = append(addresses, fmt.Sprintf("%d.%d.%d.%d:%d", ip[3], ip[2], ip[1], ip[0], n))
		}
	}
	return addresses
}

// TestNobodyElse tries to get at both listeners without the client certificate.
func TestNobodyElse(t *testing.T) {
	stranger, err := newSecrets(nil, true) // has an authority of its own, and the same names in the certificates
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.close()
	each(t, "", "", func(t *testing.T, r string) {
		e := startReady(t, r, Config{V2: r == "3.4.31" || r == "3.5.35"})
		addresses := listeners(t, e.process.Pid)
		if len(addresses) != 2 {
			t.Fatalf("etcd listens on %v, want a client and a peer listener", addresses)
		}
		self := e.secrets.client.Certificates
		attacks := map[string]struct {
			scheme string
			config *tls.Config
		}{
			"plain HTTP":              {"http", nil},
			"no certificate":          {"https", &tls.Config{}},
			"no certificate, TLS 1.2": {"https", &tls.Config{MaxVersion: tls.VersionTLS12}},
			"another's certificate":   {"https", &tls.Config{Certificates: stranger.client.Certificates}},
			"another's, with TLS 1.2": {"https", &tls.Config{
				Certificates: stranger.client.Certificates, MaxVersion: tls.VersionTLS12,
			}},
			"a certificate by itself": {"https", &tls.Config{Certificates: selfSigned(t)}},
			"our certificate, no key": {"https", &tls.Config{Certificates: mismatched(self, stranger)}},
		}
		for _, address := range addresses {
			if !strings.HasPrefix(address, "127.0.0.1:") {
				t.Errorf("etcd listens on %s", address)
			}
			body, err := get("https", address, "/version", e.secrets.client)
			if err != nil || !strings.Contains(body, "etcdserver") {
				t.Errorf("the right certificate gets %q, %v from %s", body, err, address)
			}
			for name, attack := range attacks {
				for _, path := range []string{"/version", "/v2/keys/", "/raft"} {
					if attack.config != nil {
						attack.config.InsecureSkipVerify = true
					}
					if body, err := get(attack.scheme, address, path, attack.config); err == nil {
						t.Errorf("%s gets %q from %s%s", name, body, address, path)
					}
				}
			}
		}
		stop(t, e)
	})
}

// get makes a request. That the server wants HTTPS, which servers by newer Gos answer in plain text, is an error.
func get(scheme, address, path string, config *tls.Config) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+path, nil)
	if err != nil {
		return "", err
	}
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if scheme == "http" && res.StatusCode == http.StatusBadRequest &&
		strings.TrimSpace(string(body)) == "Client sent an HTTP request to an HTTPS server." {
		return "", fmt.Errorf("%s", body)
	}
	return string(body), err
}

func selfSigned(t *testing.T) []tls.Certificate {
	t.Helper()
	ca, err := newIssuer()
	if err != nil {
		t.Fatal(err)
	}
	return []tls.Certificate{{Certificate: [][]byte{ca.cert.Raw}, PrivateKey: ca.key}}
}

// mismatched is what somebody has who saw our certificate, which is no secret, but not our key.
func mismatched(ours []tls.Certificate, other *secrets) []tls.Certificate {
	return []tls.Certificate{{Certificate: ours[0].Certificate, PrivateKey: other.client.Certificates[0].PrivateKey}}
}

func TestCertificates(t *testing.T) {
	s, err := newSecrets(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	leaf, err := x509.ParseCertificate(s.client.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, skew := range []time.Duration{-59 * time.Minute, 0, 23 * time.Hour} {
		if _, err := leaf.Verify(x509.VerifyOptions{
			Roots: s.client.RootCAs, CurrentTime: now.Add(skew), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}); err != nil {
			t.Errorf("with the clock changed by %s: %v", skew, err)
		}
	}
	if leaf.Subject.CommonName != "root" || leaf.IsCA {
		t.Errorf("client certificate is for %q, CA: %v", leaf.Subject.CommonName, leaf.IsCA)
	}
	other, err := newSecrets(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: other.client.RootCAs, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err == nil {
		t.Error("two etcds have the same authority")
	}
	for i, f := range s.files() {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o400 || info.Size() == 0 {
			t.Errorf("file %d has mode %s and %d bytes", i, info.Mode(), info.Size())
		}
	}
}

func TestServerIsVerified(t *testing.T) {
	stranger, err := newSecrets(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.close()
	// Somebody else listens where we think that our etcd is.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := false
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked = true
			fmt.Fprint(w, `{"etcdserver":"3.5.35","etcdcluster":"3.5.0"}`)
		}),
		TLSConfig: &tls.Config{Certificates: stranger.client.Certificates},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	go server.ServeTLS(l, "", "")
	defer server.Close()
	e := start(t, "3.5.35", Config{Path: fake(t, "fails-to-stop")})
	e.mu.Lock()
	e.port = l.Addr().(*net.TCPAddr).Port
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := e.Ready(ctx); err == nil || !strings.Contains(err.Error(), "signed by unknown authority") || asked {
		t.Errorf("got %v (request was sent: %v), want that the server is not believed", err, asked)
	}
}
