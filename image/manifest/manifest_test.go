package manifest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// pods has manifests in all the ways in which people write them, and what becomes of them.
var pods = map[string]struct{ in, image, out string }{
	"block, comments, other indents": {
		in: `# of the 3rd
kind: Pod
spec:
    containers:
        - name: "etcd"   # the one
          command:
            # first
            - /usr/local/bin/etcd
            - --name=ä # an umlaut
          image: 'old:3.5'  # pinned
        - name: other
          command: [sleep]
`,
		image: "new:3.6",
		out: `# of the 3rd
kind: Pod
spec:
    containers:
        - name: "etcd"   # the one
          command:
            # first
            - etcd-migrate
            - run
            - --
            - /usr/local/bin/etcd
            - --name=ä # an umlaut
          image: 'new:3.6'  # pinned
        - name: other
          command: [sleep]
`,
	},
	"flow in a line": {
		in:  `{kind: Pod, "ö": 1, spec: {containers: [{command: [etcd, "--name=x"], image: e}]}}`,
		out: `{kind: Pod, "ö": 1, spec: {containers: [{command: ["etcd-migrate", "run", "--", etcd, "--name=x"], image: e}]}}`,
	},
	"Windows line ends": {
		in:  "kind: Pod\r\nspec:\r\n  containers:\r\n  - command:\r\n    - etcd\r\n",
		out: "kind: Pod\r\nspec:\r\n  containers:\r\n  - command:\r\n    - etcd-migrate\r\n    - run\r\n    - --\r\n    - etcd\r\n",
	},
	"JSON with tabs": {
		in:  "{\n\t\"kind\": \"Pod\",\n\t\"spec\": {\n\t\t\"containers\": [{\n\t\t\t\"command\": [\n\t\t\t\t\"etcd\"\n\t\t\t]\n\t\t}]\n\t}\n}\n",
		out: "{\n\t\"kind\": \"Pod\",\n\t\"spec\": {\n\t\t\"containers\": [{\n\t\t\t\"command\": [\n\t\t\t\t\"etcd-migrate\",\n\t\t\t\t\"run\",\n\t\t\t\t\"--\",\n\t\t\t\t\"etcd\"\n\t\t\t]\n\t\t}]\n\t}\n}\n",
	},
	"no line end": {
		in:  "kind: Pod\nspec:\n  containers:\n  - command: [etcd]",
		out: "kind: Pod\nspec:\n  containers:\n  - command: [\"etcd-migrate\", \"run\", \"--\", etcd]",
	},
	"a script in a block": {
		in: `kind: Pod
spec:
  containers:
  - command:
    - /bin/sh
    - -ec
    - |
      /usr/local/bin/migrate-if-needed.sh && exec etcd --name="a b" \
        --flag 'x' >>/var/log/etcd.log 2>&1

    image: e
`,
		out: `kind: Pod
spec:
  containers:
  - command:
    - etcd-migrate
    - run
    - --
    - etcd
    - --name=a b
    - --flag
    - x

    image: e
`,
	},
	"a script in quotes": {
		in:  "kind: Pod\nspec:\n  containers:\n  - command: ['sh', '-c', 'exec etcd --name=it''s']\n    image: e\n",
		out: "",
	},
	"done already": {
		in:  "kind: Pod\nspec:\n  containers:\n  - command: [etcd-migrate, run, --step-timeout=1h, --, etcd]\n",
		out: "kind: Pod\nspec:\n  containers:\n  - command: [etcd-migrate, run, --step-timeout=1h, --, etcd]\n",
	},
}

