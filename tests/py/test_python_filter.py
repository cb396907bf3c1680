"""Filters in Python over native and other Python nodes, and how Python drivers end: closing, dropping,
time-outs, threads that hang, the end of the interpreter, forks.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from conftest import RamDriver, Script
from test_python_driver import AsyncRam

import engine
from engine import BlockDriver

LONG = 30.0  # seconds: a limit for what hangs, never waited out
MIB = 1 << 20


# ---- filters


class Xor(BlockDriver):
    """Turns every bit around."""

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        self.child.pread_into(buffer, offset)
        array = np.frombuffer(buffer, "u1")
        array ^= 0xFF

    def pwrite(self, data: memoryview, offset: int) -> None:
        self.child.pwrite(np.frombuffer(data, "u1") ^ 0xFF, offset)


class AsyncXor(BlockDriver):
    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await asyncio.to_thread(Xor.pread_into, self, buffer, offset)  # type: ignore[arg-type]

    async def pwrite(self, data: memoryview, offset: int) -> None:
        await asyncio.to_thread(Xor.pwrite, self, data, offset)  # type: ignore[arg-type]


@pytest.mark.parametrize("filter_class", [Xor, AsyncXor])
@pytest.mark.parametrize("low", ["native", "python"])
def test_a_filter(eng: engine.Engine, tmp_path: Any, filter_class: type[BlockDriver], low: str) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(b"\xff" * MIB)
    if low == "native":
        below = eng.open(str(image), node_name="low")
    else:
        below = eng.open_driver(RamDriver(), node_name="low")
        below.pwrite(b"\xff" * MIB, 0)
        below.close()
        ram = RamDriver()
        below = eng.open_driver(ram, node_name="low")
        for block in range(MIB // 4096):
            ram.blocks[block] = bytearray(b"\xff" * 4096)
    with below, eng.open_driver(filter_class(), file=below, node_name="top", workers=3) as node:
        assert node.size == MIB
        assert node.child("file") is below
        assert node.pread(512, 100) == bytes(512)
        node.pwrite(b"\x01", 5)
        assert below.pread(2, 5) == b"\xfe\xff"
        node.write_zeroes(4096, 0)  # by its pwrite: the child's zeroes mean something else
        assert below.pread(4096, 0) == b"\xff" * 4096
        node.flush()
        assert below.stats().op["flush"].requests >= 1
        with pytest.raises(engine.Unsupported):
            list(node.extents())
        node.resize(MIB // 2)
        assert node.size == below.size == MIB // 2
        with pytest.raises(engine.Conflict, match="'node top'"):
            below.user("other", permissions="write")
        with eng.workload(node, rw="randrw", count=300, iodepth=8, verify=True, length=65536) as run:
            run.start()
            assert run.wait(LONG)
            assert (run.result().errors, run.result().verify_errors) == (0, 0)


def test_a_filter_over_options_of_its_own_child(eng: engine.Engine) -> None:
    driver = Xor()
    with eng.open_driver(driver, file={"driver": "null", "size": "2M", "read_zeroes": True}) as node:
        assert node.pread(10, 0) == b"\xff" * 10
        assert (driver.child.size, node.size) == (2 * MIB, 2 * MIB)
        assert "child of node" in repr(driver.child)
    with pytest.raises(engine.Closed):
        driver.child.pread(10, 0)


def test_what_a_filter_does_not_define_goes_on(eng: engine.Engine) -> None:
    class Watching(BlockDriver):
        def __init__(self) -> None:
            self.written: list[tuple[int, int]] = []

        def pwrite(self, data: memoryview, offset: int) -> Any:
            self.written.append((len(data), offset))
            return self.PASS_ON

    driver, ram = Watching(), RamDriver()
    with (
        eng.open_driver(ram, node_name="low") as low,
        eng.open_driver(driver, file=low, discard="unmap") as node,
    ):
        node.pwrite(b"hello", 0)
        assert node.pread(5, 0) == b"hello"
        node.write_zeroes(5, 8192)
        assert [(e.start, e.data) for e in node.extents()] == [
            (0, True),
            (4096, False),
            (8192, True),
            (12288, False),
        ]
        node.flush()
        assert driver.written == [(5, 0), (5, 8192)]
        assert "flush" in ram.calls


def test_a_filter_that_passes_on_what_it_keeps(eng: engine.Engine) -> None:
    kept: list[memoryview] = []

    class Keeper(BlockDriver):
        def pwrite(self, data: memoryview, offset: int) -> Any:
            kept.append(data[:1])
            return self.PASS_ON

    with eng.open_driver(RamDriver(), node_name="low") as low, eng.open_driver(Keeper(), file=low) as node:
        with pytest.raises(OSError, match="a view of the buffer was kept, and the request passed on"):
            node.pwrite(b"x", 0)
        assert kept[0] == b"x"
        kept.clear()


def test_forward_and_ops_overrule(eng: engine.Engine) -> None:
    class Open(Xor):
        forward = ("block_status", "flush")

    with eng.open_driver(Open(), file={"driver": "null"}) as node:
        assert len(list(node.extents())) == 1
        with pytest.raises(engine.Unsupported):
            node.resize(0)

    class Shut(RamDriver):
        ops = ("read",)

    with eng.open_driver(Shut()) as node:
        assert node.info.ops == ("read",)
    for wrong in ("ops", "forward"):
        driver = type("Wrong", (Xor,), {wrong: ("reed",)})()
        with pytest.raises(
            engine.InvalidArgument, match=f"{wrong}: 'reed' is not one of read, write"
        ) as caught:
            eng.open_driver(driver, file={"driver": "null"})
        assert caught.value.field == wrong


def test_closing_a_filter_waits_for_what_its_driver_does_below(eng: engine.Engine) -> None:
    """A call in flight needs the child until it is done."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(BlockDriver):
        def pread_into(self, buffer: memoryview, offset: int) -> None:
            inside.set()
            assert go_on.wait(LONG)
            self.child.pread_into(buffer, offset)

    node = eng.open_driver(Slow(), file={"driver": "null", "read_zeroes": True})
    outcome: list[bytes] = []
    reader = threading.Thread(target=lambda: outcome.append(node.pread(16, 0)))
    reader.start()
    assert inside.wait(LONG)
    closer = threading.Thread(target=node.close)
    closer.start()
    while node._handle._state.name != "CLOSING":
        assert closer.is_alive()
    go_on.set()
    for thread in (reader, closer):
        thread.join(LONG)
        assert not thread.is_alive()
    assert outcome == [bytes(16)]
    assert node.closed


