#!/usr/bin/env python3
"""The same 4 KiB random reads of a file that the page cache holds, depth 64, one thread, three times: by
engine.uring from Python, by the shortest C loop over liburing, by the engine.

What Python costs when it touches each request, and why the engine's request loop is native. Single-threaded.
"""

import sys

import images
from harness import Comparison, Peer, Settings, main
from programs import engine_bench, micro, python_micro

NOTE = (
    "software cost: the page cache holds the file. Python's offsets are chosen before its clock starts, "
    "those of the others meanwhile; seeds are the same"
)


def three(settings: Settings) -> Comparison:
    image = images.seeded()
    python = python_micro(
        "engine.uring", "python_uring", str(image), "64", str(settings.count(300_000)), "0", "1",
        path="one Python call and one completion object a request → io_uring; no latency kept",
    )  # fmt: skip
    bare = micro(
        "bare liburing loop", "bare_uring", str(image), "64", str(settings.count(3_000_000)), "0", "1",
        path="io_uring alone: single issuer, deferred task run, pinned as the others; no latency kept",
    )  # fmt: skip
    load = ("--rw", "randread", "--bs", "4k", "--iodepth", "64", "--seed", "1")
    options = ("--buffered", "--via", "node", "--cpus", "0", *load)
    path = "request layer → raw → file → io_uring, latency on"
    engine = engine_bench("engine, via node", settings, *options, str(image), path=path)
    title = f"page cache, three ways, depth 64, 4 KiB random reads, one thread; {images.describe(image)}"
    return Comparison(title, python, (Peer(bare), Peer(engine)), NOTE, prepare=lambda: images.warm(image))


SUITE = {"three": three}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
