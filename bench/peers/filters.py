#!/usr/bin/env python3
"""What a filter adds to a request: a null node under 0, 1, 2, 4 and 8 of them, on one pinned context.

A request's time is the inverse of the rate, for the context does nothing else. Through the five points goes
a straight line: its slope is what each filter adds, and the points' distances from it say whether it is one.
Single-threaded.
"""

import statistics
import sys
from collections.abc import Callable, Mapping

from harness import Comparison, Derived, Peer, Settings, Side, main
from programs import engine_bench

COUNTS = (8, 4, 2, 1, 0)
LIMIT_FAR_AWAY = "1000000000000000"


def side(settings: Settings, drivers: tuple[str, ...], depth: int, name: str) -> Side:
    """A null node under these drivers, the first one on top; each may bring options: "raw,offset=4k"."""
    options, place = [], ""
    for driver in drivers:
        words = driver.split(",")
        options += [f"{place}{word}" for word in (f"driver={words[0]}", *words[1:])]
        place += "file."
    options += [f"{place}driver=null", f"{place}size=1G"]
    arguments = f"--via node --rw randread --bs 4k --iodepth {depth} --cpus 0 --allow-holes".split()
    return engine_bench(
        name, settings, "--image-opts", ",".join(options), *arguments,
        path=f"load generator → request layer → {' → '.join((*drivers, 'null'))}; latency on",
    )  # fmt: skip


def name_of(count: int) -> str:
    return f"{count} filter{'' if count == 1 else 's'}"


def times_ns(rates: Mapping[str, float]) -> list[tuple[int, float]]:
    return [(count, 1e9 / rates[name_of(count)]) for count in COUNTS]


def slope_ns(rates: Mapping[str, float]) -> float:
    counts, times = zip(*times_ns(rates), strict=True)
    return float(statistics.linear_regression(counts, times).slope)


def off_the_line_ns(rates: Mapping[str, float]) -> float:
    counts, times = zip(*times_ns(rates), strict=True)
    line = statistics.linear_regression(counts, times)
    return max(abs(float(t - line.intercept - line.slope * n)) for n, t in zip(counts, times, strict=True))


def passthrough(settings: Settings, depth: int) -> Comparison:
    sides = [side(settings, ("passthrough",) * count, depth, name_of(count)) for count in COUNTS]
    return Comparison(
        f"do-nothing filters over a null node, depth {depth}",
        sides[0],
        tuple(Peer(each) for each in sides[1:]),
        derived=(
            Derived("each filter adds", "ns", slope_ns, at_most=20),
            Derived("farthest from the line", "ns", off_the_line_ns),
        ),
    )


def added(settings: Settings, driver: str, title: str, depth: int, at_most: float | None) -> Comparison:
    subject = side(settings, (driver,), depth, "with it")
    bare = side(settings, (), depth, "without")
    figure = Derived("it adds", "ns", lambda rates: 1e9 / rates["with it"] - 1e9 / rates["without"])
    if at_most is not None:
        figure = Derived(figure.name, figure.unit, figure.of, at_most=at_most)
    return Comparison(f"{title} over a null node, depth {depth}", subject, (Peer(bare),), derived=(figure,))


def at_depth(depth: int) -> Callable[[Settings], Comparison]:
    return lambda settings: passthrough(settings, depth)


SUITE = {
    **{f"depth-{depth}": at_depth(depth) for depth in (1, 4, 16, 64)},
    "raw": lambda settings: added(settings, "raw", "raw", 64, None),
    "throttle-unlimited": lambda settings: added(settings, "throttle", "throttle without limits", 64, 50),
    "throttle-far": lambda settings: added(
        settings, f"throttle,limits.bps-total={LIMIT_FAR_AWAY},limits.iops-total={LIMIT_FAR_AWAY}",
        "throttle with two limits far away", 64, 50,
    ),
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
