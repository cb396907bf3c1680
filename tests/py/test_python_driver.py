"""Block drivers in Python: forms, errors, what their buffers are good for. That they
behave like a native driver is in test_node_python.py; filters, and how drivers end, in test_python_filter.py.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from conftest import RamDriver

import engine
from engine import BlockDriver, DriverRequest, Extent
from engine.driver import PASS_ON

LONG = 30.0  # seconds: a limit for what hangs, never waited out
MIB = 1 << 20


class AsyncRam(BlockDriver):
    """The same disk behind `async def`; counts how many requests were in it at once."""

    def __init__(self) -> None:
        self.ram = RamDriver()
        self.size = self.ram.size
        self.inside = self.most = 0
        self.threads: set[str] = set()
        self.closed = False

    async def _enter(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(0)
        self.inside -= 1

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self._enter()
        self.ram.pread_into(buffer, offset)

    async def pwrite(self, data: memoryview, offset: int) -> None:
        await self._enter()
        self.ram.pwrite(data, offset)

    def flush(self) -> None:  # a plain one among them
        self.ram.flush()

    async def extents(self, offset: int, length: int) -> AsyncIterator[Extent]:
        for extent in self.ram.extents(offset, length):
            await asyncio.sleep(0)
            yield extent

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed = True


class BatchRam(BlockDriver):
    """The same disk by whole batches."""

    def __init__(self) -> None:
        self.ram = RamDriver()
        self.size = self.ram.size
        self.ops = ("read", "write", "flush", "block_status", "write_zeroes")
        self.batches: list[int] = []

    def submit_batch(self, requests: list[DriverRequest]) -> None:
        self.batches.append(len(requests))
        for request in requests:
            match request.op:
                case "read":
                    assert request.buffer is not None
                    self.ram.pread_into(request.buffer, request.offset)
                case "write":
                    assert request.buffer is not None
                    if request.offset == 4096 * 7:
                        request.error = OSError(errno.ENOSPC, "block 7 is bad")
                    else:
                        self.ram.pwrite(request.buffer, request.offset)
                case "block_status":
                    request.extents = self.ram.extents(request.offset, request.length)
                case "write_zeroes":
                    self.ram.write_zeroes(request.length, request.offset, request.may_unmap)
                case "flush":
                    self.ram.flush()


class AsyncBatchRam(BatchRam):
    async def submit_batch(self, requests: list[DriverRequest]) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().submit_batch(requests)


KINDS: dict[str, Callable[[], BlockDriver]] = {
    "sync": RamDriver,
    "async": AsyncRam,
    "batch": BatchRam,
    "async batch": AsyncBatchRam,
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_each_form_reads_and_writes(eng: engine.Engine, kind: str) -> None:
    driver = KINDS[kind]()
    with eng.open_driver(driver, node_name="disk") as node:
        assert driver.node_name == "disk"
        data = bytes(range(256)) * 20
        assert node.pwrite(data, 1000, fua=True) == len(data)
        assert node.pread(len(data) + 2, 999) == b"\0" + data + b"\0"
        node.write_zeroes(512, 1000)
        assert node.pread(513, 1000) == bytes(512) + data[512:513]
        node.flush()
        assert [(e.start, e.data) for e in node.extents()] == [(0, True), (4096, True), (8192, False)]
        ram = getattr(driver, "ram", driver)
        assert ram.calls["flush"] == 2  # FUA was a write and a flush
        with pytest.raises(engine.InvalidArgument, match="past the end"):
            node.pread(1, MIB)


@kinds
def test_verified_through_virtqueues_of_two_contexts(eng: engine.Engine, kind: str) -> None:
    """Under a native format, from two contexts at once, patterns checked."""
    driver = KINDS[kind]()
    with (
        eng.open_driver(driver, workers=2, node_name="low") as low,
        eng.open(driver="raw", file="low", offset="64k", size="512k") as node,
        eng.virtio_blk(node, ["io0", "io1"]) as disk,
    ):
        runs = [
            eng.workload(
                queue,
                rw="randrw",
                bs="4k",
                iodepth=16,
                count=500,
                verify=True,
                flush_every=10,
                offset=index * 262144,
                length=262144,
                seed=index + 1,
            )
            for index, queue in enumerate(disk.queues)
        ]
        for run in runs:
            run.start()
        for run in runs:
            assert run.wait(LONG)
            result = run.result()
            assert (result.errors, result.verify_errors) == (0, 0)
            assert result.reads + result.writes + result.flushes == 500
            run.close()
        assert low.stats().in_flight == 0
    if isinstance(driver, AsyncRam):
        assert driver.most > 1
        assert driver.threads == {"engine-driver-low"}
        assert driver.closed


def test_pread_that_returns_bytes(eng: engine.Engine) -> None:
    class Counting(BlockDriver):
        size = MIB

        def pread(self, length: int, offset: int) -> Any:
            data = bytes((offset + i) & 0xFF for i in range(length))
            return {0: data, 1: bytearray(data), 2: np.frombuffer(data, "u1"), 3: memoryview(data)}[
                offset & 3
            ]

    with eng.open_driver(Counting()) as node:
        for offset in range(4):
            assert node.pread(1000, offset) == bytes((offset + i) & 0xFF for i in range(1000))
        assert node.info.read_only  # no pwrite
        assert list(node.extents()) == [Extent(0, MIB, data=True, zero=False, unwritten=False)]
        node.flush()
        with pytest.raises(engine.RefusedByPolicy):
            node.pwrite(b"x", 0)


def test_fua_and_unmap_reach_a_driver_that_knows_them(eng: engine.Engine) -> None:
    seen: list[object] = []

    class Knowing(BlockDriver):
        size = MIB

        def pwrite(self, data: memoryview, offset: int, fua: bool = False) -> int:
            seen.append((bytes(data), offset, fua))
            return len(data)

        def write_zeroes(self, length: int, offset: int, may_unmap: bool) -> None:
            seen.append((length, offset, may_unmap))

        def discard(self, length: int, offset: int) -> None:
            seen.append((length, offset))

        def flush(self) -> None:
            seen.append("flush")

    with eng.open_driver(Knowing(), discard="unmap") as node:
        node.pwrite(b"a", 1)
        node.pwrite(b"b", 2, fua=True)
        node.write_zeroes(3, 4, may_unmap=True)
        node.write_zeroes(5, 6, fua=True)
        node.discard(7, 8)
    assert seen == [(b"a", 1, False), (b"b", 2, True), (3, 4, True), (5, 6, False), "flush", (7, 8)]


def test_properties_of_the_class(eng: engine.Engine) -> None:
    class Picky(RamDriver):
        request_alignment = 512
        memory_alignment = 4096
        max_transfer = 8192

        def pread_into(self, buffer: memoryview, offset: int) -> None:
            assert np.frombuffer(buffer, "u1").ctypes.data % 4096 == 0
            super().pread_into(buffer, offset)

    with eng.open_driver(Picky()) as node:
        info = node.info
        assert (info.request_alignment, info.memory_alignment, info.max_transfer) == (512, 4096, 8192)
        assert node.pread(8192, 512) == bytes(8192)


# ---- errors


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("error", "number", "text"),
    [
        (OSError(errno.ENOSPC, "the bucket is full"), errno.ENOSPC, "pread: the bucket is full"),
        (FileNotFoundError(errno.ENOENT, "gone"), errno.ENOENT, "pread: gone"),
        (OSError("no number"), errno.EIO, "pread: no number"),
        (OSError(10**6, "what"), errno.EIO, "pread: what"),
        (OSError(-5, "what"), errno.EIO, "pread: what"),
        (TimeoutError("slow"), errno.ETIMEDOUT, "pread: slow"),
        (NotImplementedError(), errno.ENOTSUP, "pread: NotImplementedError"),
        (MemoryError(), errno.ENOMEM, "pread: MemoryError"),
        (ValueError("two\nlines"), errno.EIO, "pread: ValueError: two lines"),
        (KeyError("x" * 5000), errno.EIO, "pread: KeyError: 'xxx"),
        (ValueError("ünïcode"), errno.EIO, "pread: ValueError: ünïcode"),
        (SystemExit(3), errno.EIO, "pread: SystemExit: 3"),
        (KeyboardInterrupt(), errno.EIO, "pread: KeyboardInterrupt: "),
    ],
)
def test_an_exception_becomes_an_error(
    eng: engine.Engine,
    error: BaseException,
    number: int,
    text: str,
    asynchronous: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(BlockDriver):
        size = MIB

        def pread(self, length: int, offset: int) -> bytes:
            if offset:
                raise error
            return bytes(length)

    class AsyncFailing(BlockDriver):
        size = MIB

        async def pread(self, length: int, offset: int) -> bytes:
            return Failing.pread(self, length, offset)  # type: ignore[arg-type]

    driver = AsyncFailing() if asynchronous else Failing()
    with eng.open_driver(driver, node_name="disk") as node:
        for _ in range(2):  # it goes on serving
            with pytest.raises(engine.EngineError) as caught:
                node.pread(512, 4096)
            assert caught.value.errno == number
            assert (caught.value.node, caught.value.operation, caught.value.offset) == ("disk", "read", 4096)
            assert (
                f"node disk: read of 512 bytes at offset 4096 failed: {type(driver).__name__}: {text[:20]}"
                in str(caught.value)
            )
            assert "\n" not in str(caught.value)
        assert node.pread(512, 0) == bytes(512)
    logged = [record for record in caplog.records if record.name == "engine"]
    expected = not isinstance(error, (OSError, NotImplementedError, MemoryError))
    assert bool(logged) == expected
    if expected:
        assert logged[0].exc_info is not None
        assert logged[0].exc_info[1] is error


@pytest.mark.parametrize(
    ("method", "answer", "text"),
    [
        ("pread", b"x", "returned 1 bytes instead of 512"),
        ("pread", b"x" * 513, "returned 513 bytes instead of 512"),
        ("pread", None, "returned NoneType: bytes are needed"),
        ("pread", 512, "returned int: bytes are needed"),
        ("pread_into", 100, "returned 100: not the 512 bytes asked for, nor None"),
        ("pwrite", 511, "returned 511: not the 512 bytes asked for, nor None"),
        ("extents", None, "returned NoneType: an iterable of Extent is needed"),
        ("extents", [1], "gave int as an extent: engine.Extent is needed"),
        ("extents", [], "its extents do not follow each other"),
        ("extents", [Extent(4096, 512, True, False, False)], "its extents do not follow each other"),
        ("pread", PASS_ON, "PASS_ON is for filters: this node has no child"),
    ],
)
def test_an_answer_that_makes_no_sense(eng: engine.Engine, method: str, answer: object, text: str) -> None:
    driver_class = type("Odd", (BlockDriver,), {"size": MIB, method: lambda self, *_: answer})
    with eng.open_driver(driver_class()) as node:
        calls: dict[str, Callable[[], object]] = {
            "pwrite": lambda: node.pwrite(b"x" * 512, 0),
            "extents": lambda: list(node.extents(0, 512)),
        }
        with pytest.raises(engine.EngineError, match=text) as caught:
            calls.get(method, lambda: node.pread(512, 0))()
        assert caught.value.errno == (errno.ENOTSUP if answer is PASS_ON else errno.EIO)


def test_an_error_of_one_in_a_batch(eng: engine.Engine) -> None:
    with eng.open_driver(BatchRam()) as node:
        node.pwrite(b"x", 4096 * 6)
        with pytest.raises(OSError, match="submit_batch: block 7 is bad") as caught:
            node.pwrite(b"x", 4096 * 7)
        assert caught.value.errno == errno.ENOSPC


def test_a_batch_is_what_is_there(eng: engine.Engine) -> None:
    driver = BatchRam()
    with eng.open_driver(driver) as node, eng.workload(node, rw="randread", iodepth=32, count=2000) as run:
        run.start()
        assert run.wait(LONG)
        assert run.result().errors == 0
    assert sum(driver.batches) == 2000
    assert max(driver.batches) > 1


# ---- buffers


class Keeping(BlockDriver):
    """Keeps what it was handed."""

    size = MIB

    def __init__(self, keep: Callable[[memoryview], Any]) -> None:
        self.keep = keep
        self.kept: list[Any] = []

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        assert not buffer.readonly
        buffer[:] = b"r" * len(buffer)
        self.kept.append(self.keep(buffer))

    def pwrite(self, data: memoryview, offset: int) -> None:
        assert data.readonly
        self.kept.append(self.keep(data))


def test_a_buffer_is_good_during_the_call(eng: engine.Engine) -> None:
    driver = Keeping(lambda view: view)
    with eng.open_driver(driver) as node:
        assert node.pread(512, 0) == b"r" * 512
        node.pwrite(b"w" * 512, 0)
    for view in driver.kept:
        with pytest.raises(ValueError, match="released"):
            view[0]


@pytest.mark.parametrize(
    "keep", [lambda view: view[10:20], lambda view: np.frombuffer(view, "u1"), lambda view: memoryview(view)]
)
def test_what_outlives_the_call_keeps_its_memory(
    eng: engine.Engine, keep: Callable[[memoryview], Any]
) -> None:
    driver = Keeping(keep)
    with eng.open_driver(driver) as node:
        for letter in b"abc":
            node.pwrite(bytes([letter]) * 512, 0)
        assert node.pread(512, 0) == b"r" * 512
        read = np.asarray(driver.kept[-1])
        read.flags.writeable = True if not read.flags.writeable else read.flags.writeable
        assert node.pread(512, 0) == b"r" * 512
    gc.collect()
    assert [bytes(kept)[:1] for kept in driver.kept] == [b"a", b"b", b"c", b"r", b"r"]
    driver.kept.clear()
    gc.collect()


def test_an_exception_that_holds_a_view(eng: engine.Engine) -> None:
    held: list[BaseException] = []

    class Failing(BlockDriver):
        size = MIB

        def pread_into(self, buffer: memoryview, offset: int) -> None:
            part = buffer[1:]
            try:
                part[0] = 1000
            except ValueError as error:
                held.append(error)
                raise

    with eng.open_driver(Failing()) as node, pytest.raises(engine.EngineError):
        node.pread(512, 0)
    gc.collect()
    held.clear()
