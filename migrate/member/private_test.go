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
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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
			if err := speakHTTP2(address, e.secrets.client); err != nil && e.cfg.Release.Minor().AtLeast(3, 1) && port(address) == e.port {
				t.Errorf("the right certificate cannot speak HTTP/2 with %s: %v", address, err)
			}
			for name, attack := range attacks {
				if attack.config != nil {
					attack.config.InsecureSkipVerify = true
				}
				for _, request := range []string{
					"GET /version", "GET /health", "GET /v2/keys/", "PUT /v2/keys/intruder", "DELETE /v2/keys/", // read and write
					"POST /v2/members", "GET /members", "POST /raft", "GET /raft/stream/message/1", "POST /raft/snapshot", // join
					"POST /v3/kv/put", "POST /v3beta/kv/put", "POST /v3alpha/kv/put",
				} {
					method, path, _ := strings.Cut(request, " ")
					if body, err := ask(method, attack.scheme, address, path, attack.config); err == nil {
						t.Errorf("%s is answered %q by %s to %s", name, body, address, request)
					}
				}
				if err := speakHTTP2(address, attack.config); err == nil {
					t.Errorf("%s can speak HTTP/2 with %s", name, address)
				}
			}
		}
		stop(t, e)
	})
}

// speakHTTP2 says hello as a client of the v3 API does, and gives an error if the server does not say hello as well.
func speakHTTP2(address string, config *tls.Config) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if config != nil {
		config = config.Clone()
		config.NextProtos = []string{"h2"}
		conn = tls.Client(conn, config)
	}
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+settings); err != nil {
		return err
	}
	hello := make([]byte, len(settings))
	if _, err := io.ReadFull(conn, hello); err != nil {
		return err
	}
	if config == nil && (hello[0] == 0x15 || strings.HasPrefix(string(hello), "HTTP/1.0 ")) { // a TLS alert, or "Bad Request"
		return fmt.Errorf("%q", hello)
	}
	return nil
}

// TestOthersCannotReadTheKey: the etcd's key is in a file in memory that only its user can open, by way of /proc.
func TestOthersCannotReadTheKey(t *testing.T) {
	needRoot(t)
	dir := ownedDir(t, nobody)
	e := startReady(t, "3.5.35", Config{DataDir: filepath.Join(dir, "data"), Credential: &syscall.Credential{Uid: nobody, Gid: nobody}})
	for _, pid := range []int{e.process.Pid, os.Getpid()} {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			t.Fatal(err)
		}
		tried := 0
		for _, fd := range fds {
			if target, _ := os.Readlink(fd); !strings.HasPrefix(target, "/memfd:") {
				continue
			}
			tried++
			cmd := exec.Command("cat", fd)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody - 1, Gid: nobody}}
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Permission denied") {
				t.Errorf("another user reads %s: %v, %d bytes", fd, err, len(out))
			}
		}
		if tried < 3 {
			t.Errorf("process %d has %d files in memory", pid, tried)
		}
	}
	stop(t, e)
}

// get makes a request. That the server wants HTTPS, which servers by newer Gos answer in plain text, is an error.
func get(scheme, address, path string, config *tls.Config) (string, error) {
	return ask(http.MethodGet, scheme, address, path, config)
}

func ask(method, scheme, address, path string, config *tls.Config) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, method, scheme+"://"+address+path, nil)
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

func port(address string) int {
	_, port, _ := strings.Cut(address, ":")
	n, _ := strconv.Atoi(port)
	return n
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
