#!/bin/bash
# Installs the wheel of dist/ in a bare Debian 12 root, without compiler, liburing or network, and runs it there.
# The root is made once, in build/bare-debian12, and needs root. Single process, no lock.
set -euo pipefail
cd "$(dirname "$0")/.."
root=build/bare-debian12

say() { printf 'wheel-test: %s\n' "$*" >&2; }
fail() {
    say "$@"
    exit 1
}

sudo=()
if [ "$(id -u)" != 0 ]; then sudo=(sudo); fi
wheels=(dist/blkengine-*.whl)
[ -e "${wheels[0]}" ] || fail "no wheel in dist/: run make wheel"
case ${wheels[0]} in
    *-cp311-cp311-*) ;;
    *) fail "${wheels[0]} is not for Python 3.11, which Debian 12 has: make wheel PYTHON=python3.11 after make clean" ;;
esac
scripts/debian_root.sh bookworm "$root" python3-venv

# What it depends on, for the Python of that root; the root itself has no network.
rm -rf build/wheel-deps
.venv/bin/python -m pip --disable-pip-version-check download -q --only-binary :all: --python-version 3.11 \
    --find-links dist -d build/wheel-deps "${wheels[0]}" </dev/null
"${sudo[@]}" rm -rf "$root/wheels" "$root/venv"
"${sudo[@]}" cp -r build/wheel-deps "$root/wheels"
"${sudo[@]}" cp scripts/wheel_test_inside.sh "$root/wheels/"

# /proc and /sys, in a mount namespace that ends with the test; and no network.
"${sudo[@]}" unshare --mount --net sh -c "mount -t proc proc $root/proc && mount -t sysfs sysfs $root/sys &&
    exec chroot $root /bin/bash /wheels/wheel_test_inside.sh"
