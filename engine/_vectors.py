"""Arrays of offsets and results for `read_many` and `write_many`, as NumPy has them; taken and given without
a copy where their elements are 64-bit integers, and without importing it.

A Vector belongs to one call.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from engine._bindings import MAX_BYTES, integer, struct
from engine._buffers import view_of
from engine._native import ffi, lib
from engine.errors import invalid

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAX_IODEPTH = 1024
_WORDS = frozenset("qQlLnN")  # formats of 64-bit integers here
_INTEGERS = frozenset("bBhHiI") | _WORDS
_OFFSETS = ffi.typeof("uint64_t[]")
_RESULTS = ffi.typeof("int64_t[]")


def _flat(buffer: ReadableBuffer, field: str) -> memoryview | None:
    """A view of integers, or None where the object has no buffer protocol. TypeError for other elements."""
    try:
        view = memoryview(buffer)
    except TypeError:
        return None
    if view.format.lstrip("@=<") not in _INTEGERS:
        raise TypeError(f"{field}: integers are needed, not elements of format {view.format!r}")
    return view


def _is_words(view: memoryview) -> bool:
    return view.itemsize == 8 and view.format.lstrip("@=<") in _WORDS and view.c_contiguous


def offsets_of(offsets: Iterable[int] | ReadableBuffer) -> Any:
    """What has 64-bit integers in one piece as it is; anything else as a new array."""
    view = _flat(offsets, "offsets")  # type: ignore[arg-type]
    if view is not None and _is_words(view):
        return view
    if view is not None:
        if view.ndim != 1:
            raise TypeError(
                "offsets: an array of several dimensions needs 64-bit integers, contiguous in memory"
            )
        return array("q", view.tolist())
    return array("q", [integer(offset, "offsets") for offset in offsets])  # type: ignore[union-attr]


class Vector:
    """An `engine_many` over buffer, offsets and results, which stay exported until `release()`."""

    __slots__ = ("_exports", "_shape", "count", "length", "native", "results", "stop")

    def __init__(
        self,
        operation: str,
        buffer: Any,
        offsets: Iterable[int] | ReadableBuffer,
        length: int,
        *,
        iodepth: int,
        errors: str,
        out: Any,
        flags: int = 0,
    ) -> None:
        if errors not in ("raise", "return"):
            raise invalid(f"errors: 'raise' or 'return', not {errors!r}", "errors")
        reading = operation == "read"
        self._exports: list[Any] = []
        self.stop = errors == "raise"
        self.length = integer(length, "length")
        self._shape = getattr(offsets, "shape", None) if _is_numpy(offsets) else None
        words = offsets_of(offsets)
        self.count = memoryview(words).nbytes // 8
        self.results = self._result_array(out)
        native = struct("engine_many")
        try:
            view = view_of(buffer, reading)
            self._exports.append(view)
            if self.length * self.count > min(view.nbytes, MAX_BYTES):
                raise invalid(
                    f"buffer: {self.count} times {self.length} bytes do not fit in {view.nbytes} bytes",
                    "buffer",
                )
            native.buffer = self._export(ffi.from_buffer(view, require_writable=reading))
            native.offsets = self._export(ffi.from_buffer(_OFFSETS, words))
            native.results = self._export(ffi.from_buffer(_RESULTS, self.results, require_writable=True))
        except BaseException:
            self.release()
            raise
        native.op = lib.ENGINE_OP_READ if reading else lib.ENGINE_OP_WRITE
        native.count = self.count
        native.length = self.length
        native.iodepth = integer(iodepth, "iodepth", 1, MAX_IODEPTH)
        native.flags = flags
        native.stop_at_failure = self.stop
        self.native = native

    def _result_array(self, out: Any) -> Any:
        if out is None:
            return array("q", bytes(8 * self.count))
        view = _flat(out, "out")
        if view is None or not _is_words(view) or view.readonly or view.nbytes != 8 * self.count:
            raise invalid(f"out: a writable array of {self.count} 64-bit integers is needed", "out")
        return out

    def _export(self, pointer: Any) -> Any:
        self._exports.append(pointer)
        return pointer

    def part(self, start: int, count: int) -> Any:
        """An `engine_many` for `count` of the parts from `start` on."""
        native = struct("engine_many")
        ffi.memmove(native, self.native, ffi.sizeof("engine_many"))
        native.buffer = ffi.cast("char *", native.buffer) + start * self.length
        native.offsets += start
        native.results += start
        native.count = count
        return native

    def outcome(self) -> Any:
        """The array of results, in the kind and shape that the offsets came in."""
        if self._shape is None or not isinstance(self.results, array):
            return self.results
        return sys.modules["numpy"].frombuffer(self.results, dtype="i8").reshape(self._shape)

    def release(self) -> None:
        while self._exports:  # pointers before the views under them
            export = self._exports.pop()
            if isinstance(export, memoryview):
                export.release()
            else:
                ffi.release(export)

    def __enter__(self) -> Vector:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _is_numpy(thing: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(thing, numpy.ndarray)
