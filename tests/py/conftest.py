"""What the tests of the Python package share: engines, images, Python in a child process."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import engine
from engine.uring import Ring

# A shell's background job starts with SIGINT ignored, and so would every program that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

IMAGE_BYTES = 1 << 20

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def eng() -> Iterator[engine.Engine]:
    """With two contexts that are not pinned."""
    with engine.Engine(contexts={"io0": None, "io1": None}) as opened:
        yield opened


@pytest.fixture
def null(eng: engine.Engine) -> engine.BlockNode:
    """A null node of 1 GiB whose reads fill their buffers with zeroes."""
    return eng.open(driver="null", node_name="disk", size="1G", read_zeroes=True)


@pytest.fixture(scope="session")
def content() -> bytes:
    """What `image` holds: seeded, and not compressible."""
    return random.Random(1).randbytes(IMAGE_BYTES)


@pytest.fixture
def image(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    return path


@pytest.fixture
def ring() -> Iterator[Ring]:
    """Of engine.uring, with eight entries."""
    with Ring(8) as opened:
        yield opened


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(end to read from, end to write to)."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.fixture
def script() -> Script:
    """Runs Python source in a child process. A hang is a failure, and shows where it hung."""

    def run(source: str, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-c", source, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler, of -X dev, shows the stacks
            try:
                out, err = process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
            pytest.fail(f"it hung:\n{out}\n{err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