# ---- to the end


def in_time(call: Callable[[], Any]) -> Any:
    """What a node with a short time-out answers once the machine is quick enough."""
    while True:
        with suppress(TimeoutError):
            return call()


def serving() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("engine-driver")]


@pytest.mark.parametrize("workers", [1, 4])
def test_threads_end_with_the_node(eng: engine.Engine, workers: int) -> None:
    class Closing(RamDriver):
        closed = 0

        def close(self) -> None:
            assert self.lock.acquire(blocking=False)
            self.closed += 1

    driver = Closing()
    node = eng.open_driver(driver, node_name="disk", workers=workers)
    assert serving() == ["engine-driver-disk"] * workers
    with pytest.raises(engine.Conflict, match="serves node 'disk' already"):
        eng.open_driver(driver)
    node.close()
    node.close()
    assert (serving(), driver.closed) == ([], 1)
    driver.lock.release()
    with eng.open_driver(driver, node_name="again") as node:  # it may serve another one now
        assert node.pread(1, 0) == b"\0"


def test_the_engine_closes_it() -> None:
    driver = AsyncRam()
    with engine.Engine() as eng:
        eng.open_driver(driver)
        kept = eng.open_driver(RamDriver())
    assert kept.closed
    assert driver.closed
    assert serving() == []


def test_dropped(eng: engine.Engine) -> None:
    node = eng.open_driver(RamDriver(), node_name="disk")
    with pytest.warns(ResourceWarning, match="unclosed node 'disk'"):
        del node
    assert serving() == []


def test_what_is_used_below_goes_on(eng: engine.Engine) -> None:
    low = eng.open_driver(RamDriver(), node_name="low")
    top = eng.open(driver="raw", file="low")
    with pytest.raises(engine.Conflict, match="in use"):
        low.close()
    assert top.pread(1, 0) == b"\0"
    with pytest.warns(ResourceWarning):
        del low
    assert top.pread(1, 0) == b"\0"  # still served
    top.close()


def test_a_cycle_of_driver_and_node(eng: engine.Engine) -> None:
    driver: Any = RamDriver()
    driver.node = eng.open_driver(driver)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        eng.close()
    assert not caught
    assert driver.node.closed
    assert serving() == []


def test_a_request_that_takes_too_long(eng: engine.Engine, caplog: pytest.LogCaptureFixture) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Hanging(BlockDriver):
        size = MIB

        def pread_into(self, buffer: memoryview, offset: int) -> None:
            if offset:
                inside.set()
                assert go_on.wait(LONG)
            buffer[:] = b"x" * len(buffer)

    with eng.open_driver(Hanging(), node_name="disk", workers=2, timeout=0.05) as node:
        data = bytearray(512)
        while not inside.is_set():  # on a busy machine its time may be over before that
            with pytest.raises(TimeoutError) as caught:
                node.pread_into(data, 512)
        assert "Hanging: it took the request and did not complete it within 50 ms" in str(caught.value)
        assert in_time(lambda: node.pread(512, 0)) == b"x" * 512  # the other one serves
        go_on.set()
    assert data == bytes(512)  # what came too late went nowhere


