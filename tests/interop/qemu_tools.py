"""qemu-img and qemu-io as the other side: run once, or held open while a test looks at what they hold."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-img") is None or shutil.which("qemu-io") is None, reason="qemu-utils is not installed"
)


def run(*command: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def qemu_io(path: Path, *commands: str, options: tuple[str, ...] = ("-f", "raw")) -> str:
    """What it prints. It exits with 0 whatever a command came to, so the text is looked at as well."""
    arguments = [word for command in commands for word in ("-c", command)]
    done = run("qemu-io", *options, *arguments, str(path))
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout


def refusal(path: Path, *, options: tuple[str, ...] = ("-f", "raw")) -> str:
    """Why qemu-io cannot open it, or '' where it can."""
    done = run("qemu-io", *options, "-c", "length", str(path))
    return "" if done.returncode == 0 and "Failed to get" not in done.stderr else done.stderr


def qemu_map(path: Path) -> list[tuple[int, int, bool]]:
    """(start, length, data) for each extent, neighbours of one kind merged."""
    done = run("qemu-img", "map", "-f", "raw", "--output=json", str(path))
    assert done.returncode == 0, done.stderr
    extents: list[dict[str, Any]] = json.loads(done.stdout)
    return merged([(extent["start"], extent["length"], bool(extent["data"])) for extent in extents])


def merged(extents: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    result: list[tuple[int, int, bool]] = []
    for start, length, data in extents:
        if result and result[-1][2] == data and sum(result[-1][:2]) == start:
            result[-1] = (result[-1][0], result[-1][1] + length, data)
        else:
            result.append((start, length, data))
    return result


@contextmanager
def held_by_qemu(path: Path, *options: str) -> Iterator[None]:
    """qemu-io has the image open for as long as the block runs."""
    process = subprocess.Popen(
        ["qemu-io", *options, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("length\n")  # it answers when the image is open
        process.stdin.flush()
        answer = process.stdout.readline()
        assert "qemu-io>" in answer, answer + process.stdout.read()
        yield
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()
