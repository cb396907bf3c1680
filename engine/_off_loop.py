"""What `engine.aio` has in front of objects that block: their calls wait in the loop's default executor.

No state of its own; what is said of the blocking objects holds.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import engine

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from engine import AioContext, CopyProgress, QueueStats, Traces, WorkloadResult
    from engine.aio import BlockNode

T = TypeVar("T")
_WAIT_SLICE_S = 0.5


async def off_loop(work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """Runs what blocks in the executor. Cancelled, it is undone once it is there: nobody waits."""
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if undo is not None:
            future.add_done_callback(lambda done: undo_later(loop, done, undo))
        raise


def undo_later(loop: asyncio.AbstractEventLoop, done: asyncio.Future[T], undo: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        result = done.result()
        loop.run_in_executor(None, lambda: undo(result))


async def wait_in_slices(wait: Callable[[float | None], bool], timeout: float | None) -> bool:
    """So that a cancelled wait gives its thread back soon."""
    loop = asyncio.get_running_loop()
    end = math.inf if timeout is None else loop.time() + timeout
    while True:
        left = max(end - loop.time(), 0.0)
        if await off_loop(partial(wait, min(left, _WAIT_SLICE_S))):
            return True
        if left <= _WAIT_SLICE_S:
            return False


class Closeable:
    """In front of a blocking object that closes."""

    blocking: Any

    @property
    def closed(self) -> bool:
        return bool(self.blocking.closed)

    async def close(self) -> None:
        """Waits for what is in flight and closes, off the loop; idempotent. Conflict while others use it."""
        await off_loop(self.blocking.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


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
        return await off_loop(lambda: self.blocking.pread(length, offset))

    async def pread_into(self, buffer: WriteableBuffer, offset: int) -> int:
        return await off_loop(lambda: self.blocking.pread_into(buffer, offset))

    async def pwrite(self, data: ReadableBuffer, offset: int, fua: bool = False) -> int:
        return await off_loop(lambda: self.blocking.pwrite(data, offset, fua))

    async def flush(self) -> None:
        await off_loop(self.blocking.flush)

    async def discard(self, length: int, offset: int) -> None:
        await off_loop(lambda: self.blocking.discard(length, offset))

    async def write_zeroes(self, length: int, offset: int, may_unmap: bool = False) -> None:
        await off_loop(lambda: self.blocking.write_zeroes(length, offset, may_unmap))

    async def get_id(self) -> bytes:
        return await off_loop(self.blocking.get_id)

    def stats(self) -> QueueStats:
        return self.blocking.stats()


class VirtioBlk(Closeable):
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


class Workload(Closeable):
    """A stream of requests: see `engine.Workload`."""

    def __init__(self, workload: engine.Workload) -> None:
        self.blocking: engine.Workload = workload

    async def start(self) -> None:
        await off_loop(self.blocking.start)

    async def wait(self, timeout: float | None = None) -> bool:
        """Waits in the executor. Cancelling stops the waiting, not the workload."""
        return await wait_in_slices(self.blocking.wait, timeout)

    async def stop(self) -> None:
        await off_loop(self.blocking.stop)

    def result(self) -> WorkloadResult:
        return self.blocking.result()

    def traces(self) -> Traces:
        return self.blocking.traces()


class Copy(Closeable):
    """A copy from node to node: see `engine.Copy`."""

    def __init__(self, copy: engine.Copy) -> None:
        self.blocking: engine.Copy = copy

    async def start(self) -> None:
        await off_loop(self.blocking.start)

    async def wait(self, timeout: float | None = None) -> bool:
        """Waits in the executor. Cancelling stops the waiting, not the copy."""
        return await wait_in_slices(self.blocking.wait, timeout)

    async def run(self) -> CopyProgress:
        """Starts it, waits for its end, and tells what it did. Cancelled, it cancels the copy."""
        await self.start()
        try:
            await self.wait()
        except asyncio.CancelledError:
            self.blocking.cancel()
            raise
        return self.progress()

    def cancel(self) -> None:
        """Begins nothing new; what is in flight completes. Does not wait: see `wait`."""
        self.blocking.cancel()

    def progress(self) -> CopyProgress:
        return self.blocking.progress()
