"""Every comparison of bench/peers as a benchmark: what pytest-benchmark keeps are the subject's seconds
for 10⁶ requests, one round a pair; ratios, runs, versions and command lines stand in `extra_info`.

The benchmark's clock is not the wall's: it advances by what each run measured of itself, so that the
start of a program is no part of the figure. Single-threaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from harness import BenchError, Settings, Suite, compare, describe

SUITES = (
    "null_vs_qemu_img",
    "pagecache",
    "two_contexts",
    "global_mode",
    "threads_vs_uring",
    "uring_three",
    "direct_vs_fio",
    "generator_cost",
    "messages",
    "filters",
    "throttle",
    "read_many",
    "asyncio_reads",
)


class MeasuredTime:
    """A clock that stands still until a run says how long it took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


measured_time = MeasuredTime()


def suite_of(name: str) -> Suite:
    found: Suite = importlib.import_module(name).SUITE
    return found


POINTS = [(suite, point) for suite in SUITES for point in suite_of(suite)]


@pytest.mark.parametrize(("suite", "point"), POINTS, ids=[f"{suite}:{point}" for suite, point in POINTS])
@pytest.mark.benchmark(timer=measured_time, warmup=False)
def test_peers(
    suite: str,
    point: str,
    settings: Settings,
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    try:
        outcome = compare(suite_of(suite)[point](settings), settings)
    except BenchError as error:
        pytest.fail(str(error), pytrace=False)
    with capsys.disabled():
        print("\n" + "\n".join(describe(outcome)))

    rates: Iterator[float] = iter([each.subject.rate for each in outcome.kept])

    def run() -> None:
        measured_time.seconds += 1e6 / next(rates)

    benchmark.group = suite
    benchmark.extra_info.update(outcome.to_json())
    benchmark.pedantic(run, rounds=len(outcome.kept), iterations=1)
    missed = [asked for asked, met in outcome.marks() if not met]
    if missed and request.config.option.enforce:
        pytest.fail(f"below the mark: {'; '.join(missed)}", pytrace=False)
