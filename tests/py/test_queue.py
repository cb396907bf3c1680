"""virtio-blk disks and their virtqueues."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from conftest import IMAGE_BYTES

import engine


def test_requests_through_the_ring(eng: engine.Engine, image: Path, content: bytes) -> None:
    node = eng.open(driver="raw", filename=image)
    with eng.virtio_blk(node, ["io0", "io1"], serial="disk-0815") as disk:
        for queue in disk.queues:
            assert queue.pread(4096, 512) == content[512:4608]
            assert queue.pread(IMAGE_BYTES, 0) == content
            assert queue.get_id() == b"disk-0815"
        one, other = disk.queues
        assert one.pwrite(b"a" * 512, 1024) == 512
        other.flush()
        buffer = bytearray(1024)
        assert other.pread_into(buffer, 1024) == 1024
        assert buffer == b"a" * 512 + content[1536:2048]
        one.pwrite(memoryview(b"b" * 1024)[512:], 0, fua=True)
        one.write_zeroes(512, 2048)
        one.write_zeroes(512, 4096, may_unmap=True)
        one.discard(512, 8192)
    after = image.read_bytes()
    assert after[:512] == b"b" * 512
    assert after[2048:2560] == after[4096:4608] == bytes(512)


def test_queues_and_their_contexts(eng: engine.Engine, null: engine.BlockNode) -> None:
    disk = eng.virtio_blk(null, ["io1", eng.main, "io1"])
    assert disk.node is null
    assert [queue.index for queue in disk.queues] == [0, 1, 2]
    assert [queue.context.name for queue in disk.queues] == ["io1", "main", "io1"]
    assert all(queue.disk is disk for queue in disk.queues)
    queue = disk.queues[1]
    assert disk.queues[1] is queue
    queue.pread(512, 0)
    assert null.stats("main").op["read"].requests == 1
    assert eng.virtio_blk(null).queues[0].context is eng.main


def test_statistics(eng: engine.Engine, null: engine.BlockNode) -> None:
    disk = eng.virtio_blk(null, ["io0", "io1"])
    queue = disk.queues[0]
    queue.pread(4096, 0)
    queue.pwrite(bytes(512), 0)
    queue.flush()
    stats = queue.stats()
    assert (stats.broken, stats.error) == (False, "")
    assert stats.requests == stats.completed == 3
    assert stats.in_flight == 0
    assert stats.op["read"] == engine.OpStats(requests=1, bytes=4096, errors=0)
    assert stats.op["write"].bytes == 512
    assert stats.op["flush"].requests == 1
    assert disk.queues[1].stats().requests == 0


@pytest.mark.parametrize(
    "options", [{"polled": True}, {"event_index": False}, {"indirect": False}, {"queue_size": 4}]
)
def test_kinds_of_rings(eng: engine.Engine, image: Path, content: bytes, options: dict[str, int]) -> None:
    node = eng.open(driver="raw", filename=image)
    with eng.virtio_blk(node, ["io0"], **options) as disk:  # type: ignore[arg-type]
        for i in range(64):
            assert disk.queues[0].pread(512, 512 * i) == content[512 * i : 512 * i + 512]


def test_serial_numbers(eng: engine.Engine, null: engine.BlockNode) -> None:
    for serial, expected in (("", b""), ("x" * 20, b"x" * 20), (b"\xff1", b"\xff1")):
        with eng.virtio_blk(null, serial=serial) as disk:
            assert disk.queues[0].get_id() == expected


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"queues": []}, "queues"),
        ({"queues": ["io0"] * 1025}, "queues"),
        ({"queues": ["io9"]}, "context"),
        ({"queue_size": 0}, "queue_size"),
        ({"queue_size": 3}, "queue_size"),
        ({"queue_size": 65536}, "queue_size"),
        ({"queue_size": -1}, "queue_size"),
        ({"serial": "x" * 21}, "serial"),
        ({"serial": "a\0"}, "serial"),
        ({"name": "x" * 64}, "name"),
    ],
)
def test_wrong_arguments(
    eng: engine.Engine, null: engine.BlockNode, arguments: dict[str, object], field: str
) -> None:
    with pytest.raises(engine.InvalidArgument) as caught:
        eng.virtio_blk(null, **arguments)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert null.info.user_count == 0


def test_wrong_types(eng: engine.Engine, null: engine.BlockNode) -> None:
    with pytest.raises(TypeError):
        eng.virtio_blk("disk")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        eng.virtio_blk(null, [5])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        eng.virtio_blk(null, serial=5)  # type: ignore[arg-type]


def test_only_whole_sectors(eng: engine.Engine, null: engine.BlockNode) -> None:
    queue = eng.virtio_blk(null).queues[0]
    for call in (
        lambda: queue.pread(100, 0),
        lambda: queue.pread(512, 100),
        lambda: queue.pwrite(b"x", 0),
        lambda: queue.pread_into(bytearray(513), 0),
        lambda: queue.discard(512, 1),
        lambda: queue.write_zeroes(1, 0),
    ):
        with pytest.raises(engine.InvalidArgument, match="is not a multiple of 512 bytes"):
            call()
    for call in (
        lambda: queue.pread(512, -512),
        lambda: queue.pread(-512, 0),
        lambda: queue.discard(512, 2**63),
        lambda: queue.pread(2**31, 0),
    ):
        with pytest.raises(engine.InvalidArgument, match="must be at least 0"):
            call()
    with pytest.raises(TypeError, match="writable"):
        queue.pread_into(b"x" * 512, 0)  # type: ignore[arg-type]


def test_what_the_device_refuses(eng: engine.Engine, null: engine.BlockNode) -> None:
    queue = eng.virtio_blk(null).queues[0]
    with pytest.raises(engine.EngineError, match="IOERR") as caught:
        queue.pread(512, 1 << 30)
    assert caught.value.node == "disk"
    assert queue.stats().op["read"].errors == 1
    assert queue.pread(512, 0) == bytes(512)  # the queue goes on


def test_a_read_only_disk(eng: engine.Engine, null: engine.BlockNode, image: Path, content: bytes) -> None:
    queue = eng.virtio_blk(null, read_only=True).queues[0]
    with pytest.raises(engine.EngineError):
        queue.pwrite(bytes(512), 0)
    node = eng.open(driver="raw", filename=image, read_only=True)
    disk = eng.virtio_blk(node)  # read-only as the node is, without being told
    assert disk.queues[0].pread(512, 0) == content[:512]
    with pytest.raises(engine.RefusedByPolicy, match="read-only"):
        eng.virtio_blk(node, read_only=False)


def test_write_cache(eng: engine.Engine, null: engine.BlockNode) -> None:
    """Without it each write is durable when it completes, and there is nothing to flush."""
    with eng.virtio_blk(null, write_cache=False) as disk:
        disk.queues[0].pwrite(bytes(512), 0)
        assert disk.queues[0].pread(512, 0) == bytes(512)


def test_threads_take_turns(eng: engine.Engine, null: engine.BlockNode) -> None:
    queue = eng.virtio_blk(null, ["io0"]).queues[0]
    errors = []

    def work() -> None:
        try:
            for _ in range(50):
                queue.pread(512, 0)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert queue.stats().requests == 200


def test_closing(eng: engine.Engine, null: engine.BlockNode) -> None:
    disk = eng.virtio_blk(null, ["io0"])
    queue = disk.queues[0]
    with pytest.raises(engine.Conflict, match="'virtio-blk'"):
        null.close()
    disk.close()
    disk.close()
    assert disk.closed
    for call in (
        lambda: disk.queues,
        lambda: queue.pread(512, 0),
        lambda: queue.pwrite(bytes(512), 0),
        lambda: queue.flush(),
        lambda: queue.discard(512, 0),
        lambda: queue.write_zeroes(512, 0),
        lambda: queue.get_id(),
        lambda: queue.stats(),
        lambda: eng.workload(queue, rw="read", count=1),
    ):
        with pytest.raises(engine.Closed, match="disk on node 'disk' is closed"):
            call()
    assert repr(disk) == "<VirtioBlk on 'disk' closed>"
    assert repr(queue) == "<VirtQueue 0 of disk on node 'disk' closed>"
    null.close()


def test_not_while_a_workload_drives_it(eng: engine.Engine, null: engine.BlockNode) -> None:
    disk = eng.virtio_blk(null, ["io0"])
    queue = disk.queues[0]
    workload = eng.workload(queue, rw="randread", runtime=60)
    workload.start()
    with pytest.raises(engine.Conflict):
        disk.close()
    assert not disk.closed
    with pytest.raises(engine.Conflict, match="driven by another"):
        queue.pread(512, 0)
    assert queue.stats().broken is False
    workload.close()
    assert queue.pread(512, 0) == bytes(512)
    disk.close()
