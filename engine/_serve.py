"""Serving a node from Python: threads, or an asyncio loop on a thread, that take requests and complete them.

The threads are daemons: the end of the interpreter closes the engine, which closes the node, which ends them;
nothing else may hold it up. The last one to end frees the native side, so that one which hangs in the driver
leaves its memory alone.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import threading
import time
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from engine._bindings import NULL, check, encode, struct
from engine._driver_job import Job, Methods, Wrong, collect
from engine._handle import Handle
from engine._native import ffi, lib
from engine._threads import join
from engine.blockio import BlockIO
from engine.errors import TimedOut

if TYPE_CHECKING:
    from engine.core import Engine

_FOR_EVER = 2**64 - 1
_BATCH = 64  # requests that a thread takes at once, where it is alone
_HOLD_BACK_S = 100e-6  # the longest that a request waits for others, to be completed together
_PATIENCE_S = 5.0  # how long a close waits for a driver that does not come back
_log = logging.getLogger("engine")


class DriverChild(BlockIO):
    """The node below a filter, as its driver sees it: I/O with the permissions of the filter's node."""

    def __init__(self, engine: Engine, handle: Handle, node: Any, alignment: int) -> None:
        self._engine = engine
        self._handle = handle
        self._node = node
        self._alignment = alignment

    def _user(self, writing: bool) -> Handle:
        return self._handle

    @property
    def size(self) -> int:
        """Of the node below, in bytes."""
        info = struct("engine_node_info")
        with self._handle.in_use():
            self._handle.check()
            check(lib.engine_node_get_info(self._node, info), None, "get info", self._handle.label)
        return int(info.bytes)

    def __repr__(self) -> str:
        return f"<{self._handle.label}>"


class _Replies:
    """Outcomes on their way to native code, in one call for many. Belongs to one thread."""

    def __init__(self, external: Any) -> None:
        self._external = external
        self._jobs: list[Job] = []
        self._since = 0.0

    def add(self, job: Job) -> None:
        if not self._jobs:
            self._since = time.monotonic()
        self._jobs.append(job)

    @property
    def due(self) -> bool:
        return bool(self._jobs) and time.monotonic() - self._since >= _HOLD_BACK_S

    def flush(self) -> None:
        jobs, self._jobs = self._jobs, []
        passed = [job.id for job in jobs if job.passes_on]
        if passed and lib.engine_external_forward(self._external, passed, len(passed)) < 0:
            for job in jobs:
                if job.passes_on:
                    job.passes_on = False
                    job.fail(NotImplementedError("PASS_ON is for filters: this node has no child"))
        jobs = [job for job in jobs if not job.passes_on]
        if jobs:
            texts = [ffi.new("char[]", job.message.encode()) if job.message else NULL for job in jobs]
            done = ffi.new(
                "engine_external_completion[]",
                [
                    (job.id, job.result, text, lib.ENGINE_EXTERNAL_KEEP if job.keeps else 0, 0)
                    for job, text in zip(jobs, texts, strict=True)
                ],
            )
            lib.engine_external_complete(self._external, done, len(jobs))
        for job in jobs:
            job.completed()


