#!/bin/sh
# Builds the image with podman, without pulling anything: image/tree.sh builds what goes in with this machine's Go and
# stands in for the Dockerfile's build stage. Then says how large it is, minor by minor.
#
# usage: build.sh [OPTION…]      options are podman build's
#
#   IMAGE              its name (default: localhost/etcd-migrate/etcd:<the target's release>, with -<ARCH> if not ours)
#   ARCH               amd64 or arm64 (default: this machine's)
#   MINORS             the etcds in it (default: all; "3.4 3.5 3.6" makes a slim one)
#   TARGET             the minor that it becomes (default: 3.6)
#   SOURCE_DATE_EPOCH  the time of everything in it, in seconds (default: 0)
#   PODMAN             the command (default: podman)
set -eu
cd "$(dirname "$0")/.."

host=$(go env GOHOSTARCH)
ARCH=${ARCH:-$host}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
export ARCH SOURCE_DATE_EPOCH
context=bin/image/$ARCH
image/tree.sh "$context/tree"

etcds=$(cd "$context/tree/etcds/usr/local/bin" && printf '%s\n' etcd-* | sed 's/etcd-//' | sort -V | xargs)
# What is in it, for those who have to know; it lies beside the tree, not in the image.
tool=$(sed -n 's/^const version = "\(.*\)"/\1/p' cmd/etcd-migrate/main.go)
go run -C image/sbom . -version "$tool" "$PWD/$context/tree" >"$context/sbom.cdx.json"

target=$(readlink "$context/tree/target/usr/local/bin/etcd" | sed 's/etcd-//')
suffix=
[ "$ARCH" = "$host" ] || suffix=-$ARCH
image=${IMAGE:-localhost/etcd-migrate/etcd:$target$suffix}

# Etcds of before 3.5 run on nothing but amd64 without being told to. The steps are told by etcd-migrate; an old target
# that etcd-migrate becomes takes it from the image.
old=
case $ARCH/$target in
	amd64/* | */3.[5-9].*) ;;
	*) old="--env ETCD_UNSUPPORTED_ARCH=$ARCH" ;;
esac

# No label with the builder's version, and one time for all: the same sources give the same image.
# shellcheck disable=SC2086 # PODMAN and old may be several words
${PODMAN:-podman} build --quiet --platform "linux/$ARCH" --build-context "build=$PWD/$context" \
	--timestamp "$SOURCE_DATE_EPOCH" --identity-label=false $old \
	--build-arg VERSION="$tool" \
	--build-arg REVISION="$(git describe --always --dirty --abbrev=40 2>/dev/null || true)" \
	--build-arg MINORS="${MINORS:-}" --build-arg TARGET="${TARGET:-}" \
	--label etcd-migrate.etcds="$etcds" --label etcd-migrate.target="$target" \
	--tag "$image" "$@" .

echo "$context/sbom.cdx.json is its bill of materials"
echo "$image holds for $ARCH, in MiB:"
{
	for release in $etcds; do wc -c "$context/tree/etcds/usr/local/bin/etcd-$release"; done
	find "$context/tree/target" "$context/tree/tool" -type f -exec wc -c {} \; | sort -k2
} | awk '
	{ n = split($2, path, "/"); printf "  %-12s %6.1f\n", path[n], $1 / 1048576; sum += $1 }
	END { printf "  %-12s %6.1f\n", "together", sum / 1048576 }'
