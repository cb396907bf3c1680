"""Buffers on their way to native code, without a copy: kept alive, and not to be resized, while a call runs.

An IoVector belongs to one call on one thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from engine._native import ffi

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_IOVECS = ffi.typeof("engine_iovec[]")


def view_of(buffer: object, writable: bool) -> memoryview:
    """A flat view of any object with the buffer protocol. TypeError where there is none, or it is read-only;
    BufferError where its memory is not contiguous."""
    try:
        view = memoryview(buffer)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"a bytes-like object is needed, not {type(buffer).__name__}") from None
    if writable and view.readonly:
        raise TypeError(f"a writable buffer is needed to read into, not a read-only {type(buffer).__name__}")
    if not view.c_contiguous:
        raise BufferError(
            f"the memory of this {type(buffer).__name__} is not contiguous: pass a contiguous copy"
        )
    return view


def exported(buffer: object, writable: bool) -> Any:
    """A pointer to the memory of a buffer, exported until `ffi.release()`. Raises as `view_of` does."""
    try:
        return ffi.from_buffer(buffer, require_writable=writable)
    except (TypeError, BufferError):
        view_of(buffer, writable).release()  # says why
        raise


def aligned_view(nbytes: int, alignment: int) -> memoryview:
    """Zeroed memory that starts at a multiple of `alignment`, a power of two."""
    if alignment <= 1 or not nbytes:
        return memoryview(bytearray(nbytes))
    memory = bytearray(nbytes + alignment - 1)
    with ffi.from_buffer(memory) as pointer:
        skip = -int(ffi.cast("uintptr_t", pointer)) % alignment
    return memoryview(memory)[skip : skip + nbytes]


class IoVector:
    """An array of `engine_iovec` over buffers, which stay exported until the `with` block ends."""

    __slots__ = ("_pointers", "_views", "array", "count", "nbytes")

    def __init__(self, buffers: Iterable[WriteableBuffer] | Iterable[ReadableBuffer], writable: bool) -> None:
        self._views: list[memoryview] = []
        self._pointers: list[Any] = []
        self.nbytes = 0
        entries = []
        try:
            for buffer in buffers:
                view = view_of(buffer, writable)
                self._views.append(view)
                pointer = ffi.from_buffer(view, require_writable=writable)
                self._pointers.append(pointer)
                entries.append((pointer, view.nbytes))
                self.nbytes += view.nbytes
        except BaseException:
            self.release()
            raise
        self.count = len(entries)
        self.array = ffi.new(_IOVECS, entries)

    def release(self) -> None:
        for pointer in self._pointers:  # before the view under it
            ffi.release(pointer)
        for view in self._views:
            view.release()

    def __enter__(self) -> IoVector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