class Server:
    """What serves one node: made when the node is open, ended by its closing."""

    def __init__(self, node: Handle, methods: Methods, workers: int, name: str) -> None:
        out, error = ffi.new("engine_external_t **"), struct("engine_error")
        self._methods = methods
        self._driver = methods.driver
        self._label = f"driver {type(self._driver).__name__} of {node.label}"
        program = ffi.new("char[]", encode(type(self._driver).__name__, "driver"))
        with node.in_use():
            check(lib.engine_external_attach(node.check(), program, out, error), error, "attach")
        self._external = out[0]
        self._busy: dict[int, str] = {}  # by thread: the method that is running
        self._lock = threading.Lock()  # guards _running
        work = self._work_async if methods.asynchronous else self._work
        self._running = 1 if methods.asynchronous else workers
        self._batch = _BATCH if workers == 1 or methods.batch else 1
        self._started = False
        self._threads = [
            threading.Thread(target=self._main, args=(work,), name=f"engine-driver-{name}", daemon=True)
            for _ in range(self._running)
        ]

    def start(self) -> None:
        self._started = True
        for number, thread in enumerate(self._threads):
            try:
                thread.start()
            except BaseException:
                missing, self._threads = self._threads[number:], self._threads[:number]
                for _ in missing:
                    self._ended()
                raise

    def closed(self) -> None:
        """The node is closed: waits for the threads. TimedOut, naming what hangs, when one does not come
        back.
        """
        if not self._started:
            lib.engine_external_close(self._external)
            return
        end = time.monotonic() + _PATIENCE_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                join(thread, max(0.0, end - time.monotonic()))
        hung = [self._busy.get(thread.ident or 0, "?") for thread in self._threads if thread.is_alive()]
        if hung and threading.current_thread() not in self._threads:
            raise TimedOut(
                errno.ETIMEDOUT,
                f"{self._label} is still in {', '.join(hung)}: its threads were left behind",
                operation="close",
            )

    # ---- threads ----

    def _main(self, work: Any) -> None:
        try:
            work()
        except BaseException:
            _log.exception("%s: a thread that serves it has ended", self._label)
            lib.engine_external_stop(self._external)
        finally:
            self._ended()

    def _ended(self) -> None:
        with self._lock:
            self._running -= 1
            if self._running:
                return
        try:
            self._close_driver()
        finally:
            lib.engine_external_close(self._external)
            self._driver._served = False

    def _close_driver(self) -> None:
        close = getattr(self._driver, "close", None)
        if close is None or inspect.iscoroutinefunction(close):  # that one has run in its loop
            return
        try:
            close()
        except BaseException:
            _log.exception("%s: close() failed", self._label)

    def _take(self, requests: Any, most: int, timeout_ns: int) -> list[Job] | None:
        count = lib.engine_external_take(self._external, requests, most, timeout_ns)
        return None if count < 0 else [Job(self._methods, requests[i]) for i in range(count)]

    def _finish(self, job: Job, error: BaseException | None, replies: _Replies) -> None:
        if error is not None:
            job.fail(error)
            if job.fails is not None:
                _log.error("%s: %s of %d bytes at %d failed", self._label, job.method, job.length, job.offset,
                           exc_info=job.fails)  # fmt: skip
                job.fails = None
            error.__traceback__ = None  # its frames hold views
        job.release()
        if job.keeps and job.passes_on:
            job.passes_on = False
            job.fail(Wrong("a view of the buffer was kept, and the request passed on"))
        replies.add(job)

    def _work(self) -> None:
        requests, replies = ffi.new("engine_external_request[]", self._batch), _Replies(self._external)
        thread = threading.get_ident()
        while (jobs := self._take(requests, self._batch, _FOR_EVER)) is not None:
            if self._methods.batch is not None:
                self._busy[thread] = f"submit_batch of {len(jobs)} requests"
                self._end_batch(jobs, self._begin_batch(jobs), replies)
            else:
                for job in jobs:
                    self._busy[thread] = f"{job.op} of {job.length} bytes at {job.offset}"
                    self._perform(job, replies)
                    if replies.due:
                        replies.flush()
            replies.flush()
            del jobs
            self._busy.pop(thread, None)

    def _perform(self, job: Job, replies: _Replies) -> None:
        error: BaseException | None = None
        try:
            job.end(job.begin())
        except BaseException as caught:
            error = caught
        self._finish(job, error, replies)

    def _begin_batch(self, jobs: list[Job]) -> BaseException | None:
        assert self._methods.batch is not None
        try:
            self._methods.batch([job.in_batch() for job in jobs])
        except BaseException as error:
            return error
        return None

    def _end_batch(self, jobs: list[Job], error: BaseException | None, replies: _Replies) -> None:
        for job in jobs:
            own = error
            if own is None:
                try:
                    job.end_in_batch()
                except BaseException as caught:
                    own = caught
            self._finish(job, own, replies)

    # ---- an asyncio loop ----

    def _work_async(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        requests, replies = ffi.new("engine_external_request[]", _BATCH), _Replies(self._external)
        self._busy[threading.get_ident()] = "its event loop"
        tasks: set[asyncio.Task[None]] = set()
        over = asyncio.Event()
        fd = check(lib.engine_external_get_fd(self._external), None, "watch", self._label)

        def flush() -> None:
            replies.flush()

        def take() -> None:
            jobs = self._take(requests, _BATCH, 0)
            if jobs is None:
                loop.remove_reader(fd)
                over.set()
                return
            groups = [jobs] if self._methods.batch is not None and jobs else [[job] for job in jobs]
            for group in groups:
                task = loop.create_task(self._perform_async(group, replies))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(lambda _: loop.call_soon(flush))

        loop.add_reader(fd, take)
        await over.wait()
        for task in list(tasks):  # of requests that have failed by time
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        replies.flush()
        close = getattr(self._driver, "close", None)
        if inspect.iscoroutinefunction(close):
            try:
                await close()
            except BaseException:
                _log.exception("%s: close() failed", self._label)

    async def _perform_async(self, jobs: list[Job], replies: _Replies) -> None:
        if self._methods.batch is not None:
            error: BaseException | None = None
            try:
                value = self._methods.batch([job.in_batch() for job in jobs])
                if inspect.isawaitable(value):
                    await value
            except BaseException as caught:
                error = caught
            self._end_batch(jobs, error, replies)
            return
        [job] = jobs
        failed: BaseException | None = None
        try:
            value = job.begin()
            if inspect.isawaitable(value):
                value = await value
            if isinstance(value, AsyncIterable):
                value = await collect(value, job.capacity)
            job.end(value)
        except BaseException as caught:
            failed = caught
        self._finish(job, failed, replies)


def attach_child(engine: Engine, node: Handle, server: Server) -> DriverChild | None:
    """The driver's own way to the node below a filter; it goes with `node`. Under `in_use()` of that."""
    user = lib.engine_external_get_child(server._external)
    if user == NULL:
        return None
    role = ffi.new("char[]", 64)
    below = lib.engine_node_get_child(node.check(), 0, role, len(role))
    info = struct("engine_node_info")
    with suppress(OSError):
        check(lib.engine_node_get_info(below, info), None, "get info", node.label)
    handle = Handle(user, None, f"child of {node.label}", node)
    return DriverChild(engine, handle, below, int(info.memory_alignment) or 1)
