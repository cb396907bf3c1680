"""What the native core has to say, into `logging` (logger "engine").

Native threads put records into a bounded native queue and never take the GIL for them; while any engine is
open a sleeping Python thread of the package empties it. (Delivery at the next call into the engine would come
late or never in a program that waits in one long call, and for just those records that matter: a broken
queue, a failed flush.) `logging` itself is imported with the first record.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from engine._bindings import struct, text
from engine._native import lib
from engine._threads import join

_FOR_EVER = 2**64 - 1


class _Delivery:
    """`lock` guards the rest. At the fork another thread may hold it: the child starts with a new one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.stopping = threading.Event()  # of the thread
        self.thread: threading.Thread | None = None


_delivery = _Delivery()


def _after_fork() -> None:
    global _delivery
    _delivery = _Delivery()


os.register_at_fork(after_in_child=_after_fork)


def hold() -> Callable[[], None]:
    """Records are delivered from here on, until what is returned is called."""
    delivery = _delivery
    with delivery.lock:
        delivery.holders += 1
        if delivery.thread is None:
            lib.engine_log_open()
            delivery.stopping = threading.Event()
            delivery.thread = threading.Thread(
                target=_deliver, args=(delivery.stopping,), name="engine-log", daemon=True
            )
            delivery.thread.start()

    def let_go() -> None:
        with delivery.lock:
            delivery.holders -= 1
            thread = delivery.thread
            if delivery.holders or thread is None:
                return
            delivery.stopping.set()
            lib.engine_log_wake()
            if thread is not threading.current_thread():  # else it ends by itself, soon
                join(thread)
            delivery.thread = None
            lib.engine_log_close()

    return let_go


def _deliver(stopping: threading.Event) -> None:
    record = struct("engine_log_record")
    while True:
        if lib.engine_log_take(record, 0 if stopping.is_set() else _FOR_EVER):
            with suppress(Exception):  # a filter of the user's, say
                _emit(record.level, text(record.message), record.time_ns)
        elif stopping.is_set():
            return


def _emit(level: int, message: str, time_ns: int) -> None:
    import logging

    logger = logging.getLogger("engine")
    if not logger.isEnabledFor(level):
        return
    entry = logger.makeRecord(logger.name, level, "(native)", 0, message, (), None)
    entry.created, entry.msecs = time_ns / 1e9, time_ns // 1_000_000 % 1000
    logger.handle(entry)
