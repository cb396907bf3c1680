#!/usr/bin/env python3
"""What a request costs inside each program: its own generator, no device, no guest, no system call.

The null node of the engine goes through the same driver table and request layer as a file: bounds,
permissions, statistics. Both sides complete at once and touch no data (`read-zeroes=off`).
Single-threaded.
"""

import sys

from harness import Comparison, Peer, Settings, main
from programs import engine_bench, qemu_img_bench, qemu_versions

NULL_CO = ("--image-opts", "driver=null-co,size=1G,read-zeroes=off")
QEMU_PATH = "qemu-img's own loop → BlockBackend → null-co; sequential offsets; no latency kept"
ENGINE_PATHS = {
    "node": "load generator → request layer (bounds, permissions, statistics) → null; latency on",
    "queue": "load generator → split virtqueue, driver's side → device's side → null; latency on",
}


def null(settings: Settings, via: str, depth: int, at_least: float) -> Comparison:
    options = f"--null 1g --via {via} --rw randread --bs 4k --iodepth {depth} --cpus 0".split()
    subject = engine_bench(f"engine, via {via}", settings, *options, path=ENGINE_PATHS[via])
    count = settings.count(3_000_000 if depth > 1 else 1_000_000)
    versions, missing = qemu_versions()
    peers = tuple(
        Peer(
            qemu_img_bench(version, "-d", str(depth), "-s", "4096", *NULL_CO, count=count, path=QEMU_PATH),
            at_least=at_least,
        )
        for version in versions
    )
    title = f"null node, via {via}, depth {depth}, 4 KiB reads, one context"
    note = "SPDK's null bdev, a harder mark, stands at about 13 x QEMU"
    return Comparison(title, subject, peers, "; ".join(filter(None, (note, missing))))


SUITE = {
    "node-depth-64": lambda settings: null(settings, "node", 64, at_least=12),
    "queue-depth-64": lambda settings: null(settings, "queue", 64, at_least=8),
    "queue-depth-1": lambda settings: null(settings, "queue", 1, at_least=5),
    "node-depth-1": lambda settings: null(settings, "node", 1, at_least=5),
}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
