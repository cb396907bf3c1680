"""What the tests of the Python package share: engines, images, Python in a child process."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
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


class RamDriver(engine.BlockDriver):
    """A sparse disk in a dictionary of blocks. Counts what is asked of it, by method."""

    BLOCK = 4096

    def __init__(self, size: int = 1 << 20) -> None:
        self.size = size
        self.blocks: dict[int, bytearray] = {}
        self.calls: dict[str, int] = {}
        self.lock = threading.Lock()  # guards all of it

    def _pieces(self, length: int, offset: int) -> Iterator[tuple[int, int, int, int]]:
        """(block, where in it, how much, where in the request)"""
        done = 0
        while done < length:
            block, start = divmod(offset + done, self.BLOCK)
            count = min(self.BLOCK - start, length - done)
            yield block, start, count, done
            done += count

    def _count(self, method: str) -> None:
        self.calls[method] = self.calls.get(method, 0) + 1

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        with self.lock:
            self._count("pread_into")
            for block, start, count, at in self._pieces(len(buffer), offset):
                data = self.blocks.get(block)
                buffer[at : at + count] = data[start : start + count] if data else bytes(count)

    def pwrite(self, data: memoryview, offset: int) -> None:
        with self.lock:
            self._count("pwrite")
            for block, start, count, at in self._pieces(len(data), offset):
                self.blocks.setdefault(block, bytearray(self.BLOCK))[start : start + count] = data[
                    at : at + count
                ]

    def flush(self) -> None:
        with self.lock:
            self._count("flush")

    def discard(self, length: int, offset: int) -> None:
        with self.lock:
            self._count("discard")
            for block, _, count, _ in self._pieces(length, offset):
                if count == self.BLOCK:
                    self.blocks.pop(block, None)

    def write_zeroes(self, length: int, offset: int, may_unmap: bool) -> None:
        with self.lock:
            self._count("write_zeroes")
            for block, start, count, _ in self._pieces(length, offset):
                if may_unmap and count == self.BLOCK:
                    self.blocks.pop(block, None)
                elif block in self.blocks:
                    self.blocks[block][start : start + count] = bytes(count)

    def resize(self, size: int) -> None:
        with self.lock:
            self._count("resize")
            self.size = size
            for block in [block for block in self.blocks if block * self.BLOCK >= size]:
                del self.blocks[block]

    def extents(self, offset: int, length: int) -> Iterator[engine.Extent]:
        """From the start of the disk, whatever is asked for: the engine takes its part."""
        with self.lock:
            self._count("extents")
            known = sorted(block for block in self.blocks if block * self.BLOCK < offset + length)
        at = 0
        for block in known:
            start = block * self.BLOCK
            if start > at:
                yield engine.Extent(at, start - at, data=False, zero=True, unwritten=False)
            yield engine.Extent(start, self.BLOCK, data=True, zero=False, unwritten=False)
            at = start + self.BLOCK
        if at < offset + length:
            yield engine.Extent(at, offset + length - at, data=False, zero=True, unwritten=False)
