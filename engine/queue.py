"""virtio-blk devices and their virtqueues: requests through the ring, statistics.

Any thread; the GIL is released.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from engine._bindings import NULL, check, integer, struct, text
from engine._buffers import IoVector
from engine._handle import Handle, Owner, refuse_in_callback
from engine._native import ffi, lib
from engine.errors import invalid
from engine.stats import OPERATIONS, OpStats, op_stats, record_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from engine.context import AioContext
    from engine.core import Engine
    from engine.node import BlockNode

SECTOR = 512  # bytes; offsets and lengths of a virtio-blk device are multiples of it
MAX_QUEUES = 1024
MAX_QUEUE_SIZE = 32768
MAX_REQUEST = 1 << 30  # bytes of one request through the ring
SERIAL_BYTES = 20


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Counters of one virtqueue, device side, since it was made; `op` by name of the operation."""

    broken: bool  # the driver broke the rules, and the queue takes nothing more
    error: str  # how; "" unless broken
    requests: int  # chains taken
    completed: int
    kicks: int  # notifications received
    calls: int  # notifications sent
    polls: int  # looks at the ring without a kick
    batches: int  # looks that found something
    in_flight: int
    op: dict[str, OpStats]


class VirtQueue:
    """One virtqueue of a disk. Its requests are made by an in-process driver and go through the ring.

    Offsets and lengths are bytes, multiples of 512. A device answers with success, error or "unsupported":
    what more the node could say of an error does not pass the ring. One request runs at a time, threads take
    turns; Conflict while a workload drives the queue. A queue lives as long as its disk.
    """

    def __init__(self, disk: VirtioBlk, index: int, pointer: Any) -> None:
        self._disk = disk
        self._handle = disk._handle
        self._index = index
        self._pointer = pointer
        self._turn = threading.RLock()  # one driver at a time

    def _live(self) -> Any:
        """Under `in_use()` of the disk's handle."""
        self._handle.check()
        return self._pointer

    @property
    def disk(self) -> VirtioBlk:
        return self._disk

    @property
    def index(self) -> int:
        return self._index

    @property
    def context(self) -> AioContext:
        """The context that serves it."""
        return self._disk._contexts[self._index]

    def pread(self, length: int, offset: int) -> bytes:
        """Reads `length` bytes at `offset`."""
        data = bytearray(_sectors(length, "length", MAX_REQUEST))
        self.pread_into(data, offset)
        return bytes(data)

    def pread_into(self, buffer: WriteableBuffer, offset: int) -> int:
        """Fills a writable buffer from `offset`, without a copy. Returns its size in bytes."""
        with IoVector((buffer,), writable=True) as vector:
            return self._transfer("read", vector, offset, 0)

    def pwrite(self, data: ReadableBuffer, offset: int, fua: bool = False) -> int:
        """Writes a buffer at `offset`, without a copy. fua: durable before it returns. Returns its size."""
        with IoVector((data,), writable=False) as vector:
            return self._transfer("write", vector, offset, lib.ENGINE_FUA if fua else 0)

    def flush(self) -> None:
        """Writes that have completed are durable when it returns."""
        self._request("flush", NULL, 0, 0, 0)

    def discard(self, length: int, offset: int) -> None:
        """Says that a range is not needed any more; its content is undefined afterwards."""
        self._request("discard", NULL, _sectors(offset, "offset"), _sectors(length, "length"), 0)

    def write_zeroes(self, length: int, offset: int, may_unmap: bool = False) -> None:
        """Makes a range read as zeroes. may_unmap: space may be given back."""
        flags = lib.ENGINE_MAY_UNMAP if may_unmap else 0
        self._request("write_zeroes", NULL, _sectors(offset, "offset"), _sectors(length, "length"), flags)

    def get_id(self) -> bytes:
        """The device's serial number, at most 20 bytes (VIRTIO_BLK_T_GET_ID)."""
        refuse_in_callback(self._handle.label, "get id")
        buffer, error = ffi.new(f"char[{SERIAL_BYTES}]"), struct("engine_error")
        with self._handle.in_use(), self._turn:
            check(lib.engine_queue_get_id(self._live(), buffer, error), error, "get id", self._handle.label)
        return bytes(ffi.buffer(buffer)).split(b"\0", 1)[0]

    def stats(self) -> QueueStats:
        stats = struct("engine_queue_stats")
        stats.error.size = ffi.sizeof("engine_error")
        with self._handle.in_use():
            check(lib.engine_queue_get_stats(self._live(), stats), None, "get stats", self._handle.label)
        broken = bool(stats.broken)
        error = text(stats.error.message) if broken else ""
        return record_of(QueueStats, stats, broken=broken, error=error, op=op_stats(stats.op))

    def _transfer(self, operation: str, vector: IoVector, offset: int, flags: int) -> int:
        offset, length = _sectors(offset, "offset"), _sectors(vector.nbytes, "length", MAX_REQUEST)
        self._request(operation, vector.array[0].base, offset, length, flags)
        return length

    def _request(self, operation: str, data: Any, offset: int, length: int, flags: int) -> None:
        refuse_in_callback(self._handle.label, operation)
        error, op = struct("engine_error"), OPERATIONS[operation]
        with self._handle.in_use(), self._turn:
            result = lib.engine_queue_io(self._live(), op, data, offset, length, flags, error)
            check(result, error, operation, self._handle.label)

    def __repr__(self) -> str:
        return f"<VirtQueue {self._index} of {self._handle.label}{' closed' if self._handle.closed else ''}>"


