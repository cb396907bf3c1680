"""The engine for asyncio: the names of `engine`, awaitable.

Requests never block the loop: those made in one turn of it go to their context together, and completions come
back in batches over one descriptor for each loop. What the engine does not do asynchronously (opening,
closing, devices) runs in the loop's default executor. Every object stands in front of a blocking one,
`.blocking`; several loops may use the same.

A request that is cancelled raises CancelledError at once, while its buffers stay in use until it has really
ended: resizing one meanwhile is a BufferError.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import engine
from engine._bindings import NULL, integer
from engine._buffers import IoVector, exported
from engine._loop import LoopQueue, LoopQueues, let_go
from engine._native import ffi, lib
from engine._vectors import Vector
from engine.errors import Closed
from engine.node import EXTENTS_AT_A_TIME, HARMLESS, checked_range, extents_of, zeroes_flags

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from engine import (
        AioContext,
        Buffer,
        Extent,
        LockInfo,
        NodeInfo,
        NodeStats,
        QueueStats,
        WorkloadResult,
    )
    from engine.core import Source
    from engine.stats import NodeLocks

__all__ = ["BlockNode", "BlockUser", "Engine", "VirtQueue", "VirtioBlk", "Workload"]

T = TypeVar("T")
Place: TypeAlias = "AioContext | str | None"  # where a request runs; None: main


async def _off_loop(work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """Runs what blocks in the executor. Cancelled, it is undone once it is there: nobody waits."""
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if undo is not None:
            future.add_done_callback(lambda done: _undo(loop, done, undo))
        raise


def _undo(loop: asyncio.AbstractEventLoop, done: asyncio.Future[T], undo: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        result = done.result()
        loop.run_in_executor(None, lambda: undo(result))


class _Closeable:
    """In front of a blocking object that closes."""

    blocking: Any

    @property
    def closed(self) -> bool:
        return bool(self.blocking.closed)

    async def close(self) -> None:
        """Waits for what is in flight and closes, off the loop; idempotent. Conflict while others use it."""
        await _off_loop(self.blocking.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Kept:
    """What must only stay alive."""

    __slots__ = ("kept",)

    def __init__(self, kept: object) -> None:
        self.kept = kept

    def release(self) -> None:
        pass


class BlockIO(_Closeable):
    """Reading and writing, which nodes and users have in common: `engine.node.BlockIO`, awaitable."""

    blocking: engine.BlockNode | engine.BlockUser
    _queues: LoopQueues

    def _begin(
        self,
        operation: str,
        request: tuple[Any, ...],
        resources: Any,
        context: Place,
        finish: Callable[[int], Any] | None = None,
    ) -> tuple[LoopQueue, asyncio.Future[Any], int]:
        """`request`: the fields of an engine_request from `offset` on. Owns `resources`."""
        try:
            loop = asyncio.get_running_loop()
            queue = self._queues.of(loop)
            user = self.blocking._user(operation not in HARMLESS)
            target = None if context is None else self.blocking._engine._context_handle(context)
            future, token = queue.submit(loop, user, target, operation, request, resources, finish)
        except BaseException:
            let_go(resources)
            raise
        return queue, future, token

    def _begin_one(
        self, operation: str, buffer: Any, offset: int, flags: int, context: Place, finish: Any = None
    ) -> tuple[LoopQueue, asyncio.Future[Any], int]:
        pointer = exported(buffer, operation == "read")
        try:
            nbytes, offset = checked_range(len(pointer), offset)
        except BaseException:
            let_go(pointer)
            raise
        return self._begin(operation, (offset, nbytes, pointer, NULL, 0, flags), pointer, context, finish)

    async def _perform(
        self,
        operation: str,
        request: tuple[Any, ...],
        resources: Any,
        context: Place,
        finish: Callable[[int], Any] | None = None,
    ) -> Any:
        queue, future, token = self._begin(operation, request, resources, context, finish)
        try:
            return await future
        except asyncio.CancelledError:
            queue.cancel(token)
            raise

    async def _several(
        self, operation: str, buffers: Iterable[Any], offset: int, flags: int, context: Place
    ) -> Any:
        vector = IoVector(buffers, writable=operation == "read")
        try:
            nbytes, offset = checked_range(vector.nbytes, offset)
        except BaseException:
            vector.release()
            raise
        request = (offset, nbytes, NULL, vector.array, vector.count, flags)
        return await self._perform(operation, request, vector, context)

    async def pread(self, length: int, offset: int, *, context: Place = None) -> bytes:
        """Reads `length` bytes at `offset`."""
        length, offset = checked_range(length, offset)
        data = self.blocking._new_buffer(length, offset)
        begun = self._begin_one("read", data, offset, 0, context, lambda _: bytes(data))
        queue, future, token = begun
        try:
            result: bytes = await future
        except asyncio.CancelledError:
            queue.cancel(token)
            raise
        return result

    async def pread_into(self, buffer: WriteableBuffer, offset: int, *, context: Place = None) -> int:
        """Fills a writable buffer from `offset`, without a copy. Returns its size in bytes."""
        queue, future, token = self._begin_one("read", buffer, offset, 0, context)
        try:
            result: int = await future
        except asyncio.CancelledError:
            queue.cancel(token)
            raise
        return result

    async def preadv(self, buffers: Iterable[WriteableBuffer], offset: int, *, context: Place = None) -> int:
        """Fills at most 1024 buffers, one after another, in one request. Returns their size in bytes."""
        result: int = await self._several("read", buffers, offset, 0, context)
        return result

    async def pwrite(
        self, data: ReadableBuffer, offset: int, fua: bool = False, *, context: Place = None
    ) -> int:
        """Writes a buffer at `offset`, without a copy. fua: durable before it returns. Returns its size."""
        queue, future, token = self._begin_one("write", data, offset, lib.ENGINE_FUA if fua else 0, context)
        try:
            result: int = await future
        except asyncio.CancelledError:
            queue.cancel(token)
            raise
        return result

    async def pwritev(
        self, buffers: Iterable[ReadableBuffer], offset: int, fua: bool = False, *, context: Place = None
    ) -> int:
        """Writes at most 1024 buffers, one after another, in one request. Returns their size in bytes."""
        result: int = await self._several("write", buffers, offset, lib.ENGINE_FUA if fua else 0, context)
        return result

    async def flush(self, *, context: Place = None) -> None:
        """Writes that have completed are durable when it returns."""
        await self._perform("flush", (0, 0), _NOTHING, context, _none)

    async def discard(self, length: int, offset: int, *, context: Place = None) -> None:
        """Says that a range is not needed any more; its content is undefined afterwards."""
        length, offset = checked_range(length, offset)
        await self._perform("discard", (offset, length), _NOTHING, context, _none)

    async def write_zeroes(
        self,
        length: int,
        offset: int,
        may_unmap: bool = False,
        no_fallback: bool = False,
        fua: bool = False,
        *,
        context: Place = None,
    ) -> None:
        """Makes a range read as zeroes: see `engine.node.BlockIO.write_zeroes`."""
        length, offset = checked_range(length, offset)
        flags = zeroes_flags(may_unmap, no_fallback, fua)
        await self._perform("write_zeroes", (offset, length, NULL, NULL, 0, flags), _NOTHING, context, _none)

    async def resize(self, size: int, *, context: Place = None) -> None:
        """Sets the size in bytes; what is added reads as zeroes. Needs the permission `resize`."""
        await self._perform("resize", (integer(size, "size"), 0), _NOTHING, context, _none)

    async def read_many(
        self,
        buffer: WriteableBuffer,
        offsets: Iterable[int] | ReadableBuffer,
        length: int,
        context: Place = None,
        iodepth: int = 64,
        *,
        errors: str = "raise",
        out: Any = None,
    ) -> Any:
        """As `engine.node.BlockIO.read_many`. Cancelled, it begins no more parts."""
        vector = Vector("read", buffer, offsets, length, iodepth=iodepth, errors=errors, out=out)
        return await self._many("read", vector, context)

    async def write_many(
        self,
        buffer: ReadableBuffer,
        offsets: Iterable[int] | ReadableBuffer,
        length: int,
        context: Place = None,
        iodepth: int = 64,
        *,
        fua: bool = False,
        errors: str = "raise",
        out: Any = None,
    ) -> Any:
        """As `engine.node.BlockIO.write_many`. Cancelled, it begins no more parts."""
        flags = lib.ENGINE_FUA if fua else 0
        vector = Vector(
            "write", buffer, offsets, length, iodepth=iodepth, errors=errors, out=out, flags=flags
        )
        return await self._many("write", vector, context)

    async def _many(self, operation: str, vector: Vector, context: Place) -> Any:
        try:
            loop = asyncio.get_running_loop()
            queue = self._queues.of(loop)
            user = self.blocking._user(operation == "write")
            target = self.blocking._engine._context_handle(context)
            future, token = queue.submit_many(loop, user, target, vector, f"{operation} many")
        except BaseException:
            vector.release()
            raise
        try:
            await future
        except asyncio.CancelledError:
            queue.cancel(token)
            raise
        return vector.outcome()

    def extents(
        self, offset: int = 0, length: int | None = None, *, context: Place = None
    ) -> AsyncIterator[Extent]:
        """Block status from `offset`, for `length` bytes or to the end, in order and without gaps.

        Lazy: asks as it goes, 128 extents at a time. What changes meanwhile may be seen or not.
        """
        start, end = self.blocking._extent_range(offset, length)
        return self._extents(start, end, context)

    async def _extents(self, offset: int, end: int, context: Place) -> AsyncIterator[Extent]:
        native = ffi.new("engine_extent[]", EXTENTS_AT_A_TIME)
        kept = _Kept(native)
        while offset < end:
            request = (offset, end - offset, NULL, NULL, 0, 0, native, EXTENTS_AT_A_TIME)
            count = await self._perform("block_status", request, kept, context)
            if count == 0:
                return
            found = extents_of(native, count)
            for extent in found:
                yield extent
            offset = found[-1].start + found[-1].length


_NOTHING = _Kept(None)


def _none(_: int) -> None:
    return None


class BlockNode(BlockIO):
    """A node of the block graph: see `engine.BlockNode`. What only looks at it is not awaited."""

    blocking: engine.BlockNode

    def __init__(self, node: engine.BlockNode, queues: LoopQueues) -> None:
        self.blocking = node
        self._queues = queues

    @property
    def name(self) -> str:
        return self.blocking.name

    @property
    def size(self) -> int:
        """Of the disk, in bytes."""
        return self.blocking.size

    @property
    def info(self) -> NodeInfo:
        return self.blocking.info

    @property
    def locks(self) -> NodeLocks:
        return self.blocking.locks

    def stats(self, context: Place = None) -> NodeStats:
        return self.blocking.stats(context)

    def child(self, role: str) -> BlockNode:
        """The node below, by its role ("file")."""
        return BlockNode(self.blocking.child(role), self._queues)

    async def user(
        self,
        name: str,
        permissions: str | Iterable[str] = "read,write",
        shared: str | Iterable[str] = "all",
    ) -> BlockUser:
        """A user of its own: what it does, and what it lets others do."""
        user = await _off_loop(lambda: self.blocking.user(name, permissions, shared), _close)
        return BlockUser(user, self)

    def __repr__(self) -> str:
        return f"<aio.BlockNode {self.name!r}{' closed' if self.closed else ''}>"


class BlockUser(BlockIO):
    """Who does I/O on a node, with the permissions that it asked for: see `engine.BlockUser`."""

    blocking: engine.BlockUser

    def __init__(self, user: engine.BlockUser, node: BlockNode) -> None:
        self.blocking = user
        self._node = node
        self._queues = node._queues

    @property
    def name(self) -> str:
        return self.blocking.name

    @property
    def node(self) -> BlockNode:
        return self._node

    @property
    def size(self) -> int:
        """Of the node, in bytes."""
        return self.blocking.size

    def __repr__(self) -> str:
        return f"<aio.BlockUser {self.name!r}{' closed' if self.closed else ''}>"


class VirtQueue:
    """One virtqueue of a disk: see `engine.VirtQueue`. Its requests wait in the loop's executor."""

    def __init__(self, queue: engine.VirtQueue, disk: VirtioBlk) -> None:
        self.blocking = queue
        self._disk = disk

    @property
    def disk(self) -> VirtioBlk:
        return self._disk

    @property
    def index(self) -> int:
        return self.blocking.index

    @property
    def context(self) -> AioContext:
        return self.blocking.context

    async def pread(self, length: int, offset: int) -> bytes:
        return await _off_loop(lambda: self.blocking.pread(length, offset))

    async def pread_into(self, buffer: WriteableBuffer, offset: int) -> int:
        return await _off_loop(lambda: self.blocking.pread_into(buffer, offset))

    async def pwrite(self, data: ReadableBuffer, offset: int, fua: bool = False) -> int:
        return await _off_loop(lambda: self.blocking.pwrite(data, offset, fua))

    async def flush(self) -> None:
        await _off_loop(self.blocking.flush)

    async def discard(self, length: int, offset: int) -> None:
        await _off_loop(lambda: self.blocking.discard(length, offset))

    async def write_zeroes(self, length: int, offset: int, may_unmap: bool = False) -> None:
        await _off_loop(lambda: self.blocking.write_zeroes(length, offset, may_unmap))

    async def get_id(self) -> bytes:
        return await _off_loop(self.blocking.get_id)

    def stats(self) -> QueueStats:
        return self.blocking.stats()


