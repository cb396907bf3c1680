"""Who closes what, and when: context managers, dropping, exceptions, threads, signals, exit."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import cffi
import pytest
from conftest import Script

import engine
from engine._handle import Handle


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def everything(eng: engine.Engine) -> dict[str, Any]:
    """One of each kind, all in use."""
    node = eng.open(driver="null", node_name="disk")
    user = node.user("backup", permissions="read")
    disk = eng.virtio_blk(node, ["main"])
    workload = eng.workload(user, rw="randread", runtime=60)
    workload.start()
    queued = eng.workload(disk.queues[0], rw="randread", runtime=60)
    queued.start()
    return {"node": node, "user": user, "disk": disk, "workload": workload, "queued": queued}


def test_the_engine_closes_what_is_left() -> None:
    before = threads(), descriptors()
    with engine.Engine(contexts={"io0": None}) as eng:
        things = everything(eng)
        assert threads() > before[0]
    assert eng.closed
    assert all(thing.closed for thing in things.values())
    for thing in things.values():
        thing.close()  # nothing happens
    eng.close()
    assert (threads(), descriptors()) == before


def test_no_warning_for_what_was_closed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with engine.Engine(contexts={"io0": None}) as eng:
            things = everything(eng)
        del things, eng
        gc.collect()


def test_context_managers_close_on_errors() -> None:
    with pytest.raises(ZeroDivisionError), engine.Engine() as eng, eng.open(driver="null") as node:
        raise ZeroDivisionError
    assert node.closed
    assert eng.closed


def test_after_close() -> None:
    eng = engine.Engine()
    context = eng.main
    eng.close()
    for call in (
        lambda: eng.open(driver="null"),
        lambda: eng.add_context("c"),
        lambda: eng.locks(),
    ):
        with pytest.raises(engine.Closed, match="engine is closed"):
            call()
    with pytest.raises(engine.Closed, match="'main' is closed"):
        context.stats()
    assert list(eng.contexts) == []
    assert repr(eng) == "<Engine closed>"
    eng.close()


@pytest.mark.parametrize("kind", ["engine", "node", "user", "disk", "workload"])
def test_what_is_dropped_warns_and_is_closed(kind: str) -> None:
    with engine.Engine() as eng:
        node = eng.open(driver="null", node_name="disk")
        makers: dict[str, Callable[[], object]] = {
            "engine": engine.Engine,
            "node": lambda: eng.open(driver="null", node_name="other"),
            "user": lambda: node.user("backup", permissions="read"),
            "disk": lambda: eng.virtio_blk(node),
            "workload": lambda: eng.workload(node, rw="randread", runtime=60),
        }
        labels = {
            "engine": "unclosed engine",
            "node": "unclosed node 'other'",
            "user": "unclosed user 'backup' of node 'disk'",
            "disk": "unclosed disk on node 'disk'",
            "workload": "unclosed randread over node 'disk'",
        }
        node.pread(512, 0)
        before = threads(), node.info.user_count, len(eng._handle.children)
        thing = makers[kind]()
        if kind == "workload":
            thing.start()  # type: ignore[attr-defined]
        with pytest.warns(ResourceWarning, match=f"^{labels[kind]}$"):
            del thing
        assert (threads(), node.info.user_count, len(eng._handle.children)) == before
        node.close()  # nobody uses it any more
        eng.open(driver="null", node_name="other").close()


def test_closed_even_if_warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    with engine.Engine() as eng, warnings.catch_warnings():
        warnings.simplefilter("error")
        node = eng.open(driver="null", node_name="disk")
        del node
        eng.open(driver="null", node_name="disk").close()


def test_a_node_keeps_its_engine() -> None:
    node = engine.Engine().open(driver="null")
    gc.collect()
    assert len(node.pread(512, 0)) == 512
    seen: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # A recorded warning would hold its source, and so the engine.
        warnings.showwarning = lambda message, *_, **__: seen.append(str(message))
        del node
    assert seen == ["unclosed node '#block0'", "unclosed engine"]


def test_users_disks_and_workloads_keep_what_they_use() -> None:
    with engine.Engine() as eng:
        queue = eng.virtio_blk(eng.open(driver="null", node_name="a")).queues[0]
        user = eng.open(driver="null", node_name="b").user("u", permissions="read")
        workload = eng.workload(eng.open(driver="null", node_name="c"), rw="randread", count=10)
        gc.collect()
        assert len(queue.pread(512, 0)) == 512
        assert len(user.pread(512, 0)) == 512
        workload.start()
        assert workload.wait(10)


def test_dropped_while_in_use() -> None:
    """A node that others hold natively stays until the engine closes."""
    with engine.Engine() as eng:
        low = eng.open(driver="null", node_name="low")
        top = eng.open(driver="raw", file="low")
        with pytest.warns(ResourceWarning, match="unclosed node 'low'"):
            del low
        assert len(top.pread(512, 0)) == 512
        assert top.child("file").name == "low"


def test_a_cycle_with_everything_in_it() -> None:
    before = threads(), descriptors()
    things = everything(engine.Engine())
    things["self"] = things
    del things
    with pytest.warns(ResourceWarning) as caught:
        gc.collect()
    assert any(str(warning.message) == "unclosed engine" for warning in caught)
    assert (threads(), descriptors()) == before


def test_a_failing_constructor_leaves_nothing() -> None:
    before = threads(), descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for arguments in ({"locking": "none"}, {"contexts": {"io0": [1023]}}, {"contexts": {"": None}}):
            with pytest.raises(engine.EngineError):
                engine.Engine(**arguments)  # type: ignore[arg-type]
    # The thread that takes an earlier engine's log may have ended meanwhile.
    assert threads() <= before[0]
    assert descriptors() <= before[1]


def test_several_engines() -> None:
    with engine.Engine() as one, engine.Engine(locking="global") as other:
        a, b = one.open(driver="null", node_name="disk"), other.open(driver="null", node_name="disk")
        one.close()
        with pytest.raises(engine.Closed):
            a.pread(512, 0)
        assert len(b.pread(512, 0)) == 512


def test_closing_waits_for_calls_in_flight(eng: engine.Engine) -> None:
    node = eng.open(driver="null", latency_ns="300ms", node_name="slow")
    outcome: list[object] = []
    thread = threading.Thread(target=lambda: outcome.append(len(node.pread(512, 0))))
    thread.start()
    deadline = time.monotonic() + 5
    while not node.stats().in_flight and time.monotonic() < deadline:
        time.sleep(0.001)
    started = time.monotonic()
    node.close()
    assert time.monotonic() - started > 0.1
    thread.join(5)
    assert outcome == [512]


def test_calls_race_with_closing(eng: engine.Engine) -> None:
    """Each call answers, or says that it came too late; nothing crashes, nothing hangs."""
    for round_ in range(20):
        node = eng.open(driver="null", node_name=f"n{round_}")
        wrong: list[BaseException] = []
        started = threading.Barrier(4)

        def work(node=node, started=started, wrong=wrong) -> None:  # type: ignore[no-untyped-def]
            started.wait()
            try:
                while True:
                    node.pread(512, 0)
                    node.stats()
            except engine.Closed:
                pass
            except BaseException as error:
                wrong.append(error)

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        started.wait()
        time.sleep(0.002)
        node.close()
        for worker in workers:
            worker.join(10)
            assert not worker.is_alive()
        assert not wrong


def test_the_engine_races_with_everything() -> None:
    for _ in range(10):
        eng = engine.Engine(contexts={"io0": None})
        wrong: list[BaseException] = []
        started = threading.Barrier(4)

        def work(eng=eng, started=started, wrong=wrong) -> None:  # type: ignore[no-untyped-def]
            started.wait()
            try:
                while True:
                    with eng.open(driver="null") as node, node.user("u", permissions="read") as user:
                        user.pread(512, 0, context="io0")
                        with eng.workload(node, rw="randread", count=10) as workload:
                            workload.start()
                            workload.wait()
            except (engine.Closed, engine.InvalidArgument) as error:
                if isinstance(error, engine.InvalidArgument) and "no context" not in str(error):
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        started.wait()
        time.sleep(0.01)
        eng.close()
        for worker in workers:
            worker.join(10)
            assert not worker.is_alive()
        assert not wrong


def test_two_threads_close_one_engine() -> None:
    eng = engine.Engine(contexts={"io0": None})
    everything(eng)
    closers = [threading.Thread(target=eng.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(20)
        assert not closer.is_alive()
    assert eng.closed


def test_closing_from_a_signal_handler_in_a_call() -> None:
    """It is refused where the call is on the same stack: it would have to wait for itself."""
    with engine.Engine() as eng:
        node = eng.open(driver="null")
        handle = node._handle
        with handle.in_use():  # where a signal handler would find it
            handle.check()
            with pytest.raises(engine.Conflict, match="from within a call on it"):
                node.close()
        assert not node.closed
        assert len(node.pread(512, 0)) == 512


def test_ctrl_c_while_closing_leaves_a_known_state() -> None:
    """C's `raise` stands for a native call during which the signal comes: Python hears of it later."""
    ffi = cffi.FFI()
    ffi.cdef("int raise(int number);")
    handle = Handle(int(signal.SIGINT), getattr(ffi.dlopen(None), "raise"), "thing", with_error=False)
    with pytest.raises(KeyboardInterrupt):
        handle.close()
    assert handle.closed
    handle.close()  # nothing is freed twice


