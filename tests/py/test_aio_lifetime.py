"""What is in flight when something closes: nodes, contexts, engines, loops, interpreters; after a fork."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings

import pytest
from conftest import Script

import engine
from engine import aio

LATENCY = "200ms"


async def in_flight(
    node: aio.BlockNode, count: int = 4, context: str | None = None
) -> list[asyncio.Task[bytes]]:
    tasks = [asyncio.create_task(node.pread(512, i * 512, context=context)) for i in range(count)]
    while node.stats().in_flight < count:
        await asyncio.sleep(0.001)
    return tasks


async def slow(eng: aio.Engine) -> aio.BlockNode:
    return await eng.open(driver="null", node_name="slow", latency_ns=LATENCY, read_zeroes=True)


async def succeeded(tasks: list[asyncio.Task[bytes]]) -> bool:
    return await asyncio.gather(*tasks) == [bytes(512)] * len(tasks)


@pytest.mark.parametrize("what", ["node", "user", "context", "engine"])
def test_closing_waits_for_what_is_in_flight(what: str) -> None:
    async def main() -> None:
        async with aio.Engine(contexts={"io0": None}) as eng:
            node = await slow(eng)
            user = await node.user("u", permissions="read")
            tasks = [asyncio.create_task(user.pread(512, 0, context="io0"))] + await in_flight(
                node, context="io0"
            )
            close = {
                "node": node.close,
                "user": user.close,
                "context": lambda: asyncio.to_thread(eng.contexts["io0"].close),
                "engine": eng.close,
            }[what]
            if what == "node":
                await user.close()
            await close()
            assert node.blocking.closed == (what in ("node", "engine"))
            assert await succeeded(tasks)

    asyncio.run(main())


@pytest.mark.parametrize("what", ["node", "engine"])
def test_a_blocking_close_on_the_loops_own_thread(what: str) -> None:
    """The loop stands still meanwhile, and hears of its completions afterwards."""

    async def main() -> None:
        async with aio.Engine() as eng:
            node = await slow(eng)
            tasks = await in_flight(node)
            unsent = node.pread(512, 0)  # it is sent at the end of this turn
            {"node": node, "engine": eng}[what].blocking.close()
            assert await succeeded(tasks)
            with pytest.raises(engine.Closed):
                await unsent

    asyncio.run(main())


def test_a_close_on_another_thread() -> None:
    async def main() -> None:
        async with aio.Engine() as eng:
            node = await slow(eng)
            tasks = await in_flight(node)
            closer = threading.Thread(target=eng.blocking.close)
            closer.start()
            assert await succeeded(tasks)
            closer.join()
            with pytest.raises(engine.Closed):
                await node.pread(512, 0)

    asyncio.run(main())


def test_a_loop_that_ends_with_requests_in_flight() -> None:
    """asyncio.run cancels the tasks; the buffers are given back by the next loop, or with the engine."""

    class Slow(engine.BlockDriver):  # what is with it cannot be cancelled
        size = 1 << 20

        def pread(self, length: int, offset: int) -> bytes:
            time.sleep(0.2)
            return bytes(length)

    with engine.Engine() as blocking:
        eng = aio.Engine.over(blocking)
        node = eng.node(blocking.open_driver(Slow()))
        buffer = bytearray(512)

        async def leave() -> None:
            task = asyncio.create_task(node.pread_into(buffer, 0))
            while not node.stats().in_flight:
                await asyncio.sleep(0.001)
            assert not task.done()

        asyncio.run(leave())
        with pytest.raises(BufferError):
            buffer.append(0)

        async def go_on() -> None:
            assert await node.pread(8, 0) == bytes(8)

        asyncio.run(go_on())  # by now the other's has completed as well
        asyncio.run(go_on())
        buffer.append(0)
        asyncio.run(leave())
    buffer.append(0)
    assert blocking.closed


def test_what_is_dropped_warns_and_is_closed() -> None:
    seen: list[str] = []

    async def main() -> None:
        eng = await aio.Engine()
        node = await slow(eng)
        tasks = await in_flight(node)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the step that ends with a gather holds its results, tracebacks and all
        del tasks, task, node, eng
        gc.collect()
        assert sorted(seen) == ["unclosed engine", "unclosed node 'slow'"]

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # A recorded warning would hold its source.
        warnings.showwarning = lambda message, *_, **__: seen.append(str(message))
        asyncio.run(main())


def test_opening_that_is_cancelled_leaves_nothing_open() -> None:
    async def main() -> None:
        async with aio.Engine() as eng:
            task = asyncio.create_task(eng.open(driver="null", node_name="disk"))
            await asyncio.sleep(0)  # on its way to a thread
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for _ in range(1000):
                try:
                    node = await eng.open(driver="null", node_name="disk")
                    break
                except engine.Conflict:  # it is still there
                    await asyncio.sleep(0.01)
            await node.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())


EXIT = """
import asyncio, os, sys, threading, time
import engine
from engine import aio

