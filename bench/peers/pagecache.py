#!/usr/bin/env python3
"""4 KiB random reads of a file that the page cache holds, depth 64, one thread: software cost, not
storage.

Against the shortest liburing loop and against qemu-img with its io_uring engine. Single-threaded.
"""

import sys

import images
from harness import Comparison, Peer, Settings, main
from programs import engine_bench, micro, qemu_img_bench, qemu_versions

NOTE = (
    "software cost: the page cache holds the file. qemu-img bench only steps through a file: its offsets are "
    "sequential, which favours it; the others read random blocks"
)


def pagecache(settings: Settings, via: str) -> Comparison:
    image = images.seeded()
    options = f"--buffered --via {via} --rw randread --bs 4k --iodepth 64 --cpus 0".split()
    path = "request layer → raw → file → io_uring, latency on"
    subject = engine_bench(f"engine, via {via}", settings, *options, str(image), path=path)
    bare = micro(
        "bare liburing loop", "bare_uring", str(image), "64", str(settings.count(3_000_000)), "0", "1",
        path="io_uring alone: single issuer, deferred task run, pinned as the engine; no latency kept",
    )  # fmt: skip
    peers = [Peer(bare, at_least=0.90 if via == "node" else None)]
    versions, missing = qemu_versions()
    for version in versions:
        mark = 2.5 if version == "debian13" else 4.0
        side = qemu_img_bench(
            version, "-d", "64", "-s", "4096", "-S", "4096", "-i", "io_uring", "-f", "raw", str(image),
            count=settings.count(1_000_000),
            path="qemu-img's loop → raw → file-posix → io_uring; sequential offsets",
        )  # fmt: skip
        peers.append(Peer(side, at_least=mark if via == "node" else None))
    title = f"page cache, via {via}, depth 64, 4 KiB random reads, one context; {images.describe(image)}"
    note = "; ".join(filter(None, (NOTE, missing)))
    return Comparison(title, subject, tuple(peers), note, prepare=lambda: images.warm(image))


SUITE = {
    "node": lambda settings: pagecache(settings, "node"),
    "queue": lambda settings: pagecache(settings, "queue"),
}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
