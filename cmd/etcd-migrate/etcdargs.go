package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// readEtcdSettings finds in etcd's own command line and environment what a migration has to know. It reads them as etcd
// does (server/etcdmain/config.go): a --config-file, or ETCD_CONFIG_FILE, makes etcd ignore all other flags and
// variables; else a flag beats its variable.
func readEtcdSettings(args, environ []string) (etcdSettings, error) {
	get := func(name string) string { return setting(args, environ, name) }
	if file := get("config-file"); file != "" {
		return readEtcdConfigFile(file)
	}
	s := etcdSettings{DataDir: get("data-dir"), WALDir: get("wal-dir"), Name: get("name"),
		MetricsURLs: get("listen-metrics-urls"), CertFile: get("cert-file"), KeyFile: get("key-file"), TrustedCAFile: get("trusted-ca-file"),
		ClientCertAuth: flagBool(args, environ, "client-cert-auth")}
	if q := get("quota-backend-bytes"); q != "" {
		n, err := strconv.ParseInt(q, 0, 64)
		if err != nil {
			return s, fmt.Errorf("quota-backend-bytes: %w", err)
		}
		s.Quota = n
	}
	var err error
	s.Peers, err = readPeerSettings(get, func(name string) bool {
		if v, ok := switchValue(args, name); ok {
			return v
		}
		return isTrue(envValue(environ, envName(name)))
	})
	return s.withDefaults(), err
}

// setting gives what a flag says, or else its variable.
func setting(args, environ []string, name string) string {
	if v, ok := flagValue(args, name); ok {
		return v
	}
	return envValue(environ, envName(name))
}

// namesInConfigFile gives the names of the settings in etcd's --config-file, sorted; none without one.
func namesInConfigFile(args, environ []string) (path string, names []string, err error) {
	path = setting(args, environ, "config-file")
	if path == "" {
		return "", nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return path, nil, err
	}
	var file map[string]any
	if err := yaml.Unmarshal(b, &file); err != nil {
		return path, nil, fmt.Errorf("config file %s: %w", path, err)
	}
	return path, slices.Sorted(maps.Keys(file)), nil
}

func readEtcdConfigFile(path string) (etcdSettings, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return etcdSettings{}, err
	}
	var file struct {
		DataDir string `json:"data-dir"`
		WALDir  string `json:"wal-dir"`
		Name    string `json:"name"`
		Quota   int64  `json:"quota-backend-bytes"`
		Metrics string `json:"listen-metrics-urls"`
		TLS     struct {
			CertFile       string `json:"cert-file"`
			KeyFile        string `json:"key-file"`
			TrustedCAFile  string `json:"trusted-ca-file"`
			ClientCertAuth bool   `json:"client-cert-auth"`
		} `json:"client-transport-security"`
		peerConfigFile
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		return etcdSettings{}, fmt.Errorf("config file %s: %w", path, err)
	}
	return etcdSettings{DataDir: file.DataDir, WALDir: file.WALDir, Name: file.Name, Quota: file.Quota,
		MetricsURLs: file.Metrics, CertFile: file.TLS.CertFile, KeyFile: file.TLS.KeyFile, TrustedCAFile: file.TLS.TrustedCAFile,
		ClientCertAuth: file.TLS.ClientCertAuth, Peers: file.peers()}.withDefaults(), nil
}

// withDefaults does as etcd does without a --data-dir. Without a name in the settings, the stored one is kept.
func (s etcdSettings) withDefaults() etcdSettings {
	if s.DataDir == "" {
		name := s.Name
		if name == "" {
			name = "default"
		}
		s.DataDir = name + ".etcd"
	}
	return s
}

// flagValue looks for a flag as Go's flag package reads it: one dash or two, the value behind = or in the next argument;
// the last one counts, and -- or the first argument that is no flag ends them.
func flagValue(args []string, name string) (value string, found bool) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if len(arg) < 2 || arg[0] != '-' || arg == "--" {
			break
		}
		flag, v, hasValue := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		// What follows a flag without = is its value, unless it looks like the next flag: then this one is a boolean.
		if !hasValue && i+1 < len(args) && (flag == name || !strings.HasPrefix(args[i+1], "-")) {
			i++
			v = args[i]
		}
		if flag == name {
			value, found = v, true
		}
	}
	return value, found
}

// flagBool looks for a flag that needs no value, and then for its variable. What is no boolean counts as true: etcd dies
// of it.
func flagBool(args, environ []string, name string) bool {
	value := envValue(environ, envName(name))
	for _, arg := range args {
		if arg == "--" {
			break
		}
		if flag, v, hasValue := strings.Cut(arg, "="); flag == "-"+name || flag == "--"+name {
			if value = v; !hasValue {
				value = "true"
			}
		}
	}
	b, err := strconv.ParseBool(value)
	return b || err != nil && value != ""
}

// envName is the variable for a flag.
func envName(flag string) string {
	return "ETCD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func envValue(environ []string, name string) string {
	value := ""
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			value = v
		}
	}
	return value
}
