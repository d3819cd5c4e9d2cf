package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/migrate/member"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

func TestReadEtcdSettings(t *testing.T) {
	config := filepath.Join(t.TempDir(), "etcd.yaml")
	if err := os.WriteFile(config, []byte("name: from-file\ndata-dir: /file/data\nwal-dir: /file/wal\nquota-backend-bytes: 8589934592\nlog-level: debug\n"+
		"listen-metrics-urls: https://127.0.0.1:2381\nclient-transport-security:\n  cert-file: /c\n  key-file: /k\n  client-cert-auth: true\n  trusted-ca-file: /ca\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args, env []string
		want      etcdSettings
	}{
		"nothing given, as etcd does": {nil, nil, etcdSettings{DataDir: "default.etcd"}},
		"a name and no data dir":      {[]string{"--name=m1"}, nil, etcdSettings{Name: "m1", DataDir: "m1.etcd"}},
		"flags with =": {
			[]string{"--name=m1", "--data-dir=/data", "--wal-dir=/wal", "--quota-backend-bytes=8589934592"}, nil,
			etcdSettings{Name: "m1", DataDir: "/data", WALDir: "/wal", Quota: 8 << 30}},
		"flags without =, one dash": {
			[]string{"-name", "m1", "-data-dir", "/data", "-wal-dir", "/wal"}, nil,
			etcdSettings{Name: "m1", DataDir: "/data", WALDir: "/wal"}},
		"booleans before and after": {
			[]string{"--client-cert-auth", "--data-dir", "/data", "--peer-client-cert-auth", "--name", "m1"}, nil,
			etcdSettings{Name: "m1", DataDir: "/data", ClientCertAuth: true}},
		"where it is probed": {
			[]string{"--listen-metrics-urls=https://127.0.0.1:2381", "--cert-file", "/c", "--key-file=/k", "--trusted-ca-file=/ca", "--client-cert-auth=false"},
			[]string{"ETCD_CLIENT_CERT_AUTH=true"},
			etcdSettings{DataDir: "default.etcd", MetricsURLs: "https://127.0.0.1:2381", CertFile: "/c", KeyFile: "/k", TrustedCAFile: "/ca"}},
		"where it is probed, by variables": {
			nil, []string{"ETCD_LISTEN_METRICS_URLS=http://127.0.0.1:2381", "ETCD_CLIENT_CERT_AUTH=true"},
			etcdSettings{DataDir: "default.etcd", MetricsURLs: "http://127.0.0.1:2381", ClientCertAuth: true}},
		"a value that looks like ours": {
			[]string{"--initial-cluster", "--name=x", "--data-dir=/data"}, nil, // as Go reads it, --initial-cluster's value is missing here
			etcdSettings{Name: "x", DataDir: "/data"}},
		"the last one counts":     {[]string{"--data-dir=/one", "--data-dir=/two"}, nil, etcdSettings{DataDir: "/two"}},
		"a flag beats a variable": {[]string{"--data-dir=/flag"}, []string{"ETCD_DATA_DIR=/env", "ETCD_NAME=m1"}, etcdSettings{Name: "m1", DataDir: "/flag"}},
		"variables": {
			nil, []string{"PATH=/bin", "ETCD_DATA_DIR=/env", "ETCD_WAL_DIR=/wal", "ETCD_QUOTA_BACKEND_BYTES=100"},
			etcdSettings{DataDir: "/env", WALDir: "/wal", Quota: 100}},
		"a config file beats everything": {
			[]string{"--data-dir=/flag", "--config-file", config}, []string{"ETCD_NAME=m1"},
			etcdSettings{Name: "from-file", DataDir: "/file/data", WALDir: "/file/wal", Quota: 8 << 30,
				MetricsURLs: "https://127.0.0.1:2381", CertFile: "/c", KeyFile: "/k", TrustedCAFile: "/ca", ClientCertAuth: true}},
		"a config file by variable": {
			nil, []string{"ETCD_CONFIG_FILE=" + config},
			etcdSettings{Name: "from-file", DataDir: "/file/data", WALDir: "/file/wal", Quota: 8 << 30,
				MetricsURLs: "https://127.0.0.1:2381", CertFile: "/c", KeyFile: "/k", TrustedCAFile: "/ca", ClientCertAuth: true}},
		"similar names are others": {
			[]string{"--data-dir-x=/no", "--experimental-data-dir", "/no", "--data-dir=/data"}, []string{"ETCD_DATA_DIRX=/no"},
			etcdSettings{DataDir: "/data"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readEtcdSettings(tc.args, tc.env)
			got.Peers = nil // see TestPeerSettings
			if err != nil || got != tc.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
	for name, args := range map[string][]string{
		"quota":        {"--quota-backend-bytes=lots"},
		"no file":      {"--config-file=/does/not/exist"},
		"not a config": {"--config-file", t.TempDir()},
	} {
		if _, err := readEtcdSettings(args, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestPeerSettings reads the same settings from flags, variables and a file.
func TestPeerSettings(t *testing.T) {
	want := &member.Peers{
		ListenURLs: []string{"https://10.0.0.1:2380", "https://127.0.0.1:2380"}, AdvertiseURLs: []string{"https://10.0.0.1:2380"},
		CertFile: "/pki/peer.crt", KeyFile: "/pki/peer.key", TrustedCAFile: "/pki/ca.crt", ClientCertAuth: true, AllowedCN: "peers",
		Heartbeat: 200 * time.Millisecond, Election: 2 * time.Second,
	}
	flags := []string{
		"--name", "m1", "--peer-client-cert-auth", "--listen-peer-urls=https://10.0.0.1:2380,https://127.0.0.1:2380", "--initial-advertise-peer-urls",
		"https://10.0.0.1:2380", "--peer-cert-file=/pki/peer.crt", "-peer-key-file=/pki/peer.key", "--peer-trusted-ca-file=/pki/ca.crt",
		"--peer-cert-allowed-cn=peers", "--heartbeat-interval=200", "--election-timeout=2000",
	}
	env := []string{
		"ETCD_PEER_CLIENT_CERT_AUTH=true", "ETCD_LISTEN_PEER_URLS=https://10.0.0.1:2380,https://127.0.0.1:2380",
		"ETCD_INITIAL_ADVERTISE_PEER_URLS=https://10.0.0.1:2380", "ETCD_PEER_CERT_FILE=/pki/peer.crt", "ETCD_PEER_KEY_FILE=/pki/peer.key",
		"ETCD_PEER_TRUSTED_CA_FILE=/pki/ca.crt", "ETCD_PEER_CERT_ALLOWED_CN=peers", "ETCD_HEARTBEAT_INTERVAL=200", "ETCD_ELECTION_TIMEOUT=2000",
	}
	config := filepath.Join(t.TempDir(), "etcd.yaml")
	const content = "name: m1\nlisten-peer-urls: https://10.0.0.1:2380,https://127.0.0.1:2380\n" +
		"initial-advertise-peer-urls: https://10.0.0.1:2380\nheartbeat-interval: 200\nelection-timeout: 2000\npeer-transport-security:\n" +
		"  cert-file: /pki/peer.crt\n  key-file: /pki/peer.key\n  trusted-ca-file: /pki/ca.crt\n  client-cert-auth: true\n  allowed-cn: peers\n"
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ args, env []string }{
		"flags": {flags, nil}, "variables": {nil, env}, "file": {[]string{"--config-file=" + config}, nil},
		"flags beat variables": {flags, []string{"ETCD_PEER_CERT_FILE=/other", "ETCD_ELECTION_TIMEOUT=1"}},
	} {
		got, err := readEtcdSettings(tc.args, tc.env)
		if diff := cmp.Diff(want, got.Peers); err != nil || diff != "" {
			t.Errorf("%s: %v: %s", name, err, diff)
		}
	}
	off, err := readEtcdSettings([]string{"--peer-client-cert-auth=false", "--peer-auto-tls"}, []string{"ETCD_PEER_CLIENT_CERT_AUTH=true"})
	if err != nil || off.Peers.ClientCertAuth || !off.Peers.AutoTLS || off.Peers.ListenURLs[0] != defaultPeerURL {
		t.Errorf("got %+v, %v", off.Peers, err)
	}
	if _, err := readEtcdSettings([]string{"--election-timeout=1s"}, nil); err == nil {
		t.Error("no error for an election timeout that is no number")
	}
}

func FuzzFlagValue(f *testing.F) {
	f.Add("--data-dir=/x --name m1", "data-dir")
	f.Add("-a -b -- --data-dir=/x", "data-dir")
	f.Fuzz(func(t *testing.T, line, name string) {
		args := strings.Fields(line)
		if v, ok := flagValue(args, name); ok && v != "" && !strings.Contains(line, v) {
			t.Fatalf("%q gives %s=%q", line, name, v)
		}
	})
}

// TestRemovedFromConfigFile: etcd ignores silently what it does not know in its config file, so the warning is ours.
func TestRemovedFromConfigFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "etcd.yaml")
	if err := os.WriteFile(file, []byte("name: m1\nenable-v2: true\nexperimental-initial-corrupt-check: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for minor, want := range map[int][]string{5: nil, 6: {"enable-v2"}, 7: {"enable-v2", "experimental-initial-corrupt-check"}} {
		for _, given := range [][2][]string{{{"--config-file", file}, nil}, {nil, {"ETCD_CONFIG_FILE=" + file}}} {
			_, names, err := namesInConfigFile(given[0], given[1])
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range migrate.RemovedFromFile(versionfile.Minor{Major: 3, Minor: minor}, names) {
				got = append(got, s.Name)
			}
			if !slices.Equal(got, want) {
				t.Errorf("3.%d: got %q, want %q", minor, got, want)
			}
		}
	}
}
