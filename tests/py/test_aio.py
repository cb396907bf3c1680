"""engine.aio: the names of `engine`, awaitable; batches, several loops, errors, cancelling."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import threading
import time
import warnings
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine import aio

Work = Callable[[aio.Engine], Awaitable[None]]


def run(work: Work, **options: Any) -> None:
    async def main() -> None:
        async with aio.Engine(contexts={"io0": None, "io1": None}, **options) as eng:
            await work(eng)

    asyncio.run(main())


@asynccontextmanager
async def slow_node(eng: aio.Engine, latency: str = "100ms") -> AsyncIterator[aio.BlockNode]:
    async with await eng.open(driver="null", node_name="slow", latency_ns=latency, read_zeroes=True) as node:
        yield node


def test_the_example_of_the_interface(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As documented, but for the driver and the CPUs of this machine."""
    image.write_bytes(bytes(64 << 20))

    async def main() -> None:
        async with aio.Engine(contexts={"io0": [0], "io1": [0]}) as eng:
            disk = await eng.open(driver="raw", filename=image, read_only=True)
            buf = eng.buffer(64 * 4096)  # aligned, registered, NumPy sees it
            await disk.read_many(buf, offsets=np.arange(64) << 19, length=4096, context="io1")
            async for extent in disk.extents():
                print(extent.start, extent.length, extent.zero)
            print(eng.contexts["io1"].effective_cpus, disk.locks.meta.wait_ns.p99)
            assert disk.stats("io1").op["read"].requests == 64

    asyncio.run(main())
    assert capsys.readouterr().out.endswith("[0] 0\n")


def test_every_operation(image: Path, content: bytes) -> None:
    async def work(eng: aio.Engine) -> None:
        disk = await eng.open(image, discard="unmap")
        assert disk.size == len(content) == disk.info.bytes
        assert await disk.pread(1000, 24) == content[24:1024]
        into = bytearray(512)
        assert await disk.pread_into(into, 512, context="io1") == 512
        assert into == content[512:1024]
        parts = [bytearray(100), bytearray(200)]
        assert await disk.preadv(parts, 0) == 300
        assert parts[0] + parts[1] == content[:300]
        assert await disk.pwrite(b"abc", 0, fua=True) == 3
        assert await disk.pwritev([b"de", bytearray(b"f")], 3, context=eng.contexts["io0"]) == 3
        assert await disk.flush() is None
        assert await disk.write_zeroes(512, 512, may_unmap=True) is None
        assert await disk.discard(4096, 65536) is None
        assert (await disk.pread(1024, 0))[:6] == b"abcdef"
        assert (await disk.pread(512, 512)) == bytes(512)
        assert await disk.resize(2 << 20) is None
        assert disk.size == 2 << 20
        assert await disk.pread(8, (2 << 20) - 8) == bytes(8)
        assert await disk.copy_range(disk, 4096, 0, 1 << 20) is None
        with pytest.raises(engine.InvalidArgument, match="source: a node of the same engine"):
            await disk.copy_range("disk", 1, 0, 0)  # type: ignore[arg-type]
        assert await disk.pread(4096, 1 << 20) == await disk.pread(4096, 0)
        extents = [extent async for extent in disk.extents()]
        assert sum(extent.length for extent in extents) == disk.size
        assert [extent async for extent in disk.extents(0, 4096)] == list(disk.blocking.extents(0, 4096))
        buffer = bytearray(2048)
        assert list(await disk.read_many(buffer, [0, 4096], 1024)) == [1024, 1024]
        assert buffer[:6] == b"abcdef"
        assert buffer[1024:] == content[4096:5120]
        results = await disk.write_many(buffer, np.array([8192, 16384]), 1024, iodepth=1, fua=True)
        assert isinstance(results, np.ndarray)
        assert await disk.pread(6, 8192) == b"abcdef"
        user = await disk.user("backup", permissions="read")
        assert await user.pread(6, 0) == b"abcdef"
        assert (user.name, user.node, user.size) == ("backup", disk, disk.size)
        await user.close()
        assert user.closed
        raw = await eng.open(driver="raw", node_name="top", filename=str(image), **{"read_only": True})
        assert await raw.child("file").pread(3, 0) == b"abc"
        await raw.close()

    run(work)


