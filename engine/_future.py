"""What a request in an asyncio loop returns: a future that can also be taken for a coroutine.

The request has begun when it is there, as with `loop.run_in_executor`, and many are gathered without a task
for each, which would cost more than the rest of the way. `asyncio.create_task` and `TaskGroup.create_task`,
which want a coroutine, take it as well; `asyncio.wait`, which wants none, needs a task around it. The loop's
thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from engine._loop import LoopQueue

T = TypeVar("T")


class IoFuture(asyncio.Future[T], Coroutine[Any, Any, T]):
    """The result of one request; cancelling it asks the request to stop.

    Made by `IoFuture(loop=loop)`, and told afterwards whose it is: an `__init__` here would triple the price.
    """

    _queue: LoopQueue
    _token: int

    def cancel(self, msg: Any | None = None) -> bool:
        """CancelledError at once; the buffers stay in use until the request has really ended."""
        cancelled = super().cancel(msg)
        if cancelled:
            self._queue.cancel(self._token)
        return cancelled

    # ---- as a coroutine, for who steps it: any number of tasks, as with any future ----

    def send(self, value: Any) -> Any:
        if self.done():
            raise StopIteration(self.result())
        self._asyncio_future_blocking = True  # what `await` on a future says to the task
        return self

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Any:
        """A task that is cancelled before it has waited."""
        self.cancel()
        problem = kind if isinstance(kind, BaseException) else kind() if value is None else value
        raise problem if trace is None else problem.with_traceback(trace)

    def close(self) -> None:
        self.cancel()
