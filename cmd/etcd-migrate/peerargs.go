package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-migrate/etcd-migrate/migrate/member"
)

// defaultPeerURL is where an etcd listens for peers, and what it advertises, if nothing else is said.
const defaultPeerURL = "http://localhost:2380"

// readPeerSettings finds how the member meets the others of its cluster. value gives a flag's or a variable's value, on
// whether a switch is on.
func readPeerSettings(value func(string) string, on func(string) bool) (*member.Peers, error) {
	p := &member.Peers{
		ListenURLs: urls(value("listen-peer-urls")), AdvertiseURLs: urls(value("initial-advertise-peer-urls")),
		CertFile: value("peer-cert-file"), KeyFile: value("peer-key-file"),
		ClientCertFile: value("peer-client-cert-file"), ClientKeyFile: value("peer-client-key-file"),
		TrustedCAFile: value("peer-trusted-ca-file"), CRLFile: value("peer-crl-file"),
		AllowedCN: value("peer-cert-allowed-cn"), AllowedHostname: value("peer-cert-allowed-hostname"),
		ClientCertAuth: on("peer-client-cert-auth"), AutoTLS: on("peer-auto-tls"),
		SkipClientSAN: on("peer-skip-client-san-verification") || on("experimental-peer-skip-client-san-verification"),
	}
	for name, to := range map[string]*time.Duration{"heartbeat-interval": &p.Heartbeat, "election-timeout": &p.Election} {
		v := value(name)
		if v == "" {
			continue
		}
		ms, err := strconv.ParseUint(v, 0, 31)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		*to = time.Duration(ms) * time.Millisecond
	}
	return p, nil
}

// peerConfigFile is the same in etcd's --config-file (configYAML in server/embed/config.go).
type peerConfigFile struct {
	Listen    string `json:"listen-peer-urls"`
	Advertise string `json:"initial-advertise-peer-urls"`
	Heartbeat uint   `json:"heartbeat-interval"`
	Election  uint   `json:"election-timeout"`
	SkipSAN   bool   `json:"peer-skip-client-san-verification"`
	OldSkip   bool   `json:"experimental-peer-skip-client-san-verification"`
	Security  struct {
		CertFile        string `json:"cert-file"`
		KeyFile         string `json:"key-file"`
		ClientCertFile  string `json:"client-cert-file"`
		ClientKeyFile   string `json:"client-key-file"`
		ClientCertAuth  bool   `json:"client-cert-auth"`
		TrustedCAFile   string `json:"trusted-ca-file"`
		AutoTLS         bool   `json:"auto-tls"`
		AllowedCN       string `json:"allowed-cn"`
		AllowedHostname string `json:"allowed-hostname"`
	} `json:"peer-transport-security"`
}

func (f *peerConfigFile) peers() *member.Peers {
	s := f.Security
	return &member.Peers{
		ListenURLs: urls(f.Listen), AdvertiseURLs: urls(f.Advertise),
		CertFile: s.CertFile, KeyFile: s.KeyFile, ClientCertFile: s.ClientCertFile, ClientKeyFile: s.ClientKeyFile,
		TrustedCAFile: s.TrustedCAFile, ClientCertAuth: s.ClientCertAuth, AutoTLS: s.AutoTLS,
		AllowedCN: s.AllowedCN, AllowedHostname: s.AllowedHostname, SkipClientSAN: f.SkipSAN || f.OldSkip,
		Heartbeat: time.Duration(f.Heartbeat) * time.Millisecond, Election: time.Duration(f.Election) * time.Millisecond,
	}
}

// urls splits a list of URLs. An empty one is etcd's default.
func urls(list string) []string {
	if list == "" {
		return []string{defaultPeerURL}
	}
	return strings.Split(list, ",")
}

// switchValue looks for a boolean flag as Go's flag package reads it: its value is never in the next argument.
func switchValue(args []string, name string) (on, found bool) {
	for _, arg := range args {
		if arg == "--" {
			break
		}
		flag, v, hasValue := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
		if strings.HasPrefix(arg, "-") && flag == name {
			on, found = !hasValue || isTrue(v), true
		}
	}
	return on, found
}

func isTrue(v string) bool {
	on, err := strconv.ParseBool(v)
	return err == nil && on
}
