#!/usr/bin/env python3
"""The loop of bare_uring.c in Python, over engine.uring: 4 KiB random reads, `depth` of them in flight. Same
offsets for the same seed, chosen before the clock starts. One thread. Prints one JSON object.

usage: python_uring.py FILE DEPTH COUNT CPU SEED [prepare]     CPU -1: not pinned; prepare: all but the reads
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time

from engine.uring import Ring

BLOCK_BYTES = 4096
MASK = 2**64 - 1


def offsets(blocks: int, count: int, seed: int) -> list[int]:
    """wyrand, scaled to the number of blocks by a multiplication, as bare_uring.c and the engine do."""
    found = []
    state = seed
    for _ in range(count):
        state = state + 0xA0761D6478BD642F & MASK
        product = state * (state ^ 0xE7037ED1A0B428DB)
        value = (product >> 64 ^ product) & MASK
        found.append((value * blocks >> 64) * BLOCK_BYTES)
    return found


def drive(ring: Ring, descriptor: int, buffers: list[memoryview], chosen: list[int]) -> int:
    """Returns the number of system calls."""
    depth, count, enters, done = len(buffers), len(chosen), 0, 0
    issued = min(depth, count)
    for slot in range(issued):
        ring.read(descriptor, buffers[slot], chosen[slot], token=slot)
    while done < count:
        completions = ring.submit_and_wait(1)
        enters += 1
        for slot, result in completions:
            if result != BLOCK_BYTES:
                raise OSError(max(-result, 5), "a read failed or was short")
            if issued < count:
                ring.read(descriptor, buffers[slot], chosen[issued], token=slot)
                issued += 1
        done += len(completions)
    return enters


def main(arguments: list[str]) -> int:
    if len(arguments) not in (5, 6) or arguments[5:] not in ([], ["prepare"]):
        print(__doc__, file=sys.stderr)
        return 2
    path, (depth, count, cpu, seed) = arguments[0], map(int, arguments[1:5])
    if cpu >= 0:
        os.sched_setaffinity(0, {cpu})
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    chosen = offsets(os.fstat(descriptor).st_size // BLOCK_BYTES, count, seed)
    memory = memoryview(mmap.mmap(-1, depth * BLOCK_BYTES))
    buffers = [memory[slot * BLOCK_BYTES : (slot + 1) * BLOCK_BYTES] for slot in range(depth)]
    with Ring(depth, single_issuer=True, defer_taskrun=True) as ring:
        started = time.perf_counter()
        enters = 0 if arguments[5:] else drive(ring, descriptor, buffers, chosen)
        seconds = time.perf_counter() - started
    print(json.dumps({"requests": count, "seconds": seconds, "iops": count / seconds, "enters": enters}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
