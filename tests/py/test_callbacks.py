"""Python callables on contexts: bottom halves, timers, descriptors; errors in them, and how each can end."""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Script

import engine

LONG = 30.0  # seconds: a limit for what hangs, never waited out


@pytest.fixture
def context(eng: engine.Engine) -> engine.AioContext:
    return eng.contexts["io0"]


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    seen: list[BaseException] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_value))
    return seen


def run_on(context: engine.AioContext, function: Callable[[], Any]) -> Any:
    """Runs it on the context's thread, and gives back what it returned, or raises what it raised."""
    done, outcome = threading.Event(), []

    def run() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))
        done.set()

    context.schedule_bh(run)
    assert done.wait(LONG)
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def settle(context: engine.AioContext) -> None:
    """What has been asked of the context before is done."""
    run_on(context, lambda: None)


class Counter:
    """Counts its calls; `wait(n)` returns when there have been n."""

    def __init__(self) -> None:
        self.count = 0
        self.threads: set[int] = set()
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.count += 1
            self.threads.add(threading.get_native_id())
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= count, LONG)


# ---- bottom halves


def test_a_bottom_half_runs_once_on_the_contexts_thread(context: engine.AioContext) -> None:
    counter = Counter()
    for _ in range(100):
        context.schedule_bh(counter)
    counter.wait(100)
    settle(context)
    assert counter.count == 100
    assert counter.threads == {context.info.tid}
    assert context.stats().bottom_halves >= 100


def test_a_reusable_bottom_half(context: engine.AioContext) -> None:
    counter = Counter()
    with context.bottom_half(counter) as bh:
        assert bh.context is context
        for turn in range(1, 4):
            bh.schedule()
            counter.wait(turn)

        def twice() -> None:
            bh.schedule()
            bh.schedule()  # adds nothing

        run_on(context, twice)
        settle(context)
        assert counter.count == 4

        def taken_back() -> None:
            bh.schedule()
            bh.cancel()

        run_on(context, taken_back)
        settle(context)
        assert counter.count == 4
    bh.close()
    for call in (bh.schedule, bh.cancel):
        with pytest.raises(engine.Closed, match=r"bottom half .* is closed"):
            call()
    assert "closed" in repr(bh)


def test_closing_takes_a_schedule_back_or_waits_for_it(context: engine.AioContext) -> None:
    """When close() returns nothing runs any more, and what the callable held is free."""
    for _ in range(50):
        running = threading.Lock()

        def work(lock: Any = running) -> None:
            with lock:
                os.sched_yield()

        alive = weakref.ref(work)
        bh = context.bottom_half(work)
        bh.schedule()
        bh.close()
        assert running.acquire(blocking=False)
        del work, bh
        assert alive() is None


def test_a_bottom_half_closes_itself(context: engine.AioContext) -> None:
    counter = Counter()

    def once() -> None:
        bh.close()
        bh.close()
        counter()

    bh = context.bottom_half(once)
    bh.schedule()
    counter.wait(1)
    settle(context)
    assert bh.closed


def test_closed_by_itself_and_by_another_thread_at_once(context: engine.AioContext) -> None:
    for _ in range(50):
        bhs: list[engine.BottomHalf] = []
        bh = context.bottom_half(lambda bhs=bhs: bhs[0].close())
        bhs.append(bh)
        bh.schedule()
        bh.close()
        assert bh.closed
        del bhs[:]


def test_one_context_cannot_close_what_runs_on_another(eng: engine.Engine) -> None:
    with eng.contexts["io1"].bottom_half(lambda: None) as bh, pytest.raises(engine.InvalidArgument) as caught:
        run_on(eng.contexts["io0"], bh.close)
    assert caught.value.errno == errno.EDEADLK
    assert "would block context io0, on whose own thread it was called" in str(caught.value)


# ---- timers