func TestEdit(t *testing.T) {
	for name, tc := range pods {
		got, _, err := Edit([]byte(tc.in), Options{Image: tc.image})
		if tc.out == "" {
			if err == nil {
				t.Errorf("%s: no error, but %s", name, got)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(tc.out, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		again, _, err := Edit(got, Options{Image: tc.image})
		if diff := cmp.Diff(string(got), string(again)); err != nil || diff != "" {
			t.Errorf("%s, again: %v\n%s", name, err, diff)
		}
	}
}

func TestUser(t *testing.T) {
	for in, want := range map[string]string{
		"kind: Pod\nspec:\n  containers:\n  - command: [etcd]\n    volumeMounts: []\n  securityContext: {}\n": `kind: Pod
spec:
  containers:
  - command: ["etcd-migrate", "run", "--", etcd]
    securityContext:
      allowPrivilegeEscalation: false
      capabilities:
        drop:
        - ALL
      readOnlyRootFilesystem: true
    volumeMounts: []
  securityContext: {"runAsGroup": 7, "runAsNonRoot": true, "runAsUser": 7}
`,
		"kind: Pod\nspec:\n  containers:\n  - command: [etcd]\n    securityContext:\n      readOnlyRootFilesystem: false # why\n      privileged: false\n  hostNetwork: true\n  securityContext:\n    runAsUser: 1000\n": `kind: Pod
spec:
  containers:
  - command: ["etcd-migrate", "run", "--", etcd]
    securityContext:
      allowPrivilegeEscalation: false
      capabilities:
        drop:
        - ALL
      readOnlyRootFilesystem: true # why
      privileged: false
  hostNetwork: true
  securityContext:
    runAsGroup: 7
    runAsNonRoot: true
    runAsUser: 7
`,
		`{"kind": "Pod", "spec": {"containers": [{"name": "e", "command": ["etcd"]}], "securityContext": {"fsGroup": 1}}}`: `{"kind": "Pod", "spec": {"containers": [{"name": "e", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true}, "command": ["etcd-migrate", "run", "--", "etcd"]}], "securityContext": {"runAsGroup": 7, "runAsNonRoot": true, "runAsUser": 7, "fsGroup": 1}}}`,
	} {
		user := 7
		got, _, err := Edit([]byte(in), Options{User: &user})
		if diff := cmp.Diff(want, string(got)); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", in, err, diff)
		}
	}
}

func TestNotes(t *testing.T) {
	pod := func(rest string) string {
		return "kind: Pod\nspec:\n  containers:\n  - command: [etcd, --enable-v2=true]\n" + rest
	}
	for _, tc := range []struct {
		in, image string
		target    versionfile.Minor
		want      []string
	}{
		{pod("    image: x/etcd:3.5.6-0\n"), "", versionfile.Minor{}, nil},
		{pod("    image: x/etcd:3.6.6-0\n"), "", versionfile.Minor{}, []string{"--enable-v2 was removed in etcd 3.6"}},
		{pod("    image: x/etcd:v3.6.6@sha256:0\n"), "", versionfile.Minor{}, []string{"--enable-v2 was removed in etcd 3.6"}},
		{pod("    image: x/etcd:3.5.6-0\n"), "y:3.6", versionfile.Minor{}, []string{"--enable-v2 was removed in etcd 3.6", "the manifest names no user"}},
		{pod("    image: x/etcd:latest\n"), "", versionfile.Minor{Major: 3, Minor: 6}, []string{"--enable-v2 was removed in etcd 3.6"}},
		{pod("    image: host:5000/etcd\n"), "", versionfile.Minor{}, []string{"does not say which etcd"}},
		{pod("    image: e:3.5\n    args: [--debug]\n    env: [{name: ETCD_DEBUG, value: x}]\n"), "", versionfile.Minor{},
			[]string{"--debug was removed in etcd 3.5", "ETCD_DEBUG was removed in etcd 3.5"}},
		{pod("    image: e:3.5\n    env: [{name: TARGET_VERSION, value: 3.4.3}]\n"), "", versionfile.Minor{}, []string{"TARGET_VERSION is 3.4.3"}},
		{pod("    image: e:3.5\n    livenessProbe: {exec: {command: [x]}}\n"), "", versionfile.Minor{}, []string{"the liveness probe runs a program"}},
	} {
		_, notes, err := Edit([]byte(tc.in), Options{Image: tc.image, Target: tc.target})
		ok := err == nil && len(notes) == len(tc.want)
		for i, want := range tc.want {
			ok = ok && strings.Contains(notes[i], want)
		}
		if !ok {
			t.Errorf("%s %s: %v, %q instead of %q", tc.in, tc.image, err, notes, tc.want)
		}
	}
}

func TestBadManifests(t *testing.T) {
	pod := func(command string) string { return "kind: Pod\nspec:\n  containers:\n  - command: " + command + "\n" }
	for in, want := range map[string]string{
		"":                                      "it is empty",
		"a: b: c":                               "mapping values",
		"- a":                                   "no mapping",
		"kind: Deployment\n":                    `kind is "Deployment"`,
		"kind: Pod\n---\nkind: Pod\n":           "one document",
		"kind: Pod\n":                           "no container",
		"kind: Pod\nspec: 1\n":                  "no pod",
		pod("[sleep]"):                          "no container",
		pod("[]"):                               "no container",
		pod("[etcd]\n  - command: [etcd]"):      "several containers",
		pod("[etcd-migrate, plan]"):             "does not go on with run",
		pod("&a [etcd]\n    args: *a"):          "",
		"x: &x [etcd]\n" + pod("*x"):            "cannot be edited",
		pod("[sh, -c, 'etcd $X']"):              "the shell makes another of (column 6)",
		pod("[sh, -c, 'rm -rf /x; exec etcd']"): "more than migrate",
		pod("[sh, -c, 'etcd &']"):               "does not end with etcd",
		pod("[sh, -c, 'etcd | tee x']"):         "does not end with etcd",
		pod("[sh, -c, 'A=b etcd']"):             "does not end with etcd",
		pod("[sh, -c, 'if']"):                   "no container",
		pod("[sh, -c, 'etcd; if']"):             "read the shell script",
	} {
		got, _, err := Edit([]byte(in), Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %s", in, err, got)
		}
	}
}

// FuzzEdit sees that nothing but a fine manifest comes out, in which all lines are what they were but those that have to
// be others, and that a second edit changes nothing.
func FuzzEdit(f *testing.F) {
	for _, tc := range pods {
		f.Add([]byte(tc.in), tc.image, 0)
	}
	files, err := filepath.Glob("../testdata/*etcd*")
	if err != nil || len(files) < 2 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, "localhost/etcd:3.6.16", 65532)
	}
	f.Fuzz(func(t *testing.T, text []byte, image string, user int) {
		o := Options{Image: image}
		if user >= 0 {
			o.User = &user
		}
		once, _, err := Edit(text, o)
		if err != nil {
			return
		}
		twice, _, err := Edit(once, o)
		if err != nil {
			t.Fatalf("%v:\n%s", err, once)
		}
		if diff := cmp.Diff(string(once), string(twice)); diff != "" {
			t.Fatal(diff)
		}
		root, err := parse(once)
		if err != nil {
			t.Fatal(err)
		}
		var p pod
		if err := root.Decode(&p); err != nil {
			t.Fatal(err)
		}
		i, err := p.etcd()
		if err != nil || !slices.Equal(p.Spec.Containers[i].Command[:2], entrypoint[:2]) || image != "" && p.Spec.Containers[i].Image != image {
			t.Fatalf("%v:\n%s", err, once)
		}
	})
}
