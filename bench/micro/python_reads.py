#!/usr/bin/env python3
"""4 KiB random reads from Python, one way a run; prints one JSON object. Time is that of the reads alone.

usage: python_reads.py WAY TARGET COUNT [CPU] [prepare]      prepare: all but the reads

WAY     many           engine, read_many: PARTS offsets a call, 64 in flight
        plain          a loop of os.preadv; on a null node, of the engine's blocking reads
        asyncio        engine.aio, 64 reads gathered at a time
        executor       loop.run_in_executor of what `plain` calls, 64 gathered at a time
TARGET  FILE           through the page cache
        direct:FILE    O_DIRECT
        null:TIME      a null node on which each read takes TIME
Single-threaded, but for what each way brings with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BLOCK = 4096
DEPTH = 64
PARTS = 1024  # offsets in one call of read_many
NULL_BYTES = 1 << 30


def is_null(target: str) -> bool:
    return target.startswith("null:")


def path_of(target: str) -> str:
    return target.removeprefix("direct:")


def offsets_for(target: str, count: int) -> list[int]:
    """Random blocks; made before the clock starts, and used again after 2^18 of them."""
    blocks = (NULL_BYTES if is_null(target) else os.stat(path_of(target)).st_size) // BLOCK
    generator = random.Random(1)
    return [generator.randrange(blocks) * BLOCK for _ in range(min(count, 1 << 18))]


@contextmanager
def one_read(target: str) -> Iterator[Callable[[memoryview, int], int]]:
    """The blocking read that `plain` and `executor` make."""
    import engine

    if is_null(target):
        with engine.Engine() as eng, open_node(eng, target) as node:
            yield node.pread_into
        return
    flags = os.O_RDONLY | (os.O_DIRECT if target.startswith("direct:") else 0)
    descriptor = os.open(path_of(target), flags)
    try:
        yield lambda buffer, offset: os.preadv(descriptor, [buffer], offset)
    finally:
        os.close(descriptor)


def options_of(target: str) -> dict[str, object]:
    if is_null(target):
        return {"driver": "null", "size": NULL_BYTES, "latency_ns": target.removeprefix("null:")}
    return {
        "driver": "raw",
        "filename": path_of(target),
        "read_only": True,
        "cache.direct": target.startswith("direct:"),
    }


def open_node(eng, target):  # type: ignore[no-untyped-def]
    return eng.open(**options_of(target))


def buffers_of(count: int) -> list[memoryview]:
    import engine

    memory = memoryview(engine.Buffer(count * BLOCK))
    memory[:] = b"\1" * len(memory)
    return [memory[i * BLOCK : (i + 1) * BLOCK] for i in range(count)]


def reads_of(count: int) -> int:
    return 0 if sys.argv[-1] == "prepare" else count


def many(target: str, count: int, cpus: list[int]) -> float:
    import numpy as np

    import engine

    with engine.Engine(contexts={"io0": cpus}) as eng, open_node(eng, target) as node:
        offsets = np.array(offsets_for(target, count))
        buffer = eng.buffer(PARTS * BLOCK)
        buffer[:] = b"\1" * len(buffer)
        out = np.empty(PARTS, np.int64)
        node.read_many(buffer, offsets[:64], BLOCK, "io0")
        began, done = time.perf_counter(), 0
        while done < reads_of(count):
            start = done % (len(offsets) - PARTS + 1)
            node.read_many(buffer, offsets[start : start + PARTS], BLOCK, "io0", DEPTH, out=out)
            done += PARTS
        return (time.perf_counter() - began) * count / max(done, 1)


def plain(target: str, count: int, cpus: list[int]) -> float:
    if cpus:
        os.sched_setaffinity(0, cpus)
    offsets = offsets_for(target, count)
    buffers = buffers_of(PARTS)  # as much memory as read_many goes through
    with one_read(target) as read:
        began = time.perf_counter()
        for i in range(reads_of(count)):
            if read(buffers[i % PARTS], offsets[i % len(offsets)]) != BLOCK:
                raise SystemExit("short read")
        return time.perf_counter() - began


async def gathered(read: Callable[..., object], offsets: list[int], count: int) -> float:
    buffers = buffers_of(DEPTH)
    began = time.perf_counter()
    for done in range(0, reads_of(count), DEPTH):
        start = done % (len(offsets) - DEPTH + 1)
        results = await asyncio.gather(*map(read, buffers, offsets[start : start + DEPTH]))
        if results != [BLOCK] * DEPTH:
            raise SystemExit("short read")
    return time.perf_counter() - began


def through_asyncio(target: str, count: int, cpus: list[int]) -> float:
    from engine import aio

    async def work() -> float:
        async with aio.Engine(contexts={"io0": cpus}) as eng, await open_node(eng, target) as node:
            await node.pread(BLOCK, 0, context="io0")
            context = eng.contexts["io0"]
            read = node.pread_into
            return await gathered(
                lambda buffer, offset: read(buffer, offset, context=context),
                offsets_for(target, count),
                count,
            )

    return asyncio.run(work())


def executor(target: str, count: int, cpus: list[int]) -> float:
    async def work() -> float:
        loop = asyncio.get_running_loop()
        with one_read(target) as read:
            return await gathered(
                lambda buffer, offset: loop.run_in_executor(None, read, buffer, offset),
                offsets_for(target, count),
                count,
            )

    return asyncio.run(work())


WAYS = {"many": many, "plain": plain, "asyncio": through_asyncio, "executor": executor}


def main(arguments: list[str]) -> int:
    numbers = [word for word in arguments[2:] if word != "prepare"]
    if len(numbers) not in (1, 2) or arguments[0] not in WAYS:
        print(str(__doc__), file=sys.stderr)
        return 2
    way, target = arguments[:2]
    count = max(int(numbers[0]) // DEPTH, 1) * DEPTH
    if way == "many":
        count = max(count, PARTS)
    seconds = WAYS[way](target, count, [int(cpu) for cpu in numbers[1:]])
    print(json.dumps({"requests": count, "seconds": round(seconds, 6), "iops": round(count / seconds, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
