// Package manifest puts etcd-migrate into the manifest of a static pod that runs etcd: kubeadm's, GCE's or another, YAML or
// JSON. Only the lines that must change do; comments, order and quoting of all others stay. What comes out is read again and
// compared with what it must mean, so a manifest that cannot be edited safely is an error, never a guess.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/etcd-migrate/etcd-migrate/migrate"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// entrypoint comes before etcd and its flags.
var entrypoint = []string{"etcd-migrate", "run", "--"}

// Options say what else is to be changed.
type Options struct {
	Image string // the container's image; empty: as it is
	// User is who the pod runs as: its user and group, without capabilities and on a read-only root file system. 0 only sets
	// the user. Nil: as it is.
	User *int
	// Target is the minor of the etcd that is to run, for the notes. Zero: what the image's tag says.
	Target versionfile.Minor
}

// pod is what has to be known of a manifest.
type pod struct {
	Kind string `yaml:"kind"`
	Spec struct {
		Containers      []container `yaml:"containers"`
		SecurityContext struct {
			RunAsUser *int `yaml:"runAsUser"`
		} `yaml:"securityContext"`
	} `yaml:"spec"`
}

type container struct {
	Image   string   `yaml:"image"`
	Command []string `yaml:"command"`
	Args    []string `yaml:"args"`
	Env     []struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	} `yaml:"env"`
	LivenessProbe struct {
		Exec *struct{} `yaml:"exec"`
	} `yaml:"livenessProbe"`
	SecurityContext struct {
		RunAsUser *int `yaml:"runAsUser"`
	} `yaml:"securityContext"`
}

// Edit gives the manifest with etcd-migrate as the entrypoint, and notes for a person on what does not go with it. A
// manifest that has it already comes back as it is. The error says what of the text is not understood, with the line where
// it can.
func Edit(text []byte, o Options) (edited []byte, notes []string, err error) {
	root, err := parse(text)
	if err != nil {
		return nil, nil, err
	}
	var p pod
	if err := root.Decode(&p); err != nil {
		return nil, nil, fmt.Errorf("the manifest is no pod: %w", err)
	}
	if p.Kind != "Pod" {
		return nil, nil, fmt.Errorf("the manifest's kind is %q, not Pod", p.Kind)
	}
	index, err := p.etcd()
	if err != nil {
		return nil, nil, err
	}
	c := p.Spec.Containers[index]
	command, shellNotes, err := newCommand(c.Command)
	if err != nil {
		return nil, nil, err
	}

	spec := find(root, "spec")
	list := find(spec, "containers")
	if list == nil || list.Kind != yaml.SequenceNode || len(list.Content) <= index {
		return nil, nil, errUneditable
	}
	node := list.Content[index]
	want, wantSpec, wantContainer, err := meaning(root, index)
	if err != nil {
		return nil, nil, err
	}
	e := newEditor(text)
	e.command(node, c.Command, command)
	wantContainer["command"] = anySlice(command)
	if o.Image != "" {
		e.merge(node, setting{"image", o.Image})
		wantContainer["image"] = o.Image
	}
	if o.User != nil {
		forPod, forContainer := securitySettings(*o.User)
		e.merge(spec, setting{"securityContext", forPod})
		mergeInto(wantSpec, setting{"securityContext", forPod})
		if forContainer != nil {
			e.merge(node, setting{"securityContext", forContainer})
			mergeInto(wantContainer, setting{"securityContext", forContainer})
		}
	}
	edited, err = e.apply()
	if err != nil {
		return nil, nil, err
	}
	var got any
	if err := yaml.Unmarshal(edited, &got); err != nil || !reflect.DeepEqual(got, want) {
		return nil, nil, errors.Join(errUneditable, err)
	}
	return edited, append(shellNotes, notesOn(p, c, command, o)...), nil
}

var errUneditable = errors.New("the manifest is written in a way that cannot be edited in place")

// meaning gives all of the manifest as plain maps and lists, and of these its spec and the spec's container.
func meaning(root *yaml.Node, index int) (all any, spec, container map[string]any, err error) {
	if err := root.Decode(&all); err != nil {
		return nil, nil, nil, fmt.Errorf("read the manifest: %w", err)
	}
	pod, _ := all.(map[string]any)
	spec, _ = pod["spec"].(map[string]any)
	list, _ := spec["containers"].([]any)
	if index >= len(list) {
		return nil, nil, nil, errUneditable
	}
	container, ok := list[index].(map[string]any)
	if !ok {
		return nil, nil, nil, errUneditable
	}
	return all, spec, container, nil
}

// parse gives the mapping that is all of the text.
func parse(text []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it is empty")
		}
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.Join(errors.New("the manifest must be one document"), err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("the manifest is no pod: it is no mapping")
	}
	return doc.Content[0], nil
}