def test_a_driver_that_never_comes_back(eng: engine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread is left behind, and says so; its memory stays its own."""
    monkeypatch.setattr("engine._serve._PATIENCE_S", 0.1)
    inside, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    class Lost(BlockDriver):
        size = MIB

        def pwrite(self, data: memoryview, offset: int) -> None:
            inside.set()
            assert go_on.wait(LONG)
            assert bytes(data) == b"precious"

        def close(self) -> None:
            ended.set()

    node = eng.open_driver(Lost(), node_name="disk", timeout="20ms")
    while not inside.is_set():
        with pytest.raises(TimeoutError):
            node.pwrite(b"precious", 0)
    with pytest.raises(TimeoutError, match="driver Lost of node 'disk' is still in write of 8 bytes at 0"):
        node.close()
    assert node.closed
    go_on.set()
    assert ended.wait(LONG)


def test_what_cannot_be_opened(eng: engine.Engine) -> None:
    class Nothing(BlockDriver):
        pass

    class Negative(RamDriver):
        size = -1

        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match="a BlockDriver is needed, not dict"):
        eng.open_driver({})  # type: ignore[arg-type]
    with pytest.raises(engine.InvalidArgument, match=r"Nothing\.size: needed where there is no node below"):
        eng.open_driver(Nothing())
    with pytest.raises(engine.InvalidArgument, match="size: must be at least 0"):
        eng.open_driver(Negative())
    for arguments, text in (
        ({"workers": 0}, "workers: must be from 1 to 256"),
        ({"timeout": 0}, "timeout: at least 1 ms"),
        ({"timeout": "2h"}, "timeout"),
        ({"file": "nobody"}, "there is no node 'nobody'"),
        ({"sise": 1}, "has no option 'sise'"),
    ):
        driver = RamDriver()
        with pytest.raises(engine.InvalidArgument, match=text):
            eng.open_driver(driver, **arguments)  # type: ignore[arg-type]
        eng.open_driver(driver).close()  # nothing holds it
    assert serving() == []


def test_a_thread_that_cannot_be_started(eng: engine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def fail(thread: threading.Thread) -> None:
        if thread.name.startswith("engine-driver"):
            started.append(thread)
            if len(started) == 3:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    driver = RamDriver()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        eng.open_driver(driver, workers=4)
    monkeypatch.undo()
    for thread in started[:2]:
        thread.join(LONG)
    with eng.open_driver(driver) as node:
        assert node.pread(1, 0) == b"\0"


def test_requests_race_with_closing(eng: engine.Engine) -> None:
    for kind in (RamDriver, AsyncRam):
        for _ in range(5):
            node = eng.open_driver(kind(), workers=2)
            wrong: list[BaseException] = []
            started = threading.Barrier(4)

            def work(node=node, started=started, wrong=wrong) -> None:  # type: ignore[no-untyped-def]
                started.wait()
                try:
                    while True:
                        node.pread(512, 0)
                except engine.Closed:
                    pass
                except BaseException as error:
                    wrong.append(error)

            readers = [threading.Thread(target=work) for _ in range(3)]
            for reader in readers:
                reader.start()
            started.wait()
            while node.stats().op["read"].requests < 20:
                pass
            node.close()
            for reader in readers:
                reader.join(LONG)
                assert not reader.is_alive()
            assert not wrong
            assert serving() == []


def test_the_end_of_the_interpreter(script: Script) -> None:
    """Requests are under way, and a driver hangs for good: the process ends all the same."""
    result = script("""
import threading, time, engine

class Ram(engine.BlockDriver):
    size = 1 << 20
    def pread(self, length, offset):
        return bytes(length)

class Lost(engine.BlockDriver):
    size = 1 << 20
    def pread(self, length, offset):
        inside.set()
        threading.Event().wait()

inside = threading.Event()
import engine._serve
engine._serve._PATIENCE_S = 0.1
eng = engine.Engine(contexts={"io0": None})
node = eng.open_driver(Ram(), workers=2)
workload = eng.workload(node, rw="randread", runtime=1000, context="io0")
workload.start()
lost = eng.open_driver(Lost(), timeout="50ms")
def read():
    while not inside.is_set():
        try:
            lost.pread(1, 0)
        except TimeoutError:
            pass
threading.Thread(target=read, daemon=True).start()
inside.wait()
print("end")
""")
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr
    assert "Fatal" not in result.stderr


def test_after_a_fork(script: Script) -> None:
    result = script("""
import os, sys, engine

class Ram(engine.BlockDriver):
    size = 1 << 20
    def pread(self, length, offset):
        return bytes(length)

eng = engine.Engine()
driver = Ram()
node = eng.open_driver(driver)
node.pread(1, 0)
pid = os.fork()
if pid == 0:
    try:
        node.pread(1, 0)
    except engine.Closed as error:
        print("after fork" in str(error))
    node.close()
    with engine.Engine() as own, own.open_driver(Ram()) as mine:
        print(mine.pread(2, 0), flush=True)
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
node.pread(1, 0)
eng.close()
""")
    assert (result.returncode, result.stdout) == (0, "True\nb'\\x00\\x00'\n0\n"), result.stderr


def test_no_growth(eng: engine.Engine) -> None:
    before = len(eng._handle.children)
    for _ in range(20):
        with eng.open_driver(RamDriver()) as node:
            node.pwrite(b"x" * 4096, 0)
    gc.collect()
    assert len(eng._handle.children) == before
    assert serving() == []


def test_drivers_do_not_log_on_a_good_day(eng: engine.Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "engine")
    with eng.open_driver(RamDriver()) as node:
        node.pread(512, 0)
    assert not [record for record in caplog.records if record.name == "engine"]
