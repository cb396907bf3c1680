"""Copying one node to another: made, started, waited for and asked from Python; the copying is native.

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
from engine.node import PERMISSIONS, permission_bits
from engine.stats import record_of
from engine.units import parse_size

if TYPE_CHECKING:
    from engine.core import Engine

MAX_CHUNK_SIZE = 2**30
MAX_CHUNKS = 1024
_WAIT_SLICE_NS = 100_000_000  # how long Ctrl-C may have to wait


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far a copy is; a snapshot while it runs. Sizes in bytes, times in ns on the engine's clock."""

    running: bool
    total: int
    done: int  # data and zeroes together
    data_bytes: int  # read and written
    zero_bytes: int  # known to be zero: written as zeroes, or left out
    started_ns: int  # 0 before it is started
    ended_ns: int  # now, while it is running

    @property
    def seconds(self) -> float:
        return max(0, self.ended_ns - self.started_ns) / 1e9


class Copy(Owner):
    """A copy from node to node. Keeps both open, and holds its permissions on them until it is closed."""

    def __init__(self, engine: Engine, nodes: tuple[object, object], handle: Handle) -> None:
        self._engine = engine
        self._nodes = nodes
        self._handle = handle

    def start(self) -> None:
        """Begins. A copy runs once: InvalidArgument when it has been started before."""
        error = struct("engine_error")
        with self._handle.in_use():
            check(lib.engine_copy_start(self._handle.check(), error), error, "start", self._handle.label)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until all is copied and flushed, at most `timeout` seconds; False: still running then.

        The first failure is raised, with its node and offset; EngineError with ECANCELED after `cancel()`;
        InvalidArgument before `start()`. Ctrl-C is heard within 100 ms; the copy goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        error = struct("engine_error")
        while True:
            slice_ns = _WAIT_SLICE_NS
            if deadline is not None:
                slice_ns = max(0, min(slice_ns, int((deadline - time.monotonic()) * 1e9)))
            with self._handle.in_use():
                result = lib.engine_copy_wait(self._handle.check(), slice_ns, error)
            if result == -errno.EINVAL and not error.kind:
                raise invalid(f"{self._handle.label} has not been started: there is nothing to wait for", "")
            if result != -errno.ETIMEDOUT or error.kind:
                check(result, error, "copy", self._handle.label)
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def run(self) -> CopyProgress:
        """Starts it, waits for its end, and tells what it did."""
        self.start()
        self.wait()
        return self.progress()

    def cancel(self) -> None:
        """Begins nothing new; what is in flight completes. Does not wait: see `wait`."""
        with self._handle.in_use():
            check(lib.engine_copy_cancel(self._handle.check()), None, "cancel", self._handle.label)

    def progress(self) -> CopyProgress:
        """At any time: how far it is."""
        native = struct("engine_copy_progress")
        with self._handle.in_use():
            check(
                lib.engine_copy_get_progress(self._handle.check(), native),
                None,
                "get progress",
                self._handle.label,
            )
        return record_of(CopyProgress, native, running=bool(native.running))

    def close(self) -> None:
        """Cancels it, waits for what is in flight, and closes; idempotent."""
        self._handle.close()

    def __repr__(self) -> str:
        return f"<Copy: {self._handle.label}{', closed' if self.closed else ''}>"


def configure(
    *,
    offset: int | str,
    length: int | str,
    chunk_size: int | str,
    chunks: int,
    detect_zeroes: bool,
    target_is_zero: bool,
    exclusive: bool,
) -> Any:
    """An `engine_copy_config` from checked arguments, without nodes and context."""
    config = struct("engine_copy_config")
    config.offset = integer(_size(offset), "offset")
    config.length = integer(_size(length), "length")
    config.chunk_size = integer(_size(chunk_size), "chunk_size", high=MAX_CHUNK_SIZE)
    config.chunks = integer(chunks, "chunks", high=MAX_CHUNKS)
    config.flags = lib.ENGINE_COPY_DETECT_ZEROES if detect_zeroes else 0
    config.flags |= lib.ENGINE_COPY_TARGET_IS_ZERO if target_is_zero else 0
    if not exclusive:
        config.source_shared = config.target_shared = permission_bits(PERMISSIONS, "shared")
    return config


def _size(value: int | str) -> int:
    return parse_size(value) if isinstance(value, str) else value


def make_copy(engine: Engine, config: Any, nodes: tuple[object, object], label: str) -> Copy:
    """What `Engine.copy` does once nodes and context are set. Under `in_use()` of all of them."""
    instance = engine._handle.check()
    handle = Handle.make(
        "engine_copy_t",
        lambda out, error: lib.engine_copy_create(instance, config, out, error),
        lib.engine_copy_close,
        label,
        engine._handle,
        with_error=False,
    )
    return Copy(engine, nodes, handle)
