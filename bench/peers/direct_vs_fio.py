#!/usr/bin/env python3
"""O_DIRECT random reads of the real disk against fio: the two must agree; CPU per request decides.

Same file, block size, range, depth and run time, both with io_uring and pinned to one CPU.
Single-threaded.
"""

import sys

import images
from harness import Comparison, Peer, Settings, main
from programs import engine_bench, fio


def direct(settings: Settings, depth: int) -> Comparison:
    image = images.seeded()
    subject = engine_bench(
        "engine, O_DIRECT", settings, "--direct", "--via", "node", "--rw", "randread", "--bs", "4k",
        "--iodepth", str(depth), "--cpus", "0", str(image),
        path="request layer → raw → file → io_uring, latency on",
    )  # fmt: skip
    peer = fio(
        "fio, io_uring", settings, f"--filename={image}", "--ioengine=io_uring", "--direct=1",
        "--rw=randread", "--bs=4k", f"--iodepth={depth}", "--norandommap", "--randseed=1",
        "--cpus_allowed=0", "--thread",
        path="fio's io_uring engine, latency on",
    )  # fmt: skip
    title = f"O_DIRECT, depth {depth}, 4 KiB random reads; {images.describe(image)}"
    return Comparison(title, subject, (Peer(peer, at_least=0.95, at_most=1.05, latency=True),))


SUITE = {
    "depth-1": lambda settings: direct(settings, 1),
    "depth-32": lambda settings: direct(settings, 32),
}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
