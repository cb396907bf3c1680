"""AioContexts: event loops on threads of their own, pinned to CPUs, or driven by their caller; what they got,
and what they did. Any thread, but for run_once(); the loop itself is native.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine._bindings import check, integer, struct, text
from engine._handle import Closeable, Handle
from engine._native import lib
from engine.about import BACKENDS
from engine.callbacks import BottomHalf, DelayedCall, FdHandler, HasFileno, Timer, schedule_bh
from engine.stats import record_of

if TYPE_CHECKING:
    from engine.core import Engine

_BACKEND_NAMES = {number: name for name, number in BACKENDS.items()}
MAX_POLL_NS = 10**12
MAX_TIMEOUT_S = 10.0**9


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """What is so, read back from the kernel; never what was asked."""

    name: str
    backend: str  # "io_uring" or "threads"
    backend_reason: str  # its features, or the reason for a fallback
    effective_cpus: list[int]  # affinity of the thread
    worker_cpus: list[int]  # of its I/O workers; empty: none is running
    worker_count: int
    numa_node: int  # of the CPU that it last ran on; -1: unknown
    last_cpu: int
    tid: int
    poll_max_ns: int
    voluntary_switches: int
    involuntary_switches: int
    cpu_user_ns: int  # of the thread alone
    cpu_system_ns: int
    id: int  # in traces


@dataclass(frozen=True, slots=True)
class ContextStats:
    """Counters of the loop since it started; poll_current_ns alone is a state."""

    turns: int
    bottom_halves: int
    messages: int  # taken from the inbox
    ready_items: int  # run from the ready queue
    timers: int  # fired
    fd_events: int
    wakeups: int  # from sleep, by another thread
    sleeps: int
    system_calls: int  # of the loop's own making
    submitted: int  # operations handed to the kernel or a worker
    completed: int
    submit_batches: int
    offloaded: int  # operations run by the offload pool
    poll_attempts: int
    poll_successes: int
    poll_ns: int  # spent busy polling
    sleep_ns: int
    poll_current_ns: int  # the adaptive budget now
    lock_acquisitions: int  # of the engine's mutex; global mode only, as the next two
    lock_wait_ns: int
    lock_hold_ns: int


def cpus_of(words: Any) -> list[int]:
    """The numbers of the bits set in an array of 64-bit words."""
    return [64 * i + bit for i, word in enumerate(words) if word for bit in range(64) if word >> bit & 1]


class AioContext(Closeable):
    """An event loop, on a thread of its own or on that of whoever calls run_once(). Its engine owns it:
    dropping this object does not close it.
    """

    def __init__(self, engine: Engine, handle: Handle, name: str) -> None:
        self._engine = engine
        self._handle = handle
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def info(self) -> ContextInfo:
        """Affinity, NUMA node, backend and CPU time now, from the kernel."""
        info, error = struct("engine_context_info"), struct("engine_error")
        with self._handle.in_use():
            check(lib.engine_context_get_info(self._handle.check(), info, error), error, "get context info")
        return record_of(
            ContextInfo,
            info,
            name=text(info.name),
            backend=_BACKEND_NAMES.get(info.backend, str(info.backend)),
            backend_reason=text(info.backend_reason),
            effective_cpus=cpus_of(info.cpus),
            worker_cpus=cpus_of(info.worker_cpus),
        )

    @property
    def effective_cpus(self) -> list[int]:
        """The CPUs that its thread may run on, as the kernel says."""
        return self.info.effective_cpus

    def stats(self) -> ContextStats:
        stats = struct("engine_context_stats")
        with self._handle.in_use():
            check(
                lib.engine_context_get_stats(self._handle.check(), stats),
                None,
                "get stats",
                self._handle.label,
            )
        return record_of(ContextStats, stats)

    @property
    def poll_max_ns(self) -> int:
        """Longest busy poll before sleeping, in ns; 0: never polls. May be set at any time."""
        return self.info.poll_max_ns

    @poll_max_ns.setter
    def poll_max_ns(self, value: int) -> None:
        nanoseconds = integer(value, "poll_max_ns", high=MAX_POLL_NS)
        with self._handle.in_use():
            check(
                lib.engine_context_set_poll(self._handle.check(), nanoseconds),
                None,
                "set poll_max_ns",
                self._handle.label,
            )

    def run_once(self, timeout: float | None = None) -> bool:
        """Waits for work, at most `timeout` seconds (None: no limit; 0: not at all), and runs what there is.

        For a context made with `caller_driven=True`. True: something ran. The first call fixes the thread
        that drives it; on another one, Conflict. Blocking calls on that thread drive its contexts meanwhile.
        """
        nanoseconds = -1 if timeout is None else round(min(max(timeout, 0.0), MAX_TIMEOUT_S) * 1e9)
        error = struct("engine_error")
        with self._handle.in_use():
            ran = lib.engine_context_run_once(self._handle.check(), nanoseconds, error)
        return check(ran, error, "run context", self._handle.label) > 0

    def fileno(self) -> int:
        """Readable when `run_once(0)` has something to do, due timers included: for the loop that drives it.

        `loop.add_reader(context, context.run_once, 0)` is all that asyncio needs. Remove it before closing.
        """
        with self._handle.in_use():
            return check(lib.engine_context_fileno(self._handle.check()), None, "fileno", self._handle.label)

    # ---- Python on its thread ----

    def schedule_bh(self, function: Callable[[], object]) -> None:
        """Runs `function()` on its thread, once, soon; from any thread. Closed where it will never run.

        Keep it short: the context does nothing else meanwhile. What would block the context is refused in
        there (InvalidArgument with EDEADLK). An exception goes to `sys.unraisablehook` and to the logger
        "engine".
        """
        schedule_bh(self._handle, function)

    def bottom_half(self, function: Callable[[], object]) -> BottomHalf:
        """As `schedule_bh`, to be scheduled again and again: `schedule()`, `cancel()`, `close()`."""
        return BottomHalf(self, function)

    def call_later(self, delay: float | str, function: Callable[[], object]) -> DelayedCall:
        """Runs `function()` on its thread after `delay`, seconds or a text such as "5ms".

        What is returned can cancel it, and need not be kept. Not called when cancelled, or when the context
        closes first.
        """
        return DelayedCall(self, delay, function)

    def timer(self, function: Callable[[], object]) -> Timer:
        """As `call_later`, to be armed again and again: `arm(delay)`, `cancel()`, `close()`."""
        return Timer(self, function)

    def fd_handler(
        self,
        fd: int | HasFileno,
        on_read: Callable[[], object] | None = None,
        on_write: Callable[[], object] | None = None,
        poll: Callable[[], object] | None = None,
    ) -> FdHandler:
        """Calls `on_read()` whenever `fd` is readable, `on_write()` when it is writable: level-triggered.

        poll: asked over and over while the context busy-polls (the GIL is taken each time); true where there
        is something to read already.
        """
        return FdHandler(self, fd, on_read, on_write, poll)

    def close(self) -> None:
        """Ends its thread; idempotent. Conflict, naming the users, while queues or workloads are attached.

        `main` lives as long as the engine: InvalidArgument.
        """
        if self._name != "main" or self._handle.foreign or self.closed:
            self._handle.close()
            return
        error = struct("engine_error")
        with self._handle.in_use():
            check(lib.engine_context_close(self._handle.check(), error), error, "close", self._handle.label)

    def __repr__(self) -> str:
        return f"<AioContext {self._name!r}{' closed' if self.closed else ''}>"
