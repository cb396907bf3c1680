"""One request of a driver in Python: from native memory to the driver's method, and its outcome back.

A job belongs to the thread that took it. Its memory is the request's own: it stays until the job is
completed, and longer where the driver kept a view of it.
"""

from __future__ import annotations

import errno
import inspect
import sys
import weakref
from collections.abc import AsyncIterable, Callable, Iterable
from itertools import islice
from typing import Any

from engine._native import ffi, lib
from engine.blockio import Extent
from engine.driver import PASS_ON, BlockDriver, DriverRequest
from engine.stats import OPERATIONS

NAMES = {number: name for name, number in OPERATIONS.items()}
METHODS = {  # by operation; the first that the driver has
    "read": ("pread_into", "pread"),
    "write": ("pwrite",),
    "flush": ("flush",),
    "discard": ("discard",),
    "write_zeroes": ("write_zeroes",),
    "resize": ("resize",),
    "block_status": ("extents",),
}
_MAX_ERRNO = 4095


class Methods:
    """The driver's methods by operation, and what their signatures say they can."""

    def __init__(self, driver: BlockDriver) -> None:
        self.driver = driver
        self.batch: Callable[..., Any] | None = getattr(driver, "submit_batch", None)
        self.by_op: dict[str, tuple[str, Callable[..., Any]]] = {}
        for op, names in METHODS.items():
            for name in names:
                method = getattr(driver, name, None)
                if callable(method):
                    self.by_op[op] = name, method
                    break
        self.fua = self._takes("write", "fua")
        self.may_unmap = self._takes("write_zeroes", "may_unmap")

    def _takes(self, op: str, parameter: str) -> bool:
        _, method = self.by_op.get(op, ("", None))
        return method is not None and parameter in inspect.signature(method).parameters

    @property
    def asynchronous(self) -> bool:
        functions = [method for _, method in self.by_op.values()] + ([self.batch] if self.batch else [])
        return any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in functions)


