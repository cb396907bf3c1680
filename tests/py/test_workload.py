"""The load generator from Python: what it does, what it counts, how it ends."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest
from conftest import Script

import engine
from engine.workload import configure

DEFAULTS: dict[str, Any] = {
    "rw": "randread",
    "bs": 4096,
    "iodepth": 64,
    "count": 1,
    "runtime": 0.0,
    "rate_iops": 0,
    "seed": 1,
    "rwmixread": 50,
    "offset": 0,
    "length": 0,
    "flush_every": 0,
    "latency": True,
    "verify": False,
}


def run(eng: engine.Engine, target: Any, **options: Any) -> engine.WorkloadResult:
    with eng.workload(target, **options) as workload:
        workload.start()
        assert workload.wait(60)
        return workload.result()


@pytest.mark.parametrize("through", ["node", "user", "queue"])
@pytest.mark.parametrize("rw", ["read", "write", "rw", "readwrite", "randread", "randwrite", "randrw"])
def test_patterns(eng: engine.Engine, null: engine.BlockNode, rw: str, through: str) -> None:
    target: Any = null
    if through == "user":
        target = null.user("generator")
    elif through == "queue":
        target = eng.virtio_blk(null, ["io0"]).queues[0]
    result = run(eng, target, rw=rw, bs="8k", iodepth=4, count=1000)
    assert not result.running
    assert result.reads + result.writes == 1000
    assert (result.bytes_read, result.bytes_written) == (8192 * result.reads, 8192 * result.writes)
    if rw.endswith("read"):
        assert result.writes == 0
    elif rw.endswith("rw") or rw == "readwrite":
        assert 350 < result.reads < 650
    else:
        assert result.reads == 0
    assert (result.errors, result.error_errno, result.verify_errors) == (0, 0, 0)
    assert result.read_latency.count == result.reads
    assert result.write_latency.count == result.writes
    assert sum(result.depth) == 1000
    assert len(result.depth) == 8
    assert result.seconds > 0
    assert result.iops == pytest.approx(1000 / result.seconds)
    assert null.stats().op["read"].requests == result.reads


def test_a_mix(eng: engine.Engine, null: engine.BlockNode) -> None:
    result = run(eng, null, rw="randrw", rwmixread=90, count=20_000)
    assert result.reads / 20_000 == pytest.approx(0.9, abs=0.02)


def test_time_is_up(eng: engine.Engine, null: engine.BlockNode) -> None:
    for runtime in (0.2, "200ms"):
        result = run(eng, null, rw="randread", runtime=runtime)
        assert result.seconds == pytest.approx(0.2, abs=0.1)
        assert result.reads > 1000


def test_open_loop(eng: engine.Engine, null: engine.BlockNode) -> None:
    result = run(eng, null, rw="randread", rate_iops=2000, runtime=0.5)
    assert result.open_loop
    assert result.reads == pytest.approx(1000, rel=0.1)
    assert not run(eng, null, rw="randread", count=1).open_loop


def test_latency_can_be_left_out(eng: engine.Engine, null: engine.BlockNode) -> None:
    result = run(eng, null, rw="randread", count=1000, latency=False)
    assert result.reads == 1000
    assert result.read_latency.count == 0


def test_latency_is_that_of_the_node(eng: engine.Engine) -> None:
    node = eng.open(driver="null", latency_ns="2ms")
    result = run(eng, node, rw="randread", count=50, iodepth=1)
    assert result.read_latency.min >= 2_000_000
    assert result.read_latency.percentile(50) < 20_000_000


def test_depth_reached(eng: engine.Engine, null: engine.BlockNode) -> None:
    assert run(eng, null, rw="randread", count=100, iodepth=1).depth == [100, 0, 0, 0, 0, 0, 0, 0]


def test_flushes(eng: engine.Engine, null: engine.BlockNode) -> None:
    result = run(eng, null, rw="write", count=100, flush_every=10, iodepth=1)
    assert result.writes + result.flushes == 100
    assert result.flushes in (9, 10)
    assert null.stats().op["flush"].requests == result.flushes


def test_verification(eng: engine.Engine, null: engine.BlockNode, tmp_path: Any) -> None:
    path = tmp_path / "v.img"
    path.write_bytes(bytes(1 << 20))
    node = eng.open(driver="raw", filename=path)
    good = run(eng, node, rw="randrw", count=2000, verify=True)
    assert (good.verify_errors, good.errors) == (0, 0)
    bad = run(eng, null, rw="randrw", length="1M", count=5000, iodepth=1, verify=True)
    assert bad.verify_errors > 0  # null forgets what is written


def test_one_seed_is_one_history(eng: engine.Engine, tmp_path: Any) -> None:
    contents = []
    for seed in (1, 1, 2):
        path = tmp_path / "s.img"
        path.write_bytes(bytes(1 << 20))
        with eng.open(driver="raw", filename=path) as node:
            run(eng, node, rw="randwrite", count=50, seed=seed, verify=True)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_a_range(eng: engine.Engine, tmp_path: Any) -> None:
    path = tmp_path / "r.img"
    path.write_bytes(bytes(1 << 20))
    with eng.open(driver="raw", filename=path) as node:
        result = run(eng, node, rw="randwrite", offset="64k", length="64k", count=500, verify=True)
        assert result.writes == 500
    content = path.read_bytes()
    assert not any(content[: 64 << 10])
    assert any(content[64 << 10 : 128 << 10])
    assert not any(content[128 << 10 :])


def test_where_it_runs(eng: engine.Engine, null: engine.BlockNode) -> None:
    for context in ("io1", eng.contexts["io1"]):
        run(eng, null, rw="randread", count=10, context=context)
    assert null.stats("io1").op["read"].requests == 20
    disk = eng.virtio_blk(null, ["io0"])
    run(eng, disk.queues[0], rw="randread", count=10)
    assert null.stats("io0").op["read"].requests == 10


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"rw": "reed"}, "rw"),
        ({"bs": 0}, "bs"),
        ({"bs": "4x"}, "size"),
        ({"bs": 2**31}, "bs"),
        ({"iodepth": 0}, "iodepth"),
        ({"iodepth": 2**20}, "iodepth"),
        ({"count": -1}, "count"),
        ({"count": 0}, "runtime"),
        ({"runtime": -1}, "runtime"),
        ({"runtime": float("nan")}, "runtime"),
        ({"runtime": float("inf")}, "runtime"),
        ({"runtime": "5"}, "time"),
        ({"rate_iops": -1}, "rate_iops"),
        ({"seed": 2**64}, "seed"),
        ({"rw": "randrw", "rwmixread": 101}, "rwmixread"),
        ({"offset": -1}, "offset"),
        ({"length": 2**63}, "length"),
        ({"flush_every": 2**32}, "flush_every"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], field: str) -> None:
    with pytest.raises(engine.InvalidArgument) as caught:
        configure(**{**DEFAULTS, **options})
    assert caught.value.field == field


def test_configuration() -> None:
    config = configure(**{**DEFAULTS, "runtime": "1.5s", "bs": "4k", "verify": True, "latency": False})
    assert (config.block_size, config.runtime_ns, config.count, config.flags) == (4096, 1_500_000_000, 1, 3)


def test_what_does_not_fit_the_node(eng: engine.Engine, null: engine.BlockNode) -> None:
    for options in ({"offset": "2G"}, {"length": "2G"}, {"offset": 1}):
        with pytest.raises(engine.InvalidArgument, match="does not fit node disk"):
            eng.workload(null, rw="read", count=1, **options)  # type: ignore[arg-type]
    with pytest.raises(engine.InvalidArgument, match="512"):
        eng.workload(eng.virtio_blk(null).queues[0], rw="read", bs=100, count=1)


def test_wrong_targets(eng: engine.Engine, null: engine.BlockNode) -> None:
    for target in ("disk", None, eng):
        with pytest.raises(TypeError, match="target"):
            eng.workload(target, rw="read", count=1)  # type: ignore[arg-type]
    with engine.Engine() as other, pytest.raises(engine.InvalidArgument, match="belongs to another engine"):
        other.workload(null, rw="read", count=1)


def test_permissions_count(eng: engine.Engine, null: engine.BlockNode) -> None:
    """Writing without the permission is refused at the start, or by the first request."""
    user = null.user("reader", permissions="read")
    try:
        result = run(eng, user, rw="write", count=10)
    except engine.RefusedByPolicy:
        return
    assert result.writes == 0
    assert result.errors > 0
    assert result.error_errno != 0


def test_errors_are_counted(eng: engine.Engine, null: engine.BlockNode) -> None:
    with eng.workload(null, rw="read", count=10, iodepth=1, offset="1020M") as workload:
        null.resize(1 << 20)
        workload.start()
        assert workload.wait(10)
        result = workload.result()
    assert result.errors > 0
    assert result.error_errno > 0
    assert result.error_offset == 1020 << 20


def test_stopping(eng: engine.Engine, null: engine.BlockNode) -> None:
    with eng.workload(null, rw="randread", runtime=60) as workload:
        workload.start()
        assert not workload.wait(0)
        assert not workload.wait(0.05)
        snapshot = workload.result()
        assert snapshot.running
        assert snapshot.reads > 0
        assert snapshot.seconds > 0
        workload.stop()
        assert workload.wait(10)
        result = workload.result()
        assert not result.running
        assert result.reads >= snapshot.reads
        workload.stop()
        assert workload.wait()


def test_it_runs_once(eng: engine.Engine, null: engine.BlockNode) -> None:
    with eng.workload(null, rw="randread", count=1) as workload:
        workload.start()
        with pytest.raises(engine.InvalidArgument, match="runs once"):
            workload.start()
        workload.wait()
        with pytest.raises(engine.InvalidArgument, match="runs once"):
            workload.start()


def test_before_the_start(eng: engine.Engine, null: engine.BlockNode) -> None:
    with eng.workload(null, rw="randread", count=1) as workload:
        result = workload.result()
        assert (result.reads, result.seconds, result.iops) == (0, 0.0, 0.0)
        with pytest.raises(engine.InvalidArgument, match="has not been started"):
            workload.wait(0.01)


def test_after_close(eng: engine.Engine, null: engine.BlockNode) -> None:
    workload = eng.workload(null, rw="randread", runtime=60)
    workload.start()
    workload.close()
    workload.close()
    for call in (workload.start, workload.wait, workload.stop, workload.result):
        with pytest.raises(engine.Closed, match="randread over node 'disk' is closed"):
            call()
    assert repr(workload) == "<Workload: randread over node 'disk', closed>"
    null.close()  # it holds nothing any more


def test_a_node_stays_open_under_it(eng: engine.Engine, null: engine.BlockNode) -> None:
    with eng.workload(null, rw="randread", runtime=60) as workload:
        workload.start()
        with pytest.raises(engine.Conflict, match="in use"):
            null.close()
        assert null.pread(512, 0) == bytes(512)


def test_waiting_does_not_hold_the_gil(eng: engine.Engine, null: engine.BlockNode) -> None:
    with eng.workload(null, rw="randread", runtime=0.3) as workload:
        workload.start()
        waiter = threading.Thread(target=workload.wait)
        waiter.start()
        turns = 0
        while waiter.is_alive():
            turns += 1
            time.sleep(0.001)
        assert turns > 20


def test_closing_while_another_thread_waits(eng: engine.Engine, null: engine.BlockNode) -> None:
    workload = eng.workload(null, rw="randread", runtime=60)
    workload.start()
    outcome: list[object] = []

    def wait() -> None:
        try:
            outcome.append(workload.wait())
        except engine.Closed as error:
            outcome.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.15)
    workload.close()
    waiter.join(5)
    assert len(outcome) == 1
    assert outcome[0] is True or isinstance(outcome[0], engine.Closed)


def test_ctrl_c(script: Script) -> None:
    """It is heard while waiting, and what was done so far can be had."""
    started = time.monotonic()
    result = script("""
import engine, os, signal, threading
with engine.Engine() as eng:
    node = eng.open(driver="null")
    with eng.workload(node, rw="randread", runtime=50) as workload:
        workload.start()
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            workload.wait()
        except KeyboardInterrupt:
            print("heard", workload.result().running)
            workload.stop()
            print(workload.wait(10), workload.result().reads > 0, workload.result().running)
    node.close()
print("closed")
""")
    assert result.stdout.splitlines() == ["heard True", "True True False", "closed"], result.stderr
    assert result.returncode == 0
    assert time.monotonic() - started < 20


def test_ctrl_c_that_nobody_catches(script: Script) -> None:
    result = script("""
import engine, os, signal, threading
with engine.Engine(contexts={"io0": None}) as eng, eng.open(driver="null") as node:
    with eng.workload(node, rw="randread", runtime=50, context="io0") as workload:
        workload.start()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        workload.wait()
""")
    assert result.returncode in (-signal.SIGINT, 130)
    assert result.stderr.splitlines()[-1] == "KeyboardInterrupt"
