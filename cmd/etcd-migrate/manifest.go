package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/etcd-migrate/etcd-migrate/image/manifest"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

type manifestCmd struct {
	Image  string `placeholder:"IMAGE" env:"MANIFEST_IMAGE" help:"The container's image. Default: the one in the manifest."`
	User   *int   `placeholder:"UID" env:"MANIFEST_USER" help:"Run as this user and group, without other rights: 65532 is the image's own. 0 only sets root. Default: as the manifest says."`
	Target string `name:"target-version" placeholder:"VERSION" env:"TARGET_VERSION" help:"The etcd that is to run, such as 3.6. Default: what the image's tag says."`
	File   string `arg:"" placeholder:"FILE" help:"The manifest, or - for standard input."`
}

func (c *manifestCmd) Help() string {
	return `Prints the manifest with "etcd-migrate run --" in front of etcd's command, and changes no other line. A shell script that
calls the old migrate-if-needed.sh becomes the list of words that it ends with. What does not go with a migration or with
the etcd that is to run, flags that it no longer knows for example, is named on standard error.

  etcd-migrate manifest --image=REGISTRY/etcd:3.6.16 --user=65532 /root/etcd.yaml.before >/etc/kubernetes/manifests/etcd.yaml`
}

// maxManifest is far above what a kubelet takes.
const maxManifest = 4 << 20

func (c *manifestCmd) Run() error {
	o := manifest.Options{Image: c.Image, User: c.User}
	if c.User != nil && *c.User < 0 {
		return usagef("--user: %d is no user ID", *c.User)
	}
	if c.Target != "" {
		m, err := versionfile.ParseMinor(c.Target)
		if r, releaseErr := versionfile.ParseRelease(c.Target); releaseErr == nil {
			m, err = r.Minor(), nil
		}
		if err != nil {
			return usagef("--target-version: %w", err)
		}
		o.Target = m
	}
	name, in := c.File, io.ReadCloser(os.Stdin)
	if name == "-" {
		name = "standard input"
	} else {
		f, err := os.Open(name)
		if err != nil {
			return usagef("%w", err)
		}
		in = f
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, maxManifest+1))
	if err == nil && len(text) > maxManifest {
		err = errors.New("it is too large to be a manifest")
	}
	if err != nil {
		return usagef("%s: %w", name, err)
	}
	edited, notes, err := manifest.Edit(text, o)
	if err != nil {
		return usagef("%s: %w", name, err)
	}
	for _, n := range notes {
		fmt.Fprintln(os.Stderr, "note:", n)
	}
	_, err = os.Stdout.Write(edited)
	return err
}
