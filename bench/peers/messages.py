#!/usr/bin/env python3
"""Bottom halves from another thread, and the round trip between two polling contexts.

The program checks that each one-shot ran exactly once. It has no peer: the marks are absolute.
Single-threaded.
"""

import sys

from harness import Comparison, Settings, main
from programs import micro


def storm(settings: Settings) -> Comparison:
    count = str(settings.count(10_000_000))
    subject = micro(
        "one-shot bottom halves", "bh_storm", "storm", count, "0", "1",
        path="engine_schedule_oneshot on a thread of its own (CPU 1) → inbox → context (CPU 0)",
    )  # fmt: skip
    return Comparison(
        "one-shot bottom halves from another thread, each exactly once", subject, (), rate_at_least=5e6
    )


def ping_pong(settings: Settings) -> Comparison:
    count = str(settings.count(2_000_000))
    subject = micro(
        "round trip", "bh_storm", "ping-pong", count, "0", "1",
        path="a reusable bottom half of each of two contexts schedules the other's; both poll",
    )  # fmt: skip
    title = "round trip of bottom halves between two polling contexts on two CPUs"
    return Comparison(title, subject, (), latency_ns_at_most=2000)


SUITE = {"storm": storm, "ping-pong": ping_pong}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
