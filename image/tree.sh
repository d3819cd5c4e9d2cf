#!/bin/sh
# Builds what the image holds for one platform, from the pinned modules, and lays it out in OUT as the Dockerfile copies
# it, a directory per layer:
#
#   etcds/   /usr/local/bin/etcd-<version> of every minor on the way
#   target/  /usr/local/bin/etcdctl and etcdutl of the target, etcd as a link to the target's etcd-<version>, and /var/lib
#   tool/    /usr/local/bin/etcd-migrate, and links of the names that it takes the place of
#   data/    an empty data dir, for /var/lib
#
# usage: tree.sh OUT      ARCH (default: this machine's), MINORS (default: the Makefile's) and TARGET (default: 3.6) choose
set -eu

mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
host=$(go env GOHOSTARCH)
arch=${ARCH:-$host}
minors=${MINORS:-$(sed -n 's/^MINORS *?= *//p' Makefile)}
target=${TARGET:-3.6}

case " $minors " in
	*" $target "*) ;;
	*) echo "tree.sh: the target $target is not one of MINORS=\"$minors\"" >&2 && exit 1 ;;
esac
case $target in
	2.* | 3.[0-4]) utl= ;;
	*) utl=etcdutl ;;
esac

bin=bin
[ "$arch" = "$host" ] || bin=bin/$arch
GOOS=linux GOARCH=$arch ${MAKE:-make} --no-print-directory build binaries BIN="$bin" MINORS="$minors"

# release prints the version that build.sh has built of a minor.
release() { cut -d' ' -f1 "$bin/etcd/.built-$1"; }

rm -rf "$out/etcds" "$out/target" "$out/tool" "$out/data"
for layer in etcds target tool; do
	install -d -m 0755 "$out/$layer" "$out/$layer/usr" "$out/$layer/usr/local" "$out/$layer/usr/local/bin"
done
for minor in $minors; do
	install -m 0755 "$bin/etcd/etcd-$(release "$minor")" "$out/etcds/usr/local/bin/"
done
for name in etcdctl $utl; do
	install -m 0755 "$bin/etcd/$name-$(release "$target")" "$out/target/usr/local/bin/$name"
done
ln -s "etcd-$(release "$target")" "$out/target/usr/local/bin/etcd"
install -m 0755 "$bin/etcd-migrate" "$out/tool/usr/local/bin/"
for name in migrate migrate-if-needed.sh; do ln -s etcd-migrate "$out/tool/usr/local/bin/$name"; done
install -d -m 0755 "$out/target/var" "$out/target/var/lib" "$out/data"
install -d -m 0700 "$out/data/etcd"

# The same bytes with the same times give the same image.
find "$out" -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +
