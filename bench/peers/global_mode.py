#!/usr/bin/env python3
"""One big lock against a lock for each node: `--locking global` against `per-node`, nothing else
changed.

With one context the lock must cost next to nothing, so that what two contexts show is contention.
Single-threaded.
"""

import sys

from harness import Comparison, Peer, Settings, main
from programs import engine_bench


def global_mode(settings: Settings, contexts: int) -> Comparison:
    cpus = ",".join(str(cpu) for cpu in range(contexts))
    options = ["--null", "1g", "--via", "node", "--rw", "randread", "--bs", "4k", "--iodepth", "64"]
    topology = ("--contexts", str(contexts), "--cpus", cpus)
    sides = [
        engine_bench(
            f"{locking}, {contexts} context{'s' * (contexts > 1)}", settings, *options, *topology,
            "--locking", locking, contexts=contexts,
            path="load generator on each context → request layer → one null node; latency on",
        )
        for locking in ("global", "per-node")
    ]  # fmt: skip
    peer = Peer(sides[1], at_least=0.97) if contexts == 1 else Peer(sides[1], at_most=0.6)
    return Comparison(
        f"global mode, null node, {contexts} pinned context{'s' * (contexts > 1)}", sides[0], (peer,)
    )


SUITE = {
    "one-context": lambda settings: global_mode(settings, 1),
    "two-contexts": lambda settings: global_mode(settings, 2),
}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
