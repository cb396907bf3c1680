"""Copying nodes from Python: what arrives, how far it is, how it ends."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

import engine

CONTENT = random.Random(7).randbytes(300_000)


@pytest.fixture
def ram(eng: engine.Engine) -> engine.BlockNode:
    """2 MiB of memory with data in two places."""
    node = eng.open(driver="memory", size="2M", node_name="ram")
    node.pwrite(CONTENT, 1000)
    node.pwrite(CONTENT, 1_500_000)
    return node


def expected() -> bytes:
    whole = bytearray(2 << 20)
    whole[1000 : 1000 + len(CONTENT)] = CONTENT
    whole[1_500_000 : 1_500_000 + len(CONTENT)] = CONTENT
    return bytes(whole)


def test_to_a_file(eng: engine.Engine, ram: engine.BlockNode, tmp_path: Path) -> None:
    path = tmp_path / "copy.img"
    path.write_bytes(b"\xff" * (2 << 20))
    with eng.open(path) as target, eng.copy(ram, target, context="io0", chunk_size="64k") as copy:
        assert not copy.progress().running
        progress = copy.run()
        assert (progress.running, progress.total, progress.done) == (False, 2 << 20, 2 << 20)
        assert progress.data_bytes + progress.zero_bytes == 2 << 20
        assert progress.zero_bytes > 1 << 20
        assert progress.seconds > 0
        assert ram.stats("io0").op["read"].bytes >= 2 * len(CONTENT)
        assert copy.wait(0)  # again, at any time
    assert path.read_bytes() == expected()


def test_a_part_and_what_is_left_out(eng: engine.Engine, ram: engine.BlockNode) -> None:
    target = eng.open(driver="memory", size="2M")
    copy = eng.copy(ram, target, offset="1M", length="512k", target_is_zero=True, chunks=2)
    progress = copy.run()
    copy.close()
    copy.close()
    assert progress.total == 512 << 10
    assert progress.data_bytes < 512 << 10
    whole = expected()
    assert target.pread(2 << 20, 0) == bytes(1 << 20) + whole[1 << 20 : 3 << 19] + bytes(512 << 10)
    assert target.stats().op["write_zeroes"].requests == 0
    with pytest.raises(engine.Closed):
        copy.progress()


def test_zeroes_are_detected(eng: engine.Engine) -> None:
    source = eng.open(driver="null", size="1M", read_zeroes=True)
    target = eng.open(driver="memory", size="1M")
    with eng.copy(source, target, detect_zeroes=True, chunk_size=65536) as copy:
        assert copy.run().zero_bytes == 1 << 20
    assert target.stats().op["write"].requests == 0


def test_cancelling(eng: engine.Engine) -> None:
    source = eng.open(driver="null", size="1T", latency_ns="1ms")
    target = eng.open(driver="null", size="1T")
    with eng.copy(source, target, context="io1") as copy:
        with pytest.raises(engine.InvalidArgument, match="has not been started"):
            copy.wait()
        copy.start()
        assert not copy.wait(0.01)
        assert copy.progress().running
        copy.cancel()
        with pytest.raises(engine.EngineError, match="cancelled after") as caught:
            copy.wait(60)
        assert caught.value.errno == errno.ECANCELED
        with pytest.raises(engine.InvalidArgument, match="runs once"):
            copy.start()


class HalfGone(engine.BlockDriver):
    size = 1 << 20

    def pread(self, length: int, offset: int) -> bytes:
        if offset >= 512 << 10:
            raise OSError(errno.EIO, "the second half is gone")
        return b"x" * length


def test_the_failure_is_raised(eng: engine.Engine) -> None:
    source = eng.open_driver(HalfGone(), node_name="source")
    target = eng.open(driver="memory", size="1M", node_name="target")
    with eng.copy(source, target, chunk_size="64k") as copy, pytest.raises(engine.EngineError) as caught:
        copy.run()
    assert caught.value.node == source.name
    assert caught.value.offset is not None


def test_what_is_refused(eng: engine.Engine, ram: engine.BlockNode) -> None:
    small = eng.open(driver="memory", size="1M", node_name="small")
    with pytest.raises(engine.InvalidArgument, match="the target has 1048576 bytes, 2097152 are needed"):
        eng.copy(ram, small)
    with pytest.raises(engine.InvalidArgument, match="copied to itself"):
        eng.copy(ram, ram)
    with pytest.raises(engine.InvalidArgument, match="chunk_size"):
        eng.copy(ram, small, chunk_size="2G")
    with pytest.raises(TypeError, match="target: a block node is needed"):
        eng.copy(ram, "small")  # type: ignore[arg-type]
    with (
        engine.Engine() as other,
        other.open(driver="null") as node,
        pytest.raises(engine.InvalidArgument, match="another engine"),
    ):
        eng.copy(ram, node)
    with pytest.raises(engine.Conflict, match="conflicts with user 'python'"):
        eng.copy(ram, eng.open(driver="memory", size="2M"), exclusive=True)


def test_it_holds_the_nodes(eng: engine.Engine, ram: engine.BlockNode) -> None:
    target = eng.open(driver="memory", size="2M", node_name="target")
    copy = eng.copy(ram, target)
    with pytest.raises(engine.Conflict, match="copy to target"):
        ram.close()
    copy.close()
    target.close()


def test_dropping_it_warns(eng: engine.Engine, ram: engine.BlockNode) -> None:
    target = eng.open(driver="memory", size="2M")
    with pytest.warns(ResourceWarning, match="unclosed copy of node 'ram'"):
        eng.copy(ram, target)
