#!/bin/sh
# Builds the etcd, etcdctl and (from 3.5 on) etcdutl of one minor from its pinned module, statically, and leaves them in
# OUT as etcd-<version>, etcdctl-<version>, etcdutl-<version>. Does nothing if they are there and the module, the
# platform, the Go and this script are what they were.
#
# usage: build.sh MINOR OUT      GOOS and GOARCH choose the platform
set -eu

minor=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
cd "$(dirname "$0")/$minor"

case $minor in
	2.2 | 2.3 | 3.0 | 3.1 | 3.2)
		# With a newer Go these compile and then panic at start.
		GOTOOLCHAIN=go1.21.13 && export GOTOOLCHAIN ;;
esac
case $minor in
	2.* | 3.[0-3]) module=github.com/coreos/etcd server=$module ctl=$module/etcdctl utl= ;;
	3.4) module=go.etcd.io/etcd server=$module ctl=$module/etcdctl utl= ;;
	*) module=go.etcd.io/etcd/server/v3 server=$module ctl=go.etcd.io/etcd/etcdctl/v3 utl=go.etcd.io/etcd/etcdutl/v3 ;;
esac

# The release comes from the module's version; 3.4 is required by commit, so there the source says it.
version=$(sed -n "s|^.*$module v\([0-9][0-9.]*\)\(+incompatible\)\{0,1\}\( // indirect\)\{0,1\}\$|\1|p" go.mod | head -n 1)
if [ "$minor" = 3.4 ]; then
	go mod download "$module" # a module that has never been built here has no directory yet
	version=$(sed -n 's/.*Version *= "\(3\.4\.[0-9]*\)".*/\1/p' "$(go list -mod=readonly -m -f '{{.Dir}}' $module)/version/version.go")
fi
case $version in
	"$minor".*) ;;
	*) echo "build.sh: no etcd $minor release in $PWD/go.mod" >&2 && exit 1 ;;
esac

# With these flags the same sources and the same Go give the same bytes on every machine.
CGO_ENABLED=0 GOFLAGS='-mod=readonly -trimpath -buildvcs=false' && export CGO_ENABLED GOFLAGS
platform=$(go env GOOS)/$(go env GOARCH)
go=$(go env GOVERSION)
stamp=$out/.built-$minor
inputs=$(cat go.mod go.sum ../build.sh | cksum)
want="$version $platform $go $inputs"
if [ -x "$out/etcd-$version" ] && [ -x "$out/etcdctl-$version" ] && { [ -z "$utl" ] || [ -x "$out/etcdutl-$version" ]; } &&
	[ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
	exit 0
fi

began=$(date +%s)
printf 'etcd %-7s building for %s ' "$version" "$platform"
# Both are compiled beside and renamed, so that an interrupted build leaves no half binary under a good name.
for pair in "etcd=$server" "etcdctl=$ctl" ${utl:+"etcdutl=$utl"}; do
	name=${pair%%=*}
	go build -ldflags='-s -w -buildid=' -o "$out/.$name-$version.tmp" "${pair#*=}"
	mv "$out/.$name-$version.tmp" "$out/$name-$version"
	printf '. '
done
echo "$want" >"$stamp"
echo "$(($(date +%s) - began)) s"
