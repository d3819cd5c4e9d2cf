package migrate

import (
	"fmt"

	"github.com/etcd-migrate/etcd-migrate/binaries"
	"github.com/etcd-migrate/etcd-migrate/versionfile"
)

// ResolveTarget reads a target as a person gives it: a minor such as 3.7, which means its newest release in have, or a
// release such as 3.7.3. An empty storage means what the minor uses by default, etcd3 from 3.0 on.
func ResolveTarget(target, storage string, have binaries.Set) (versionfile.Version, error) {
	release, err := versionfile.ParseRelease(target)
	if err != nil {
		minor, minorErr := versionfile.ParseMinor(target)
		if minorErr != nil {
			return versionfile.Version{}, refuse(fmt.Errorf("target version %q is neither a minor such as 3.7 nor a release such as 3.7.3", target),
				"set --target-version (TARGET_VERSION) to one of them")
		}
		if !minor.Known() {
			return versionfile.Version{}, checkTarget(State{Presence: Fresh}, versionfile.Version{Release: versionfile.Release{Line: minor}})
		}
		bin, ok := have.Newest(minor)
		if !ok {
			return versionfile.Version{}, refuse(fmt.Errorf("target version %s: there is no etcd of that minor among %s", minor, have),
				fmt.Sprintf("put %s%s.<patch> into %s, or name another directory with --bin-dir", binaries.Prefix, minor, have.Dir))
		}
		release = bin.Release
	}
	v := versionfile.Version{Release: release, Storage: release.Minor().Storage()}
	if storage != "" {
		if v.Storage, err = versionfile.ParseStorage(storage); err != nil {
			return versionfile.Version{}, refuse(fmt.Errorf("target %w", err), "set --target-storage (TARGET_STORAGE) to one of them, or leave it out")
		}
	}
	return v, nil
}
