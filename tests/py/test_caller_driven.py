"""Contexts without a thread of their own: in asyncio by add_reader, in a plain loop, closed elsewhere."""

from __future__ import annotations

import asyncio
import select
import threading
from pathlib import Path

import pytest

import engine

BACKENDS = [name for name in ("io_uring", "threads") if engine.probe_backend(name).works]


@pytest.mark.parametrize("backend", BACKENDS)
def test_asyncio_drives_it(eng: engine.Engine, image: Path, content: bytes, backend: str) -> None:
    """add_reader on the descriptor, and nothing else: reads of another thread are served."""
    context = eng.add_context("loop", backend=backend, caller_driven=True)
    disk = eng.open(image, read_only=True)

    def read_all() -> list[bytes]:
        return [disk.pread(4096, offset, context=context) for offset in range(0, 1 << 16, 4096)]

    async def main() -> list[bytes]:
        loop = asyncio.get_running_loop()
        loop.add_reader(context, context.run_once, 0)
        try:
            return await asyncio.wait_for(asyncio.to_thread(read_all), 60)
        finally:
            loop.remove_reader(context)

    assert b"".join(asyncio.run(main())) == content[: 1 << 16]
    assert context.info.backend == backend
    assert context.stats().completed >= 16


def test_timers_of_the_engine_wake_asyncio(eng: engine.Engine) -> None:
    """A null node's latency is a timer of the context: the descriptor tells when it is due."""
    context = eng.add_context("loop", caller_driven=True)
    slow = eng.open(driver="null", latency_ns="2ms", size="1M")
    load_over = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(context, context.run_once, 0)
        load = eng.workload(slow, rw="randread", iodepth=4, count=40, context=context)

        def run() -> None:
            load.start()
            assert load.wait(60)
            load_over.set()

        await asyncio.wait_for(asyncio.to_thread(run), 60)
        load.close()
        loop.remove_reader(context)

    context.run_once(0)  # this thread is its own: what blocks for it here drives it
    asyncio.run(main())
    assert load_over.is_set()
    assert context.stats().timers >= 10


def test_calls_on_its_own_thread_drive_it(eng: engine.Engine, image: Path, content: bytes) -> None:
    context = eng.add_context("mine", caller_driven=True)
    assert context.run_once(0) is False
    with eng.open(image, read_only=True) as disk:
        assert disk.pread(4096, 512, context=context) == content[512 : 512 + 4096]
        with eng.workload(disk, rw="randread", count=100, context=context) as load:
            load.start()
            assert load.wait()
            assert load.result().read_latency.count == 100
    assert context.run_once(0.001) is False


def test_descriptor_of_a_fresh_context(eng: engine.Engine) -> None:
    context = eng.add_context("mine", caller_driven=True)
    assert select.select([context], [], [], 0)[0] == [context]
    while select.select([context], [], [], 0)[0]:
        context.run_once(0)
    assert context.info.tid == threading.get_native_id()


def test_who_may_drive(eng: engine.Engine) -> None:
    context = eng.add_context("mine", caller_driven=True)
    context.run_once(0)
    caught: list[engine.EngineError] = []

    def elsewhere() -> None:
        try:
            context.run_once(0)
        except engine.EngineError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert isinstance(caught[0], engine.Conflict)
    assert "is driven by thread" in str(caught[0])
    with pytest.raises(engine.InvalidArgument, match="thread of its own"):
        eng.contexts["io0"].run_once(0)
    with pytest.raises(engine.InvalidArgument):
        eng.contexts["io0"].fileno()
    with pytest.raises(engine.InvalidArgument, match="driven by its caller"):
        eng.add_context("pinned", cpus=[0], caller_driven=True)


@pytest.mark.parametrize("what", ["context", "engine"])
def test_closing_ends_a_run_that_waits(what: str) -> None:
    eng = engine.Engine()
    context = eng.add_context("loop", caller_driven=True)
    driven = threading.Event()
    outcome: list[type[BaseException]] = []

    def drive() -> None:
        try:
            context.run_once(0)
            driven.set()
            while True:
                context.run_once(None)
        except engine.EngineError as error:
            outcome.append(type(error))

    thread = threading.Thread(target=drive)
    thread.start()
    assert driven.wait(60)
    (context if what == "context" else eng).close()
    thread.join(60)
    assert not thread.is_alive()
    assert outcome == [engine.Closed]
    eng.close()


def test_the_driving_thread_has_ended(image: Path) -> None:
    """Its node's channels are reached all the same when the engine closes."""
    with engine.Engine() as eng:
        context = eng.add_context("loop", caller_driven=True)
        disk = eng.open(image, read_only=True)

        def use() -> None:
            context.run_once(0)
            disk.pread(4096, 0, context=context)

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert disk.closed
