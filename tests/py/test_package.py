"""The package as users import it: names, cost of the import, what build and host say of themselves."""

from __future__ import annotations

import importlib.metadata
import time
import tomllib
from pathlib import Path

import pytest
from conftest import Script

import engine

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_public_name_is_there() -> None:
    assert len(engine.__all__) == len(set(engine.__all__))
    for name in engine.__all__:
        value = getattr(engine, name)
        assert isinstance(value, str) if name == "__version__" else callable(value), name
        assert name == "__version__" or value.__doc__, f"{name} has no docstring"
    assert set(engine.__all__) <= set(dir(engine))


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="'engine' has no attribute 'Enigne'"):
        engine.Enigne  # noqa: B018


def test_one_version() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    assert engine.__version__ == engine.build_info().version == version


def test_the_package_is_typed() -> None:
    folder = Path(str(engine.__file__)).parent
    assert (folder / "py.typed").exists()


def test_importing_is_cheap(script: Script) -> None:
    """`import engine` loads neither the native library nor anything heavy: names load on first use."""
    result = script("""
import sys
def loaded():
    print(*sorted({name.split(".")[0] for name in sys.modules} & {"_cffi_backend", "numpy", "psutil"}))
import engine
loaded()
engine.parse_size("4k")
loaded()
engine.Engine
loaded()
""")
    assert result.stdout.split("\n")[:3] == ["", "", "_cffi_backend"], result.stderr


def test_build_info() -> None:
    info = engine.build_info()
    assert info.compiler.startswith(("gcc", "clang"))
    assert info.liburing
    assert isinstance(info.optimised, bool)
    assert isinstance(info.sanitized, bool)


def test_clock() -> None:
    assert engine.clock_name() in ("tsc", "clock_gettime")
    before, start = engine.now_ns(), time.perf_counter_ns()
    time.sleep(0.05)
    passed, expected = engine.now_ns() - before, time.perf_counter_ns() - start
    assert passed == pytest.approx(expected, rel=0.05)


def test_probing() -> None:
    threads = engine.probe_backend("threads")
    assert threads.works
    assert threads.reason == ""
    uring = engine.probe_backend("io_uring")
    assert uring.works == (uring.reason == "")
    for name in ("uring", "auto"):
        with pytest.raises(engine.InvalidArgument, match="backend"):
            engine.probe_backend(name)


def test_the_command_is_declared() -> None:
    try:
        scripts = importlib.metadata.entry_points(group="console_scripts", name="engine")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert all(script.value == "engine.cli:main" for script in scripts)
