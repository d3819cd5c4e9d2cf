//go:build image

package image_test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

const imageName = "localhost/etcd-migrate/etcd:test"

// What all tests share, because building the image takes a while.
var (
	containers *podman
	imageID    string
	etcds      []string // the releases in the image, oldest first
	target     string   // the one that it becomes
)

func TestMain(m *testing.M) { os.Exit(runAll(m)) }

func runAll(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "etcd-migrate-image-")
	if err == nil {
		defer func() {
			if err := os.RemoveAll(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}()
		containers, err = newPodman(dir)
	}
	if err == nil {
		imageID, err = containers.build(imageName)
	}
	if err == nil {
		etcds, target, err = containers.labels(imageName)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "the container tests cannot run:", err)
		return 1
	}
	return m.Run()
}

// labels gives what an image says of itself.
func (p *podman) labels(image string) (etcds []string, target string, err error) {
	const format = `{{index .Labels "etcd-migrate.etcds"}}/{{index .Labels "etcd-migrate.target"}}`
	out, err := p.run("image", "inspect", "--format="+format, image)
	list, target, _ := strings.Cut(out, "/")
	return strings.Fields(list), target, err
}

// TestContent sees that nothing is in the image but what must be: no shell, no package manager, no file of anybody else.
func TestContent(t *testing.T) {
	var minors []string
	for _, release := range etcds {
		r, err := versionfile.ParseRelease(release)
		if err != nil {
			t.Fatal(err)
		}
		minors = append(minors, r.Minor().String())
	}
	var want []string
	for _, m := range versionfile.Minors() {
		want = append(want, m.String())
	}
	if diff := cmp.Diff(want, minors); diff != "" {
		t.Errorf("the image's minors (-want +got):\n%s", diff)
	}

	files := map[string]string{
		"usr/":                       "drwxr-xr-x 0:0",
		"usr/local/":                 "drwxr-xr-x 0:0",
		"usr/local/bin/":             "drwxr-xr-x 0:0",
		"usr/local/bin/etcd":         "Lrwxrwxrwx 0:0 etcd-" + target,
		"usr/local/bin/etcdctl":      "-rwxr-xr-x 0:0",
		"usr/local/bin/etcdutl":      "-rwxr-xr-x 0:0",
		"usr/local/bin/etcd-migrate": "-rwxr-xr-x 0:0",

		"usr/local/bin/migrate":              "Lrwxrwxrwx 0:0 etcd-migrate",
		"usr/local/bin/migrate-if-needed.sh": "Lrwxrwxrwx 0:0 etcd-migrate",

		"var/":          "drwxr-xr-x 0:0",
		"var/lib/":      "drwxr-xr-x 0:0",
		"var/lib/etcd/": "drwx------ 65532:65532",
	}
	for _, release := range etcds {
		files["usr/local/bin/etcd-"+release] = "-rwxr-xr-x 0:0"
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	containers.must(t, "save", "--quiet", "--format=docker-archive", "--output="+archive, imageName)
	if diff := cmp.Diff(files, readLayers(t, archive)); diff != "" {
		t.Errorf("the image's files (-want +got):\n%s", diff)
	}

	for name := range files {
		if base := filepath.Base(name); strings.HasPrefix(files[name], "-") && !strings.Contains(containers.report, "  "+base+" ") {
			t.Errorf("the size of %s is not reported:\n%s", base, containers.report)
		}
	}

	var config []struct {
		Architecture string
		Config       struct {
			User, WorkingDir     string
			Entrypoint, Cmd, Env []string
			Labels               map[string]string
		}
	}
	if err := json.Unmarshal([]byte(containers.must(t, "image", "inspect", imageName)), &config); err != nil {
		t.Fatal(err)
	}
	if got := config[0].Architecture; got != runtime.GOARCH {
		t.Errorf("the image is for %s", got)
	}
	c := config[0].Config
	if c.User != "65532:65532" {
		t.Errorf("the image's user is %q", c.User)
	}
	if !slices.Equal(c.Entrypoint, []string{"etcd-migrate"}) {
		t.Errorf("the image's entrypoint is %q", c.Entrypoint)
	}
	for _, label := range []string{"title", "description", "licenses", "version", "revision"} {
		if c.Labels["org.opencontainers.image."+label] == "" {
			t.Errorf("the image has no label org.opencontainers.image.%s", label)
		}
	}
}

// readLayers lists what the layers of a saved image hold: mode, owner and link by path.
func readLayers(t *testing.T, archive string) map[string]string {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string]string{}
	each := func(r io.Reader, do func(*tar.Header, io.Reader)) {
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			do(h, tr)
		}
	}
	each(f, func(layer *tar.Header, content io.Reader) {
		if layer.Typeflag != tar.TypeReg || !strings.HasSuffix(layer.Name, ".tar") {
			return
		}
		each(content, func(h *tar.Header, _ io.Reader) {
			entry := strings.TrimSpace(fmt.Sprintf("%s %d:%d %s", h.FileInfo().Mode(), h.Uid, h.Gid, h.Linkname))
			if was, twice := files[h.Name]; twice && was != entry {
				t.Errorf("%s is %s in one layer and %s in another", h.Name, was, entry)
			}
			files[h.Name] = entry
		})
	})
	return files
}

