"""Requests at a rate, over a disk that stands still for a while: all that were due meanwhile are counted.

The exact counts, in virtual time, are in tests/native/test_open_loop.cc. Here time is real: what a delay must
cause at least is counted, which nothing that disturbs the machine can make less.
"""

from __future__ import annotations

import pytest
from reports import measured

import engine
from engine import cli
from engine.histogram import bucket_of
from engine.report.experiment_table import note_lines

RATE, DEPTH, FIRST = 2000, 32, 500  # requests a second; in flight; the first one that is held
STALL_MS = 400


def run(eng: engine.Engine, stall_ms: int, **options: float) -> engine.WorkloadResult:
    """Reads of a null node that holds DEPTH of them, from the FIRST on: all there are in flight."""
    rules = f"op=read,skip={FIRST},count={DEPTH},delay={stall_ms}ms"
    with (
        eng.open(driver="fault", rules=rules, file={"driver": "null", "size": "1M"}) as node,
        eng.workload(node, rw="randread", iodepth=DEPTH, **options) as workload,
    ):
        workload.start()
        assert workload.wait(60)
        return workload.result()


def at_least(result: engine.WorkloadResult, ms: float) -> int:
    """How many took so long, to the bucket."""
    wanted = bucket_of(int(ms * 1e6))
    return sum(count for low, _, count in result.read_latency.buckets() if bucket_of(low) >= wanted)


def test_an_open_loop_counts_what_was_due_during_a_stall(eng: engine.Engine) -> None:
    result = run(eng, STALL_MS, rate_iops=RATE, count=3000)
    assert (result.reads, result.read_latency.count, result.unissued) == (3000, 3000, 0)
    # Due in the first part of the stall, served after it.
    for share in (0.25, 0.5, 0.75):
        assert at_least(result, STALL_MS * (1 - share)) >= RATE * STALL_MS / 1000 * share
    assert result.read_latency.percentile(99) >= 0.9 * STALL_MS * 1e6


def test_a_closed_loop_hides_it(eng: engine.Engine) -> None:
    result = run(eng, STALL_MS, count=100_000)
    assert DEPTH <= at_least(result, STALL_MS) < RATE * STALL_MS / 1000
    assert result.read_latency.percentile(99) < 0.5 * STALL_MS * 1e6


def test_a_stall_to_the_end_is_counted(eng: engine.Engine) -> None:
    """All that fell due before time was up: those before the stall, those that are held, the rest."""
    result = run(eng, 1500, rate_iops=RATE, runtime=1.0)
    assert result.reads <= FIRST + DEPTH
    assert result.reads + result.unissued == RATE
    assert result.read_latency.count == RATE
    # The first that is held was due at 250 ms, so the end comes at 1750 ms or later.
    assert at_least(result, 700) >= RATE - FIRST


def test_the_table_says_what_was_never_started(capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--null 1g --null-latency 100ms --iodepth 1 --rate-iops 1000 --runtime 350ms --allow-debug-build"
    )
    assert cli.main(["bench", *options.split()]) == 0
    out = capsys.readouterr().out
    assert "never started      " in out
    assert cli.main(["bench", *options.replace("--rate-iops 1000", "").split()]) == 0
    assert "never started" not in capsys.readouterr().out


def test_a_note_says_what_was_never_started() -> None:
    data = measured()
    assert "never started" not in " ".join(note_lines(data))
    for run, number in zip(data["runs"][:2], (1234, 77), strict=True):
        run["record"]["engine"]["generators"][0]["unissued"] = number
        run["discarded"] = False
    assert "2 runs of an open loop ended with up to 1.23 k requests due" in " ".join(note_lines(data))
