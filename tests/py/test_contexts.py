"""AioContexts: placement, names, polling, statistics."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest

import engine
from engine._native import ffi, lib

CPUS = sorted(os.sched_getaffinity(0))


def test_the_engine_starts_with_main() -> None:
    with engine.Engine() as eng:
        assert list(eng.contexts) == ["main"]
        assert eng.main is eng.contexts["main"]
        assert eng.main.name == "main"
        assert eng.main.effective_cpus == CPUS


def test_contexts_of_the_constructor() -> None:
    with engine.Engine(contexts={"io0": [CPUS[0]], "io1": [CPUS[-1]], "free": None, "also": []}) as eng:
        assert list(eng.contexts) == ["main", "io0", "io1", "free", "also"]
        assert len(eng.contexts) == 5
        assert eng.contexts["io0"].effective_cpus == [CPUS[0]]
        assert eng.contexts["io1"].effective_cpus == [CPUS[-1]]
        assert eng.contexts["free"].effective_cpus == eng.contexts["also"].effective_cpus == CPUS
        assert "io2" not in eng.contexts
        with pytest.raises(KeyError):
            eng.contexts["io2"]


def test_where_it_runs_is_what_the_kernel_says() -> None:
    with engine.Engine() as eng:
        context = eng.add_context("pinned", cpus=[CPUS[0]])
        info = context.info
        assert info.name == "pinned"
        assert os.sched_getaffinity(info.tid) == set(info.effective_cpus) == {CPUS[0]}
        assert info.last_cpu == CPUS[0]
        os.sched_setaffinity(info.tid, CPUS)  # behind the engine's back
        assert context.effective_cpus == CPUS


def test_a_cpu_that_does_not_exist() -> None:
    with engine.Engine() as eng:
        with pytest.raises(engine.EngineError, match="1023"):
            eng.add_context("far", cpus=[1023])
        for wrong in (-1, 1024):
            with pytest.raises(engine.InvalidArgument, match="cpus: must be"):
                eng.add_context("far", cpus=[wrong])
        with pytest.raises(TypeError):
            eng.add_context("far", cpus=["0"])  # type: ignore[list-item]
        assert "far" not in eng.contexts
    threads = len(os.listdir("/proc/self/task"))
    with pytest.raises(engine.EngineError):
        engine.Engine(contexts={"good": None, "bad": [1023]})
    assert len(os.listdir("/proc/self/task")) == threads  # nothing stays behind


@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_backends(backend: str) -> None:
    if not engine.probe_backend(backend).works:
        pytest.skip(engine.probe_backend(backend).reason)
    with engine.Engine() as eng:
        context = eng.add_context("c", backend=backend)
        assert context.info.backend == backend
        assert context.info.backend_reason


@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_the_backend_of_main(backend: str) -> None:
    if not engine.probe_backend(backend).works:
        pytest.skip(engine.probe_backend(backend).reason)
    with engine.Engine(backend=backend) as eng:
        assert eng.main.info.backend == backend
    with pytest.raises(engine.InvalidArgument, match="backend"):
        engine.Engine(backend="epoll")


def test_automatic_backend() -> None:
    with engine.Engine() as eng:
        works = engine.probe_backend("io_uring").works
        assert eng.add_context("c").info.backend == ("io_uring" if works else "threads")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 32}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"backend": "epoll"}, "backend"),
        ({"poll_max_ns": -1}, "poll_max_ns"),
        ({"queue_depth": -1}, "queue_depth"),
        ({"queue_depth": 1 << 20}, "queue_depth"),
        ({"sched_policy": "batch"}, "sched_policy"),
        ({"sched_priority": 100}, "sched_priority"),
    ],
)
def test_wrong_arguments(eng: engine.Engine, arguments: dict[str, object], field: str) -> None:
    with pytest.raises(engine.InvalidArgument) as caught:
        eng.add_context(**{"name": "c", **arguments})  # type: ignore[arg-type]
    assert caught.value.field == field
    assert list(eng.contexts) == ["main", "io0", "io1"]


def test_a_name_that_is_taken(eng: engine.Engine) -> None:
    with pytest.raises(engine.Conflict, match="'io0'"):
        eng.add_context("io0")
    assert eng.contexts["io0"].stats().turns >= 0  # the first one is as it was


def test_names_have_31_bytes(eng: engine.Engine) -> None:
    name = "ä" * 15 + "x"
    assert eng.add_context(name).info.name == name


def test_polling_can_be_set(eng: engine.Engine) -> None:
    context = eng.add_context("c", poll_max_ns=1000)
    assert context.poll_max_ns == 1000
    context.poll_max_ns = 0
    assert context.poll_max_ns == 0
    for wrong in (-1, 2**63):
        with pytest.raises(engine.InvalidArgument, match="poll_max_ns"):
            context.poll_max_ns = wrong
    assert eng.add_context("default").poll_max_ns > 0


def test_statistics(eng: engine.Engine, null: engine.BlockNode) -> None:
    before = eng.contexts["io0"].stats()
    idle = eng.contexts["io1"].stats()
    for _ in range(10):
        null.pread(512, 0, context="io0")
    after = eng.contexts["io0"].stats()
    assert after.messages - before.messages >= 10
    assert after.turns > before.turns
    assert eng.contexts["io1"].stats().messages == idle.messages


def test_an_idle_context_sleeps(eng: engine.Engine) -> None:
    eng.add_context("idle", poll_max_ns=0)
    before = eng.contexts["idle"].info
    time.sleep(0.2)
    after = eng.contexts["idle"].info
    used = after.cpu_user_ns + after.cpu_system_ns - before.cpu_user_ns - before.cpu_system_ns
    assert used < 20_000_000


def test_closing_one(eng: engine.Engine, null: engine.BlockNode) -> None:
    null.pread(512, 0, context="io0")
    context = eng.contexts["io0"]
    tid = context.info.tid
    context.close()
    context.close()
    assert context.closed
    assert "io0" not in eng.contexts
    assert not os.path.exists(f"/proc/self/task/{tid}")
    for use in (context.stats, lambda: context.info, lambda: context.effective_cpus):
        with pytest.raises(engine.Closed, match="context 'io0' is closed"):
            use()
    with pytest.raises(engine.InvalidArgument, match="no context 'io0'; there are main, io1"):
        null.pread(512, 0, context="io0")
    with pytest.raises(engine.Closed, match="context 'io0' is closed"):
        null.pread(512, 0, context=context)
    again = eng.add_context("io0")  # the name is free
    assert again is not context
    assert null.pread(512, 0, context="io0") == bytes(512)


def test_main_cannot_be_closed(eng: engine.Engine) -> None:
    main = eng.main
    with pytest.raises(engine.InvalidArgument, match="main lives until the engine closes"):
        main.close()
    assert main.stats().turns >= 0
    eng.close()
    main.close()
    assert main.closed


def test_not_while_it_serves_a_queue(eng: engine.Engine, null: engine.BlockNode) -> None:
    disk = eng.virtio_blk(null, ["io0"])
    with pytest.raises(engine.Conflict, match="io0"):
        eng.contexts["io0"].close()
    disk.close()
    eng.contexts["io0"].close()


def test_dropping_the_object_does_not_close_it(eng: engine.Engine) -> None:
    tid = eng.contexts["io0"].info.tid
    assert eng.contexts["io0"].info.tid == tid
    kept = eng.contexts["io0"]
    assert eng.contexts["io0"] is kept


def test_text(eng: engine.Engine) -> None:
    context = eng.contexts["io0"]
    assert repr(context) == "<AioContext 'io0'>"
    context.close()
    assert repr(context) == "<AioContext 'io0' closed>"
    assert repr(eng) == "<Engine, contexts main, io1>"


def test_of_another_engine(eng: engine.Engine, null: engine.BlockNode) -> None:
    with engine.Engine() as other:
        with pytest.raises(engine.InvalidArgument, match="belongs to another engine"):
            null.pread(512, 0, context=other.main)
        with pytest.raises(engine.InvalidArgument, match="belongs to another engine"):
            eng.virtio_blk(null, [other.main])
    with pytest.raises(TypeError, match="an AioContext or its name"):
        null.pread(512, 0, context=5)  # type: ignore[arg-type]


def test_a_blocking_call_on_a_contexts_own_thread(eng: engine.Engine, null: engine.BlockNode) -> None:
    """It would wait for itself: each is refused, and nothing is left half-closed."""
    disk = eng.virtio_blk(null, ["io0"])
    queue, user = disk.queues[0], null.user("u", permissions="read")
    workload = eng.workload(null, rw="randread", runtime=60)
    workload.start()
    null.pwrite(bytes(512), 0)
    outcomes: dict[str, object] = {}
    calls = {
        "pread": lambda: null.pread(512, 0),
        "user": lambda: user.pread(512, 0, context="io1"),
        "extents": lambda: list(null.extents()),
        "queue": lambda: queue.pread(512, 0),
        "wait": workload.wait,
        "open": lambda: eng.open(driver="null"),
        "add_context": lambda: eng.add_context("c"),
        "workload": lambda: eng.workload(null, rw="read", count=1),
        "close workload": workload.close,
        "close disk": disk.close,
        "close user": user.close,
        "close node": null.close,
        "close context": eng.contexts["io1"].close,
        "close engine": eng.close,
    }
    done = threading.Event()

    def on_io0(_: object) -> None:
        for name, call in calls.items():
            try:
                outcomes[name] = call()
            except Exception as error:
                outcomes[name] = error
        done.set()

    callback = ffi.callback("engine_bh_fn *", on_io0)
    assert lib.engine_schedule_oneshot(eng.contexts["io0"]._handle.pointer, callback, ffi.NULL) == 0
    assert done.wait(30)
    for name, outcome in outcomes.items():
        assert isinstance(outcome, engine.InvalidArgument), (name, outcome)
        assert outcome.errno == errno.EDEADLK, (name, outcome)
    for thing in (workload, disk, user, null, eng.contexts["io0"], eng.contexts["io1"], eng):
        assert not thing.closed
    assert null.pread(512, 0) == queue.pread(512, 0) == bytes(512)