def _sectors(value: int, field: str, high: int = 2**63 - SECTOR) -> int:
    number = integer(value, field, high=high)
    if number % SECTOR:
        raise invalid(f"{field}: {number} is not a multiple of {SECTOR} bytes", field)
    return number


class VirtioBlk(Owner):
    """A virtio-blk device on a node, with virtqueues that contexts serve. Keeps the node open."""

    def __init__(self, engine: Engine, node: BlockNode, contexts: list[AioContext], handle: Handle) -> None:
        self._engine = engine
        self._node = node
        self._contexts = contexts
        self._handle = handle
        self._queues: WeakValueDictionary[int, VirtQueue] = WeakValueDictionary()

    @property
    def node(self) -> BlockNode:
        return self._node

    @property
    def queues(self) -> list[VirtQueue]:
        """In order of index. Each keeps this disk open."""
        with self._handle.in_use():
            self._handle.check()
            return [self._queue(index) for index in range(len(self._contexts))]

    def _queue(self, index: int) -> VirtQueue:
        queue = self._queues.get(index)
        if queue is None:
            queue = VirtQueue(self, index, lib.engine_disk_get_queue(self._handle.check(), index))
            self._queues[index] = queue
        return queue

    def close(self) -> None:
        """Stops the queues and waits for what is in flight; the node stays. Idempotent.

        Conflict while workloads drive its queues.
        """
        self._handle.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else f", {len(self._contexts)} queues"
        return f"<VirtioBlk on {self._node.name!r}{state}>"


def make_disk(
    engine: Engine,
    node: BlockNode,
    contexts: list[AioContext],
    *,
    name: str,
    queue_size: int,
    serial: bytes,
    flags: dict[str, bool],
) -> VirtioBlk:
    """What `Engine.virtio_blk` does once its arguments are checked. Under `in_use()` of all of them."""
    config = struct("engine_disk_config")
    pointers = ffi.new("engine_context_t *[]", [context._handle.check() for context in contexts])
    native_name, native_serial = ffi.new("char[]", name.encode()), ffi.new("char[]", serial)
    config.queue_count = len(contexts)
    config.queue_size = queue_size
    config.contexts = pointers
    config.name = native_name
    config.serial = native_serial
    for field, value in flags.items():
        setattr(config, field, int(value))
    pointer = node._live()
    handle = Handle.make(
        "engine_disk_t",
        lambda out, error: lib.engine_disk_create(pointer, config, out, error),
        lib.engine_disk_close,
        f"disk on node {node.name!r}",
        engine._handle,
    )
    return VirtioBlk(engine, node, contexts, handle)
