"""The engine for asyncio: the names of `engine`, awaitable.

Requests never block the loop: those made in one turn of it go to their context together, and completions come
back in batches over one descriptor for each loop. What the engine does not do asynchronously (opening,
closing, devices) runs in the loop's default executor. Every object stands in front of a blocking one,
`.blocking`; several loops may use the same.

Reads, writes and the like are futures: begun when they are called, with what is wrong with an argument told
there, and gathered without a task for each. `asyncio.create_task` and `TaskGroup.create_task` take them too.

A request that is cancelled raises CancelledError at once, while its buffers stay in use until it has really
ended: resizing one meanwhile is a BufferError.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import engine
from engine._bindings import NULL
from engine._buffers import IoVector, exported
from engine._future import IoFuture
from engine._loop import LoopQueues, let_go
from engine._native import ffi, lib
from engine._off_loop import Closeable, Copy, VirtioBlk, VirtQueue, Workload, off_loop
from engine._vectors import Vector
from engine.blockio import EXTENTS_AT_A_TIME, HARMLESS, checked_range, extents_of, zeroes_flags
from engine.errors import Closed

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from engine import (
        AioContext,
        BlockDriver,
        Buffer,
        Extent,
        LockInfo,
        NodeInfo,
        NodeStats,
        PauseStats,
    )
    from engine.core import Source
    from engine.stats import NodeLocks

__all__ = ["BlockNode", "BlockUser", "Copy", "Engine", "VirtQueue", "VirtioBlk", "Workload"]

T = TypeVar("T")
Place: TypeAlias = "AioContext | str | None"  # where a request runs; None: main


class _Kept:
    """What must only stay alive."""

    __slots__ = ("kept",)

    def __init__(self, kept: object) -> None:
        self.kept = kept

    def release(self) -> None:
        pass


class BlockIO(Closeable):
    """Reading and writing, which nodes and users have in common: `engine.blockio.BlockIO`, awaitable."""

    blocking: engine.BlockNode | engine.BlockUser
    _queues: LoopQueues

    def _begin(
        self,
        operation: str,
        request: tuple[Any, ...],
        resources: Any,
        context: Place,
        finish: Callable[[int], Any] | None = None,
    ) -> IoFuture[Any]:
        """`request`: the fields of an engine_request from `offset` on. Owns `resources`, unless it raises."""
        loop = asyncio.get_running_loop()
        user = self.blocking._user(operation not in HARMLESS)
        target = None if context is None else self.blocking._engine._context_handle(context)
        return self._queues.of(loop).submit(loop, user, target, operation, request, resources, finish)

    def _one(
        self, operation: str, buffer: Any, offset: int, flags: int, context: Place, finish: Any = None
    ) -> IoFuture[Any]:
        pointer = exported(buffer, operation == "read")
        try:
            nbytes, offset = checked_range(len(pointer), offset)
            request = (offset, nbytes, pointer, NULL, 0, flags)
            return self._begin(operation, request, pointer, context, finish)
        except BaseException:
            if not self._queues.own(pointer):  # Ctrl-C may come when the request is on its way already
                let_go(pointer)
            raise

    def _several(
        self, operation: str, buffers: Iterable[Any], offset: int, flags: int, context: Place
    ) -> IoFuture[Any]:
        vector = IoVector(buffers, writable=operation == "read")
        try:
            nbytes, offset = checked_range(vector.nbytes, offset)
            request = (offset, nbytes, NULL, vector.array, vector.count, flags)
            return self._begin(operation, request, vector, context)
        except BaseException:
            if not self._queues.own(vector):
                vector.release()
            raise

    def pread(self, length: int, offset: int, *, context: Place = None) -> IoFuture[bytes]:
        """Reads `length` bytes at `offset`."""
        length, offset = checked_range(length, offset)
        data = self.blocking._new_buffer(length, offset)
        return self._one("read", data, offset, 0, context, lambda _: bytes(data))

    def pread_into(self, buffer: WriteableBuffer, offset: int, *, context: Place = None) -> IoFuture[int]:
        """Fills a writable buffer from `offset`, without a copy. Returns its size in bytes."""
        return self._one("read", buffer, offset, 0, context)

    def preadv(
        self, buffers: Iterable[WriteableBuffer], offset: int, *, context: Place = None
    ) -> IoFuture[int]:
        """Fills at most 1024 buffers, one after another, in one request. Returns their size in bytes."""
        return self._several("read", buffers, offset, 0, context)

    def pwrite(
        self, data: ReadableBuffer, offset: int, fua: bool = False, *, context: Place = None
    ) -> IoFuture[int]:
        """Writes a buffer at `offset`, without a copy. fua: durable before it returns. Returns its size."""
        return self._one("write", data, offset, lib.ENGINE_FUA if fua else 0, context)

    def pwritev(
        self, buffers: Iterable[ReadableBuffer], offset: int, fua: bool = False, *, context: Place = None
    ) -> IoFuture[int]:
        """Writes at most 1024 buffers, one after another, in one request. Returns their size in bytes."""
        return self._several("write", buffers, offset, lib.ENGINE_FUA if fua else 0, context)

    def flush(self, *, context: Place = None) -> IoFuture[None]:
        """Writes that have completed are durable when it returns."""
        return self._begin("flush", (0, 0), _NOTHING, context, _none)

    def discard(self, length: int, offset: int, *, context: Place = None) -> IoFuture[None]:
        """Says that a range is not needed any more; its content is undefined afterwards."""
        length, offset = checked_range(length, offset)
        return self._begin("discard", (offset, length), _NOTHING, context, _none)

    def write_zeroes(
        self,
        length: int,
        offset: int,
        may_unmap: bool = False,
        no_fallback: bool = False,
        fua: bool = False,
        *,
        context: Place = None,
    ) -> IoFuture[None]:
        """Makes a range read as zeroes: see `engine.blockio.BlockIO.write_zeroes`."""
        length, offset = checked_range(length, offset)
        flags = zeroes_flags(may_unmap, no_fallback, fua)
        return self._begin("write_zeroes", (offset, length, NULL, NULL, 0, flags), _NOTHING, context, _none)

    async def resize(self, size: int, *, context: Place = None) -> None:
        """Sets the size in bytes; what is added reads as zeroes. Needs the permission `resize`.

        In the executor: it waits until nothing is inside the node.
        """
        await off_loop(lambda: self.blocking.resize(size, context=context))

    async def copy_range(
        self, source: BlockIO, length: int, source_offset: int, offset: int, *, context: Place = None
    ) -> None:
        """Copies a range of another node into this one: see `engine.blockio.BlockIO.copy_range`.

        In the executor. Cancelled, it ends within 256 MiB.
        """
        target = self.blocking
        reader: Any = getattr(source, "blocking", source)  # refused below unless it is one
        for part in target._copy_parts(reader, length, source_offset, offset):
            await off_loop(partial(target._copy_part, reader, *part, context))

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
        """As `engine.blockio.BlockIO.read_many`. Cancelled, it begins no more parts."""
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
        """As `engine.blockio.BlockIO.write_many`. Cancelled, it begins no more parts."""
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
            future = queue.submit_many(loop, user, target, vector, f"{operation} many")
        except BaseException:
            vector.release()
            raise
        await future
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
            count = await self._begin("block_status", request, kept, context)
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

    @property
    def children(self) -> dict[str, BlockNode]:
        """The nodes below, by their roles."""
        return {role: BlockNode(node, self._queues) for role, node in self.blocking.children.items()}

    def child(self, role: str) -> BlockNode:
        """The node below, by its role ("file")."""
        return BlockNode(self.blocking.child(role), self._queues)

    async def insert_filter(
        self, driver: str, /, *, timeout: float | str = 30.0, **options: Any
    ) -> BlockNode:
        """Opens a filter above this node: see `engine.BlockNode.insert_filter`. `close()` takes it out."""
        below = self.blocking
        node = await off_loop(lambda: below.insert_filter(driver, timeout=timeout, **options), _close)
        return BlockNode(node, self._queues)

    async def replace_with(self, other: BlockNode, *, timeout: float | str = 30.0) -> None:
        """All users of this node use another from then on: see `engine.BlockNode.replace_with`."""
        await off_loop(lambda: self.blocking.replace_with(other.blocking, timeout=timeout))

    def set_throttle(self, **limits: int | str) -> None:
        """New limits for a throttle node: see `engine.BlockNode.set_throttle`."""
        self.blocking.set_throttle(**limits)

    async def resume_faults(self) -> int:
        """Lets all requests go that a fault node holds: see `engine.BlockNode.resume_faults`.

        Closing the engine waits for requests that are held: resume them, or close the filter, before.
        """
        return await off_loop(self.blocking.resume_faults)

    async def user(
        self,
        name: str,
        permissions: str | Iterable[str] = "read,write",
        shared: str | Iterable[str] = "all",
    ) -> BlockUser:
        """A user of its own: what it does, and what it lets others do."""
        user = await off_loop(lambda: self.blocking.user(name, permissions, shared), _close)
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

    def pauses(self) -> PauseStats:
        """How often its requests were held back by a change of the graph, and for how long."""
        return self.blocking.pauses()

    @property
    def size(self) -> int:
        """Of the node, in bytes."""
        return self.blocking.size

    def __repr__(self) -> str:
        return f"<aio.BlockUser {self.name!r}{' closed' if self.closed else ''}>"


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
        max_bounce_bytes: int = 0,
        max_requests: int = 0,
        max_descriptors: int = 0,
    ) -> None:
        self._make: Callable[[], engine.Engine] = lambda: engine.Engine(
            locking=locking,
            lock_profile=lock_profile,
            backend=backend,
            contexts=contexts,
            max_bounce_bytes=max_bounce_bytes,
            max_requests=max_requests,
            max_descriptors=max_descriptors,
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
            made = await off_loop(self._make, _close)
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
        node = await off_loop(lambda: it.open(source, **options), _close)
        return self._node(node)

    async def open_driver(
        self,
        driver: BlockDriver,
        node_name: str | None = None,
        file: BlockNode | engine.BlockNode | str | Mapping[str, Any] | None = None,
        workers: int = 1,
        timeout: float | str = "60s",
        **options: Any,
    ) -> BlockNode:
        """A node whose driver is an object in Python: see `engine.Engine.open_driver`."""
        it = self.blocking
        below = file.blocking if isinstance(file, BlockNode) else file
        return self._node(
            await off_loop(
                lambda: it.open_driver(driver, node_name, below, workers, timeout, **options), _close
            )
        )

    async def copy(self, source: BlockNode, target: BlockNode, **options: Any) -> Copy:
        """A copy from node to node: see `engine.Engine.copy`."""
        it = self.blocking
        return Copy(await off_loop(lambda: it.copy(source.blocking, target.blocking, **options), _close))

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
        caller_driven: bool = False,
    ) -> AioContext:
        """Starts an event loop on a thread of its own: see `engine.Engine.add_context`."""
        it = self.blocking
        return await off_loop(
            lambda: it.add_context(
                name,
                cpus,
                poll_max_ns,
                backend,
                queue_depth,
                sched_policy=sched_policy,
                sched_priority=sched_priority,
                caller_driven=caller_driven,
            ),
            _close,
        )

    async def virtio_blk(
        self, node: BlockNode, queues: Iterable[AioContext | str] = ("main",), **options: Any
    ) -> VirtioBlk:
        """A virtio-blk device on a node: see `engine.Engine.virtio_blk`."""
        it = self.blocking
        made = await off_loop(lambda: it.virtio_blk(node.blocking, queues, **options), _close)
        return VirtioBlk(made, node)

    async def workload(self, target: BlockNode | BlockUser | VirtQueue, **options: Any) -> Workload:
        """A stream of requests over a node, a user of one, or a virtqueue: see `engine.Engine.workload`."""
        it = self.blocking
        return Workload(await off_loop(lambda: it.workload(target.blocking, **options), _close))

    def locks(self) -> list[LockInfo]:
        return self.blocking.locks()

    async def close(self) -> None:
        """Waits for what is in flight and closes everything that is open in it, off the loop; idempotent."""
        if self._blocking is not None:
            await off_loop(self._blocking.close)

    def __repr__(self) -> str:
        return f"<aio.Engine over {self._blocking!r}>"


def _close(thing: Any) -> None:
    thing.close()