def test_devices_and_workloads() -> None:
    async def work(eng: aio.Engine) -> None:
        node = await eng.open(driver="null", node_name="disk", read_zeroes=True)
        context = await eng.add_context("io2", poll_max_ns=0)
        assert "io2" in eng.contexts
        async with await eng.virtio_blk(node, ["io0", context], serial="abc") as disk:
            queue = disk.queues[1]
            assert (queue.index, queue.context) == (1, context)
            assert await queue.pread(512, 0) == bytes(512)
            assert await queue.pread_into(bytearray(512), 512) == 512
            assert await queue.pwrite(bytes(512), 0) == 512
            await queue.flush()
            await queue.discard(512, 0)
            await queue.write_zeroes(512, 0)
            assert await queue.get_id() == b"abc"
            assert queue.stats().requests == 7
            async with await eng.workload(queue, rw="randread", count=100) as workload:
                await workload.start()
                assert await workload.wait()
                assert workload.result().reads == 100
        workload = await eng.workload(node, rw="randread", runtime=100)
        await workload.start()
        assert not await workload.wait(0.01)
        waiting = asyncio.create_task(workload.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await workload.stop()
        assert await workload.wait()
        await workload.close()
        assert {info.lock for info in eng.locks()} >= {"edges"}
        assert node.locks.edges.acquisitions > 0
        assert node.locks.meta.acquisitions == 0

    run(work)


def test_graph_and_copy() -> None:
    async def work(eng: aio.Engine) -> None:
        source = await eng.open(driver="memory", node_name="source", size="1M")
        target = await eng.open(driver="memory", node_name="target", size="1M")
        await source.pwrite(b"abc", 4096)
        reader = await source.user("reader", permissions="read")
        assert await reader.pread(3, 4096) == b"abc"
        tasks = [asyncio.create_task(reader.pread(3, 4096)) for _ in range(100)]
        async with await source.insert_filter("throttle", node_name="limit") as limit:
            limit.set_throttle(iops_total=100000)
            assert await reader.pread(3, 4096) == b"abc"
            assert reader.pauses().count >= 1
        assert await asyncio.gather(*tasks) == [b"abc"] * 100
        async with await eng.copy(source, target, chunk_size="64k") as copy:
            progress = await copy.run()
            assert progress.done == 1 << 20 == copy.progress().done
        assert await target.pread(3, 4096) == b"abc"
        await source.replace_with(target)
        await target.pwrite(b"xyz", 4096)
        assert await reader.pread(3, 4096) == b"xyz"
        await reader.close()

    run(work)


def test_the_same_names_as_the_blocking_form() -> None:
    """Each public method is there with the same parameters, and awaitable where it works on the node."""
    for name in ("BlockNode", "BlockUser", "VirtQueue", "VirtioBlk", "Workload", "Engine"):
        there, here = getattr(engine, name), getattr(aio, name)
        for attribute in dir(there):
            if attribute.startswith("_"):
                continue
            assert hasattr(here, attribute), f"aio.{name} has no {attribute}"
            one, other = getattr(there, attribute), getattr(here, attribute)
            if not callable(one) or any(
                p.kind is p.VAR_KEYWORD for p in inspect.signature(other).parameters.values()
            ):
                continue
            theirs, ours = inspect.signature(one), inspect.signature(other)
            assert list(theirs.parameters) == list(ours.parameters), f"{name}.{attribute}"
            for parameter in theirs.parameters:
                if parameter != "shared":
                    assert theirs.parameters[parameter].default == ours.parameters[parameter].default


def test_one_turn_is_one_message() -> None:
    async def work(eng: aio.Engine) -> None:
        node = await eng.open(driver="null", read_zeroes=True)
        await node.pread(512, 0, context="io0")
        context = eng.contexts["io0"]
        before = context.stats().messages
        found = await asyncio.gather(*(node.pread(512, i * 512, context="io0") for i in range(64)))
        assert found == [bytes(512)] * 64
        assert context.stats().messages - before == 1

    run(work)


def test_more_in_one_turn_than_a_drain_takes() -> None:
    async def work(eng: aio.Engine) -> None:
        node = await eng.open(driver="null")
        data = bytearray(512)
        results = await asyncio.gather(*(node.pread_into(data, 0, context=f"io{i % 2}") for i in range(3000)))
        assert results == [512] * 3000
        assert node.stats().op["read"].requests == 3000
        data.append(0)  # all are given back

    run(work)


def test_errors_are_those_of_the_blocking_form() -> None:
    async def work(eng: aio.Engine) -> None:
        node = await eng.open(driver="null", node_name="disk", size="1M")
        user = await node.user("reader", permissions="read")
        buffer = bytearray(512)
        calls: list[tuple[Callable[[], Awaitable[Any]], Callable[[], Any]]] = [
            (lambda: node.pread(512, 1 << 20), lambda: node.blocking.pread(512, 1 << 20)),
            (lambda: node.pread(-1, 0), lambda: node.blocking.pread(-1, 0)),
            (lambda: node.pread(1 << 30, 0), lambda: node.blocking.pread(1 << 30, 0)),
            (lambda: node.pread_into(b"x", 0), lambda: node.blocking.pread_into(b"x", 0)),
            (lambda: node.pwrite(buffer, 2**63), lambda: node.blocking.pwrite(buffer, 2**63)),
            (lambda: node.preadv([buffer] * 2000, 0), lambda: node.blocking.preadv([buffer] * 2000, 0)),
            (lambda: user.pwrite(buffer, 0), lambda: user.blocking.pwrite(buffer, 0)),
            (lambda: node.discard(1, 1 << 20), lambda: node.blocking.discard(1, 1 << 20)),
            (
                lambda: node.read_many(buffer, [1 << 20], 512),
                lambda: node.blocking.read_many(buffer, [1 << 20], 512),
            ),
            (
                lambda: node.read_many(buffer, [0, 0], 512),
                lambda: node.blocking.read_many(buffer, [0, 0], 512),
            ),
            (lambda: node.pread(1, 0, context="none"), lambda: node.blocking.pread(1, 0, context="none")),
            (
                lambda: eng.open("/does/not/exist", node_name="x"),
                lambda: eng.blocking.open("/does/not/exist", node_name="x"),
            ),
        ]
        for awaited, blocking in calls:
            with pytest.raises((OSError, TypeError)) as one:
                await awaited()
            with pytest.raises((OSError, TypeError)) as other:
                blocking()
            assert type(one.value) is type(other.value)
            assert str(one.value).split(" at ")[0] == str(other.value).split(" at ")[0]
            for attribute in ("errno", "node", "operation", "field", "offset"):
                assert getattr(one.value, attribute, 0) == getattr(other.value, attribute, 0)
        buffer.append(0)  # none of them holds it
        await user.close()
        await node.close()
        with pytest.raises(engine.Closed, match="node 'disk' is closed"):
            await node.pread(512, 0)

    run(work)


def test_one_failure_among_many() -> None:
    async def work(eng: aio.Engine) -> None:
        node = await eng.open(driver="null", node_name="disk", size="1M", read_zeroes=True)
        results = await asyncio.gather(
            *(node.pread(512, (1 << 20) - 512 + i % 2 * 512) for i in range(20)), return_exceptions=True
        )
        for i, result in enumerate(results):
            if i % 2:
                assert isinstance(result, engine.InvalidArgument)
                assert result.offset == 1 << 20
            else:
                assert result == bytes(512)

    run(work)


def test_one_that_is_refused_does_not_harm_those_of_its_turn() -> None:
    """What the native side would not even begin: it takes an array whole, or not at all."""

    async def work(eng: aio.Engine) -> None:
        node = await eng.open(driver="null", node_name="disk", read_zeroes=True)
        good, bad = bytearray(8), bytearray(b"x")
        results = await asyncio.gather(
            *(node.preadv([bad] * 1025 if i == 5 else [good], 0) for i in range(10)), return_exceptions=True
        )
        assert [r for r in results if r != 8] == [results[5]]
        assert isinstance(results[5], engine.InvalidArgument)
        assert "at most 1024 buffers" in str(results[5])
        good.append(0)
        bad.append(0)

    run(work)


def test_before_and_after() -> None:
    async def main() -> None:
        eng = aio.Engine()
        with pytest.raises(engine.Closed, match="has not been started"):
            await eng.open(driver="null")
        assert not eng.closed
        await eng.close()  # nothing to close
        assert await eng is eng
        assert await eng is eng
        node = await eng.open(driver="null")
        assert await node.pread(8, 0) == bytes(8)
        await eng.close()
        await eng.close()
        assert eng.closed
        assert node.closed
        for call in (lambda: node.pread(8, 0), lambda: eng.open(driver="null"), node.flush):
            with pytest.raises(engine.Closed):
                await call()

    asyncio.run(main())


# ---- cancelling ----


def is_in_use(buffer: bytearray) -> bool:
    try:
        buffer.append(0)
        buffer.pop()
    except BufferError:
        return True
    return False


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def test_a_cancelled_request_keeps_its_buffer_until_it_has_ended() -> None:
    go_on = threading.Event()

    class Slow(engine.BlockDriver):
        size = 1 << 20

        def pread(self, length: int, offset: int) -> bytes:
            assert go_on.wait(30)
            return bytes(length)

    async def work(eng: aio.Engine) -> None:
        async with await eng.open_driver(Slow()) as node:
            buffer = bytearray(512)
            task = asyncio.create_task(node.pread_into(buffer, 0))
            await until(lambda: node.stats().in_flight == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert node.stats().in_flight == 1  # it was not waited for
            assert is_in_use(buffer)
            go_on.set()
            await until(lambda: not is_in_use(buffer))
            assert node.stats().in_flight == 0
            assert await node.pread(4, 0) == bytes(4)

    run(work)


def test_cancelling_ends_what_only_waits() -> None:
    async def work(eng: aio.Engine) -> None:
        async with slow_node(eng, "60s") as node:
            buffer = bytearray(512)
            task = asyncio.create_task(node.pread_into(buffer, 0))
            await until(lambda: node.stats().in_flight == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not is_in_use(buffer))  # in far less than a minute
            assert node.stats().op["read"].errors == 1

    run(work)


def test_cancelled_before_it_was_sent() -> None:
    async def work(eng: aio.Engine) -> None:
        async with slow_node(eng, "0") as node:
            buffer = bytearray(512)
            task = asyncio.create_task(node.pread_into(buffer, 0))
            task.cancel()  # it has not run at all
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not is_in_use(buffer))
            task = asyncio.create_task(node.pread_into(buffer, 0))
            asyncio.get_running_loop().call_soon(task.cancel)  # between its start and the end of its turn
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not is_in_use(buffer))

    run(work)


