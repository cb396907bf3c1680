"""Every code block of README.md runs as it stands there: Python by itself, commands in a shell.

Around the commands stand a folder with a small image and, in front of the path, stand-ins that only make
things shorter: `engine bench` gets a run time, `engine run` is quick, `make` says what it would do.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"

# The options of a command that is to be short. `engine run` makes its images itself.
ENGINE = """#!/bin/sh
case " $* " in
    " bench "*" --count "* | " bench "*" --runtime "*) set -- "$@" --allow-debug-build ;;
    " bench "* | " doctor "*" --suggest "*) set -- "$@" --runtime 20ms --allow-debug-build ;;
    " run "*) set -- "$@" --quick --allow-debug-build ;;
esac
exec {python} -P -m engine "$@"
"""
MAKE = """#!/bin/sh
exec {make} --no-print-directory --dry-run -C {root} "$@"
"""
PYTHON = """#!/bin/sh
exec {python} "$@"
"""


def all_blocks() -> list[tuple[str, str]]:
    """(language, code) of each."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [code for found, code in all_blocks() if found == language]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands run: as in a checkout, with an image in it."""
    work = tmp_path / "work"
    work.mkdir()
    for name in ("bench", "examples"):
        (work / name).symlink_to(ROOT / name)
    (work / "disk.img").write_bytes(random.Random(1).randbytes(1 << 20))
    return work


@pytest.fixture
def path(tmp_path: Path) -> str:
    """PATH with the stand-ins before everything else."""
    programs = tmp_path / "programs"
    programs.mkdir()
    values = {
        "python": shlex.quote(sys.executable),
        "make": shutil.which("make"),
        "root": shlex.quote(str(ROOT)),
    }
    for name, text in (("engine", ENGINE), ("make", MAKE), ("python", PYTHON)):
        program = programs / name
        program.write_text(text.format(**values), encoding="utf-8")
        program.chmod(0o755)
    return f"{programs}:{os.environ.get('PATH', os.defpath)}"


@pytest.mark.parametrize("code", blocks("python"))
def test_python_block_runs(code: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("code", blocks("sh"))
def test_shell_block_runs(code: str, folder: Path, path: str) -> None:
    for program in ("make", "cc"):
        if re.search(rf"^{program}\b", code, re.MULTILINE) and not shutil.which(program):
            pytest.skip(f"no {program} here")
    if re.search(r"--cpus 0,1\b", code) and not {0, 1} <= os.sched_getaffinity(0):
        pytest.skip("this process may not use CPUs 0 and 1")
    result = subprocess.run(
        ["sh", "-eu", "-c", code],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_no_block_is_left_out() -> None:
    languages = {language for language, _ in all_blocks()}
    assert languages == {"python", "sh"}, "a block in another language is not run by any test here"
    fences = README.read_text(encoding="utf-8").count("```")
    assert fences == 2 * len(all_blocks())


def test_there_are_examples() -> None:
    assert len(blocks("python")) >= 2
    assert len(blocks("sh")) >= 3


def test_a_wrong_command_is_noticed(folder: Path, path: str) -> None:
    """The stand-ins pass on what is wrong."""
    for code in ("engine bench --no-such-option", "make no-such-target", "engine run missing.toml"):
        result = subprocess.run(
            ["sh", "-eu", "-c", code],
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert result.returncode != 0, code


def test_named_commands_exist() -> None:
    """Every `engine COMMAND` that the README shows is one that --help lists."""
    text = subprocess.run(
        [sys.executable, "-m", "engine", "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    named = {match for block in blocks("sh") for match in re.findall(r"^engine (\w+)", block, re.MULTILINE)}
    assert named
    for command in named:
        assert re.search(rf"^\s+{command}\b", text, re.MULTILINE), f"README shows `engine {command}`"
