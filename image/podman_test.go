//go:build image

package image_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// podman is a podman with a store and settings of its own, so that tests neither see nor leave anything elsewhere.
type podman struct {
	command []string // with the flags that make it ours
	env     []string
	report  string // what build.sh has printed last
}

// settings ask for as little as possible of the machine: no systemd, no journal, no higher limits than its own, and no
// network but the host's.
const settings = `
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
`

// newPodman finds out whether containers can run here. If not, the error says why.
func newPodman(dir string) (*podman, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("they must be run by root, because the data in them belongs to another user")
	}
	for _, tool := range []string{"podman", "runc"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%w; image/tools.sh installs it", err)
		}
	}
	conf := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(conf, []byte(settings), 0o600); err != nil {
		return nil, err
	}
	var errs []error
	for _, driver := range []string{"overlay", "vfs"} { // vfs copies everything, and works everywhere
		p := &podman{
			command: []string{"podman", "--storage-driver=" + driver, "--root=" + filepath.Join(dir, driver),
				"--runroot=" + filepath.Join(dir, "run"), "--tmpdir=" + filepath.Join(dir, "tmp")},
			env: append(os.Environ(), "CONTAINERS_CONF="+conf),
		}
		_, err := p.run("info")
		if err == nil {
			return p, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// run gives what the command prints on standard output. The error has what it prints on standard error.
func (p *podman) run(args ...string) (string, error) {
	cmd := exec.Command(p.command[0], slices.Concat(p.command[1:], args)...)
	cmd.Env = p.env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), err
}

func (p *podman) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := p.run(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// build builds an image with build.sh, which the environment tells what to build, and gives the image's ID and digest.
func (p *podman) build(name string, environ ...string) (string, error) {
	cmd := exec.Command("./build.sh", "--no-cache")
	cmd.Env = slices.Concat(p.env, environ, []string{"IMAGE=" + name, "PODMAN=" + strings.Join(p.command, " ")})
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build.sh: %w: %s", err, out)
	}
	p.report = string(out)
	return p.run("image", "inspect", "--format={{.Id}} {{.Digest}}", name)
}

// close ends what still runs.
func (p *podman) close() error {
	_, err := p.run("pod", "rm", "--all", "--force", "--time=0")
	_, err2 := p.run("rm", "--all", "--force", "--time=0")
	return errors.Join(err, err2)
}