def test_time_outs_and_groups() -> None:
    async def work(eng: aio.Engine) -> None:
        async with slow_node(eng) as node:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(node.pread(512, 0), 0.01)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await node.read_many(bytearray(5120), range(10), 512, iodepth=1)
            tasks: list[asyncio.Task[bytes]] = []

            async def together() -> None:
                async with asyncio.TaskGroup() as group:
                    tasks.extend(group.create_task(node.pread(512, 0)) for _ in range(10))
                    group.create_task(node.pread(512, 2**40))

            with pytest.raises(ExceptionGroup) as caught:
                await together()
            assert len(caught.value.exceptions) == 1
            assert all(task.cancelled() for task in tasks)

    run(work)


def test_a_cancelled_vector_begins_no_more() -> None:
    async def work(eng: aio.Engine) -> None:
        async with slow_node(eng, "20ms") as node:
            buffer, results = bytearray(1000 * 8), array("q", bytes(8000))
            task = asyncio.create_task(node.read_many(buffer, range(0, 8000, 8), 8, iodepth=2, out=results))
            await until(lambda: node.stats().in_flight == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not is_in_use(buffer))
            assert node.stats().op["read"].requests < 1000

    run(work)


def test_many_are_cancelled_at_random() -> None:
    async def work(eng: aio.Engine) -> None:
        async with slow_node(eng, "1ms") as node:
            buffers = [bytearray(64) for _ in range(50)]
            for round_number in range(20):
                tasks = [
                    asyncio.create_task(node.pread_into(b, 0, context=f"io{i % 2}"))
                    for i, b in enumerate(buffers)
                ]
                for _ in range(round_number % 4):
                    await asyncio.sleep(0)
                for i, task in enumerate(tasks):
                    if (i * 7 + round_number) % 3 == 0:
                        task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(r == 64 or isinstance(r, asyncio.CancelledError) for r in results)
            await until(lambda: not any(map(is_in_use, buffers)))
            assert node.stats().in_flight == 0

    run(work)


