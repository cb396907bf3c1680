"""The engine inside a C program: the flags that the package prints compile, link and run the example."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine import embed

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "examples" / "embed.c"
COMPILER = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or ""
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler here")


def flags(*options: str) -> list[str]:
    command = [sys.executable, "-P", "-m", "engine", *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return shlex.split(run.stdout)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("embed") / "embed"
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    build = [COMPILER, *strict, str(EXAMPLE), *flags("--cflags", "--libs"), "-o", str(target)]
    run = subprocess.run(build, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return target


def run_program(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Without what may lead it to another library."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LD_")}
    return subprocess.run(
        [program, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False
    )


@needs_compiler
def test_the_example_runs(program: Path, tmp_path: Path) -> None:
    image = tmp_path / "a b:c.img"
    image.write_bytes(b"\xff" * (1 << 20))
    run = run_program(program, str(image))
    assert (run.returncode, run.stderr) == (0, "")
    null, raw = run.stdout.splitlines()
    assert null.startswith("null: 16 reads, 0 writes, 65536 bytes read")
    assert raw.startswith("raw: 16 reads, 16 writes, 65536 bytes read")
    expected = b"".join(bytes([block + 1]) * 4096 for block in range(16))
    assert image.read_bytes() == expected + b"\xff" * ((1 << 20) - len(expected))


@needs_compiler
def test_the_example_says_what_is_wrong_in_one_line(program: Path, tmp_path: Path) -> None:
    run = run_program(program, str(tmp_path / "missing.img"))
    assert run.returncode == 1
    assert run.stderr.startswith("embed: ")
    assert run.stderr.count("\n") == 1
    assert "missing.img" in run.stderr
    assert run_program(program).returncode == 2


@needs_compiler
def test_the_program_loads_the_library_of_this_package(program: Path) -> None:
    library = Path(flags("--libs")[0])
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert str(library.parent / "libengine.so.0") in listed


@needs_compiler
def test_the_headers_compile_as_cxx(tmp_path: Path) -> None:
    source = tmp_path / "one.cc"
    source.write_text("#include <engine/engine.h>\nint main() { return engine_version() == nullptr; }\n")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler here")
    target = tmp_path / "one"
    build = [compiler, str(source), *flags("--cflags", "--libs"), "-o", str(target)]
    run = subprocess.run(build, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run_program(target).returncode == 0


def test_each_flag_alone() -> None:
    compiling, linking = flags("--cflags"), flags("--libs")
    assert flags("--libs", "--cflags") == compiling + linking
    assert Path(compiling[0].removeprefix("-I"), "engine", "engine.h").is_file()
    assert {path.name for path in Path(compiling[0].removeprefix("-I"), "engine").iterdir()} == {
        path.name for path in (ROOT / "csrc" / "include" / "engine").iterdir()
    }
    assert Path(linking[0]).is_file()
    assert f"-Wl,-rpath,{Path(linking[0]).parent}" in linking


def test_an_installation_without_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embed.resources, "files", lambda _: tmp_path)
    with pytest.raises(FileNotFoundError, match="install the package anew"):
        embed.cflags()


def test_a_wheel_names_the_libraries_that_it_carries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "engine"
    package.mkdir()
    (package / "libengine.so.0").touch()
    (tmp_path / "blkengine.libs").mkdir()
    monkeypatch.setattr(embed.resources, "files", lambda _: package)
    assert embed.libs()[-1] == f"-Wl,-rpath-link,{tmp_path / 'blkengine.libs'}"
