#!/bin/bash
# What scripts/wheel_test.sh runs in the bare root: installs the wheels of /wheels and uses them. Single process.
set -euo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/tmp

say() { printf 'wheel-test: %s\n' "$*"; }
fail() {
    say "$@" >&2
    exit 1
}

for program in cc gcc g++ clang; do
    if command -v "$program" >/dev/null; then fail "this root has $program: it is not bare"; fi
done
if compgen -G "/usr/lib/*/liburing*" >/dev/null; then fail "this root has liburing: it is not bare"; fi
say "Debian $(cat /etc/debian_version), $(python3 --version), no compiler, no liburing"

python3 -m venv /venv
/venv/bin/pip --disable-pip-version-check --no-input install -q --no-index --find-links /wheels blkengine
cd /tmp
/venv/bin/engine --version
/venv/bin/python - <<'PYTHON'
import engine
from engine import uring

loaded = {line.split()[-1] for line in open("/proc/self/maps") if "liburing" in line}
print("liburing from", *sorted(loaded))
assert len(loaded) == 1 and all(path.startswith("/venv/") for path in loaded), loaded
print("io_uring:", engine.probe_backend("io_uring"))
try:
    with uring.Ring(4) as ring:
        ring.nop(token="nop")
        print(ring.submit_and_wait(1))
except OSError as error:
    print("engine.uring:", error)
PYTHON
/venv/bin/engine bench --null 1g --runtime 1s
head -c 1048576 /dev/urandom >/tmp/disk.img
/venv/bin/engine bench --runtime 1s --rw randread --iodepth 8 /tmp/disk.img
# Whoever links a C program elsewhere finds what the flags name.
for flag in $(/venv/bin/python -m engine --cflags --libs); do
    case $flag in
        -I*) test -e "${flag#-I}/engine/engine.h" ;;
        -Wl,-rpath,* | -Wl,-rpath-link,*) test -d "${flag##*,}" ;;
        *) test -e "$flag" ;;
    esac || fail "$flag names nothing"
done
say "passed"
