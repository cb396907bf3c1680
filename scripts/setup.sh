#!/bin/bash
# Sets up what `make run`, `make bench` and `make test` need: Debian packages, .venv, the package installed in it.
# Says aloud what is missing before it installs anything; with nothing missing it ends in well under a second.
# Runs as a single process: nothing is guarded by a lock.
#
# Usage: scripts/setup.sh run|bench|test        (PYTHON=… chooses the interpreter)
set -euo pipefail
cd "$(dirname "$0")/.."

goal=${1:-run}
python=${PYTHON:-python3}
venv=.venv

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    say "$@"
    exit 1
}

# ---- Debian packages ----

missing=()
# want PACKAGE WHAT CHECK…: notes the package when the check fails.
want() {
    local package=$1 what=$2
    shift 2
    "$@" >/dev/null 2>&1 && return
    say "missing: $what (package $package)"
    missing+=("$package")
}

has() { command -v "$1"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "needs root: run this, then make again:  $*"
    fi
}

install_missing() {
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "no apt-get here: install the likes of these by hand: ${missing[*]}"
    say "installing ${missing[*]}"
    local options=(-y --no-install-recommends)
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "${missing[@]}" </dev/null; then
        say "apt-get failed: trying once more with fresh package lists"
        as_root apt-get update </dev/null
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "${missing[@]}" </dev/null
    fi
    missing=()
}

# The clang that the tests use: 19 where it is packaged (clang-format's output differs between versions), else
# the newest.
clang_version() {
    local version
    for version in 19 22 21 20 18 17 16; do
        if command -v "clang++-$version" >/dev/null || [ -n "$(apt-cache madison "clang-$version" 2>/dev/null)" ]; then
            echo "$version"
            return
        fi
    done
    echo 19
}

want_for_building() {
    want g++ "a C++ compiler" has "${CXX:-g++}"
    want gcc "a C compiler" has "${CC:-gcc}"
    want libc6-dev "the C library's headers" test -e /usr/include/stdio.h
    want pkg-config "pkg-config" has pkg-config
    want liburing-dev "liburing 2.3 or newer, with headers" pkg-config --exists 'liburing >= 2.3'
}

want_for_peers() {
    want qemu-utils "qemu-img, the peer of the benchmarks" has qemu-img
    want fio "fio, the peer of the benchmarks" has fio
}

want_for_tests() {
    local version
    version=$(clang_version)
    want "clang-$version" "clang, the second compiler" has "clang++-$version"
    want "lld-$version" "clang's linker" has "ld.lld-$version"
    want "libclang-rt-$version-dev" "clang's sanitizer runtimes and libFuzzer" runtimes_of "$version"
    want "clang-format-$version" "clang-format" has "clang-format-$version"
    want "clang-tidy-$version" "clang-tidy" has "clang-tidy-$version"
    want valgrind "valgrind, which counts instructions" has valgrind
    want libc6-dbg "the symbols that valgrind needs" dpkg -s libc6-dbg
    want strace "strace, which counts system calls" has strace
    want fonts-dejavu-core "a font, for pictures as PNG" test -d /usr/share/fonts/truetype
}

runtimes_of() {
    compgen -G "/usr/lib/llvm-$1/lib/clang/*/lib/linux/libclang_rt.tsan-*.a" &&
        compgen -G "/usr/lib/llvm-$1/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a"
}

# ---- Python ----

python_version() { "$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Debian splits venv and the headers off; other builds of Python have both.
want_python() {
    local version path
    if ! command -v "$python" >/dev/null; then
        missing+=(python3)
        say "missing: $python (package python3)"
        install_missing
    fi
    version=$(python_version) || fail "$python does not start; choose another with PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is Python $version; the engine needs 3.11 or newer: choose one with PYTHON=/path/to/python3"
    path=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    case $path in
        /usr/bin/*)
            want "python$version-venv" "venv for Python $version" "$python" -c 'import ensurepip, venv'
            want "python$version-dev" "the headers of Python $version" headers_of "$python"
            ;;
        *)
            "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$path has no venv: choose another with PYTHON="
            headers_of "$python" || fail "$path has no Python.h: install its headers or choose another with PYTHON="
            ;;
    esac
}

headers_of() { test -e "$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"; }

build_requirements() {
    "$venv/bin/python" -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
print(*project["build-system"]["requires"], *project["project"]["dependencies"], sep="\n")'
}

extra_requirements() {
    "$venv/bin/python" - "$@" <<'PYTHON'
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    extras = tomllib.load(file)["project"]["optional-dependencies"]
print(*(line for name in sys.argv[1:] for line in extras[name]), sep="\n")
PYTHON
}

# The environment's own meson and ninja come before whatever the system has.
pip() { PATH="$PWD/$venv/bin:$PATH" "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@" </dev/null; }

# fresh STAMP: the stamp is newer than everything that decides what is installed.
fresh() {
    local input
    [ -e "$1" ] || return 1
    for input in pyproject.toml scripts/setup.sh meson.options; do
        [ "$1" -nt "$input" ] || return 1
    done
    # A checkout that was moved or copied has an environment that points elsewhere.
    [ "$(cat "$1")" = "$PWD" ]
}

make_venv() {
    if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null; then return; fi
    say "making $venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
}

install_package() {
    fresh "$venv/.installed" && return
    want_python
    install_missing
    make_venv
    say "installing the build requirements and the engine, editable: it rebuilds itself on import"
    mapfile -t requirements < <(build_requirements)
    pip install -q "${requirements[@]}"
    pip install -q --no-build-isolation -e .
    echo "$PWD" >"$venv/.installed"
}

install_extras() {
    fresh "$venv/.extras" && return
    say "installing the tools of tests and benchmarks"
    mapfile -t requirements < <(extra_requirements test lint)
    pip install -q "${requirements[@]}"
    echo "$PWD" >"$venv/.extras"
}

case $goal in
    run) want_for_building ;;
    bench)
        want_for_building
        want_for_peers
        ;;
    test)
        want_for_building
        want_for_tests
        want_for_peers
        ;;
    *) fail "usage: scripts/setup.sh run|bench|test" ;;
esac
install_missing
install_package
[ "$goal" = run ] || install_extras
