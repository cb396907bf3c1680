#!/usr/bin/env python3
"""read_many from Python: 4 KiB random reads, 64 in flight, against a bare loop in C and a loop of os.preadv.

On the page cache all three go through the same 4 MiB of buffers, so that none has its data in a smaller
cache. Single-threaded.
"""

import sys

import images
from harness import Comparison, Peer, Settings, main
from programs import micro, python_reads

SPREAD = 1024  # buffers, as read_many's PARTS


def page_cache(settings: Settings) -> Comparison:
    image = images.seeded()
    count = settings.count(2_000_000)
    subject = python_reads(
        "engine, read_many", "many", str(image), count, "0",
        path="Python → one message a call → request layer → raw → file → io_uring → one wake-up",
    )  # fmt: skip
    bare = micro(
        "bare liburing loop", "bare_uring", str(image), "64", str(count), "0", "1", f"spread={SPREAD}",
        path="io_uring alone: single issuer, deferred task run, pinned as the engine's context",
    )  # fmt: skip
    plain = python_reads(
        "os.preadv loop", "plain", str(image), count // 2, "0", path="one system call a read"
    )
    return Comparison(
        f"page cache, read_many of 1024 offsets, depth 64, 4 KiB random reads; {images.describe(image)}",
        subject,
        (Peer(bare, at_least=0.85), Peer(plain, at_least=1.0)),
        note="software cost: the page cache holds the file. The caller sleeps while the context works",
        prepare=lambda: images.warm(image),
    )


def direct(settings: Settings) -> Comparison:
    image = images.seeded()
    target = f"direct:{image}"
    count = settings.count(60_000)
    subject = python_reads("engine, read_many", "many", target, count, "0", path="as above, O_DIRECT")
    bare = micro(
        "bare liburing loop",
        "bare_uring",
        str(image),
        "64",
        str(count),
        "0",
        "1",
        "direct",
        path="the same, O_DIRECT",
    )
    plain = python_reads("os.preadv loop", "plain", target, settings.count(10_000), "0")
    return Comparison(
        f"O_DIRECT, read_many of 1024 offsets, depth 64, 4 KiB random reads; {images.describe(image)}",
        subject,
        (Peer(bare), Peer(plain, at_least=1.0)),
        note="the plain loop has one read in flight",
    )


SUITE = {"page-cache": page_cache, "direct": direct}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