# ---- loops ----


def test_two_loops_use_one_engine() -> None:
    with engine.Engine(contexts={"io0": None, "io1": None}) as blocking:
        wrapped = aio.Engine.over(blocking)
        node = wrapped.node(blocking.open(driver="null", node_name="disk", read_zeroes=True))
        results: list[int] = []
        failures: list[BaseException] = []

        async def work(number: int) -> None:
            for _ in range(50):
                found = await asyncio.gather(
                    *(node.pread(512, i * 512, context=f"io{number}") for i in range(32))
                )
                results.append(sum(map(len, found)))

        def in_thread(number: int) -> None:
            try:
                asyncio.run(work(number))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=in_thread, args=[number]) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert results == [32 * 512] * 100
        # Queues of loops that have ended go with the next loop's first request.
        asyncio.run(work(0))
        assert len(blocking._handle.queues) <= 2


def test_one_descriptor_for_each_loop() -> None:
    async def work(eng: aio.Engine) -> None:
        node = await eng.open(driver="null")
        other = await eng.open(driver="null")
        await node.pread(8, 0)
        before = descriptors()
        await asyncio.gather(*(n.pread(8, 0, context=c) for n in (node, other) for c in ("io0", "io1")))
        assert descriptors() == before
        assert len(eng.blocking._handle.queues) == 1

    run(work)


