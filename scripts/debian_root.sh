#!/bin/bash
# Makes a root of a Debian release in a folder, with some packages and nothing else. What makes it needs root;
# the mirror is the one that this machine's apt uses. Runs as a single process: nothing is guarded by a lock.
#
# Usage: scripts/debian_root.sh SUITE FOLDER PACKAGE,PACKAGE…       does nothing where FOLDER is there already
set -euo pipefail
[ $# = 3 ] || {
    echo "usage: debian_root.sh SUITE FOLDER PACKAGE,PACKAGE…" >&2
    exit 2
}
suite=$1 root=$2 packages=$3

say() { printf '%s: %s\n' "$suite" "$*" >&2; }

if [ -d "$root" ]; then
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
"${sudo[@]}" debootstrap --variant=minbase --include="$packages" --keyring="$keyring" \
    "$suite" "$root.part" "$mirror" "$script" >"$root.log" 2>&1 || {
    say "debootstrap failed; the end of $root.log:"
    tail -n 5 "$root.log" >&2
    exit 1
}
"${sudo[@]}" mv "$root.part" "$root"
say "$root is ready"