class VirtioBlk(_Closeable):
    """A virtio-blk device on a node: see `engine.VirtioBlk`."""

    def __init__(self, disk: engine.VirtioBlk, node: BlockNode) -> None:
        self.blocking: engine.VirtioBlk = disk
        self._node = node

    @property
    def node(self) -> BlockNode:
        return self._node

    @property
    def queues(self) -> list[VirtQueue]:
        return [VirtQueue(queue, self) for queue in self.blocking.queues]


class Workload(_Closeable):
    """A stream of requests: see `engine.Workload`."""

    def __init__(self, workload: engine.Workload) -> None:
        self.blocking: engine.Workload = workload

    async def start(self) -> None:
        await _off_loop(self.blocking.start)

    async def wait(self, timeout: float | None = None) -> bool:
        """Waits in the executor. Cancelling stops the waiting, not the workload."""
        return await _off_loop(lambda: self.blocking.wait(timeout))

    async def stop(self) -> None:
        await _off_loop(self.blocking.stop)

    def result(self) -> WorkloadResult:
        return self.blocking.result()


class Engine:
    """Contexts and a graph of block nodes: see `engine.Engine`, whose arguments it takes.

    `async with Engine(...) as eng:`, or `eng = await Engine(...)` and later `await eng.close()`.
    """

    def __init__(
        self,
        *,
        locking: str = "per-node",
        lock_profile: bool = False,
        backend: str = "auto",
        contexts: Mapping[str, Sequence[int] | None] | None = None,
    ) -> None:
        self._make: Callable[[], engine.Engine] = lambda: engine.Engine(
            locking=locking, lock_profile=lock_profile, backend=backend, contexts=contexts
        )
        self._blocking: engine.Engine | None = None
        self._queues: LoopQueues | None = None

    @classmethod
    def over(cls, blocking: engine.Engine) -> Engine:
        """The awaitable form of an engine that is there already. Closing either closes both."""
        self = cls()
        self._blocking, self._queues = blocking, LoopQueues(blocking._handle)
        return self

    def node(self, node: engine.BlockNode) -> BlockNode:
        """The awaitable form of a node that was opened by the blocking one."""
        return self._node(self.blocking._own(node, "node"))

    async def _started(self) -> Self:
        if self._blocking is None:
            made = await _off_loop(self._make, _close)
            self._blocking, self._queues = made, LoopQueues(made._handle)
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._started().__await__()

    async def __aenter__(self) -> Self:
        return await self._started()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def blocking(self) -> engine.Engine:
        """The engine behind it; any thread may use it."""
        if self._blocking is None:
            raise Closed(
                errno.EBADF, "the engine has not been started: use `async with Engine(...)`, or await it"
            )
        return self._blocking

    @property
    def closed(self) -> bool:
        return self._blocking is not None and self._blocking.closed

    async def open(self, source: Source = None, /, **options: Any) -> BlockNode:
        """Opens a block node, off the loop: see `engine.Engine.open`."""
        it = self.blocking
        node = await _off_loop(lambda: it.open(source, **options), _close)
        return self._node(node)

    def _node(self, node: engine.BlockNode) -> BlockNode:
        assert self._queues is not None  # there is a node, so it was started
        return BlockNode(node, self._queues)

    def buffer(self, nbytes: int) -> Buffer:
        """Zeroed memory that is aligned for direct I/O, and that NumPy sees without a copy."""
        return self.blocking.buffer(nbytes)

    @property
    def contexts(self) -> Mapping[str, AioContext]:
        """The open contexts by name, `main` first."""
        return self.blocking.contexts

    @property
    def main(self) -> AioContext:
        return self.blocking.main

    async def add_context(
        self,
        name: str,
        cpus: Sequence[int] | None = None,
        poll_max_ns: int | None = None,
        backend: str = "auto",
        queue_depth: int = 0,
        *,
        sched_policy: str = "other",
        sched_priority: int = 0,
    ) -> AioContext:
        """Starts an event loop on a thread of its own: see `engine.Engine.add_context`."""
        it = self.blocking
        return await _off_loop(
            lambda: it.add_context(
                name,
                cpus,
                poll_max_ns,
                backend,
                queue_depth,
                sched_policy=sched_policy,
                sched_priority=sched_priority,
            ),
            _close,
        )

    async def virtio_blk(
        self, node: BlockNode, queues: Iterable[AioContext | str] = ("main",), **options: Any
    ) -> VirtioBlk:
        """A virtio-blk device on a node: see `engine.Engine.virtio_blk`."""
        it = self.blocking
        made = await _off_loop(lambda: it.virtio_blk(node.blocking, queues, **options), _close)
        return VirtioBlk(made, node)

    async def workload(self, target: BlockNode | BlockUser | VirtQueue, **options: Any) -> Workload:
        """A stream of requests over a node, a user of one, or a virtqueue: see `engine.Engine.workload`."""
        it = self.blocking
        return Workload(await _off_loop(lambda: it.workload(target.blocking, **options), _close))

    def locks(self) -> list[LockInfo]:
        return self.blocking.locks()

    async def close(self) -> None:
        """Waits for what is in flight and closes everything that is open in it, off the loop; idempotent."""
        if self._blocking is not None:
            await _off_loop(self._blocking.close)

    def __repr__(self) -> str:
        return f"<aio.Engine over {self._blocking!r}>"


def _close(thing: Any) -> None:
    thing.close()
