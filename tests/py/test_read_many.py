"""read_many and write_many: one buffer, many offsets, one array of results; as NumPy gives and takes them."""

from __future__ import annotations

import errno
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine

BLOCK = 512
BLOCKS = 2048  # of the image


@pytest.fixture
def disk(eng: engine.Engine, image: Path) -> engine.BlockNode:
    return eng.open(image)


def shuffled(count: int) -> list[int]:
    return [i * 7 % BLOCKS * BLOCK for i in range(count)]


def expected(content: bytes, offsets: list[int], length: int = BLOCK) -> bytes:
    return b"".join(content[offset : offset + length] for offset in offsets)


KINDS: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    "iterator": iter,
    "range": lambda offsets: map(int, offsets),
    "array q": lambda offsets: array("q", offsets),
    "array Q": lambda offsets: array("Q", offsets),
    "array I": lambda offsets: array("I", offsets),
    "numpy int64": lambda offsets: np.array(offsets),
    "numpy uint64": lambda offsets: np.array(offsets, dtype=np.uint64),
    "numpy int32": lambda offsets: np.array(offsets, dtype=np.int32),
    "numpy strided": lambda offsets: np.repeat(np.array(offsets), 2)[::2],
    "memoryview": lambda offsets: memoryview(array("q", offsets)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_of_every_kind(disk: engine.BlockNode, content: bytes, kind: str) -> None:
    offsets = shuffled(100)
    buffer = bytearray(100 * BLOCK)
    results = disk.read_many(buffer, KINDS[kind](offsets), BLOCK, context="io1")
    assert buffer == expected(content, offsets)
    assert list(results) == [BLOCK] * 100
    assert isinstance(results, np.ndarray if kind.startswith("numpy") else array)
    assert disk.stats("io1").op["read"].requests == 100


def test_results_have_the_shape_of_the_offsets(disk: engine.BlockNode, content: bytes) -> None:
    offsets = np.array(shuffled(60)).reshape(3, 4, 5)
    buffer = np.empty((60, BLOCK), dtype=np.uint8)
    results = disk.read_many(buffer, offsets, BLOCK)
    assert results.shape == offsets.shape
    assert results.dtype == np.int64
    assert (results == BLOCK).all()
    results[0, 0, 0] = 1  # it is the caller's own
    assert buffer.tobytes() == expected(content, list(offsets.ravel()))


def test_out_takes_the_results(disk: engine.BlockNode) -> None:
    for out in (array("q", bytes(80)), np.zeros(10, np.int64), np.zeros((2, 5), np.int64)):
        assert disk.read_many(bytearray(10 * BLOCK), shuffled(10), BLOCK, out=out) is out
        assert memoryview(out).tobytes() == array("q", [BLOCK] * 10).tobytes()


def test_written_and_read_back(eng: engine.Engine, image: Path, content: bytes) -> None:
    offsets = shuffled(BLOCKS)
    data = np.random.default_rng(1).bytes(BLOCKS * BLOCK)
    with eng.open(image) as disk:
        assert (disk.write_many(data, np.array(offsets), BLOCK, "io0", fua=False) == BLOCK).all()
        buffer = bytearray(len(data))
        disk.read_many(buffer, offsets, BLOCK, iodepth=1024)
        assert buffer == data
        disk.write_many(data[:1024], [0, BLOCK], BLOCK, fua=True)
        disk.flush()
    written = image.read_bytes()
    for i, offset in enumerate(offsets):
        if offset > BLOCK:
            assert written[offset : offset + BLOCK] == data[i * BLOCK : (i + 1) * BLOCK]
    assert written[:1024] == data[:1024]


def test_more_parts_than_go_at_a_time(eng: engine.Engine) -> None:
    node = eng.open(driver="null", size="1G", read_zeroes=True)
    count = 40_000
    buffer = bytearray(b"x") * (count * 8)
    results = node.read_many(buffer, np.arange(count) * 4096, 8)
    assert (results == 8).all()
    assert len(results) == count
    assert not any(buffer)
    assert node.stats().op["read"].requests == count


def test_nothing_to_do(disk: engine.BlockNode) -> None:
    assert list(disk.read_many(bytearray(), [], 0, out=array("q"))) == []
    assert disk.read_many(bytearray(10), np.array([], np.int64), BLOCK).shape == (0,)
    assert list(disk.read_many(bytearray(), [0, 5], 0)) == [0, 0]


def test_the_first_failure_is_raised(disk: engine.BlockNode) -> None:
    end = BLOCKS * BLOCK
    results = array("q", [7] * 5)
    with pytest.raises(engine.InvalidArgument, match="at offset 1048576 ends past the end") as caught:
        disk.read_many(bytearray(5 * BLOCK), [0, BLOCK, end, 0, 0], BLOCK, iodepth=1, out=results)
    assert caught.value.offset == end
    assert caught.value.node == disk.name
    assert list(results) == [BLOCK, BLOCK, -errno.EINVAL, -errno.ECANCELED, -errno.ECANCELED]


def test_failures_are_returned(disk: engine.BlockNode) -> None:
    end = BLOCKS * BLOCK
    buffer = bytearray(5 * BLOCK)
    results = disk.read_many(buffer, [0, end, BLOCK, end + BLOCK, 0], BLOCK, errors="return")
    assert list(results) == [BLOCK, -errno.EINVAL, BLOCK, -errno.EINVAL, BLOCK]
    assert any(buffer[-BLOCK:])


def test_what_cannot_begin_is_raised_all_the_same(eng: engine.Engine, disk: engine.BlockNode) -> None:
    context = eng.contexts["io0"]
    context.close()
    with pytest.raises(engine.Closed):
        disk.read_many(bytearray(BLOCK), [0], BLOCK, context, errors="return")
    reader = disk.user("reader", permissions="read")
    with pytest.raises(engine.RefusedByPolicy, match="holds no permission to write"):
        reader.write_many(bytes(BLOCK), [0], BLOCK)
    reader.close()
    with pytest.raises(engine.Closed):
        reader.read_many(bytearray(BLOCK), [0], BLOCK, errors="return")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"buffer": bytearray(1023)}, engine.InvalidArgument, "2 times 512 bytes do not fit in 1023"),
        ({"buffer": bytes(1024)}, TypeError, "a writable buffer is needed"),
        ({"buffer": 5}, TypeError, "bytes-like"),
        ({"offsets": [0, -1]}, engine.InvalidArgument, "offsets: must be at least 0"),
        ({"offsets": [0, "x"]}, TypeError, "offsets: a whole number is needed"),
        ({"offsets": np.array([0.0, 1.0])}, TypeError, "integers are needed, not elements of format 'd'"),
        ({"offsets": np.zeros((2, 2), np.int32)}, TypeError, "several dimensions"),
        ({"offsets": np.array([0, -512])}, engine.InvalidArgument, "ends past the end"),
        ({"length": -1}, engine.InvalidArgument, "length"),
        ({"length": 2**62}, engine.InvalidArgument, "do not fit"),
        ({"iodepth": 0}, engine.InvalidArgument, "iodepth: must be from 1 to 1024"),
        ({"iodepth": 1025}, engine.InvalidArgument, "iodepth"),
        ({"errors": "ignore"}, engine.InvalidArgument, "'raise' or 'return'"),
        ({"out": array("q", [0])}, engine.InvalidArgument, "array of 2 64-bit integers"),
        ({"out": array("i", [0, 0])}, engine.InvalidArgument, "array of 2 64-bit integers"),
        ({"out": bytes(16)}, engine.InvalidArgument, "array of 2 64-bit integers"),
        ({"out": [0, 0]}, engine.InvalidArgument, "array of 2 64-bit integers"),
        ({"context": "nowhere"}, engine.InvalidArgument, "there is no context 'nowhere'"),
    ],
)
def test_wrong_arguments(
    disk: engine.BlockNode, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    buffer = bytearray(2 * BLOCK)
    arguments = {"buffer": buffer, "offsets": [0, BLOCK], "length": BLOCK, **change}
    with pytest.raises(error, match=text):
        disk.read_many(**arguments)
    buffer.append(0)  # nothing holds it


def test_no_references_are_left(disk: engine.BlockNode) -> None:
    buffer, offsets = bytearray(2 * BLOCK), np.array([0, BLOCK])
    before = sys.getrefcount(buffer), sys.getrefcount(offsets)
    for _ in range(50):
        disk.read_many(buffer, offsets, BLOCK)
    assert (sys.getrefcount(buffer), sys.getrefcount(offsets)) == before
    buffer.append(0)


def test_numpy_is_not_imported() -> None:
    source = (
        "import sys, engine\n"
        "with engine.Engine() as eng, eng.open(driver='null') as node:\n"
        "    node.read_many(bytearray(1024), [0, 512], 512)\n"
        "print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_extents_are_lazy_and_bounded(eng: engine.Engine, tmp_path: Path) -> None:
    """A map of many extents is asked for in pieces, and only as far as it is looked at."""
    path = tmp_path / "sparse.img"
    with path.open("wb") as file:
        for i in range(600):
            file.seek(i * 16384)
            file.write(b"x" * 4096)
        file.truncate(600 * 16384)
    node = eng.open(path)
    if not any(extent.zero for extent in node.extents(0, 1 << 20)):
        pytest.skip("this file system knows no holes")
    before = node.stats().op["block_status"].requests
    extents = node.extents()
    assert node.stats().op["block_status"].requests == before  # nothing is asked before it is wanted
    first = next(extents)
    assert (first.start, first.data) == (0, True)
    assert node.stats().op["block_status"].requests == before + 1
    found = [first, *extents]
    assert len(found) == 1200
    assert node.stats().op["block_status"].requests - before >= 1200 // 128
    assert [extent.start for extent in found[1:]] == [e.start + e.length for e in found[:-1]]
