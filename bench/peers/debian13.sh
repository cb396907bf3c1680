#!/bin/bash
# Makes a Debian 13 root with qemu-utils, so that the newest QEMU that Debian ships can be a peer on Debian 12.
# Its qemu-img runs through its own loader (peers: programs.py), so that nothing but making the root needs root.
#
# Usage: bench/peers/debian13.sh [FOLDER]       default: $ENGINE_PEERS_ROOT, else build/debian13
set -euo pipefail
cd "$(dirname "$0")/../.."
exec scripts/debian_root.sh trixie "${1:-${ENGINE_PEERS_ROOT:-build/debian13}}" qemu-utils
