package member

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// Peers is how a member of a cluster of several meets the others: the settings of the etcd that is to run in the end, under
// etcd's own names. What a minor does not know yet is left out for that minor.
type Peers struct {
	ListenURLs    []string // --listen-peer-urls
	AdvertiseURLs []string // --initial-advertise-peer-urls

	CertFile, KeyFile             string // --peer-cert-file, --peer-key-file
	ClientCertFile, ClientKeyFile string // --peer-client-cert-file, --peer-client-key-file; 3.5 and later
	TrustedCAFile                 string // --peer-trusted-ca-file
	CRLFile                       string // --peer-crl-file; 3.3 and later
	ClientCertAuth                bool   // --peer-client-cert-auth
	AutoTLS                       bool   // --peer-auto-tls; 3.0 and later
	AllowedCN                     string // --peer-cert-allowed-cn; 3.3 and later
	AllowedHostname               string // --peer-cert-allowed-hostname; 3.4 and later
	// SkipClientSAN is --peer-skip-client-san-verification, up to 3.5 with "experimental-" before it; 3.2 and later.
	SkipClientSAN bool

	Heartbeat time.Duration // --heartbeat-interval; 0 for etcd's default of 100 ms
	Election  time.Duration // --election-timeout; 0 for etcd's default of 1 s
}

// Defaults of etcd's own timing, for all minors.
const (
	defaultHeartbeat = 100 * time.Millisecond
	defaultElection  = time.Second
)

// check makes the paths absolute, because etcd runs in the root directory.
func (p *Peers) check() error {
	if len(p.ListenURLs) == 0 {
		return errors.New("no URL to listen for peers on")
	}
	for _, path := range []*string{&p.CertFile, &p.KeyFile, &p.ClientCertFile, &p.ClientKeyFile, &p.TrustedCAFile, &p.CRLFile} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = abs
	}
	return nil
}

// args are the flags that an etcd of that minor knows of these settings.
func (p *Peers) args(name string, m versionfile.Minor) []string {
	advertise := p.AdvertiseURLs
	if len(advertise) == 0 {
		advertise = p.ListenURLs
	}
	heartbeat, election := p.Heartbeat, p.Election
	if heartbeat == 0 {
		heartbeat = defaultHeartbeat
	}
	if election == 0 {
		election = defaultElection
	}
	initial := make([]string, len(advertise))
	for i, u := range advertise {
		initial[i] = name + "=" + u
	}
	args := []string{
		"--listen-peer-urls=" + strings.Join(p.ListenURLs, ","),
		"--initial-advertise-peer-urls=" + strings.Join(advertise, ","),
		"--initial-cluster=" + strings.Join(initial, ","), // of no effect: the membership comes from the data
		fmt.Sprintf("--heartbeat-interval=%d", heartbeat.Milliseconds()),
		fmt.Sprintf("--election-timeout=%d", election.Milliseconds()),
	}
	for _, f := range []struct {
		minor       int // of 3.x, from which on etcd knows it; -1 for all
		flag, value string
	}{
		{-1, "peer-cert-file", p.CertFile},
		{-1, "peer-key-file", p.KeyFile},
		{-1, "peer-trusted-ca-file", p.TrustedCAFile},
		{5, "peer-client-cert-file", p.ClientCertFile},
		{5, "peer-client-key-file", p.ClientKeyFile},
		{3, "peer-crl-file", p.CRLFile},
		{3, "peer-cert-allowed-cn", p.AllowedCN},
		{4, "peer-cert-allowed-hostname", p.AllowedHostname},
	} {
		if f.value != "" && (f.minor < 0 || m.AtLeast(3, f.minor)) {
			args = append(args, "--"+f.flag+"="+f.value)
		}
	}
	if p.ClientCertAuth {
		args = append(args, "--peer-client-cert-auth")
	}
	if p.AutoTLS && m.AtLeast(3, 0) {
		args = append(args, "--peer-auto-tls")
	}
	switch {
	case p.SkipClientSAN && m.AtLeast(3, 6):
		args = append(args, "--peer-skip-client-san-verification")
	case p.SkipClientSAN && m.AtLeast(3, 2):
		args = append(args, "--experimental-peer-skip-client-san-verification")
	}
	return args
}

// TLS gives the configuration for a client of the other members' peer listeners: the member's own certificate, and the
// peers' authority. With AutoTLS nobody can check a peer's certificate, and etcd does not either.
func (p *Peers) TLS() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: p.AutoTLS} //nolint:gosec // as etcd does
	cert, key := p.CertFile, p.KeyFile
	if p.ClientCertFile != "" {
		cert, key = p.ClientCertFile, p.ClientKeyFile
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("peer certificate %s, key %s: %w", cert, key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if p.TrustedCAFile != "" {
		pem, err := os.ReadFile(p.TrustedCAFile)
		if err != nil {
			return nil, fmt.Errorf("peer authority: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("peer authority %s: no certificate in it", p.TrustedCAFile)
		}
	}
	return c, nil
}
