#!/usr/bin/env python3
"""Two pinned contexts on one shared null node against two processes at once, and against one context.

Two processes share nothing: they are what the machine can give. Two CPUs do not scale; this says "one,
then two". Single-threaded.
"""

import sys

from harness import Comparison, Peer, Settings, main
from programs import engine_bench

PATH = "load generator on each context → request layer (bounds, permissions, statistics) → {}; latency on"


def two_contexts(settings: Settings) -> Comparison:
    options = ["--null", "1g", "--via", "node", "--rw", "randrw", "--bs", "4k", "--iodepth", "64"]
    two = (*options, "--contexts", "2", "--cpus", "0,1")
    subject = engine_bench(
        "engine, two contexts", settings, *two, path=PATH.format("one null node"), contexts=2
    )
    processes = engine_bench(
        "two processes at once", settings, *options, processes=(("--cpus", "0"), ("--cpus", "1")),
        path=PATH.format("a null node in each process"),
    )  # fmt: skip
    one = engine_bench(
        "engine, one context", settings, *options, "--cpus", "0", path=PATH.format("a null node")
    )
    return Comparison(
        "two pinned contexts on one shared null node, half writes, depth 64 each",
        subject,
        (Peer(processes, at_least=0.95), Peer(one, at_least=1.9)),
        note="1.9 x one context is asked for where two processes reach it: see their rates",
    )


SUITE = {"shared-null": two_contexts}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