async def main():
    global eng, node, buffers
    eng = await aio.Engine(contexts={"io0": None})
    node = await eng.open(driver="null", node_name="slow", latency_ns="100ms", read_zeroes=True)
    buffers = [bytearray(b"x") * 512 for _ in range(64)]
    tasks = [asyncio.create_task(node.pread_into(b, 0, context="io0")) for b in buffers]
    while node.stats().in_flight < 64:
        await asyncio.sleep(0.001)
    return tasks
"""


@pytest.mark.parametrize(
    "end",
    [
        "asyncio.run(main())",
        "loop = asyncio.new_event_loop()\nkept = loop.run_until_complete(main())",
        "loop = asyncio.new_event_loop()\nkept = loop.run_until_complete(main())\nloop.close()",
        "loop = asyncio.new_event_loop()\nkept = loop.run_until_complete(main())\ndel eng, node\nsys.exit(0)",
        "async def leave():\n    await main()\n    sys.exit(0)\nasyncio.run(leave())",
        (
            "def work():\n    loop = asyncio.new_event_loop()\n    loop.run_until_complete(main())\n"
            "    ready.set()\n    loop.run_forever()\n"
            "ready = threading.Event()\nthreading.Thread(target=work, daemon=True).start()\nready.wait()"
        ),
    ],
    ids=["run", "loop left open", "loop closed", "dropped", "exit inside", "daemon thread"],
)
def test_the_interpreter_exits_with_requests_in_flight(script: Script, end: str) -> None:
    result = script(EXIT + end)
    assert result.returncode == 0, result.stderr
    assert "Fatal" not in result.stderr
    assert "unclosed engine" in result.stderr


def test_a_fork_with_requests_in_flight(script: Script) -> None:
    result = script(
        EXIT
        + """
async def fork():
    tasks = await main()
    queue = next(iter(node._queues._by_loop.values()))
    pid = os.fork()
    if pid == 0:
        code = 0
        queue._drain()  # takes nothing from its parent
        queue._flush()
        for call in (lambda: node.blocking.read_many(bytearray(8), [0], 8), lambda: node.info):
            try:
                call()
                code = 1
            except engine.Closed:
                pass
        async def use():
            try:
                await node.pread(8, 0)
            except engine.Closed:
                return 0
            return 2
        asyncio.events._set_running_loop(None)
        code = code or asyncio.new_event_loop().run_until_complete(use())
        eng.blocking.close()
        async def anew():
            async with aio.Engine() as own, await own.open(driver="null", read_zeroes=True) as mine:
                return await mine.pread(8, 0)
        if asyncio.new_event_loop().run_until_complete(anew()) != bytes(8):
            code = 3
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(await asyncio.gather(*tasks) == [512] * 64)
    await eng.close()
asyncio.run(fork())
"""
    )
    assert result.stdout == "0\nTrue\n", result.stderr
    assert result.returncode == 0
