"""Waiting for threads of the package to end. No state; any thread."""

from __future__ import annotations

import os
import threading
import time

_MOMENT_S = 1.0


def join(thread: threading.Thread, timeout: float | None = None) -> None:
    """Until the kernel's thread is gone too: `Thread.join` returns a moment earlier, and whoever counts
    threads after a close would see one more.
    """
    thread.join(timeout)
    end = time.monotonic() + _MOMENT_S
    path = f"/proc/self/task/{thread.native_id}"
    while not thread.is_alive() and os.path.exists(path) and time.monotonic() < end:
        time.sleep(0)
