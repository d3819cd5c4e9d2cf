#!/bin/sh
# Sees to it that podman, runc and catatonit are there: builds need the first, tests all three. As root on Debian it
# installs what is missing; elsewhere it says what to install.
set -eu

missing=
command -v podman >/dev/null || missing="$missing podman"
command -v runc >/dev/null || missing="$missing runc"
# The process that holds a pod together; with it, podman needs no image for that.
command -v catatonit >/dev/null || [ -x /usr/libexec/podman/catatonit ] || missing="$missing catatonit"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "tools.sh: install$missing first; as root on Debian this script does it" >&2
	exit 1
fi
echo "tools.sh: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # several packages
apt-get install -y -qq --no-install-recommends $missing >/dev/null
