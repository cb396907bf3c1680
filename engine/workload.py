"""The load generator: made, started, waited for and asked from Python; its requests are native throughout.

Any thread; the GIL is released.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine._bindings import check, integer, struct
from engine._handle import Handle, Owner
from engine._native import lib
from engine.errors import invalid
from engine.histogram import Histogram
from engine.stats import record_of
from engine.trace import Traces, read_traces
from engine.units import parse_size, parse_time_ns

if TYPE_CHECKING:
    from engine.core import Engine

# rw: (pattern, share of reads in percent; None: rwmixread)
PATTERNS: dict[str, tuple[int, int | None]] = {
    "read": (lib.ENGINE_SEQUENTIAL, 100),
    "write": (lib.ENGINE_SEQUENTIAL, 0),
    "rw": (lib.ENGINE_SEQUENTIAL, None),
    "readwrite": (lib.ENGINE_SEQUENTIAL, None),
    "randread": (lib.ENGINE_RANDOM, 100),
    "randwrite": (lib.ENGINE_RANDOM, 0),
    "randrw": (lib.ENGINE_RANDOM, None),
}
MAX_IODEPTH = 65536
MAX_BLOCK_SIZE = 2**30
_WAIT_SLICE_NS = 100_000_000  # how long Ctrl-C may have to wait


@dataclass(frozen=True, slots=True)
class WorkloadResult:
    """What a workload has done; a snapshot while it is running. Times are ns on the engine's clock."""

    running: bool
    open_loop: bool  # issued at a rate; latencies count from the intended start
    reads: int  # completed
    writes: int
    bytes_read: int
    bytes_written: int
    flushes: int
    errors: int
    error_errno: int  # of the first request that failed; 0: none
    error_offset: int
    verify_errors: int
    late: int  # open loop: issued after the intended start, because iodepth was full
    unissued: int  # open loop: due and never issued; among the latencies, with their wait until the end
    started_ns: int
    ended_ns: int  # now, while it is running; 0 before it is started
    depth: list[int]  # requests submitted at depth 1, 2, 4, 8, 16, 32, 64, and 128 or more (by the floor)
    read_latency: Histogram  # empty without `latency`
    write_latency: Histogram
    discards: int
    bytes_discarded: int
    flush_latency: Histogram
    discard_latency: Histogram

    @property
    def seconds(self) -> float:
        return max(0, self.ended_ns - self.started_ns) / 1e9

    @property
    def iops(self) -> float:
        """Reads and writes per second; 0.0 before any time has passed."""
        return (self.reads + self.writes) / self.seconds if self.seconds else 0.0


class Workload(Owner):
    """A stream of requests over a node, a user or a virtqueue. Keeps what it works on open."""

    def __init__(self, engine: Engine, target: object, handle: Handle) -> None:
        self._engine = engine
        self._target = target
        self._handle = handle

    def start(self) -> None:
        """Begins. A workload runs once: InvalidArgument when it has been started before."""
        error = struct("engine_error")
        with self._handle.in_use():
            check(lib.engine_workload_start(self._handle.check(), error), error, "start", self._handle.label)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is over, at most `timeout` seconds; False when it is still running then.

        InvalidArgument before `start()`.

        Ctrl-C is heard within 100 ms; the workload goes on, and `stop()`, `wait()`, `result()` give what it
        has done so far.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            slice_ns = _WAIT_SLICE_NS
            if deadline is not None:
                slice_ns = max(0, min(slice_ns, int((deadline - time.monotonic()) * 1e9)))
            with self._handle.in_use():
                result = lib.engine_workload_wait(self._handle.check(), slice_ns)
            if result == -errno.EINVAL:
                raise invalid(f"{self._handle.label} has not been started: there is nothing to wait for", "")
            if result != -errno.ETIMEDOUT:
                check(result, None, "wait", self._handle.label)
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def stop(self) -> None:
        """No new requests; those in flight complete. Does not wait: see `wait`."""
        with self._handle.in_use():
            check(lib.engine_workload_stop(self._handle.check()), None, "stop", self._handle.label)

    def result(self) -> WorkloadResult:
        """At any time: what it has done so far."""
        native = struct("engine_workload_result")
        with self._handle.in_use():
            check(
                lib.engine_workload_get_result(self._handle.check(), native),
                None,
                "get result",
                self._handle.label,
            )
        return record_of(
            WorkloadResult,
            native,
            running=bool(native.running),
            open_loop=bool(native.open_loop),
            error_errno=native.error_errnum,
            reads=native.requests[0],
            writes=native.requests[1],
            bytes_read=native.bytes[0],
            bytes_written=native.bytes[1],
            depth=list(native.depth),
            read_latency=Histogram.from_native(native.latency_ns[0]),
            write_latency=Histogram.from_native(native.latency_ns[1]),
            bytes_discarded=native.discard_bytes,
            flush_latency=Histogram.from_native(native.flush_latency_ns),
            discard_latency=Histogram.from_native(native.discard_latency_ns),
        )

    def traces(self) -> Traces:
        """Of one with `trace` that is not running any more: what became of the requests that were drawn.

        ConflictError while it is running.
        """
        with self._handle.in_use():
            return read_traces(self._handle.check(), self._handle.label)

    def close(self) -> None:
        """Stops it, waits for what is in flight, and closes; idempotent. `result()` is gone then."""
        self._handle.close()

    def __repr__(self) -> str:
        return f"<Workload: {self._handle.label}{', closed' if self.closed else ''}>"


