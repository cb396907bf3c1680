"""Blocking I/O and block status: what nodes and their users share. Any thread; the GIL is released."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine._bindings import MAX_BYTES, NULL, check, integer, struct
from engine._buffers import IoVector, aligned_view
from engine._handle import Handle
from engine._native import ffi, lib
from engine._vectors import Vector
from engine.errors import invalid
from engine.stats import OPERATIONS

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from engine.context import AioContext
    from engine.core import Engine

HARMLESS = ("read", "flush", "block_status")
EXTENTS_AT_A_TIME = 128
_PARTS_AT_A_TIME = 16384  # of read_many: Ctrl-C is heard in between
_COPIED_AT_A_TIME = 256 << 20  # bytes, for the same reason
_CHECK_SIZE_FROM = (
    1 << 26
)  # bytes; a buffer from this size on is not made before the range is known to be good


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of a node, in bytes, that is alike throughout."""

    start: int
    length: int
    data: bool  # it has data of its own in this node
    zero: bool  # it reads as zeroes
    unwritten: bool  # allocated, never written: reads as zeroes


class BlockIO:
    """Reading and writing, which nodes and users have in common.

    Offsets and lengths are bytes. `context`, an AioContext or its name, is where the request runs; `main`
    unless given. All may raise EngineError with the errno of the failure; InvalidArgument for a range beyond
    the end; RefusedByPolicy without the permission; Closed after close. Any offset, length and buffer will
    do; those that are aligned as `info` says spare a copy, and a write also a read and a wait:
    `engine.Buffer` is memory that is aligned for `cache.direct`.
    """

    _engine: Engine
    _alignment: int  # of buffers, bytes

    def _user(self, writing: bool) -> Handle:
        raise NotImplementedError

    @property
    def size(self) -> int:
        raise NotImplementedError

    def pread(self, length: int, offset: int, *, context: AioContext | str | None = None) -> bytes:
        """Reads `length` bytes at `offset`."""
        length, offset = checked_range(length, offset)
        data = self._new_buffer(length, offset)
        with IoVector((data,), writable=True) as vector:
            self._transfer("read", vector, offset, 0, context)
        return bytes(data)

    def _new_buffer(self, length: int, offset: int) -> memoryview:
        """For a read: aligned, and zeroed, so that what a driver leaves alone is no old memory."""
        if length >= _CHECK_SIZE_FROM and offset + length > self.size:
            raise invalid(
                f"read of {length} bytes at offset {offset} reaches beyond the end ({self.size} bytes)",
                "length",
            )
        return aligned_view(length, self._alignment)

    def pread_into(
        self, buffer: WriteableBuffer, offset: int, *, context: AioContext | str | None = None
    ) -> int:
        """Fills a writable buffer from `offset`, without a copy. Returns its size in bytes."""
        with IoVector((buffer,), writable=True) as vector:
            return self._transfer("read", vector, offset, 0, context)

    def preadv(
        self, buffers: Iterable[WriteableBuffer], offset: int, *, context: AioContext | str | None = None
    ) -> int:
        """Fills at most 1024 buffers, one after another, in one request. Returns their size in bytes."""
        with IoVector(buffers, writable=True) as vector:
            return self._transfer("read", vector, offset, 0, context)

    def pwrite(
        self,
        data: ReadableBuffer,
        offset: int,
        fua: bool = False,
        *,
        context: AioContext | str | None = None,
    ) -> int:
        """Writes a buffer at `offset`, without a copy. fua: durable before it returns. Returns its size."""
        with IoVector((data,), writable=False) as vector:
            return self._transfer("write", vector, offset, lib.ENGINE_FUA if fua else 0, context)

    def pwritev(
        self,
        buffers: Iterable[ReadableBuffer],
        offset: int,
        fua: bool = False,
        *,
        context: AioContext | str | None = None,
    ) -> int:
        """Writes at most 1024 buffers, one after another, in one request. Returns their size in bytes."""
        with IoVector(buffers, writable=False) as vector:
            return self._transfer("write", vector, offset, lib.ENGINE_FUA if fua else 0, context)

    def read_many(
        self,
        buffer: WriteableBuffer,
        offsets: Iterable[int] | ReadableBuffer,
        length: int,
        context: AioContext | str | None = None,
        iodepth: int = 64,
        *,
        errors: str = "raise",
        out: Any = None,
    ) -> Any:
        """Reads `length` bytes at each of `offsets` into `buffer`, one after another, natively.

        offsets: integers; an array of 64-bit ones (NumPy's default) is read where it lies. iodepth: parts in
        flight, 1 to 1024. Returns an array of int64, one for each offset: a NumPy array where the offsets
        were one, else an `array.array`; or `out`, if given. errors: "raise" begins nothing more after the
        first failure and raises it; "return" tries all, and failures are -errno in the result.
        """
        with Vector("read", buffer, offsets, length, iodepth=iodepth, errors=errors, out=out) as vector:
            return self._many("read", vector, context)

    def write_many(
        self,
        buffer: ReadableBuffer,
        offsets: Iterable[int] | ReadableBuffer,
        length: int,
        context: AioContext | str | None = None,
        iodepth: int = 64,
        *,
        fua: bool = False,
        errors: str = "raise",
        out: Any = None,
    ) -> Any:
        """Writes `length` bytes of `buffer` at each of `offsets`: see `read_many`.

        Parts that overlap may be written in any order. fua: each is durable before it counts as done.
        """
        flags = lib.ENGINE_FUA if fua else 0
        with Vector(
            "write", buffer, offsets, length, iodepth=iodepth, errors=errors, out=out, flags=flags
        ) as vector:
            return self._many("write", vector, context)

    def _many(self, operation: str, vector: Vector, context: AioContext | str | None) -> Any:
        user, error = self._user(operation == "write"), struct("engine_error")
        target = self._engine._context_handle(context)
        for start in range(0, vector.count, _PARTS_AT_A_TIME):
            part = vector.part(start, min(_PARTS_AT_A_TIME, vector.count - start))
            with target.in_use() if target else nullcontext(), user.in_use():
                result = lib.engine_user_many(user.check(), target.check() if target else NULL, part, error)
            check(result, error, f"{operation} many", user.label)
        return vector.outcome()

    def flush(self, *, context: AioContext | str | None = None) -> None:
        """Writes that have completed are durable when it returns."""
        self._request("flush", 0, 0, 0, context)

    def discard(self, length: int, offset: int, *, context: AioContext | str | None = None) -> None:
        """Says that a range is not needed any more; its content is undefined afterwards."""
        length, offset = checked_range(length, offset)
        self._request("discard", offset, length, 0, context)

    def write_zeroes(
        self,
        length: int,
        offset: int,
        may_unmap: bool = False,
        no_fallback: bool = False,
        fua: bool = False,
        *,
        context: AioContext | str | None = None,
    ) -> None:
        """Makes a range read as zeroes.

        may_unmap: space may be given back. no_fallback: Unsupported rather than writing a buffer of zeroes.
        """
        length, offset = checked_range(length, offset)
        flags = zeroes_flags(may_unmap, no_fallback, fua)
        self._request("write_zeroes", offset, length, flags, context)

    def resize(self, size: int, *, context: AioContext | str | None = None) -> None:
        """Sets the size in bytes; what is added reads as zeroes. Needs the permission `resize`."""
        self._request("resize", integer(size, "size"), 0, 0, context)

    def copy_range(
        self,
        source: BlockIO,
        length: int,
        source_offset: int,
        offset: int,
        *,
        context: AioContext | str | None = None,
    ) -> None:
        """Copies `length` bytes at `source_offset` of another node, or of a user of one, to `offset` of this.

        Where both ranges lie in files as they are the kernel copies, and may let the files share the blocks;
        else they are read and written, 1 MiB at a time. Ranges of one node may overlap. After a failure, or
        Ctrl-C, which is heard every 256 MiB, the target holds any mixture of old and new. For whole disks
        there is `Engine.copy`.
        """
        for part in self._copy_parts(source, length, source_offset, offset):
            self._copy_part(source, *part, context)

    def _copy_parts(
        self, source: BlockIO, length: int, source_offset: int, offset: int
    ) -> Iterator[tuple[int, int, int]]:
        """In the order in which they may overlap; as one, where a part of it is beyond an end."""
        length, offset = checked_range(length, offset)
        _, source_offset = checked_range(length, source_offset)
        if not isinstance(source, BlockIO) or source._engine is not self._engine:
            raise invalid("source: a node of the same engine, or a user of one, is needed", "source")
        if length <= _COPIED_AT_A_TIME or source_offset + length > source.size or offset + length > self.size:
            yield length, source_offset, offset
            return
        starts = range(0, length, _COPIED_AT_A_TIME)
        for start in reversed(starts) if offset > source_offset else starts:
            yield min(_COPIED_AT_A_TIME, length - start), source_offset + start, offset + start

    def _copy_part(
        self,
        source: BlockIO,
        length: int,
        source_offset: int,
        offset: int,
        context: AioContext | str | None,
    ) -> None:
        reader, writer, error = source._user(writing=False), self._user(writing=True), struct("engine_error")
        target = self._engine._context_handle(context)
        with target.in_use() if target else nullcontext(), reader.in_use(), writer.in_use():
            check(
                lib.engine_user_copy_range(
                    reader.check(),
                    source_offset,
                    writer.check(),
                    offset,
                    length,
                    target.check() if target else NULL,
                    error,
                ),
                error,
                "copy_range",
                writer.label,
            )

    def extents(
        self, offset: int = 0, length: int | None = None, *, context: AioContext | str | None = None
    ) -> Iterator[Extent]:
        """Block status from `offset`, for `length` bytes or to the end, in order and without gaps.

        Lazy: asks as it goes, 128 extents at a time. What changes meanwhile may be seen or not.
        """
        start, end = self._extent_range(offset, length)
        return self._extents(start, end, context)

    def _extent_range(self, offset: int, length: int | None) -> tuple[int, int]:
        offset = integer(offset, "offset")
        if length is None:
            length = max(0, self.size - offset)
        length, offset = checked_range(length, offset)
        return offset, offset + length

    def _extents(self, offset: int, end: int, context: AioContext | str | None) -> Iterator[Extent]:
        extents = ffi.new("engine_extent[]", EXTENTS_AT_A_TIME)
        user, error = self._user(writing=False), struct("engine_error")
        target = self._engine._context_handle(context)
        while offset < end:
            with target.in_use() if target else nullcontext(), user.in_use():
                count = check(
                    lib.engine_user_block_status(
                        user.check(),
                        target.check() if target else NULL,
                        offset,
                        end - offset,
                        extents,
                        EXTENTS_AT_A_TIME,
                        error,
                    ),
                    error,
                    "block status",
                    user.label,
                )
            if count == 0:
                return
            yield from extents_of(extents, count)
            offset = extents[count - 1].offset + extents[count - 1].length

    def _transfer(
        self, operation: str, vector: IoVector, offset: int, flags: int, context: AioContext | str | None
    ) -> int:
        _, offset = checked_range(vector.nbytes, offset)
        return self._request(operation, offset, vector.nbytes, flags, context, vector)

    def _request(
        self,
        operation: str,
        offset: int,
        length: int,
        flags: int,
        context: AioContext | str | None,
        vector: IoVector | None = None,
    ) -> int:
        user, error = self._user(operation not in HARMLESS), struct("engine_error")
        target = self._engine._context_handle(context)
        array, count = (NULL, 0) if vector is None else (vector.array, vector.count)
        with target.in_use() if target else nullcontext(), user.in_use():
            return check(
                lib.engine_user_io(
                    user.check(),
                    target.check() if target else NULL,
                    OPERATIONS[operation],
                    array,
                    count,
                    offset,
                    length,
                    flags,
                    error,
                ),
                error,
                operation,
                user.label,
            )


def zeroes_flags(may_unmap: bool, no_fallback: bool, fua: bool) -> int:
    flags = lib.ENGINE_MAY_UNMAP if may_unmap else 0
    flags |= lib.ENGINE_NO_FALLBACK if no_fallback else 0
    return int(flags | (lib.ENGINE_FUA if fua else 0))


def extents_of(native: Any, count: int) -> list[Extent]:
    """The first `count` of an array of `engine_extent`."""
    return [
        Extent(
            each.offset,
            each.length,
            bool(each.flags & lib.ENGINE_EXTENT_DATA),
            bool(each.flags & lib.ENGINE_EXTENT_ZERO),
            bool(each.flags & lib.ENGINE_EXTENT_UNWRITTEN),
        )
        for each in native[0:count]
    ]


def checked_range(length: int, offset: int) -> tuple[int, int]:
    if type(length) is type(offset) is int and length >= 0 and 0 <= offset <= MAX_BYTES - length:
        return length, offset
    length = integer(length, "length")
    offset = integer(offset, "offset")
    if offset > MAX_BYTES - length:
        raise invalid(f"offset: {length} bytes at offset {offset} reach beyond 2^63 - 1", "offset")
    return length, offset
