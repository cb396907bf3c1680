"""Block drivers and filters written in Python: what a user's class looks like. `engine._serve` serves it.

A driver's methods run on threads of its own, never on a context's; what they share they guard themselves.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from engine.blockio import BlockIO, Extent


class _PassOn(enum.Enum):
    PASS_ON = enum.auto()


PASS_ON: Final = _PassOn.PASS_ON


class BlockDriver:
    """A block driver in Python: subclass it, and open a node on it with `Engine.open_driver`.

    It has `size`, bytes (a filter: that of its child unless given), and any of these methods, each either
    plain or `async def`:

        pread(length, offset) -> bytes          or  pread_into(buffer, offset)
        pwrite(data, offset)                    with a parameter `fua`, it is durable when that is true
        flush()                                 without it, nothing is kept back
        discard(length, offset)
        write_zeroes(length, offset)            with a parameter `may_unmap`, space may be given back
        resize(size)
        extents(offset, length) -> iterable of engine.Extent, from offset on; without it, all is data
        submit_batch(requests)                  all that is there at once, instead of these: `DriverRequest`
        close()                                 when the node is closed and nothing is under way any more

    Plain methods run on `workers` threads; with any `async def` all of them run in an asyncio loop on one
    thread, as many at a time as there are requests, so that plain ones among them must not block.

    `buffer` and `data` are memory of the request: memoryviews, good during the call and released after it. A
    slice or array made from one that outlives the call keeps the memory, and reaches the request no more.

    An exception fails the request: with its errno if it is an OSError that has one, with ENOTSUP for
    NotImplementedError, else with EIO; its text is in the request's error. What is not an OSError is also
    logged, with its traceback. Without `pwrite` the node is read-only.

    A filter (`file=` at open) has `child`, for I/O of its own. What it does not define goes to the child
    natively; and so does, as it came, a request whose method returns `PASS_ON`. But zeroes are written by its
    `pwrite` where it has one, and of a filter that reads differently the child's extents say nothing;
    `forward` overrules that.
    """

    PASS_ON: Final = PASS_ON
    size: int
    request_alignment: int = 1  # of offsets and lengths, bytes
    memory_alignment: int = 1  # of buffers, bytes
    max_transfer: int | None = None  # of a read or write, bytes
    ops: Iterable[str] | None = None  # served; None: those with a method; submit_batch: read, write, flush
    forward: Iterable[str] | None = None  # a filter's: what goes to the child; None: as said above
    child: BlockIO  # a filter's, from open on
    node_name: str = ""  # from open on
    _served = False  # by threads, until they are done


class DriverRequest:
    """One request of a batch. It has succeeded when `submit_batch` returns, unless `error` has been set.

    op: "read", "write", "flush", "discard", "write_zeroes", "resize", "block_status". offset, length: bytes;
    resize: offset is the new size. buffer: of a read to be filled, of a write to be read. extents: to be set,
    the answer to "block_status". pass_on: set it and a filter's request goes on to the child.
    """

    __slots__ = ("buffer", "error", "extents", "length", "may_unmap", "offset", "op", "pass_on")

    def __init__(self, op: str, offset: int, length: int, buffer: memoryview | None, may_unmap: bool) -> None:
        self.op = op
        self.offset = offset
        self.length = length
        self.buffer = buffer
        self.may_unmap = may_unmap
        self.extents: Iterable[Extent] = ()
        self.error: BaseException | None = None
        self.pass_on = False

    def __repr__(self) -> str:
        return f"<DriverRequest {self.op}, {self.length} bytes at {self.offset}>"
