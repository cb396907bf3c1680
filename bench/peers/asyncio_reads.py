#!/usr/bin/env python3
"""asyncio reads, 64 gathered at a time: engine.aio against run_in_executor, and against a plain loop.

On the page cache, with O_DIRECT, and on a null node that takes 100 µs for each. Single-threaded.
"""

import sys
from functools import partial

import images
from harness import Comparison, Peer, Settings, main
from programs import python_reads

NOTE = (
    "64 coroutines gathered at a time, as a program would write it; buffers are the caller's. The plain loop "
    "has one read in flight and no event loop: on the page cache it is the least that Python can do"
)


def reads(settings: Settings, kind: str) -> Comparison:
    image = images.seeded()
    target, count = {
        "page-cache": (str(image), settings.count(300_000)),
        "direct": (f"direct:{image}", settings.count(60_000)),
        "null-100us": ("null:100us", settings.count(300_000)),
    }[kind]
    null = kind == "null-100us"
    call = "engine's blocking read" if null else "os.preadv"
    subject = python_reads(
        "engine.aio", "asyncio", target, count, "0", path="gather → one message → context → one event"
    )
    executor = python_reads(
        f"executor, {call}",
        "executor",
        target,
        count // 4,
        path="default pool of threads, its completions one by one",
    )
    plain = python_reads(f"plain loop, {call}", "plain", target, count // 8 if null else count // 2)
    peers = [Peer(executor, at_least=5.0), Peer(plain)]
    if null:
        cached = python_reads(
            "executor, os.preadv", "executor", str(image), count // 4, path="page cache: no 100 µs"
        )
        peers.insert(1, Peer(cached, at_least=5.0))
    return Comparison(
        f"asyncio, {kind}, 64 reads of 4 KiB at a time; {images.describe(image)}",
        subject,
        tuple(peers),
        note=NOTE,
        prepare=partial(images.warm, image),
    )


SUITE = {kind: partial(reads, kind=kind) for kind in ("page-cache", "direct", "null-100us")}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
