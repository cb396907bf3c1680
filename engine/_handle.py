"""Lifetime of native objects: who owns which, who is using one right now, and when it may be freed.

A thread uses an object under a lock of its own (one for each thread and handle: threads do not contend); who
closes sets the state first and then takes each of these locks once. The locks are entered and left by C code,
so a signal cannot leave one behind. In the child of a fork nothing here touches a lock or a native object.
"""

from __future__ import annotations

import atexit
import enum
import errno
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from engine._bindings import FOREVER, NULL, check, struct
from engine._native import ffi, lib
from engine.errors import Closed, Conflict, EngineError, InvalidArgument


class _State(enum.Enum):
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


_CLOSED = _State.CLOSED  # a lookup less where every request asks


class _Here(threading.local):
    """On a context's thread, while it runs a Python callback: the native address and name of that context."""

    context: tuple[int, str] | None = None


here = _Here()


def refuse_in_callback(label: str, operation: str) -> None:
    """Before a lock is taken that another thread may hold while it waits for this context."""
    if here.context is not None:
        raise in_callback(label, operation)


def in_callback(label: str, operation: str) -> EngineError:
    _, name = here.context or (0, "?")
    return InvalidArgument(
        errno.EDEADLK,
        f"{label}: {operation} would block context {name}, on whose own thread it was called: "
        "call it from another thread",
        operation=operation,
    )


