#!/usr/bin/env python3
"""The `threads` backend against `io_uring`, both reading a file that the page cache holds.
Single-threaded.
"""

import sys

import images
from harness import Comparison, Peer, Settings, main
from programs import engine_bench


def backends(settings: Settings) -> Comparison:
    image = images.seeded()
    load = ("--rw", "randread", "--bs", "4k", "--iodepth", "64")
    options = ("--buffered", "--via", "node", "--cpus", "0", *load)
    sides = [
        engine_bench(f"engine, {aio}", settings, *options, "--aio", aio, str(image), path=path)
        for aio, path in (
            ("threads", "request layer → raw → file → preadv2 without waiting, else a worker"),
            ("io_uring", "request layer → raw → file → io_uring"),
        )
    ]
    return Comparison(
        f"threads against io_uring, page cache, depth 64, 4 KiB random reads; {images.describe(image)}",
        sides[0],
        (Peer(sides[1], at_least=0.6),),
        note="software cost: the page cache holds the file",
        prepare=lambda: images.warm(image),
    )


SUITE = {"pagecache": backends}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
