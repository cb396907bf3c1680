"""What ties one engine to one asyncio loop: a completion queue whose descriptor the loop watches.

Requests made in one turn of the loop go to their context as one array, and come back as one. Only the
loop's thread submits and drains; whoever closes the engine, on any thread, comes in by `_settle`, when nobody
else can.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from threading import Lock
from typing import Any
from weakref import ref

from engine._bindings import FOREVER, NULL, check, struct, translate
from engine._future import IoFuture
from engine._handle import Handle
from engine._native import ffi, lib
from engine.errors import Closed, EngineError, InvalidArgument
from engine.stats import OPERATIONS

_DRAIN_MOST = 512  # completions a call
_SUBMIT_AT = 256  # requests of one turn from which on they do not wait for its end
_REQUESTS = ffi.typeof("engine_request[]")
_EXPORT = type(ffi.from_buffer(b""))
_TOKEN = 2  # its place in the tuple that describes a request
_REQUEST_SIZE = ffi.sizeof("engine_request")

# (future, what to release, result → value or None, label of the user, operation)
Flight = tuple["asyncio.Future[Any]", Any, "Callable[[int], Any] | None", str, str]


class LoopQueue:
    """A completion queue in one loop. It keeps nothing of the engine alive but native handles."""

    def __init__(self, engine: Handle, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)
        self._flights: dict[int, Flight] = {}  # by token: they own their buffers until the native completion
        self._pending: dict[tuple[Handle, Handle | None], list[tuple[Any, ...]]] = {}
        self._token = 0
        self._scheduled = False
        self._completions = ffi.new("engine_completion[]", _DRAIN_MOST)
        self._words = memoryview(ffi.buffer(self._completions)).cast("q")
        with engine.in_use():
            pointer = engine.check()
            self._handle = Handle.make(
                "engine_cq_t",
                lambda out, error: lib.engine_cq_create(pointer, out, error),
                lib.engine_cq_close,
                "completion queue",
                engine,
                settle=self._settle,
            )
        engine.queues.append(self._handle)
        # The loop watches a descriptor of its own, which outlives the queue until the loop has let it go.
        self._descriptor = os.dup(lib.engine_cq_fileno(self._handle.pointer))
        loop.add_reader(self._descriptor, self._drain)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        return self._loop()

    @property
    def closed(self) -> bool:
        return self._handle.closed

    # ---- the loop's thread ----

    def submit(
        self,
        loop: asyncio.AbstractEventLoop,
        user: Handle,
        context: Handle | None,
        operation: str,
        request: tuple[Any, ...],
        resources: Any,
        finish: Callable[[int], Any] | None,
    ) -> IoFuture[Any]:
        """`request`: the fields of an engine_request from `offset` on. Owns `resources`."""
        self._token = token = self._token + 1
        future: IoFuture[Any] = IoFuture(loop=loop)
        future._queue, future._token = self, token
        self._flights[token] = (future, resources, finish, user.label, operation)
        key = (user, context)
        requests = self._pending.get(key)
        if requests is None:
            requests = self._pending[key] = []
        requests.append((_REQUEST_SIZE, OPERATIONS[operation], token, *request))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)
        elif len(requests) >= _SUBMIT_AT:
            self._send(key)
        return future

    def submit_many(
        self,
        loop: asyncio.AbstractEventLoop,
        user: Handle,
        context: Handle | None,
        vector: Any,
        operation: str,
    ) -> IoFuture[Any]:
        """A whole vector, at once: there is nothing to gather."""
        self._token = token = self._token + 1
        error = struct("engine_error")
        with user.in_use(), context.in_use() if context else nullcontext(), self._handle.in_use():
            target = context.check() if context else NULL
            queue = self._handle.check()
            check(
                lib.engine_submit_many(queue, user.check(), target, vector.native, token, error),
                error,
                operation,
                user.label,
            )
            future: IoFuture[Any] = IoFuture(loop=loop)
            future._queue, future._token = self, token
            self._flights[token] = (future, vector, None, user.label, operation)
        return future

    def cancel(self, token: int) -> None:
        """Asks a request to stop. Its buffers stay in use until it has."""
        self._flush()
        if token in self._flights:
            with suppress(Closed), self._handle.in_use():
                lib.engine_cancel(self._handle.check(), token)

    def _flush(self) -> None:
        self._scheduled = False
        for key in list(self._pending):
            self._send(key)

    def _send(self, key: tuple[Handle, Handle | None]) -> None:
        requests = self._pending.pop(key)
        try:
            self._submit(key, requests, "submit")
        except Exception as problem:
            self._refused(key, requests, problem)

    def _submit(
        self, key: tuple[Handle, Handle | None], requests: list[tuple[Any, ...]], operation: str
    ) -> None:
        user, context = key
        error = struct("engine_error")
        with user.in_use(), context.in_use() if context else nullcontext(), self._handle.in_use():
            array = ffi.new(_REQUESTS, requests)
            target = context.check() if context else NULL
            queue = self._handle.check()
            result = lib.engine_submit(queue, user.check(), target, array, len(requests), error)
            check(result, error, operation, user.label)

    def _refused(
        self, key: tuple[Handle, Handle | None], requests: list[tuple[Any, ...]], problem: Exception
    ) -> None:
        """None was begun, for whatever was wrong with one of them: then each has its own try, and error."""
        for request in requests:
            token = request[_TOKEN]
            try:
                if not isinstance(problem, InvalidArgument):
                    raise problem
                self._submit(key, [request], self._flights[token][4])
            except Exception as own:
                self._fail(self._flights.pop(token), own)

    @staticmethod
    def _fail(flight: Flight, problem: Exception) -> None:
        let_go(flight[1])
        if not flight[0].done():
            flight[0].set_exception(problem)

    def _drain(self) -> None:
        """The descriptor is readable."""
        try:
            with self._handle.in_use():
                for future, value in self._take(self._handle.check()):
                    if future.done():
                        continue
                    if type(value) is int:  # nearly all
                        future.set_result(value)
                    else:
                        deliver(future, value)
        except Closed:
            pass  # or a child of a fork, which has no business with its parent's loop

    def _take(self, queue: Any) -> list[tuple[asyncio.Future[Any], Any]]:
        """One drain: futures with their values, an exception where it failed. Releases the buffers."""
        count = lib.engine_cq_drain(queue, self._completions, _DRAIN_MOST)
        words = self._words[: 3 * max(count, 0)].tolist()
        done = []
        flights, release = self._flights, ffi.release
        for i in range(0, len(words), 3):
            future, resources, finish, label, operation = flights.pop(words[i])
            if type(resources) is _EXPORT:
                release(resources)
            else:
                resources.release()
            result = words[i + 1]
            value: Any = result
            if result < 0:
                value = translate(result, self._completions[i // 3].error, operation, label)
            elif finish is not None and not future.done():
                value = finish(result)
            done.append((future, value))
        return done

    # ---- closing: any thread, when no other is inside a call ----

    def _settle(self, handle: Handle) -> None:
        """What is in flight completes, and its futures are told, before the native queue goes."""
        check(lib.engine_cq_wait(handle.pointer, NULL, NULL, FOREVER, NULL), None, "close", handle.label)
        left: list[tuple[asyncio.Future[Any], Any]] = []
        while taken := self._take(handle.pointer):
            left += taken
        handle.queues.remove(handle)
        loop = self.loop
        descriptor, self._descriptor = self._descriptor, -1

        def last() -> None:
            if loop is not None:
                loop.remove_reader(descriptor)
            os.close(descriptor)
            self._flush()  # what was never sent hears that it is closed
            for future, value in left:
                if not future.done():
                    deliver(future, value)

        try:
            if loop is None:
                os.close(descriptor)
            elif loop is asyncio._get_running_loop():
                last()
            else:
                loop.call_soon_threadsafe(last)
        except RuntimeError:  # the loop is closed: nobody waits any more
            os.close(descriptor)


def let_go(resources: Any) -> None:
    """Of a request that has ended: a pointer that exports a buffer, or what releases several."""
    if type(resources) is _EXPORT:
        ffi.release(resources)
    else:
        resources.release()


def deliver(future: asyncio.Future[Any], value: Any) -> None:
    if isinstance(value, EngineError):
        future.set_exception(value)
    else:
        future.set_result(value)


class LoopQueues:
    """The completion queues of one engine: one for each loop that has used it. Any thread."""

    def __init__(self, engine: Handle) -> None:
        self._engine = engine
        self._lock = Lock()
        self._by_loop: dict[int, LoopQueue] = {}

    def of(self, loop: asyncio.AbstractEventLoop) -> LoopQueue:
        queue = self._by_loop.get(id(loop))
        if queue is None or queue._loop() is not loop:
            with self._lock:
                self._sweep()
                queue = self._by_loop[id(loop)] = LoopQueue(self._engine, loop)
        return queue

    def own(self, resources: Any) -> bool:
        """Do they belong to a request that is in flight? The loop's thread; for what has gone wrong."""
        return any(
            flight[1] is resources
            for queue in list(self._by_loop.values())
            for flight in list(queue._flights.values())
        )

    def _sweep(self) -> None:
        """Those of loops that have ended go as soon as nothing is in flight in them."""
        for key, queue in list(self._by_loop.items()):
            loop = queue.loop
            if queue.closed:
                del self._by_loop[key]
            elif loop is None or loop.is_closed():
                with queue._handle.in_use():
                    idle = lib.engine_cq_wait(queue._handle.check(), NULL, NULL, 0, NULL) == 0
                if idle:
                    queue._handle.close()
                    del self._by_loop[key]
