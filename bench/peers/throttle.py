#!/usr/bin/env python3
"""How close throttling comes to its limits: the rate over 10 s, divided by the limit.

A tenth of a second's worth may come at once, which is a hundredth of ten seconds; the rest is the filter's
error. The null node underneath could do millions. Single-threaded.
"""

import sys

from harness import Comparison, Derived, Settings, Side, main
from programs import engine_bench, micro

SECONDS = 10.0
TOLERANCE = 0.02


def comparison(title: str, limit: float, side: Side, note: str = "") -> Comparison:
    share = Derived(
        "rate ÷ limit", "", lambda rates: rates["throttled"] / limit,
        at_least=1 - TOLERANCE, at_most=1 + TOLERANCE,
    )  # fmt: skip
    return Comparison(title, side, (), note=note, derived=(share,))


def alone(settings: Settings, option: str, value: int, requests: float, depth: int) -> Comparison:
    long = Settings(settings.pairs, 2.0 if settings.quick else SECONDS, settings.quick)
    options = f"driver=throttle,limits.{option}={value},file.driver=null,file.size=1G"
    arguments = f"--via node --rw randrw --bs 4k --iodepth {depth} --cpus 0 --allow-holes".split()
    side = engine_bench(
        "throttled", long, "--image-opts", options, *arguments,
        path="load generator → throttle → null, one context; latency on",
    )  # fmt: skip
    return comparison(f"{option}={value}, one queue at depth {depth}", requests, side)


def shared(settings: Settings, iops: int) -> Comparison:
    seconds = 2 if settings.quick else int(SECONDS)
    side = micro(
        "throttled", "shared_throttle", str(iops), str(seconds),
        path="4 load generators on 2 contexts → 2 throttle nodes of one group → a null node each",
    )  # fmt: skip
    return comparison(f"iops-total={iops}, shared by 4 queues of 2 nodes on 2 contexts", iops, side)


SUITE = {
    "iops-1k": lambda settings: alone(settings, "iops-total", 1000, 1000, 16),
    "iops-100k": lambda settings: alone(settings, "iops-total", 100_000, 100_000, 64),
    "bps-100M": lambda settings: alone(settings, "bps-total", 100 << 20, (100 << 20) / 4096, 16),
    "shared-1k": lambda settings: shared(settings, 1000),
    "shared-100k": lambda settings: shared(settings, 100_000),
}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
