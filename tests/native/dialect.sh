#!/bin/sh
# Runs the conformance test of the coroutine dialect on every compiler of $CXX (default: g++ and clang++-19,
# those that are installed) in every mode that CI builds. One line a combination; exit status 1 when one
# failed.
# usage: tests/native/dialect.sh
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
sources="$root/tests/native/test_coro_conformance.cc $root/csrc/coro/frame_pool.cc
    $root/csrc/base/alloc.cc $root/csrc/base/assert.cc $root/csrc/base/clock.cc $root/csrc/base/error.cc"
flags="-std=c++20 -fno-rtti -Wall -Wextra -Wshadow -Werror -D_GNU_SOURCE -pthread
    -I$root/csrc -I$root/csrc/include -I$root/tests/native"
status=0
ran=0
for compiler in ${CXX:-g++ clang++-19}; do
    if ! command -v "$compiler" >/dev/null 2>&1; then
        [ -n "${CXX:-}" ] && { echo "FAIL $compiler: not installed"; status=1; }
        continue
    fi
    for mode in "-O0" "-O2" \
        "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" "-O1 -g -fsanitize=thread"; do
        ran=$((ran + 1))
        # shellcheck disable=SC2086  # flags and sources are lists
        if "$compiler" $flags $mode $sources -o "$work/test" >"$work/log" 2>&1 &&
            "$work/test" >"$work/log" 2>&1; then
            echo "ok   $compiler $mode: $(tail -n 1 "$work/log")"
        else
            echo "FAIL $compiler $mode"
            cat "$work/log"
            status=1
        fi
    done
done
[ "$ran" -gt 0 ] || { echo "FAIL no compiler found"; exit 1; }
exit $status
