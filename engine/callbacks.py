"""Python callables on an AioContext: bottom halves, timers, descriptors. They run on the context's own
thread.

While one runs, that context does nothing else: it must be short, and what would block it is refused. An
exception goes to `sys.unraisablehook` and to the logger "engine"; the loop goes on. The objects may be used
from any thread.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from engine import _callbacks
from engine._bindings import NULL, check, integer, struct
from engine._callbacks import CANCELLED, FIRED, READABLE, RUN, WRITABLE, Target, native
from engine._handle import Handle, Owner
from engine._native import ffi, lib
from engine.errors import Closed, LimitExceeded, invalid
from engine.units import parse_time_ns

if TYPE_CHECKING:
    from engine.context import AioContext

Function = Callable[[], object]
MAX_DELAY_S = 10**9


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def delay_ns(delay: float | str) -> int:
    """Seconds, or a text with its unit, as nanoseconds."""
    if isinstance(delay, str):
        return parse_time_ns(delay)
    if not 0 <= delay <= MAX_DELAY_S:  # also refuses NaN
        raise invalid(f"delay: must be from 0 to 10^9 seconds, not {delay!r}", "delay")
    return int(delay * 1e9)


def _callable(function: Any, field: str) -> Any:
    if not callable(function):
        raise TypeError(f"{field}: something to call is needed, not {type(function).__name__}")
    return function


def _named(function: object) -> str:
    return str(getattr(function, "__qualname__", None) or repr(function))


def _adopt(context: Handle, pointer: Any, delete: Any, label: str, keep: Any) -> Handle:
    """A new native object that belongs to a context. Under `in_use()` of it and of its closer."""
    if pointer == NULL:
        raise LimitExceeded(errno.ENOMEM, f"{label}: out of memory")
    free = partial(delete, context.pointer)
    handle = Handle(pointer, free, label, context.closer, with_error=False)
    handle.home = _callbacks.address_of(context)
    handle.keep = keep
    _callbacks.remember(context)
    return handle


def schedule_bh(context: Handle, function: Function) -> None:
    label = f"bottom half {_named(_callable(function, 'function'))}"
    with context.in_use():
        context.check()
        check(_callbacks.run_once(context, function, label), None, "schedule", context.label)


class BottomHalf(Owner):
    """A callable that any thread schedules, as often as it likes.

    Scheduling it again before it has begun to run adds nothing. Dropping it unclosed warns, and closes it.
    """

    def __init__(self, context: AioContext, function: Function) -> None:
        label = f"bottom half {_named(_callable(function, 'function'))}"
        home = context._handle
        keep = ffi.new_handle(Target(home, label, {RUN: function}))
        with home.in_use(), home.closer.in_use():
            home.closer.check()
            home.check()
            pointer = lib.engine_bh_new(home.pointer, native("engine_python_bh"), keep)
            self._handle = _adopt(home, pointer, lib.engine_python_delete_bh, label, keep)
        self._context = context

    @property
    def context(self) -> AioContext:
        return self._context

    def schedule(self) -> None:
        """It will run, once. Closed when the context is closed."""
        with self._handle.in_use():
            check(lib.engine_bh_schedule(self._handle.check()), None, "schedule", self._handle.label)

    def cancel(self) -> None:
        """Takes back a schedule that has not begun to run."""
        with self._handle.in_use():
            lib.engine_bh_cancel(self._handle.check())

    def close(self) -> None:
        """It does not run any more when this returns; idempotent. A callback may close itself."""
        self._handle.close()

    def __repr__(self) -> str:
        return f"<BottomHalf {self._handle.label}{' closed' if self.closed else ''}>"


class Timer(Owner):
    """A callable that runs when a deadline has passed; it can be armed again and again.

    The function is called, without arguments, only when the timer fires. Dropping it unclosed warns, and
    closes it.
    """

    def __init__(self, context: AioContext, function: Function) -> None:
        label = f"timer {_named(_callable(function, 'function'))}"
        home = context._handle
        keep = ffi.new_handle(Target(home, label, {FIRED: function}))
        with home.in_use(), home.closer.in_use():
            home.closer.check()
            home.check()
            pointer = lib.engine_timer_new(home.pointer, native("engine_python_timer"), keep)
            self._handle = _adopt(home, pointer, lib.engine_python_delete_timer, label, keep)
        self._context = context

    @property
    def context(self) -> AioContext:
        return self._context

    def arm(self, delay: float | str) -> None:
        """Fires after `delay`, seconds or "5ms". One that is armed gets the new deadline instead."""
        deadline = lib.engine_now_ns() + delay_ns(delay)
        with self._handle.in_use():
            check(lib.engine_timer_arm(self._handle.check(), deadline), None, "arm", self._handle.label)

    def cancel(self) -> None:
        """Disarms it. From another thread than its context's it may fire while this is under way."""
        with self._handle.in_use():
            check(lib.engine_timer_cancel(self._handle.check()), None, "cancel", self._handle.label)

    def close(self) -> None:
        """Disarms it: it does not fire any more when this returns. Idempotent; a callback may do it."""
        self._handle.close()

    def __repr__(self) -> str:
        return f"<Timer {self._handle.label}{' closed' if self.closed else ''}>"