def test_a_delayed_call(context: engine.AioContext) -> None:
    counter = Counter()
    call = context.call_later(0.001, counter)
    counter.wait(1)
    settle(context)
    assert (call.state, counter.count) == ("fired", 1)
    call.cancel()  # too late: nothing happens
    assert call.state == "fired"
    context.call_later("1ms", counter)  # kept by nobody
    gc.collect()
    counter.wait(2)
    context.call_later(0, counter)
    counter.wait(3)
    assert counter.threads == {context.info.tid}


def test_a_cancelled_call_does_not_come(context: engine.AioContext) -> None:
    counter = Counter()
    call = context.call_later(3600, counter)
    assert call.state == "waiting"
    alive = len(context._handle.children)
    call.cancel()
    settle(context)
    assert (call.state, counter.count) == ("cancelled", 0)
    assert len(context._handle.children) == alive - 1
    assert "cancelled" in repr(call)


def test_cancelled_or_fired_but_one_of_the_two(context: engine.AioContext) -> None:
    for turn in range(200):
        counter = Counter()
        call = context.call_later("1us", counter)
        for _ in range(turn):
            os.sched_yield()
        call.cancel()
        settle(context)
        assert (call.state, counter.count) in (("fired", 1), ("cancelled", 0))


def test_a_timer(context: engine.AioContext) -> None:
    counter = Counter()
    with context.timer(counter) as timer:
        timer.arm(0.001)
        counter.wait(1)
        timer.arm(3600)
        timer.arm("1ms")  # moves the deadline
        counter.wait(2)
        timer.arm(3600)
        timer.cancel()
        settle(context)
        timer.arm(3600)
    settle(context)
    assert counter.count == 2  # neither a cancel nor a close calls it
    for call in (lambda: timer.arm(1), timer.cancel):
        with pytest.raises(engine.Closed):
            call()


def test_a_timer_arms_itself(context: engine.AioContext) -> None:
    counter = Counter()

    def tick() -> None:
        counter()
        if counter.count < 10:
            timer.arm("100us")

    timer = context.timer(tick)
    timer.arm(0)
    counter.wait(10)
    timer.close()


@pytest.mark.parametrize("delay", [-1, float("nan"), 1e10, "5", "5 parsecs"])
def test_delays_that_make_no_sense(context: engine.AioContext, delay: float | str) -> None:
    with pytest.raises(engine.InvalidArgument):
        context.call_later(delay, print)
    with context.timer(print) as timer, pytest.raises(engine.InvalidArgument):
        timer.arm(delay)


def test_a_descriptor_that_is_read(context: engine.AioContext) -> None:
    ours, theirs = os.pipe()
    got: list[bytes] = []
    counter = Counter()

    def read() -> None:
        got.append(os.read(ours, 100))
        counter()

    with context.fd_handler(ours, on_read=read):
        for number in range(1, 6):
            os.write(theirs, str(number).encode())
            counter.wait(number)
    os.write(theirs, b"nobody")
    settle(context)
    assert got == [b"1", b"2", b"3", b"4", b"5"]
    os.close(ours)
    os.close(theirs)


def test_a_descriptor_that_is_written(context: engine.AioContext) -> None:
    ours, theirs = os.pipe()
    done = threading.Event()
    handlers: list[engine.FdHandler] = []

    def write() -> None:
        if handlers:
            os.write(theirs, b"x")
            handlers[0].close()
            done.set()

    with open(theirs, "wb", buffering=0) as file:
        handlers.append(context.fd_handler(file, on_write=write))  # whatever has fileno()
        assert done.wait(LONG)
        settle(context)
        assert os.read(ours, 100) == b"x"
        assert handlers[0].closed
    os.close(ours)


def test_a_poll_finds_work_without_a_descriptor() -> None:
    with engine.Engine() as eng:
        context = eng.add_context("poller", poll_max_ns=10**9)
        ours, theirs = os.pipe()
        counter, work = Counter(), [3]

        def take() -> None:
            if work[0]:
                work[0] -= 1
            counter()

        with context.fd_handler(ours, on_read=take, poll=lambda: work[0]):
            counter.wait(3)
        assert work == [0]
        os.close(ours)
        os.close(theirs)