class Handle:
    """One native object, and the native function that frees it, or refuses and leaves it as it was.

    Children are closed before it, newest first. They are held strongly, the Python objects in front of them
    are not: so the order of closing does not depend on the order in which Python drops things. What has no
    function of its own (`free` is None) goes with its parent. What has no parent is closed at exit, because
    native threads must have ended before the process does.
    """

    __slots__ = (
        "_closer",
        "_free",
        "_locks",
        "_parent",
        "_pid",
        "_settle",
        "_state",
        "_with_error",
        "children",
        "home",
        "interrupt",
        "keep",
        "label",
        "pointer",
        "queues",
        "then",
    )

    def __init__(
        self,
        pointer: Any,
        free: Callable[..., int] | None,
        label: str,
        parent: Handle | None = None,
        with_error: bool = True,
        settle: Callable[[Handle], None] | None = None,
    ) -> None:
        self.pointer = pointer
        self.label = label  # "node 'disk'"
        self.children: dict[int, Handle] = {}  # by id, in order of making
        self.interrupt: Callable[[Any], object] | None = None  # makes a call that waits on it return
        self.home: int | None = None  # address of the context whose callbacks may close it
        self.keep: Any = None  # what the native object points to: lives until it is freed
        self.then: Callable[[], None] | None = None  # called once, after it has been freed
        # The completion queues of the engine: one list for all that belongs to it.
        self.queues: list[Handle] = [] if parent is None else parent.queues
        self._settle = settle  # called before it is freed, when nobody can use it any more
        self._free = free
        self._with_error = with_error  # `free` takes an error object
        self._parent = parent
        self._pid = os.getpid()
        self._state = _State.OPEN
        self._closer = threading.RLock()
        self._locks: dict[int, threading.RLock] = {}  # by thread; as many as threads that used it
        if parent is not None:
            parent.children[id(self)] = self
        else:
            atexit.register(self.dropped)

    @classmethod
    def make(
        cls,
        kind: str,
        create: Callable[[Any, Any], int],
        free: Callable[..., int],
        label: str,
        parent: Handle | None = None,
        with_error: bool = True,
        settle: Callable[[Handle], None] | None = None,
    ) -> Handle:
        """Calls `create(out, error)`; out is a `kind **`. The caller holds `in_use()` of the parent."""
        out, error = ffi.new(f"{kind} **"), struct("engine_error")
        try:
            check(create(out, error), error, f"make {label}")
            return cls(out[0], free, label, parent, with_error, settle)
        except BaseException:  # Ctrl-C just after the native call returned
            if out[0] != NULL:
                free(out[0], *((NULL,) if with_error else ()))
            raise

    @property
    def closed(self) -> bool:
        return self._state is _CLOSED

    @property
    def closer(self) -> Handle:
        """The handle that closes what belongs to this one: itself, or its parent where it has no function."""
        return self if self._free is not None or self._parent is None else self._parent

    @property
    def foreign(self) -> bool:
        """True in a child of the process that made it."""
        return os.getpid() != self._pid

    def in_use(self) -> threading.RLock:
        """The lock to hold while using the object: `with handle.in_use(): handle.check(); lib.…`."""
        if os.getpid() != self._pid:
            raise Closed(
                errno.EBADF,
                f"{self.label} belongs to process {self._pid} and cannot be used after fork(): "
                "make a new engine in the child",
            )
        thread = threading.get_ident()
        lock = self._locks.get(thread)
        return lock if lock is not None else self._locks.setdefault(thread, threading.RLock())

    def check(self) -> Any:
        """Under `in_use()`: the pointer, which stays good until that lock is let go; or raises."""
        if self._state is not _State.OPEN:
            raise Closed(errno.EBADF, f"{self.label} is closed")
        return self.pointer

    def close(self) -> None:
        """Waits for calls in flight, closes the children, frees. Idempotent; a refusal leaves it open."""
        if self.foreign:
            self._state = _State.CLOSED  # there is nothing in this process to free
            return
        if self._free is None:
            return
        if here.context is None:
            with self._closer:
                freed = self._close()
        elif self.home != here.context[0]:
            if not self.closed:
                raise in_callback(self.label, "close")
            return
        elif self._closer.acquire(blocking=False):
            try:
                freed = self._close()
            finally:
                self._closer.release()
        else:
            return  # another thread is at it, and waits for this one
        if not freed:
            return
        if self._parent is not None:
            self._parent.children.pop(id(self), None)
        else:
            atexit.unregister(self.dropped)
        self.keep, then, self.then = None, self.then, None
        if then is not None:
            then()

    def _close(self) -> bool:
        """Under `_closer`. False: it is closed; or closing further up this very stack, from a signal handler
        or a finalizer.
        """
        if self._state is not _State.OPEN or self._free is None:
            return False
        outcome: list[int] = []
        error = struct("engine_error")
        arguments = (self.pointer, error) if self._with_error else (self.pointer,)
        both = [self]
        try:
            _set_state(both, _State.CLOSING)
            self._interrupt()
            self._drain()
            # While it closes nobody can add to them: who makes a child holds `in_use()` of its parent.
            for child in reversed(list(self.children.values())):
                child.close()
            # Last those that go with it: a call in flight on the others may need them, as a filter in Python
            # its child.
            both += [child for child in self.children.values() if child._free is None]
            _set_state(both, _State.CLOSING)
            for handle in both[1:]:
                handle._interrupt()
                handle._drain()
            if self._settle is not None:
                self._settle(self)
            # One step of the interpreter: Ctrl-C comes before it or after it, with the outcome known.
            outcome.extend(map(self._free, *((argument,) for argument in arguments)))
            check(outcome[0], error, "close", self.label)
        finally:
            freed = bool(outcome) and outcome[0] >= 0
            _set_state(both, _State.CLOSED if freed else _State.OPEN)
        return True

    def _interrupt(self) -> None:
        if self.interrupt is not None:
            self.interrupt(self.pointer)

    def _drain(self) -> None:
        """Until no thread is inside a call that saw the object open."""
        own = self._locks.get(threading.get_ident())
        if own is not None and own._is_owned():  # type: ignore[attr-defined]
            raise Conflict(
                errno.EDEADLK, f"{self.label} cannot be closed from within a call on it (a signal handler?)"
            )
        for lock in list(self._locks.values()):
            with lock:
                pass

    def dropped(self, source: object = None) -> None:
        """The Python object went away, or the interpreter is going: closes what was open, and warns."""
        if self._state is not _State.OPEN or self.foreign or not self._closer.acquire(blocking=False):
            return  # closed, not ours to close, or another thread is at it
        try:
            with suppress(EngineError):  # what is still in use closes with the engine
                self.close()
        finally:
            self._closer.release()
        warnings.warn(f"unclosed {self.label}", ResourceWarning, stacklevel=3, source=source)


def settle_user(handle: Handle) -> None:
    """Waits for what a user has in flight on completion queues: natively, whatever its event loop does."""
    _wait_for(handle, handle.pointer, NULL)


def settle_context(handle: Handle) -> None:
    """The same for what is in flight on a context."""
    _wait_for(handle, NULL, handle.pointer)


def _wait_for(handle: Handle, user: Any, context: Any) -> None:
    for queue in list(handle.queues):
        with queue._closer, queue.in_use():  # one that is closing waits by itself, and is closed then
            if not queue.closed:
                result = lib.engine_cq_wait(queue.pointer, user, context, FOREVER, NULL)
                check(result, None, "close", handle.label)


def _set_state(handles: list[Handle], state: _State) -> None:
    for handle in handles:
        handle._state = state


class Closeable:
    """A Python object in front of a native one, to be closed."""

    _handle: Handle

    @property
    def closed(self) -> bool:
        return self._handle.closed

    def close(self) -> None:
        """Waits for calls in flight and closes; idempotent. Conflict, naming its users, while it has any."""
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Owner(Closeable):
    """One that nothing else leads to: dropping it closes the native object, with a ResourceWarning."""

    def __del__(self) -> None:
        handle: Handle | None = getattr(self, "_handle", None)  # not there when __init__ failed
        if handle is not None:
            handle.dropped(self)