def descriptors() -> int:
    import os

    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_behind() -> None:
    def once() -> None:
        async def work(eng: aio.Engine) -> None:
            async with await eng.open(driver="null") as node:
                await asyncio.gather(*(node.pread(512, 0) for _ in range(10)))

        run(work)

    once()
    gc.collect()
    before = descriptors(), threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            once()
        gc.collect()
    assert (descriptors(), threading.active_count()) == before


def test_references_do_not_pile_up() -> None:
    async def work(eng: aio.Engine) -> None:
        node = await eng.open(driver="null")
        data, buffer = b"x" * 512, bytearray(512)
        await node.pwrite(data, 0)
        before = sys.getrefcount(data), sys.getrefcount(buffer)
        for _ in range(20):
            await asyncio.gather(*(node.pwrite(data, 0) for _ in range(10)))
            await asyncio.gather(*(node.pread_into(buffer, 0) for _ in range(10)))
            await node.pwritev([data, buffer], 0)
        assert (sys.getrefcount(data), sys.getrefcount(buffer)) == before
        queue = next(iter(node._queues._by_loop.values()))
        assert not queue._flights
        assert not queue._pending

    run(work)


def _typed(call: Coroutine[Any, Any, bytes]) -> Coroutine[Any, Any, bytes]:
    """create_task and TaskGroup take what a call returns."""
    return call


def test_calls_are_futures_and_coroutines() -> None:
    async def work(eng: aio.Engine) -> None:
        node = await eng.open(driver="null")
        reads = [node.pread(8, 8 * i) for i in range(100)]
        assert all(asyncio.isfuture(each) for each in reads)
        assert await asyncio.gather(*reads) == [bytes(8)] * 100
        assert len(asyncio.all_tasks()) == 1  # this one
        assert asyncio.iscoroutine(call := _typed(node.pread(8, 0)))
        assert await asyncio.create_task(call) == bytes(8)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(node.pwrite(bytes(16), 0))
        assert task.result() == 16
        assert await asyncio.wait_for(node.flush(), 60) is None
        shared = node.pread(8, 0)
        both = asyncio.gather(asyncio.create_task(shared), asyncio.create_task(shared))
        assert await both == [bytes(8), bytes(8)]
        assert await asyncio.create_task(shared) == bytes(8) == await shared
        done, _ = await asyncio.wait([asyncio.create_task(node.pread(8, 0))])
        assert [task.result() for task in done] == [bytes(8)]
        with pytest.raises(TypeError, match="use tasks explicitly"):
            await asyncio.wait([shared])
        with pytest.raises(engine.InvalidArgument):
            node.pread(-1, 0)  # said at once
        early = asyncio.create_task(node.pread(8, 0))
        early.cancel("before its first step")
        with pytest.raises(asyncio.CancelledError):
            await early
        with pytest.raises(engine.InvalidArgument, match="past the end"):
            await asyncio.create_task(node.pread(8, node.size))
        async with slow_node(eng, "60s") as slow:
            waiting = slow.pread(8, 0)
            await until(lambda: slow.stats().in_flight == 1)
            assert waiting.cancel("enough")
            assert not waiting.cancel()
            with pytest.raises(asyncio.CancelledError, match="enough"):
                await waiting
            await until(lambda: slow.stats().in_flight == 0)  # in far less than a minute

    run(work)
