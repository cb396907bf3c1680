#!/bin/sh
# Runs the conformance test of the coroutine dialect on every compiler of $CXX (default: g++ and clang++-19,
# those that are installed) in every mode that CI builds: the compilers beside each other, the modes of each one
# after another. One line a combination; exit status 1 when one failed.
# usage: tests/native/dialect.sh
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
sources="$root/tests/native/test_coro_conformance.cc $root/csrc/coro/frame_pool.cc
    $root/csrc/base/alloc.cc $root/csrc/base/assert.cc $root/csrc/base/clock.cc $root/csrc/base/error.cc"
flags="-std=c++20 -fno-rtti -Wall -Wextra -Wshadow -Werror -D_GNU_SOURCE -pthread
    -I$root/csrc -I$root/csrc/include -I$root/tests/native"

# all_modes COMPILER PROGRAM
all_modes() {
    if ! command -v "$1" >/dev/null 2>&1; then
        [ -z "${CXX:-}" ] || echo "FAIL $1: not installed"
        return
    fi
    for mode in "-O0" "-O2" \
        "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" "-O1 -g -fsanitize=thread"; do
        # shellcheck disable=SC2086  # flags and sources are lists
        if "$1" $flags $mode $sources -o "$2" >"$2.log" 2>&1 && "$2" >"$2.log" 2>&1; then
            echo "ok   $1 $mode: $(tail -n 1 "$2.log")"
        else
            echo "FAIL $1 $mode"
            cat "$2.log"
        fi
    done
}

number=0
for compiler in ${CXX:-g++ clang++-19}; do
    number=$((number + 1))
    all_modes "$compiler" "$work/test$number" >"$work/$number.lines" &
done
wait
cat "$work"/*.lines
grep -q '^ok ' "$work"/*.lines || { echo "FAIL nothing ran"; exit 1; }
! grep -q '^FAIL' "$work"/*.lines