class DelayedCall:
    """One call to come, of `AioContext.call_later`. It needs no closing, and comes whether this is kept or
    not.
    """

    def __init__(self, context: AioContext, delay: float | str, function: Function) -> None:
        label = f"delayed call of {_named(_callable(function, 'function'))}"
        deadline = lib.engine_now_ns() + delay_ns(delay)
        home = context._handle
        self._function: Function | None = function
        self._state = "waiting"
        keep = ffi.new_handle(Target(home, label, {FIRED: self._fire, CANCELLED: self._give_up}))
        with home.in_use(), home.closer.in_use():
            home.closer.check()
            home.check()
            pointer = lib.engine_timer_new(home.pointer, native("engine_python_delay"), keep)
            self._handle = _adopt(home, pointer, lib.engine_python_delete_timer, label, keep)
            result = lib.engine_timer_arm(pointer, deadline)
        if result < 0:
            self._handle.close()
            check(result, None, "arm", label)

    def _fire(self) -> None:
        function, self._function, self._state = self._function, None, "fired"
        try:
            if function is not None:
                function()
        finally:
            self._handle.close()

    def _give_up(self) -> None:
        self._function, self._state = None, "cancelled"
        self._handle.close()

    @property
    def state(self) -> str:
        """ "waiting", "fired" (it has begun to run) or "cancelled": the last two are final."""
        return self._state

    def cancel(self) -> None:
        """It is not called, unless it has begun to run or does so while this is under way; see `state`."""
        with suppress(Closed), self._handle.in_use():
            check(lib.engine_timer_cancel(self._handle.check()), None, "cancel", self._handle.label)

    def __repr__(self) -> str:
        return f"<DelayedCall {self._handle.label}, {self._state}>"


class FdHandler(Owner):
    """Callables for a descriptor that is watched, level-triggered. It must stay open until this is closed.

    Dropping it unclosed warns, and closes it.
    """

    def __init__(
        self,
        context: AioContext,
        fd: int | HasFileno,
        on_read: Function | None,
        on_write: Function | None,
        poll: Function | None,
    ) -> None:
        number = integer(fd if isinstance(fd, int) else fd.fileno(), "fd", high=2**31 - 1)
        functions: dict[int, Function] = {}
        if on_read is not None:
            functions[READABLE] = _callable(on_read, "on_read")
        if on_write is not None:
            functions[WRITABLE] = _callable(on_write, "on_write")
        if poll is not None:
            _callable(poll, "poll")
        label = f"handler of descriptor {number}"
        home = context._handle
        out, error = ffi.new("engine_fd_handler_t **"), struct("engine_error")
        target = Target(home, label, functions, poll)
        keep = ffi.new_handle(target)
        with home.in_use(), home.closer.in_use():
            home.closer.check()
            home.check()
            result = lib.engine_fd_handler_new(
                home.pointer,
                number,
                native("engine_python_readable") if on_read is not None else NULL,
                native("engine_python_writable") if on_write is not None else NULL,
                native("engine_python_poll") if poll is not None else NULL,
                keep,
                out,
                error,
            )
            check(result, error, "watch descriptor", label)
            self._handle = _adopt(home, out[0], lib.engine_python_delete_fd_handler, label, keep)
        self._context = context
        self._file = fd  # an object that closes its descriptor when it is dropped must not be

    @property
    def context(self) -> AioContext:
        return self._context

    def close(self) -> None:
        """No callback runs any more when this returns; idempotent. A callback may close its own handler."""
        self._handle.close()

    def __repr__(self) -> str:
        return f"<FdHandler {self._handle.label}{' closed' if self.closed else ''}>"