def test_a_refused_close_leaves_it_open() -> None:
    answers = [-16, 0]
    handle = Handle("pointer", lambda _: answers.pop(0), "thing", with_error=False)
    with pytest.raises(engine.Conflict, match="thing: close: Device or resource busy"):
        handle.close()
    handle.check()
    handle.close()
    assert handle.closed
    handle.close()
    assert answers == []


def test_the_end_of_the_interpreter(script: Script) -> None:
    """What is open then is closed, and nothing hangs or crashes."""
    result = script("""
import engine, threading
eng = engine.Engine(contexts={"io0": None})
node = eng.open(driver="null")
workload = eng.workload(node, rw="randread", runtime=1000, context="io0")
workload.start()
threading.Thread(target=workload.wait, daemon=True).start()
print("end")
""")
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr
    assert "unclosed engine" in result.stderr


def test_the_end_by_an_exception(script: Script) -> None:
    result = script("""
import engine
eng = engine.Engine()
node = eng.open(driver="null")
node.pread(1, 1 << 40)
""")
    assert result.returncode == 1
    assert "engine.errors.InvalidArgument: node #block0: read of 1 bytes" in result.stderr
    assert "Fatal" not in result.stderr


def test_no_growth() -> None:
    """Opening and closing hundreds of things leaves no handle, descriptor or thread behind."""
    with engine.Engine() as eng:
        node = eng.open(driver="null")
        before = threads(), descriptors(), len(eng._handle.children)
        for _ in range(200):
            eng.open(driver="null").close()
            node.user("u", permissions="read").close()
            eng.virtio_blk(node).close()
            eng.workload(node, rw="read", count=1).close()
        assert (threads(), descriptors(), len(eng._handle.children)) == before
        for _ in range(20):
            eng.add_context("c").close()
        assert (threads(), len(eng._handle.children)) == (before[0], before[2])


def test_closed_contexts_leave_no_descriptors() -> None:
    with engine.Engine() as eng:
        before = descriptors()
        for _ in range(20):
            eng.add_context("c").close()
        assert descriptors() == before


def test_locks() -> None:
    with engine.Engine(lock_profile=True, locking="global", contexts={"io0": None}) as eng:
        node = eng.open(driver="null", node_name="disk")
        for _ in range(100):
            node.pread(512, 0, context="io0")
        locks = {(lock.owner, lock.lock): lock for lock in eng.locks()}
        assert locks["disk", "edges"].rank == 1
        assert locks["engine", "global"].rank == 0
        assert locks["engine", "global"].acquisitions >= 100
        assert locks["engine", "global"].hold_ns.count > 0
        assert eng.contexts["io0"].stats().lock_acquisitions > 0
    with engine.Engine() as eng:
        assert all(lock.hold_ns.count == 0 for lock in eng.locks())
        assert eng.main.stats().lock_acquisitions == 0
