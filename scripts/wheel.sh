#!/bin/bash
# Builds the wheel that carries liburing, into dist/: the package's own, repaired by auditwheel, which also says
# which manylinux it may call itself. Needs .venv (make setup-run). Single process, no lock.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

pip() { python -m pip --disable-pip-version-check --no-input "$@" </dev/null; }

mapfile -t tools < <(python -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["wheel"], sep="\n")')
pip install -q "${tools[@]}"
rm -rf build/wheel dist
tag=$(python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
pip wheel -q --no-build-isolation --no-deps -w build/wheel --config-settings=build-dir="build/wheel-$tag" .
auditwheel repair -w dist build/wheel/*.whl
ls -l dist/*.whl
auditwheel show dist/*.whl