// etcd gives the index of the container that runs etcd.
func (p pod) etcd() (int, error) {
	found := -1
	for i, c := range p.Spec.Containers {
		if len(c.Command) == 0 {
			continue
		}
		switch name := path.Base(c.Command[0]); {
		case name == "etcd", name == entrypoint[0], isShell(c.Command) && strings.Contains(c.Command[2], "etcd"):
			if found >= 0 {
				return 0, errors.New("several containers of the pod run etcd")
			}
			found = i
		}
	}
	if found < 0 {
		return 0, errors.New("no container of the pod has a command that begins with etcd")
	}
	return found, nil
}

// newCommand gives the command that a container gets in place of the one it has.
func newCommand(old []string) (command, notes []string, err error) {
	switch {
	case isShell(old):
		etcd, notes, err := fromShell(old[2])
		if err != nil {
			return nil, nil, err
		}
		return slices.Concat(entrypoint, etcd), notes, nil
	case path.Base(old[0]) != entrypoint[0]:
		return slices.Concat(entrypoint, old), nil, nil
	case len(old) > 1 && old[1] == "run":
		return old, nil, nil
	}
	return nil, nil, fmt.Errorf("the command begins with %s, and does not go on with run", old[0])
}

// securitySettings are those of image/etcd.yaml.
func securitySettings(user int) (forPod, forContainer []setting) {
	if user == 0 {
		return []setting{{"runAsUser", 0}}, nil
	}
	return []setting{{"runAsGroup", user}, {"runAsNonRoot", true}, {"runAsUser", user}},
		[]setting{
			{"allowPrivilegeEscalation", false},
			{"capabilities", []setting{{"drop", []any{"ALL"}}}},
			{"readOnlyRootFilesystem", true},
		}
}

func anySlice(s []string) []any {
	all := make([]any, len(s))
	for i, v := range s {
		all[i] = v
	}
	return all
}

// notesOn says what does not go with a migration, or with the etcd that is to run.
func notesOn(p pod, c container, command []string, o Options) (notes []string) {
	image, minor := c.Image, o.Target
	if o.Image != "" {
		image = o.Image
	}
	if minor == (versionfile.Minor{}) {
		minor = minorOf(image)
	}
	var environ []string
	for _, v := range c.Env {
		environ = append(environ, v.Name+"="+v.Value)
	}
	if minor == (versionfile.Minor{}) {
		notes = append(notes, fmt.Sprintf("the tag of %q does not say which etcd is to run: its flags have not been checked; --target-version says it", image))
	} else {
		etcd := command
		if i := slices.Index(command, "--"); i >= 0 {
			etcd = command[i+1:]
		}
		for _, s := range migrate.RemovedSettings(minor, slices.Concat(etcd[min(1, len(etcd)):], c.Args), environ) {
			notes = append(notes, s.String())
		}
		for _, v := range c.Env {
			if m := minorIn(v.Value); v.Name == "TARGET_VERSION" && m != (versionfile.Minor{}) && m != minor {
				notes = append(notes, fmt.Sprintf("TARGET_VERSION is %s, and etcd-migrate run refuses any other minor than that of the etcd, %s: remove it", v.Value, minor))
			}
		}
	}
	if c.LivenessProbe.Exec != nil {
		notes = append(notes, "the liveness probe runs a program, which fails while the data is migrated: use httpGet with /livez on etcd's --listen-metrics-urls")
	}
	switch own := c.SecurityContext.RunAsUser; {
	case o.User != nil && own != nil && *own != *o.User:
		notes = append(notes, fmt.Sprintf("the container has a runAsUser of its own, %d, which counts", *own))
	case o.User != nil && *o.User != 0:
		notes = append(notes, fmt.Sprintf("the data dir and the keys of the certificates must belong to user %d", *o.User))
	case o.User == nil && o.Image != "" && own == nil && p.Spec.SecurityContext.RunAsUser == nil:
		notes = append(notes, "the manifest names no user, so the image's counts; that of etcd-migrate's own image is 65532, to whom the data dir and the keys "+
			"of the certificates must belong then; --user=0 stays with root, --user=65532 also takes all other rights away")
	}
	return notes
}

// minorOf gives the minor that an image's tag names, zero if there is none.
func minorOf(image string) versionfile.Minor {
	image, _, _ = strings.Cut(image, "@")
	i := strings.LastIndex(image, ":")
	if i < 0 || strings.Contains(image[i:], "/") {
		return versionfile.Minor{}
	}
	return minorIn(image[i+1:])
}

// minorIn reads 3.6, v3.6.16 or 3.6.6-0.
func minorIn(version string) versionfile.Minor {
	version, _, _ = strings.Cut(strings.TrimPrefix(version, "v"), "-")
	if r, err := versionfile.ParseRelease(version); err == nil {
		return r.Minor()
	}
	m, err := versionfile.ParseMinor(version)
	if err != nil {
		return versionfile.Minor{}
	}
	return m
}