// TestReproducible builds the image again, without a cache.
func TestReproducible(t *testing.T) {
	again, err := containers.build("localhost/etcd-migrate/etcd:again")
	if err != nil {
		t.Fatal(err)
	}
	if again != imageID {
		t.Errorf("the same sources made two images:\n%s\n%s", imageID, again)
	}
}

// TestSlim builds an image for those who come from 3.4, and sees that older data is refused and left alone.
func TestSlim(t *testing.T) {
	const slim = "localhost/etcd-migrate/etcd:slim"
	if _, err := containers.build(slim, "MINORS=3.5 3.6"); err != nil {
		t.Fatal(err)
	}
	releases, _, err := containers.labels(slim)
	if err != nil {
		t.Fatal(err)
	}
	if len(releases) != 2 || !strings.HasPrefix(releases[0], "3.5.") || !strings.HasPrefix(releases[1], "3.6.") {
		t.Errorf("the slim image has etcd %q", releases)
	}
	n := newNode(t, "etcd.yaml")
	n.fill("3.3", 10)
	n.own()
	code, output := n.once(slim)
	if code != 3 || !strings.Contains(output, "etcd 3.4") {
		t.Errorf("exit code %d instead of 3: %s", code, output)
	}
	n.untouched()
}

// TestForeignData starts the container on data of root: what somebody gets who has not changed the owner.
func TestForeignData(t *testing.T) {
	n := newNode(t, "etcd.yaml")
	n.fill("3.4", 10)
	n.own()
	chown(t, n.data, 0)
	code, output := n.once(imageName)
	if code != 3 || !strings.Contains(output, "permission denied") {
		t.Errorf("exit code %d instead of 3: %s", code, output)
	}
	if message, err := os.ReadFile(n.termination()); err != nil || !strings.Contains(string(message), "permission denied") {
		t.Errorf("the termination log says %q, %v", message, err)
	}
	n.untouched()
}

// TestDropIn runs the image by the name of the tool that it takes the place of. Its etcd is the target's already, so nothing
// has to be moved on the read-only file system.
func TestDropIn(t *testing.T) {
	n := newNode(t, "etcd.yaml")
	n.fill("2.3", 10)
	n.own()
	containers.must(t, "run", "--rm", "--timeout=60", "--network=host", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges",
		"--volume="+n.data+":/var/lib/etcd", "--env=DATA_DIRECTORY=/var/lib/etcd", "--env=TARGET_VERSION="+target, "--env=TARGET_STORAGE=etcd3",
		"--env=ETCD_NAME=m1", "--entrypoint=/usr/local/bin/migrate-if-needed.sh", imageName)
	if v, want := n.version(), target+"/etcd3"; v != want {
		t.Errorf("version.txt says %q instead of %q", v, want)
	}
}

// termination is the file that a kubelet would mount as the container's termination log.
func (n *node) termination() string { return filepath.Join(n.root, "termination-log") }

// once runs an image on the node's data outside of a pod, and gives its exit code and what it prints.
func (n *node) once(image string) (int, string) {
	n.Helper()
	if err := errors.Join(os.WriteFile(n.termination(), nil, 0o600), os.Chmod(n.termination(), 0o666)); err != nil {
		n.Fatal(err)
	}
	_, err := containers.run("run", "--rm", "--timeout=60", "--volume="+n.termination()+":/dev/termination-log",
		"--network=host", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges",
		"--volume="+n.data+":/var/lib/etcd", image, "run", "--", "etcd", "--name=m1", "--data-dir=/var/lib/etcd")
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		n.Fatalf("the container did not fail: %v", err)
	}
	return exit.ExitCode(), err.Error()
}

// untouched sees that nothing has been added to a data dir that has never been migrated.
func (n *node) untouched() {
	n.Helper()
	entries, err := os.ReadDir(n.data)
	if err != nil {
		n.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != "member" {
		n.Errorf("the data dir now holds %v", entries)
	}
}

func chown(t *testing.T, dir string, id int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, id, id)
	})
	if err != nil {
		t.Fatal(err)
	}
}
