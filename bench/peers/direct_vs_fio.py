#!/usr/bin/env python3
"""O_DIRECT random reads and writes of the real disk against fio: they must agree; CPU per request decides.

Same file, block size, range, depth and run time, both with io_uring and pinned to one CPU. The rate must
agree within 5 %, p50 and p99 within 10 %, all of them as medians over the pairs. Writes go to an image of
their own, of which no other comparison reads. Single-threaded.
"""

import sys
from collections.abc import Callable

import images
from harness import Comparison, Peer, Settings, main
from programs import engine_bench, fio

DEPTHS = (1, 32)
WRITTEN_MEBIBYTES, WRITTEN_SEED = 256, 2


def direct(settings: Settings, rw: str, depth: int) -> Comparison:
    image = images.seeded() if rw == "randread" else images.seeded(WRITTEN_MEBIBYTES, WRITTEN_SEED)
    subject = engine_bench(
        "engine, O_DIRECT", settings, "--direct", "--via", "node", "--rw", rw, "--bs", "4k",
        "--iodepth", str(depth), "--cpus", "0", str(image),
        path="request layer → raw → file → io_uring, latency on",
    )  # fmt: skip
    peer = fio(
        "fio, io_uring", settings, f"--filename={image}", "--ioengine=io_uring", "--direct=1",
        f"--rw={rw}", "--bs=4k", f"--iodepth={depth}", "--norandommap", "--randseed=1",
        "--cpus_allowed=0", "--thread",
        path="fio's io_uring engine, latency on",
    )  # fmt: skip
    what = "reads" if rw == "randread" else "writes"
    title = f"O_DIRECT, depth {depth}, 4 KiB random {what}; {images.describe(image)}"
    agrees = Peer(peer, at_least=0.95, at_most=1.05, latency=True, percentiles=(50, 99))
    return Comparison(title, subject, (agrees,))


def at_depth(rw: str, depth: int) -> Callable[[Settings], Comparison]:
    return lambda settings: direct(settings, rw, depth)


SUITE = {
    f"{name}-{depth}": at_depth(rw, depth)
    for rw, name in (("randread", "depth"), ("randwrite", "write-depth"))
    for depth in DEPTHS
}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
