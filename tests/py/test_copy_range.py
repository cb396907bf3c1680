"""Ranges copied from one node to another, from Python."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import engine


def test_a_long_copy_goes_in_parts_that_may_overlap(
    eng: engine.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.blockio._COPIED_AT_A_TIME", 4096)
    content = random.Random(2).randbytes(64 << 10)
    with eng.open(driver="memory", size="64k", node_name="m") as node:
        for start, to in ((0, 1000), (1000, 0), (0, 40000), (5, 5)):
            node.pwrite(content, 0)
            node.copy_range(node, 20000, start, to)
            wanted = bytearray(content)
            wanted[to : to + 20000] = content[start : start + 20000]
            assert node.pread(64 << 10, 0) == bytes(wanted)
        before = node.stats().op["write"].requests
        with pytest.raises(engine.InvalidArgument, match="of 20000 bytes at offset 60000 ends past the end"):
            node.copy_range(node, 20000, 0, 60000)
        assert node.stats().op["write"].requests == before  # nothing of it was done


def test_copy_range(eng: engine.Engine, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(1 << 20)
    (tmp_path / "a.img").write_bytes(content)
    (tmp_path / "b.img").write_bytes(bytes(2 << 20))
    source = eng.open(str(tmp_path / "a.img"), read_only=True)
    target = eng.open(str(tmp_path / "b.img"))
    assert target.copy_range(source, 1 << 20, 0, 4096) is None
    assert target.pread(1 << 20, 4096) == content
    assert target.pread(4096, 0) == bytes(4096)
    assert target.stats().op["copy_range"] == engine.OpStats(1, 1 << 20, 0)
    assert target.stats().op["write"].requests == 0  # the kernel copied
    target.copy_range(target, 1 << 20, 4096, 4097)  # overlapping
    assert target.pread((1 << 20) + 1, 4096) == content[:1] + content
    memory = eng.open(driver="memory", size="2M", node_name="m")
    with memory.user("copier", permissions="read,write") as user:
        user.copy_range(source, 1000, 24, 24)
    assert memory.pread(1024, 0) == bytes(24) + content[24:1024]
    with pytest.raises(
        engine.InvalidArgument, match=r"node .*: copy-range of 1048576 bytes at offset 1 ends"
    ):
        target.copy_range(source, 1 << 20, 1, 0)
    with pytest.raises(engine.InvalidArgument, match="source: a node of the same engine"):
        target.copy_range(str(tmp_path / "a.img"), 1, 0, 0)  # type: ignore[arg-type]
    with engine.Engine() as elsewhere, pytest.raises(engine.InvalidArgument, match="of the same engine"):
        target.copy_range(elsewhere.open(driver="null"), 1, 0, 0)
    with pytest.raises(engine.RefusedByPolicy, match="read-only"):
        source.copy_range(target, 1, 0, 0)