class Wrong(OSError):
    """The driver's answer makes no sense."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EIO, text)


class Job:
    """`begin` calls the driver and gives back what it returned, `end` or `fail` says what came of it."""

    __slots__ = (
        "_buffer",
        "_extents",
        "_methods",
        "_view",
        "base",
        "capacity",
        "fails",
        "flags",
        "id",
        "keeps",
        "length",
        "message",
        "method",
        "offset",
        "op",
        "passes_on",
        "request",
        "result",
    )

    def __init__(self, methods: Methods, native: Any) -> None:
        self._methods = methods
        self.id: int = native.id
        self.op = NAMES[native.op]
        self.flags: int = native.flags
        self.offset: int = native.offset
        self.length: int = native.length
        self.capacity: int = native.extent_capacity
        self._extents = native.extents
        self.base = native.iov[0].base if self.op in ("read", "write") else None
        self._buffer: Any = None
        self._view: memoryview | None = None
        self.method = self.op
        self.request: DriverRequest | None = None
        self.result = 0
        self.message = ""
        self.keeps = self.passes_on = False
        self.fails: BaseException | None = None  # a mistake of the driver's, to be logged

    def view(self) -> memoryview:
        self._buffer = ffi.buffer(self.base, self.length)
        view = memoryview(self._buffer)
        self._view = view.toreadonly() if self.op == "write" else view
        return self._view

    def begin(self) -> Any:
        """What the driver's method returns: a value, or something to await."""
        name, method = self._methods.by_op.get(self.op, ("", None))
        if method is None:
            return self._without_method()
        self.method = name
        match name:
            case "pread_into":
                return method(self.view(), self.offset)
            case "pwrite":
                fua = {"fua": bool(self.flags & lib.ENGINE_FUA)} if self._methods.fua else {}
                return method(self.view(), self.offset, **fua)
            case "flush":
                return method()
            case "resize":
                return method(self.offset)
            case "extents":
                return method(self.offset, self.length)
            case "write_zeroes" if self._methods.may_unmap:
                return method(self.length, self.offset, may_unmap=bool(self.flags & lib.ENGINE_MAY_UNMAP))
            case _:
                return method(self.length, self.offset)

    def _without_method(self) -> Any:
        if self.op == "block_status":
            return [Extent(self.offset, self.length, data=True, zero=False, unwritten=False)]
        if self.op == "flush":
            return None
        raise NotImplementedError(f"{type(self._methods.driver).__name__} has no method for {self.op}")

    def in_batch(self) -> DriverRequest:
        self.method = "submit_batch"
        self.request = DriverRequest(
            self.op,
            self.offset,
            self.length,
            self.view() if self.base is not None else None,
            bool(self.flags & lib.ENGINE_MAY_UNMAP),
        )
        return self.request

    def end(self, value: Any) -> None:
        """With what the method returned."""
        if value is PASS_ON:
            self.passes_on = True
        elif self.op == "block_status":
            self._put_extents(value)
        elif self.op == "read" and self.method == "pread":
            self._put_data(value)
        elif self.base is not None and value is not None and value != self.length:
            raise Wrong(f"returned {value!r}: not the {self.length} bytes asked for, nor None")

    def end_in_batch(self) -> None:
        request = self.request
        assert request is not None
        if request.error is not None:
            raise request.error
        if request.pass_on:
            self.passes_on = True
        elif self.op == "block_status":
            self._put_extents(request.extents)

    def _put_data(self, value: Any) -> None:
        try:
            view = memoryview(value)
        except TypeError:
            raise Wrong(f"returned {type(value).__name__}: bytes are needed") from None
        with view:
            if view.nbytes != self.length:
                raise Wrong(f"returned {view.nbytes} bytes instead of {self.length}")
            if self.length:
                ffi.memmove(self.base, view, self.length)

    def _put_extents(self, value: Any) -> None:
        if not isinstance(value, Iterable):
            raise Wrong(f"returned {type(value).__name__}: an iterable of Extent is needed")
        end, count = self.offset + self.length, 0
        within = (e for e in value if _checked(e).start + e.length > self.offset)
        for extent in islice(within, self.capacity):
            if extent.start >= end:
                break
            start = max(extent.start, self.offset)
            native = self._extents[count]
            native.offset = start
            native.length = min(extent.start + extent.length, end) - start
            native.flags = (
                (lib.ENGINE_EXTENT_DATA if extent.data else 0)
                | (lib.ENGINE_EXTENT_ZERO if extent.zero else 0)
                | (lib.ENGINE_EXTENT_UNWRITTEN if extent.unwritten else 0)
            )
            count += 1
            if native.offset + native.length >= end:
                break
        self.result = count

    def fail(self, error: BaseException) -> None:
        """With the exception that the method raised."""
        number, text = errno.EIO, str(error)
        if isinstance(error, OSError):
            known = isinstance(error.errno, int) and 0 < error.errno <= _MAX_ERRNO
            number = error.errno if known and error.errno else _errno_of(error)
            text = error.strerror or text
        elif isinstance(error, NotImplementedError):
            number = errno.ENOTSUP
        elif isinstance(error, MemoryError):
            number = errno.ENOMEM
        else:
            self.fails = error
            text = f"{type(error).__name__}: {text}"
        self.result = -number
        self.message = " ".join(f"{self.method}: {text or type(error).__name__}".split())

    def release(self) -> None:
        """The driver is done with the memory; or else it stays until its last view goes."""
        if self.request is not None:
            self.request.buffer = None
        if self._view is None:
            return
        try:
            self._view.release()
        except BufferError:  # an array on the view itself
            self.keeps = True
        self._view = None
        if sys.getrefcount(self._buffer) > 2:  # the attribute, and the argument
            self.keeps = True
        if not self.keeps:
            self._buffer = None

    def completed(self) -> None:
        """The native side knows by now that the memory is kept, if it is."""
        if self._buffer is not None:
            weakref.finalize(self._buffer, lib.engine_external_release, self.base).atexit = False
            self._buffer = None


def _checked(extent: Any) -> Extent:
    if not isinstance(extent, Extent):
        raise Wrong(f"gave {type(extent).__name__} as an extent: engine.Extent is needed")
    return extent


def _errno_of(error: OSError) -> int:
    return errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.EIO


async def collect(value: AsyncIterable[Any], most: int) -> list[Any]:
    """The first items of an asynchronous iterable of extents: as many as one answer holds, or more."""
    items = []
    async for item in value:
        items.append(item)
        if len(items) > most:
            break
    return items