def test_what_is_wrong_with_a_descriptor(context: engine.AioContext) -> None:
    ours, theirs = os.pipe()
    with pytest.raises(engine.InvalidArgument, match="no callback given"):
        context.fd_handler(ours)
    with pytest.raises(engine.InvalidArgument, match="poll needs on_read"):
        context.fd_handler(ours, on_write=print, poll=print)
    os.close(ours)
    os.close(theirs)
    with pytest.raises(engine.EngineError) as caught:
        context.fd_handler(ours, on_read=print)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(engine.InvalidArgument):
        context.fd_handler(-1, on_read=print)


def test_what_cannot_be_called(context: engine.AioContext) -> None:
    for make in (
        lambda: context.schedule_bh(1),  # type: ignore[arg-type]
        lambda: context.bottom_half(None),  # type: ignore[arg-type]
        lambda: context.timer("x"),  # type: ignore[arg-type]
        lambda: context.call_later(0, 1),  # type: ignore[arg-type]
        lambda: context.fd_handler(0, on_read=1),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match="something to call is needed"):
            make()


# ---- what goes wrong in them


def test_an_exception_is_told_and_the_loop_goes_on(
    context: engine.AioContext, unraisable: list[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = os.pipe()
    reader: list[engine.FdHandler] = []

    def fail() -> None:
        raise ZeroDivisionError("in a callback")

    def fail_reading() -> None:
        reader[0].close()
        fail()

    context.schedule_bh(fail)
    context.call_later(0, fail)
    with context.timer(fail) as timer, context.bottom_half(fail) as bh:
        timer.arm(0)
        bh.schedule()
        reader.append(context.fd_handler(ours, on_read=fail_reading))
        os.write(theirs, b"x")
        while len(unraisable) < 5:
            settle(context)
    assert [type(error) for error in unraisable] == [ZeroDivisionError] * 5
    assert any("context 'io0': bottom half" in note for note in unraisable[0].__notes__)
    records = [record for record in caplog.records if record.name == "engine"]
    assert len(records) == 5
    assert {record.levelno for record in records} == {logging.ERROR}
    assert "raised ZeroDivisionError('in a callback')" in records[0].getMessage()
    assert records[0].exc_info is not None
    os.close(ours)
    os.close(theirs)
    unraisable.clear()


def test_a_hook_that_fails_itself(context: engine.AioContext, monkeypatch: pytest.MonkeyPatch) -> None:
    called = threading.Event()

    def hook(args: object) -> None:
        called.set()
        raise RuntimeError

    monkeypatch.setattr(sys, "unraisablehook", hook)
    context.schedule_bh(lambda: 1 / 0)
    assert called.wait(LONG)
    settle(context)


def test_a_system_exit_ends_nothing(context: engine.AioContext, unraisable: list[BaseException]) -> None:
    context.schedule_bh(sys.exit)
    settle(context)
    assert [type(error) for error in unraisable] == [SystemExit]


def test_what_would_block_is_refused(eng: engine.Engine, null: engine.BlockNode) -> None:
    context = eng.contexts["io0"]
    disk = eng.virtio_blk(null, ["io0"])
    user = null.user("u", permissions="read")
    calls = (
        lambda: null.pread(512, 0),
        lambda: null.pwrite(b"x", 0, context="io1"),
        lambda: null.flush(),
        lambda: list(null.extents()),
        lambda: user.pread(512, 0),
        lambda: disk.queues[0].pread(512, 0),
        lambda: disk.queues[0].get_id(),
        lambda: eng.open(driver="null"),
        lambda: eng.add_context("io2"),
        null.close,
        user.close,
        disk.close,
        context.close,
        eng.close,
    )
    for number, call in enumerate(calls):
        with pytest.raises(engine.InvalidArgument) as caught:
            run_on(context, call)
        assert caught.value.errno == errno.EDEADLK, number
        assert "would block context io0, on whose own thread" in str(caught.value), number
    assert null.pread(512, 0) == bytes(512)
    disk.close()
    user.close()


def test_what_does_not_block_works_in_there(eng: engine.Engine, null: engine.BlockNode) -> None:
    context = eng.contexts["io0"]
    counter = Counter()

    def work() -> None:
        assert null.info.driver == "null"
        assert null.stats().in_flight == 0
        assert context.stats().turns > 0
        eng.contexts["io1"].schedule_bh(counter)
        context.call_later(0, counter)
        with context.bottom_half(counter) as bh:
            bh.schedule()  # and closing takes it back

    run_on(context, work)
    counter.wait(2)
    settle(context)
    assert counter.count == 2


def test_a_close_elsewhere_does_not_wait_for_a_callback_that_would_close(
    eng: engine.Engine, null: engine.BlockNode
) -> None:
    """The reader waits for the context, and the callback would have to wait for the reader."""
    context = eng.contexts["io0"]
    slow = eng.open(driver="null", latency_ns="50ms", node_name="slow")
    reader = threading.Thread(target=lambda: slow.pread(512, 0, context="io0"))
    reader.start()
    while not slow.stats().in_flight and reader.is_alive():
        os.sched_yield()
    with pytest.raises(engine.InvalidArgument):
        run_on(context, slow.close)
    reader.join(LONG)
    assert not reader.is_alive()


# ---- to the end


def test_dropped_without_close(context: engine.AioContext) -> None:
    ours, theirs = os.pipe()
    for make, label in (
        (lambda: context.bottom_half(print), "unclosed bottom half print"),
        (lambda: context.timer(print), "unclosed timer print"),
        (lambda: context.fd_handler(ours, on_read=print), f"unclosed handler of descriptor {ours}"),
    ):
        thing: Any = make()
        if isinstance(thing, engine.Timer):
            thing.arm(3600)
        with pytest.warns(ResourceWarning, match=f"^{label}$"):
            del thing
    assert not context._handle.children
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("name", ["main", "io0"])
def test_the_engine_closes_them(name: str) -> None:
    counter = Counter()
    ours, theirs = os.pipe()
    with engine.Engine(contexts={"io0": None}) as eng:
        context = eng.contexts[name]
        bh, timer = context.bottom_half(counter), context.timer(counter)
        handler = context.fd_handler(ours, on_read=counter)
        timer.arm(3600)
        call = context.call_later(3600, counter)
        context.schedule_bh(counter)
    assert counter.count == 1  # what was accepted has run
    assert all(thing.closed for thing in (bh, timer, handler))
    assert call.state in ("cancelled", "waiting")
    with pytest.raises(engine.Closed):
        context.schedule_bh(counter)
    with pytest.raises(engine.Closed):
        context.bottom_half(counter)
    for thing in (bh, timer, handler):
        thing.close()
    call.cancel()
    os.close(ours)
    os.close(theirs)


def test_a_closing_context_closes_them(eng: engine.Engine) -> None:
    context = eng.add_context("brief")
    bh, timer = context.bottom_half(print), context.timer(print)
    timer.arm(3600)
    context.close()
    assert bh.closed
    assert timer.closed
    with pytest.raises(engine.Closed, match="context 'brief' is closed"):
        context.timer(print)


def test_nothing_is_left_behind(context: engine.AioContext) -> None:
    class Held:
        pass

    held = Held()
    alive = weakref.ref(held)
    for _ in range(20):
        with (
            context.timer(lambda held=held: None) as timer,
            context.bottom_half(lambda held=held: None) as bh,
        ):
            timer.arm(3600)
            bh.schedule()
        context.call_later(3600, lambda held=held: None).cancel()
        context.call_later(0, lambda held=held: None)
        context.schedule_bh(lambda held=held: None)
    del held, timer, bh
    while context._handle.children:
        settle(context)
    settle(context)
    gc.collect()
    assert alive() is None


def test_closing_races_with_callbacks() -> None:
    for _ in range(10):
        eng = engine.Engine(contexts={"io0": None})
        context = eng.contexts["io0"]
        counter = Counter()
        wrong: list[BaseException] = []

        def work(context=context, counter=counter, wrong=wrong) -> None:  # type: ignore[no-untyped-def]
            try:
                while True:
                    context.schedule_bh(counter)
                    with context.timer(counter) as timer, context.bottom_half(counter) as bh:
                        timer.arm(0)
                        bh.schedule()
                    context.call_later("10us", counter)
            except engine.Closed:
                pass
            except BaseException as error:
                wrong.append(error)

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        counter.wait(20)
        eng.close()
        for worker in workers:
            worker.join(LONG)
            assert not worker.is_alive()
        assert not wrong


def test_the_end_of_the_interpreter(script: Script) -> None:
    """Armed timers, bottom halves, a callback that never stops scheduling itself: no crash, no hang."""
    result = script("""
import engine, os
eng = engine.Engine(contexts={"io0": None, "io1": None})
io0 = eng.contexts["io0"]
timer = io0.timer(lambda: timer.arm("10us"))
timer.arm(0)
io0.call_later(3600, print)
def again():
    try:
        io0.schedule_bh(again)
    except engine.Closed:
        pass
again()
ours, theirs = os.pipe()
os.write(theirs, b"x")
busy = eng.contexts["io1"].fd_handler(ours, on_read=lambda: None)
print("end")
""")
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr
    assert "unclosed engine" in result.stderr
    assert "Fatal" not in result.stderr


def test_the_end_of_the_interpreter_where_the_engine_cannot_close(script: Script) -> None:
    """A user that Python does not know of: the context goes on, and no longer asks for Python."""
    result = script("""
import engine, os, threading, time
from engine._native import ffi, lib
eng = engine.Engine(contexts={"io0": None})
node = eng.open(driver="null")
error, out = ffi.new("engine_error *"), ffi.new("engine_user_t **")
assert lib.engine_user_create(node._handle.pointer, b"native", 1, 15, out, error) == 0
ours, theirs = os.pipe()
os.write(theirs, b"x")
from engine import _callbacks
inside = threading.Event()
def read():
    inside.set()
    for _ in range(5000):  # lets go of the GIL and wants it back, while the interpreter ends
        time.sleep(1e-5)
target = _callbacks.Target(eng.main._handle, "raw", {_callbacks.READABLE: read})
keep = ffi.new_handle(target)
_callbacks.remember(eng.main._handle)
handler = ffi.new("engine_fd_handler_t **")
assert lib.engine_fd_handler_new(eng.main._handle.pointer, ours, _callbacks.native("engine_python_readable"),
                                 ffi.NULL, ffi.NULL, keep, handler, error) == 0
inside.wait()
print("end")
""")
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr
    assert "Fatal" not in result.stderr


def test_after_a_fork(script: Script) -> None:
    result = script("""
import engine, os, sys
eng = engine.Engine(contexts={"io0": None})
io0 = eng.contexts["io0"]
bh, timer = io0.bottom_half(print), io0.timer(print)
timer.arm(3600)
call = io0.call_later(3600, print)
pid = os.fork()
if pid == 0:
    for attempt in (lambda: io0.schedule_bh(print), bh.schedule, lambda: timer.arm(1), lambda:
    io0.timer(print)):
        try:
            attempt()
        except engine.Closed as error:
            assert "after fork" in str(error)
        else:
            print("no error")
    for thing in (bh, timer, eng):
        thing.close()
    with engine.Engine() as own:  # a new engine works
        import threading
        done = threading.Event()
        own.main.schedule_bh(done.set)
        assert done.wait(30)
    print("child", flush=True)
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
eng.close()
""")
    assert (result.returncode, result.stdout) == (0, "child\n0\n"), result.stderr
