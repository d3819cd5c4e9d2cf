// Package image_test tests the image and the manifests that come with it. This file needs no containers; the others do,
// and are built with the tag "image": see `make test-image`.
package image_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/etcd-migrate/etcd-migrate/image/manifest"
)

// TestKubeadmPatch applies the patch to what kubeadm writes. What comes out is the static pod's manifest.
func TestKubeadmPatch(t *testing.T) {
	var pod, want any
	readManifest(t, "testdata/kubeadm-etcd.yaml", &pod)
	readManifest(t, "etcd.yaml", &want)
	var patch []operation
	readManifest(t, "kubeadm/etcd+json.yaml", &patch)
	for _, op := range patch {
		pod = op.apply(t, pod, strings.Split(op.Path, "/")[1:])
	}
	if diff := cmp.Diff(want, pod); diff != "" {
		t.Errorf("kubeadm/etcd+json.yaml does not make etcd.yaml of kubeadm's manifest (-want +got):\n%s", diff)
	}
}

// TestManifestCommand sees that etcd-migrate manifest makes the same of kubeadm's manifest, byte by byte but for the comment
// at the top, and of GCE's old one the command of ours.
func TestManifestCommand(t *testing.T) {
	const image = "localhost/etcd-migrate/etcd:3.6.16"
	user := 65532
	stock, want := readFile(t, "testdata/kubeadm-etcd.yaml"), readFile(t, "etcd.yaml")
	got, notes, err := manifest.Edit(stock, manifest.Options{Image: image, User: &user})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(withoutComment(want), withoutComment(got)); diff != "" {
		t.Errorf("etcd-migrate manifest does not make etcd.yaml of kubeadm's manifest (-want +got):\n%s", diff)
	}
	if len(notes) != 1 || !strings.Contains(notes[0], "must belong to user 65532") {
		t.Errorf("notes: %q", notes)
	}

	got, notes, err = manifest.Edit(readFile(t, "testdata/gce-etcd-old.json"), manifest.Options{Image: image, User: &user})
	if err != nil {
		t.Fatal(err)
	}
	var pod, wantPod struct {
		Spec struct {
			Containers []struct {
				Image           string
				Command         []string
				SecurityContext map[string]any
			}
			SecurityContext map[string]any
		}
	}
	if err := json.Unmarshal(got, &pod); err != nil {
		t.Fatalf("%v:\n%s", err, got)
	}
	if err := json.Unmarshal(readFile(t, "gce-etcd.json"), &wantPod); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantPod, pod); diff != "" {
		t.Errorf("etcd-migrate manifest does not make gce-etcd.json of GCE's manifest (-want +got):\n%s", diff)
	}
	for _, want := range []string{"the shell is gone", "no longer written to a file", "TARGET_VERSION is 3.5.3", "the liveness probe runs a program"} {
		if !strings.Contains(strings.Join(notes, "\n"), want) {
			t.Errorf("no note that %s: %q", want, notes)
		}
	}
}

func withoutComment(text []byte) string {
	_, rest, _ := strings.Cut(string(text), "apiVersion:")
	return rest
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestManifestsNameTheTarget sees that a new patch release of the target's etcd also reaches the manifests.
func TestManifestsNameTheTarget(t *testing.T) {
	const target = "3.6" // as in tree.sh
	module, err := os.ReadFile(filepath.Join("..", "binaries", "etcd", target, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	_, release, _ := strings.Cut(string(module), "go.etcd.io/etcd/server/v3 v")
	release, _, _ = strings.Cut(release, "\n")
	image := "localhost/etcd-migrate/etcd:" + strings.TrimSuffix(release, " // indirect")
	for _, name := range []string{"etcd.yaml", "gce-etcd.json", "kubeadm/etcd+json.yaml"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), image+"\n") && !strings.Contains(string(b), `"`+image+`"`) {
			t.Errorf("%s does not name %s", name, image)
		}
	}
}

func readManifest(t *testing.T, name string, to any) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = yaml.UnmarshalStrict(b, to)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// operation is one of a JSON patch (RFC 6902), of the two kinds that the patch has.
type operation struct {
	Op    string
	Path  string
	Value json.RawMessage
}

// apply gives at with the operation done below it, at path.
func (op operation) apply(t *testing.T, at any, path []string) any {
	t.Helper()
	if len(path) == 0 {
		var v any
		if err := json.Unmarshal(op.Value, &v); err != nil {
			t.Fatalf("%s: %v", op.Path, err)
		}
		return v
	}
	inserts := op.Op == "add" && len(path) == 1
	switch at := at.(type) {
	case map[string]any:
		if _, ok := at[path[0]]; !ok && !inserts {
			t.Fatalf("%s %s: kubeadm's manifest has no %s there", op.Op, op.Path, path[0])
		}
		at[path[0]] = op.apply(t, at[path[0]], path[1:])
		return at
	case []any:
		i, err := strconv.Atoi(path[0])
		if err != nil || i >= len(at) {
			t.Fatalf("%s %s: kubeadm's manifest has no item %s there", op.Op, op.Path, path[0])
		}
		if inserts {
			return slices.Insert(at, i, op.apply(t, nil, nil))
		}
		at[i] = op.apply(t, at[i], path[1:])
		return at
	}
	t.Fatalf("%s %s: kubeadm's manifest has nothing there", op.Op, op.Path)
	return nil
}
