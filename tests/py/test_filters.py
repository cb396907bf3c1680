"""Filters and the memory driver as Python sees them; limits that are changed while requests wait."""

from __future__ import annotations

import threading

import pytest

import engine


def test_the_table_names_them() -> None:
    drivers = engine.drivers()
    assert drivers["passthrough"].layer == drivers["throttle"].layer == "filter"
    assert drivers["memory"].layer == "protocol"
    keys = {option.key for option in drivers["throttle"].options}
    for what in ("bps", "iops"):
        for which in ("total", "read", "write"):
            assert {f"limits.{what}-{which}{end}" for end in ("", "-max", "-max-length")} <= keys
    assert {"limits.iops-size", "throttle-group"} <= keys


def test_memory_under_filters(eng: engine.Engine) -> None:
    node = eng.open(
        driver="throttle",
        limits={"bps_total": "1G", "bps_total_max": "2G", "bps_total_max_length": 2},
        file={"driver": "passthrough", "file": {"driver": "memory", "size": "1M"}},
    )
    node.pwrite(b"data" * 1000, 70_000)
    assert node.pread(4000, 70_000) == b"data" * 1000
    assert [(e.start, e.length, e.data, e.zero) for e in node.extents()] == [
        (0, 65536, False, True),
        (65536, 65536, True, False),
        (131072, 917504, False, True),
    ]
    assert node.child("file").stats().op["read"].requests == 1


def test_memory_grows_and_forgets(eng: engine.Engine) -> None:
    node = eng.open(driver="memory", size=4096, discard="unmap")
    node.pwrite(b"x" * 4096, 0)
    node.discard(4096, 0)
    assert node.pread(4096, 0) == bytes(4096)
    node.resize(1 << 30)
    assert node.size == 1 << 30
    node.pwrite(b"end", (1 << 30) - 3)
    with pytest.raises(engine.InvalidArgument, match="within its range"):
        eng.open(driver="memory", size="65T")


def test_new_limits_release_who_waits(eng: engine.Engine) -> None:
    node = eng.open(driver="throttle", limits={"bps_write": 1}, file={"driver": "null", "size": "1M"})
    node.pwrite(bytes(4096), 0)
    waiting = threading.Thread(target=node.pwrite, args=(bytes(4096), 0))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    assert node.stats().op["write"].requests == 1
    node.set_throttle(bps_write="1G")
    waiting.join(60)
    assert not waiting.is_alive()
    assert node.stats().op["write"].requests == 2


def test_bad_limits_are_named(eng: engine.Engine, null: engine.BlockNode) -> None:
    with pytest.raises(engine.InvalidArgument, match=r"give 'limits\.iops-read' as well") as caught:
        eng.open(driver="throttle", limits={"iops_read_max": 5}, file="disk")
    assert caught.value.field == "limits.iops-read-max"
    node = eng.open(driver="throttle", throttle_group="g", limits={"iops_total": 100}, file="disk")
    with pytest.raises(engine.InvalidArgument) as caught:
        node.set_throttle(iops_total=5, iops_read=5)
    assert caught.value.field == "limits.iops-read"
    with pytest.raises(engine.InvalidArgument, match="only a throttle node has limits"):
        null.set_throttle(iops_total=5)
    with pytest.raises(engine.Conflict, match="group 'g' has other limits already"):
        eng.open(driver="throttle", throttle_group="g", limits={"iops_total": 7}, file={"driver": "null"})
