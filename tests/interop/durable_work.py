"""Work whose traces can be checked after a loss of power or of the process: threads on contexts, each with
sectors of its own, whose operations follow from a seed.

Run as a program it works until it is killed, and says on standard output what was acknowledged.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import engine

SECTOR = 512
SECTORS_EACH = 64  # of a thread; the first is for its notes
NOTE = 0
Stack = Callable[[engine.Engine, str, str], engine.BlockNode]


@dataclass(frozen=True)
class Step:
    number: int  # within the thread, from 1
    op: str  # "write", "fua", "zeroes", "flush", "note"
    sector: int  # within the thread's
    count: int
    after: int = 0  # of a note: the flush that was acknowledged before it


def steps(seed: int, thread: int) -> Iterator[Step]:
    """What a thread does, without end. A flush is followed by a note that says so."""
    chance = random.Random(seed * 1000 + thread)
    number = 0
    while True:
        number += 1
        kind = chance.random()
        count = chance.randrange(1, 9)
        sector = chance.randrange(1, SECTORS_EACH - count)
        if kind < 0.15:
            yield Step(number, "flush", 0, 0)
            number += 1
            yield Step(number, "note", NOTE, 1, after=number - 1)
        elif kind < 0.3:
            yield Step(number, "fua", sector, count)
        elif kind < 0.4:
            yield Step(number, "zeroes", sector, count)
        else:
            yield Step(number, "write", sector, count)


def content(thread: int, step: Step, sector: int) -> bytes:
    """Of one sector, so that a torn or misplaced one shows."""
    if step.op == "zeroes":
        return bytes(SECTOR)
    return (b"%d.%d.%d.%d;" % (thread, step.number, sector, step.after)).ljust(32, b".") * (SECTOR // 32)


def place_of(thread: int, sector: int) -> int:
    return (thread * SECTORS_EACH + sector) * SECTOR


def do(node: engine.BlockNode, context: engine.AioContext, thread: int, step: Step) -> None:
    place = place_of(thread, step.sector)
    if step.op == "flush":
        node.flush(context=context)
    elif step.op == "zeroes":
        node.write_zeroes(step.count * SECTOR, place, context=context)
    else:
        data = b"".join(content(thread, step, step.sector + i) for i in range(step.count))
        node.pwrite(data, place, fua=step.op == "fua", context=context)


def wanted_of(seed: int, thread: int, last: int) -> list[Step]:
    return [step for step, _ in zip(steps(seed, thread), range(last), strict=False)]


def check_sectors(
    seed: int, thread: int, image: bytes, durable: int, last: int, flushed: Callable[[Step], bool]
) -> list[str]:
    """What is wrong. Steps up to `durable` were acknowledged before something made them durable, or were so
    themselves (`flushed` says so of one); those after `last` have not been begun."""
    history: dict[int, list[Step]] = {}
    for step in wanted_of(seed, thread, last):
        for i in range(step.count):
            history.setdefault(step.sector + i, []).append(step)
    wrong = []
    for sector in range(SECTORS_EACH):
        place = place_of(thread, sector)
        found = image[place : place + SECTOR]
        past = history.get(sector, [])
        sure = max((i for i, s in enumerate(past) if s.number <= durable or flushed(s)), default=-1)
        allowed = [content(thread, step, sector) for step in past[max(sure, 0) :]]
        if sure < 0:
            allowed.append(bytes(SECTOR))
        if found not in allowed:
            what = found[:32].decode("ascii", "replace")
            wrong.append(f"thread {thread}, sector {sector}: {what!r}, {len(allowed)} others would do")
    return wrong


def work_until_killed(image: str, log: str, seed: int, threads: int) -> None:
    opened = engine.Engine()
    contexts = [opened.add_context(f"io{i}") for i in range(2)]
    node = opened.open(
        driver="write-log",
        file={"driver": "file", "filename": image},
        log={"driver": "file", "filename": log},
    )
    # A temporary disk beside, which must leave nothing behind.
    beside = opened.open(
        driver="overlay",
        backing={"driver": "null", "size": "64k"},
        data="file",
        directory=os.path.dirname(image),
    )

    def run(thread: int) -> None:
        for step in steps(seed, thread):
            do(node, contexts[thread % 2], thread, step)
            os.write(1, b"%d %d\n" % (thread, step.number))
            if step.number % 16 == 0:
                beside.pwrite(b"x" * 4096, 4096 * thread)

    for thread in range(threads):
        threading.Thread(target=run, args=(thread,), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    work_until_killed(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