def configure(
    *,
    rw: str | None,
    bs: int | str,
    iodepth: int,
    count: int,
    runtime: float | str,
    rate_iops: int,
    seed: int,
    rwmixread: int,
    offset: int | str,
    length: int | str,
    flush_every: int,
    latency: bool,
    verify: bool,
    trace: int = 0,
    replay: bool = False,
) -> Any:
    """An `engine_workload_config` from checked arguments, without target, context and recording."""
    if replay:
        _refuse_beside_replay(rw, rate_iops, flush_every, verify)
        rw = "read"
    if rw not in PATTERNS:
        raise invalid(f"rw: {rw!r} is not one of {', '.join(PATTERNS)}", "rw")
    config = struct("engine_workload_config")
    config.pattern, percent = PATTERNS[rw]
    config.read_percent = integer(rwmixread, "rwmixread", high=100) if percent is None else percent
    config.block_size = integer(_size(bs), "bs", 1, MAX_BLOCK_SIZE)
    config.iodepth = integer(iodepth, "iodepth", 1, MAX_IODEPTH)
    config.count = integer(count, "count")
    config.runtime_ns = _runtime_ns(runtime)
    if not config.count and not config.runtime_ns and not replay:
        raise invalid("count, runtime: one of them must be given, or it would never end", "runtime")
    config.rate_iops = integer(rate_iops, "rate_iops", high=10**9)
    config.seed = integer(seed, "seed", high=2**64 - 1)
    config.offset = integer(_size(offset), "offset")
    config.length = integer(_size(length), "length")
    config.flush_every = integer(flush_every, "flush_every", high=2**32 - 1)
    config.trace_every = integer(trace, "trace", high=2**31)
    config.flags = 0 if latency else lib.ENGINE_WORKLOAD_NO_LATENCY
    config.flags |= lib.ENGINE_WORKLOAD_VERIFY if verify else 0
    return config


def _refuse_beside_replay(rw: str | None, rate_iops: int, flush_every: int, verify: bool) -> None:
    given = {"rw": rw, "rate_iops": rate_iops, "flush_every": flush_every, "verify": verify}
    for name, value in given.items():
        if value:
            raise invalid(f"{name}: does not go with replay, which says what is done and when", name)


def _size(value: int | str) -> int:
    return parse_size(value) if isinstance(value, str) else value


def _runtime_ns(runtime: float | str) -> int:
    if isinstance(runtime, str):
        return parse_time_ns(runtime)
    if not 0 <= runtime <= 1e9:  # also refuses NaN
        raise invalid(f"runtime: must be from 0 to 10^9 seconds, not {runtime!r}", "runtime")
    return int(runtime * 1e9)


def make_workload(engine: Engine, config: Any, target: object, label: str, keep: object = None) -> Workload:
    """What `Engine.workload` does once target and context are set. Under `in_use()` of both. `keep`: what the
    configuration points to."""
    instance = engine._handle.check()
    handle = Handle.make(
        "engine_workload_t",
        lambda out, error: lib.engine_workload_create(instance, config, out, error),
        lib.engine_workload_close,
        label,
        engine._handle,
        with_error=False,
    )
    handle.keep = keep
    return Workload(engine, target, handle)
