"""Python callables run by native threads: what a native pointer leads to, and the one way in.

Only a context's own thread calls in here, one callback at a time for each context. A target is kept alive by
its native object's `Handle.keep`, or, where it runs once, by `_pending`.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from engine._handle import Handle, here
from engine._native import ffi, lib

RUN, FIRED, CANCELLED = lib.ENGINE_PYTHON_RUN, lib.ENGINE_PYTHON_FIRED, lib.ENGINE_PYTHON_CANCELLED
READABLE, WRITABLE = lib.ENGINE_PYTHON_READABLE, lib.ENGINE_PYTHON_WRITABLE


def native(name: str) -> Any:
    """The address of a C function of the cffi module."""
    return ffi.addressof(lib, name)


class Target:
    """What an `opaque` leads to: functions by event, and the context on which they run."""

    __slots__ = ("context", "functions", "label", "look")

    def __init__(
        self,
        context: Handle,
        label: str,
        functions: dict[int, Callable[[], object]],
        look: Callable[[], object] | None = None,
    ) -> None:
        self.context = address_of(context), context_name(context)
        self.label = label
        self.functions = functions
        self.look = look


def address_of(context: Handle) -> int:
    return int(ffi.cast("uintptr_t", context.pointer))


def context_name(context: Handle) -> str:
    return context.label.removeprefix("context ").strip("'\"")


@ffi.def_extern()  # type: ignore[untyped-decorator]
def engine_python_call(opaque: Any, event: int) -> None:
    target: Target = ffi.from_handle(opaque)
    function = target.functions.get(event)
    if function is None:
        return
    here.context = target.context
    try:
        function()
    except BaseException as error:
        report(error, f"context {target.context[1]!r}: {target.label}")
        raise
    finally:
        here.context = None


@ffi.def_extern()  # type: ignore[untyped-decorator]
def engine_python_look(opaque: Any) -> int:
    target: Target = ffi.from_handle(opaque)
    here.context = target.context
    try:
        return int(bool(target.look is not None and target.look()))
    except BaseException as error:
        report(error, f"context {target.context[1]!r}: {target.label}")
        raise  # and cffi answers 0: no work
    finally:
        here.context = None


def report(error: BaseException, label: str) -> None:
    """An exception that has nobody to go to, for the log, where one is set up; cffi takes it to
    `sys.unraisablehook`. The loop goes on whatever a handler does."""
    with suppress(BaseException):
        error.add_note(f"in {label}")
        logging = sys.modules.get("logging")  # not loaded: there is no handler either
        if logging is not None and logging.getLogger("engine").hasHandlers():
            logging.getLogger("engine").error("%s raised %r", label, error, exc_info=error)


_pending: dict[int, Any] = {}  # what runs once, by address: until it has


def run_once(context: Handle, function: Callable[[], object], label: str) -> int:
    """Under `in_use()` of the context. 0: it will run; else it never will."""

    def run() -> None:
        _pending.pop(key, None)
        function()

    pointer = ffi.new_handle(Target(context, label, {RUN: run}))
    key = int(ffi.cast("uintptr_t", pointer))
    _pending[key] = pointer
    remember(context)
    result = int(lib.engine_schedule_oneshot(context.pointer, native("engine_python_bh"), pointer))
    if result < 0:
        _pending.pop(key, None)
    return result


_contexts: dict[int, Handle] = {}  # those with callbacks, by id


def remember(context: Handle) -> None:
    """Callbacks may run on it from here on: at the end of the interpreter it must be heard no more."""
    if id(context) not in _contexts:
        for key, other in list(_contexts.items()):
            if other.closed:
                _contexts.pop(key, None)
        _contexts[id(context)] = context


def _stop_listening() -> None:
    """After all engines had their turn: one that could not be closed goes on without Python.

    A thread that waits for the GIL of an interpreter that is gone is ended in the midst of native code.
    """
    lib.engine_python_listens = 0
    for context in list(_contexts.values()):
        if not context.closed and not context.foreign:
            lib.engine_context_barrier(context.pointer)


atexit.register(_stop_listening)  # before any engine does so for itself, hence called after all of them
