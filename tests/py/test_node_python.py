"""The tests of test_node.py once more, on a node whose driver is written in Python: the same calls, the same
bounds, permissions, names, errors and ends.
"""

from __future__ import annotations

import pytest
import test_node
from conftest import RamDriver

import engine

# What is particular to the null driver: that it stores nothing, what it says of itself, its latency.
_OF_NULL = {
    "test_reading_and_writing",
    "test_what_a_node_says_of_itself",
    "test_latency_is_waited_out_without_the_gil",
    "test_extents_of_null",
    "test_read_only",
}
_SHARED = {
    name: test for name, test in vars(test_node).items() if name.startswith("test_") and name not in _OF_NULL
}
globals().update(_SHARED)


@pytest.fixture(params=[1, 3], ids=["one worker", "three workers"])
def null(request: pytest.FixtureRequest, eng: engine.Engine) -> engine.BlockNode:
    """In the place of the null node."""
    return eng.open_driver(RamDriver(test_node.GIB), node_name="disk", workers=request.param)


def test_the_shared_tests_are_there() -> None:
    assert len(_SHARED) >= 19
    assert set(vars(test_node)) >= _OF_NULL


def test_reading_and_writing(null: engine.BlockNode) -> None:
    assert null.pread(4096, 0) == bytes(4096)
    assert null.pread(0, 0) == b""
    assert null.pread(1, test_node.GIB - 1) == b"\0"
    data = bytes(range(256)) * 40
    assert null.pwrite(data, 1000) == len(data)
    assert null.pread(len(data) + 2, 999) == b"\0" + data + b"\0"
    buffer = bytearray(512)
    assert null.pread_into(buffer, 1256) == 512
    assert buffer == data[256:768]
    parts = [bytearray(10), bytearray(20)]
    assert null.preadv(parts, 1000) == 30
    assert b"".join(parts) == data[:30]
    assert null.pwritev([b"a", b"bc", memoryview(b"def")], 1000, True) == 6
    assert null.pread(7, 1000) == b"abcdef" + data[6:7]
    null.flush()
    null.write_zeroes(4096, 1000)
    assert null.pread(4097, 1000) == bytes(4096) + data[4096:4097]
    null.write_zeroes(4096, 4096, may_unmap=True, no_fallback=True, fua=True)
    null.discard(4096, 0)
    assert null.pread(1, 0) == b"\0"


def test_what_a_node_says_of_itself(null: engine.BlockNode) -> None:
    info = null.info
    assert (info.name, info.driver, info.filename, info.read_only) == ("disk", "external", "", False)
    assert (info.bytes, info.request_alignment, info.memory_alignment) == (test_node.GIB, 1, 1)
    assert (info.child_count, info.user_count, info.holes) == (0, 0, True)
    assert set(info.ops) == {"read", "write", "flush", "discard", "write_zeroes", "resize", "block_status"}
    assert repr(null) == "<BlockNode 'disk'>"


def test_extents(null: engine.BlockNode) -> None:
    null.pwrite(b"x", 4096)
    null.pwrite(b"x" * 4096, 12288)
    found = [(e.start, e.length, e.data, e.zero) for e in null.extents()]
    assert found == [
        (0, 4096, False, True),
        (4096, 4096, True, False),
        (8192, 4096, False, True),
        (12288, 4096, True, False),
        (16384, test_node.GIB - 16384, False, True),
    ]
    assert [(e.start, e.length) for e in null.extents(5000, 4096)] == [(5000, 3192), (8192, 904)]
    for block in range(0, 2000, 2):  # more than one answer holds
        null.pwrite(b"x", block * 4096)
    assert len(list(null.extents(0, 2000 * 4096))) > 1990
