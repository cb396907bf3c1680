#!/bin/bash
# Makes a Debian 13 root with qemu-utils, so that the newest QEMU that Debian ships can be a peer on Debian 12.
# Its qemu-img runs through its own loader (peers: programs.py), so that nothing but making the root needs root.
# The mirror is the one that this machine's apt uses.
#
# Usage: bench/peers/debian13.sh [FOLDER]       default: $ENGINE_PEERS_ROOT, else build/debian13
set -euo pipefail
cd "$(dirname "$0")/../.."
root=${1:-${ENGINE_PEERS_ROOT:-build/debian13}}
suite=trixie

say() { printf 'debian13: %s\n' "$*" >&2; }

if [ -x "$root/usr/bin/qemu-img" ]; then
    say "$root is there already"
    exit 0
fi

sudo=()
if [ "$(id -u)" != 0 ]; then sudo=(sudo); fi
if ! command -v debootstrap >/dev/null; then
    say "missing: debootstrap; installing it"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends debootstrap </dev/null
fi

# apt itself says where it gets the distribution from, whatever the format of its lists.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 2>/dev/null |
    awk '$2 == "Debian" && $3 == "Debian" {print $1; exit}')
if [ -z "$mirror" ]; then
    say "apt has no Debian archive in its lists: run apt-get update, or add one"
    exit 1
fi
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if [ ! -e "$keyring" ]; then
    say "missing: debian-archive-keyring; installing it"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y debian-archive-keyring </dev/null
fi
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid

say "making $root from $mirror: about half a minute, 250 MB"
mkdir -p "$(dirname "$root")"
"${sudo[@]}" rm -rf "$root.part"
"${sudo[@]}" debootstrap --variant=minbase --include=qemu-utils --keyring="$keyring" \
    "$suite" "$root.part" "$mirror" "$script" >"$root.log" 2>&1 || {
    say "debootstrap failed; the end of $root.log:"
    tail -n 5 "$root.log" >&2
    exit 1
}
"${sudo[@]}" mv "$root.part" "$root"
say "$(ls -d "$root") is ready"
