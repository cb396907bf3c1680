"""Buffers: any object with the buffer protocol, without a copy; kept, and not resized, while a call runs."""

from __future__ import annotations

import array
import gc
import mmap
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import engine
from engine._buffers import IoVector, aligned_view
from engine._native import ffi


def address(buffer: Any) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


@pytest.fixture
def slow(eng: engine.Engine) -> engine.BlockNode:
    """Takes 300 ms for each request: time to try what must not work meanwhile."""
    return eng.open(driver="null", size="1M", latency_ns="300ms")


def in_flight(slow: engine.BlockNode, call: Callable[[], object]) -> threading.Thread:
    """Starts the call on a thread of its own, and returns once its request is inside the node."""
    thread = threading.Thread(target=call)
    thread.start()
    deadline = time.monotonic() + 5
    while not slow.stats().in_flight:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return thread


@pytest.mark.parametrize("vector", [False, True])
def test_a_buffer_in_flight_cannot_be_resized(slow: engine.BlockNode, vector: bool) -> None:
    buffer = bytearray(4096)
    call = (lambda: slow.preadv([buffer], 0)) if vector else (lambda: slow.pread_into(buffer, 0))
    thread = in_flight(slow, call)
    for resize in (lambda: buffer.append(0), buffer.clear, lambda: buffer.extend(b"x" * 8192)):
        with pytest.raises(BufferError):
            resize()
    thread.join()
    buffer.append(0)  # nothing holds it any more
    buffer.clear()


def test_a_mapping_in_flight_cannot_be_closed(slow: engine.BlockNode) -> None:
    buffer = engine.Buffer(4096)
    thread = in_flight(slow, lambda: slow.pread_into(buffer, 0))
    with pytest.raises(BufferError):
        buffer.close()
    thread.join()
    buffer.close()


def test_a_buffer_in_flight_is_kept_alive(slow: engine.BlockNode) -> None:
    data = [b"x" * 100_000]
    thread = in_flight(slow, lambda: slow.pwrite(data.pop(), 0))
    gc.collect()
    thread.join()
    assert not data


def test_buffers_are_let_go_after_an_error(null: engine.BlockNode) -> None:
    buffer = bytearray(4096)
    for call in (
        lambda: null.pread_into(buffer, 1 << 40),
        lambda: null.preadv([buffer, b"read-only"], 0),
        lambda: null.preadv([buffer, 5], 0),  # type: ignore[list-item]
        lambda: null.pwritev([buffer] * 2000, 0),
        lambda: null.pread_into(buffer, -1),
    ):
        with pytest.raises((engine.InvalidArgument, TypeError)):
            call()
        buffer.append(0)
        buffer.pop()


def test_no_references_are_left(null: engine.BlockNode) -> None:
    data, buffer = b"x" * 4096, bytearray(4096)
    before = sys.getrefcount(data), sys.getrefcount(buffer)
    for _ in range(100):
        null.pwrite(data, 0)
        null.pwritev([data, buffer], 0)
        null.pread_into(buffer, 0)
    assert (sys.getrefcount(data), sys.getrefcount(buffer)) == before


@pytest.mark.parametrize("buffer", [b"x" * 8, memoryview(b"x" * 8), memoryview(bytearray(8)).toreadonly()])
def test_read_only_buffers_are_not_read_into(null: engine.BlockNode, buffer: Any) -> None:
    for call in (lambda: null.pread_into(buffer, 0), lambda: null.preadv([buffer], 0)):
        with pytest.raises(TypeError, match="a writable buffer is needed to read into"):
            call()
    assert null.pwrite(buffer, 0) == 8
    assert bytes(buffer) == b"x" * 8 or bytes(buffer) == bytes(8)


def test_a_read_only_mapping_is_not_read_into(null: engine.BlockNode) -> None:
    with (
        mmap.mmap(-1, 4096, prot=mmap.PROT_READ) as mapped,
        pytest.raises(TypeError, match="a writable buffer is needed"),
    ):
        null.pread_into(mapped, 0)


def test_memory_with_gaps_is_refused(null: engine.BlockNode) -> None:
    gaps = memoryview(bytearray(100))[::2]
    for call in (lambda: null.pread_into(gaps, 0), lambda: null.pwrite(gaps, 0)):
        with pytest.raises(BufferError, match="is not contiguous"):
            call()


def test_there_is_no_copy() -> None:
    buffers = [
        bytearray(16),
        memoryview(bytearray(16))[4:12],
        array.array("I", [1, 2, 3]),
        mmap.mmap(-1, 4096),
    ]
    with IoVector(buffers, writable=True) as vector:
        assert vector.count == 4
        assert vector.nbytes == 16 + 8 + 12 + 4096
        for i, buffer in enumerate(buffers):
            assert int(ffi.cast("uintptr_t", vector.array[i].base)) == address(buffer)
            assert vector.array[i].length == memoryview(buffer).nbytes


@pytest.mark.parametrize("alignment", [1, 2, 512, 4096, 65536])
@pytest.mark.parametrize("nbytes", [0, 1, 511, 4096, 100_000])
def test_aligned_views(alignment: int, nbytes: int) -> None:
    view = aligned_view(nbytes, alignment)
    assert view.nbytes == nbytes
    assert not any(view)
    assert not nbytes or address(view) % alignment == 0


def test_aligned_buffers() -> None:
    buffer = engine.Buffer(10_000)
    assert len(buffer) == buffer.nbytes == memoryview(buffer).nbytes == 10_000
    assert address(buffer) % mmap.PAGESIZE == 0
    assert buffer[:] == bytes(10_000)
    assert repr(buffer) == "<Buffer of 10000 bytes>"
    buffer[0:3] = b"abc"
    assert buffer[0:3] == b"abc"
    buffer.close()
    assert repr(buffer).startswith("<Buffer closed")
    for wrong in (0, -1, 2**70):
        with pytest.raises(engine.InvalidArgument, match="nbytes"):
            engine.Buffer(wrong)
