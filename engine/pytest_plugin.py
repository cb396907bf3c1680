"""A pytest fixture by which a project guards the speed of its storage, on pytest-benchmark.

    def test_the_cache_is_quick(storage_benchmark):
        storage_benchmark("cache.img", rw="randread", bs="4k", iodepth=32, count=50_000)

pytest-benchmark keeps the times (`--benchmark-autosave`) and fails a run that has become slower
(`--benchmark-compare --benchmark-compare-fail=median:10%`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from engine.histogram import Histogram
    from engine.workload import Workload


@dataclass(frozen=True)
class Measured:
    """All rounds together. Latencies in ns, of reads and writes."""

    requests: int
    seconds: float  # in which they were made
    latency: Histogram

    @property
    def iops(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


class StorageBenchmark:
    """Callable once in a test. What it opens is closed at the test's end."""

    def __init__(self, benchmark: Any, stack: ExitStack) -> None:
        self._benchmark = benchmark
        self._stack = stack

    def __call__(
        self,
        target: str | os.PathLike[str] | Mapping[str, Any],
        *,
        rw: str = "randread",
        bs: int | str = "4k",
        iodepth: int = 32,
        count: int = 20_000,
        rounds: int = 5,
        cpu: int | None = None,
        **workload: Any,
    ) -> Measured:
        """Makes `count` requests in each of `rounds` rounds, after one that does not count, from one context,
        pinned to `cpu` where that is given. Where pytest-benchmark is disabled (--benchmark-disable, or more
        than one process of pytest-xdist) there is one round, and it counts.

        `target` is a file, or options of a block node as `Engine.open` takes them, in a dictionary. More
        options of the workload are those of `Engine.workload`. Raises what these raise, and OSError where
        a request fails.
        """
        import engine

        eng = self._stack.enter_context(engine.Engine())
        context = eng.add_context("storage", cpus=None if cpu is None else [cpu])
        reads = rw in ("read", "randread")
        options: dict[str, Any] = {"driver": "file", "filename": target}
        if isinstance(target, Mapping):
            options = dict(target)
        options.setdefault("read-only", reads)
        node = self._stack.enter_context(eng.open(**options))
        done: list[Any] = []

        def setup() -> tuple[tuple[Workload], dict[str, Any]]:
            return (
                eng.workload(node, rw=rw, bs=bs, iodepth=iodepth, count=count, context=context, **workload),
            ), {}

        def run(work: Workload) -> None:
            work.start()
            work.wait()
            done.append(work.result())
            work.close()
            if done[-1].errors:
                raise OSError(done[-1].error_errno, os.strerror(done[-1].error_errno), str(target))

        self._benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=1)
        measured = self._sum(done[1:] or done)
        p50, p99 = measured.latency.percentiles((50, 99))
        self._benchmark.extra_info.update(
            iops=round(measured.iops, 1),
            p50_ns=p50,
            p99_ns=p99,
            rw=rw,
            bs=str(bs),
            iodepth=iodepth,
            count=count,
        )
        return measured

    @staticmethod
    def _sum(results: list[Any]) -> Measured:
        from engine.histogram import Histogram

        latency = Histogram()
        for result in results:
            latency.merge(result.read_latency)
            latency.merge(result.write_latency)
        requests = sum(result.reads + result.writes for result in results)
        return Measured(requests, sum(result.seconds for result in results), latency)


@pytest.fixture
def storage_benchmark(benchmark: Any) -> Iterator[StorageBenchmark]:
    """See StorageBenchmark. Needs pytest-benchmark."""
    with ExitStack() as stack:
        yield StorageBenchmark(benchmark, stack)
