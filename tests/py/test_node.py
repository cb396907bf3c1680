"""Block nodes and their users, on the null driver: calls, bounds, permissions, names, statistics."""

from __future__ import annotations

import errno
import time

import pytest

import engine

GIB = 1 << 30


def test_reading_and_writing(null: engine.BlockNode) -> None:
    assert null.pread(4096, 0) == bytes(4096)
    assert null.pread(0, 0) == b""
    assert null.pread(1, GIB - 1) == b"\0"
    buffer = bytearray(b"x" * 512)
    assert null.pread_into(buffer, 100) == 512
    assert buffer == bytes(512)
    assert null.pwrite(b"x" * 512, 0) == 512
    assert null.pwrite(b"", 0) == 0
    assert null.pwrite(b"x" * 512, 512, fua=True) == 512
    parts = [bytearray(b"x" * 10), bytearray(b"y" * 20)]
    assert null.preadv(parts, 0) == 30
    assert parts == [bytes(10), bytes(20)]
    assert null.pwritev([b"a", b"bc", memoryview(b"def")], 0, True) == 6
    assert null.pwritev([], 0) == null.preadv([], 0) == 0
    null.flush()
    null.discard(4096, 0)
    null.write_zeroes(4096, 0)
    null.write_zeroes(4096, 0, may_unmap=True, no_fallback=True, fua=True)


def test_on_a_context(eng: engine.Engine, null: engine.BlockNode) -> None:
    null.pread(512, 0, context="io0")
    null.pwrite(bytes(512), 0, context=eng.contexts["io1"])
    assert null.stats("io0").op["read"].requests == 1
    assert null.stats("io0").op["write"].requests == 0
    assert null.stats(eng.contexts["io1"]).op["write"].bytes == 512
    with pytest.raises(engine.InvalidArgument, match="no context 'io9'; there are main, io0, io1"):
        null.pread(512, 0, context="io9")


@pytest.mark.parametrize("offset", [-1, 2**63, 2**64, -(2**80)])
def test_offsets_that_no_disk_has(null: engine.BlockNode, offset: int) -> None:
    calls = (
        lambda: null.pread(1, offset),
        lambda: null.pread_into(bytearray(1), offset),
        lambda: null.preadv([bytearray(1)], offset),
        lambda: null.pwrite(b"x", offset),
        lambda: null.pwritev([b"x"], offset),
        lambda: null.discard(1, offset),
        lambda: null.write_zeroes(1, offset),
        lambda: null.extents(offset),
    )
    for call in calls:
        with pytest.raises(engine.InvalidArgument, match="offset: must be at least 0") as caught:
            call()
        assert caught.value.field == "offset"
    assert null.stats().op["read"].requests == 0  # none of it got as far as the node


@pytest.mark.parametrize("length", [-1, 2**63])
def test_lengths_that_no_disk_has(null: engine.BlockNode, length: int) -> None:
    for call in (null.pread, null.discard, null.write_zeroes):
        with pytest.raises(engine.InvalidArgument, match="length: must be at least 0"):
            call(length, 0)
    with pytest.raises(engine.InvalidArgument, match="size: must be at least 0"):
        null.resize(length)


def test_offset_and_length_that_overflow(null: engine.BlockNode) -> None:
    with pytest.raises(engine.InvalidArgument, match="reach beyond"):
        null.discard(2**62, 2**63 - 1)


@pytest.mark.parametrize(
    ("length", "offset"), [(1, GIB), (2, GIB - 1), (4096, 2**62), (GIB + 1, 0), (2**60, 0)]
)
def test_beyond_the_end(null: engine.BlockNode, length: int, offset: int) -> None:
    for call in (null.pread, null.discard, null.write_zeroes):
        with pytest.raises(engine.InvalidArgument, match="end") as caught:
            call(length, offset)
        assert caught.value.errno == errno.EINVAL
        assert "\n" not in str(caught.value)


def test_an_error_says_where(null: engine.BlockNode) -> None:
    with pytest.raises(engine.InvalidArgument, match="disk") as caught:
        null.pwrite(b"x" * 512, GIB)
    error = caught.value
    assert (error.node, error.operation, error.offset) == ("disk", "write", GIB)
    assert error.request_id is not None


def test_wrong_types(null: engine.BlockNode) -> None:
    for call in (
        lambda: null.pread("1", 0),  # type: ignore[arg-type]
        lambda: null.pread(1, 0.0),  # type: ignore[arg-type]
        lambda: null.pwrite("text", 0),  # type: ignore[arg-type]
        lambda: null.pwrite(None, 0),  # type: ignore[arg-type]
        lambda: null.pwritev([b"x", 5], 0),  # type: ignore[list-item]
    ):
        with pytest.raises(TypeError):
            call()


def test_too_many_buffers(null: engine.BlockNode) -> None:
    assert null.pwritev([b"x"] * 1024, 0) == 1024
    with pytest.raises(engine.InvalidArgument, match="1024"):
        null.pwritev([b"x"] * 1025, 0)


def test_resizing(null: engine.BlockNode) -> None:
    null.resize(1 << 20)
    assert null.size == null.info.bytes == 1 << 20
    with pytest.raises(engine.InvalidArgument):
        null.pread(1, 1 << 20)
    null.resize(2 << 20)
    assert null.pread(1, 1 << 20) == b"\0"


def test_what_a_node_says_of_itself(eng: engine.Engine, null: engine.BlockNode) -> None:
    info = null.info
    assert (info.name, info.driver, info.filename, info.read_only) == ("disk", "null", "", False)
    assert (info.bytes, info.request_alignment, info.memory_alignment) == (GIB, 1, 1)
    assert (info.child_count, info.user_count) == (0, 0)
    assert {"read", "write", "flush"} <= set(info.ops)
    assert null.name == "disk"
    assert repr(null) == "<BlockNode 'disk'>"
    unnamed = eng.open(driver="null-co")
    assert unnamed.info.driver == "null"
    assert unnamed.name.startswith("#block")


def test_statistics(null: engine.BlockNode) -> None:
    null.pread(4096, 0)
    null.pread(512, 0)
    null.pwrite(b"x" * 100, 0)
    null.flush()
    with pytest.raises(engine.InvalidArgument):
        null.pread(1, GIB)
    stats = null.stats()
    assert (stats.channels, stats.in_flight) == (1, 0)
    assert stats.op["read"] == engine.OpStats(requests=3, bytes=4608, errors=1)
    assert stats.op["write"] == engine.OpStats(requests=1, bytes=100, errors=0)
    assert stats.op["flush"].requests == 1
    assert stats.op["discard"].requests == 0
    assert list(stats.op) == [
        "read",
        "write",
        "flush",
        "discard",
        "write_zeroes",
        "resize",
        "block_status",
        "copy_range",
    ]


def test_names_are_unique(eng: engine.Engine, null: engine.BlockNode) -> None:
    with pytest.raises(engine.Conflict, match="'disk'"):
        eng.open(driver="null", node_name="disk")
    null.close()
    eng.open(driver="null", node_name="disk").close()
    with pytest.raises(engine.InvalidArgument, match="63 bytes"):
        eng.open(driver="null", node_name="x" * 64)


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({}, "driver", "option 'driver' is missing"),
        ({"driver": "qed"}, "driver", "no driver 'qed'; there are: .*null"),
        ({"driver": "null", "sise": "1G"}, "sise", "has no option 'sise'; it knows: .*size"),
        ({"driver": "null", "size": "big"}, "size", "is not a size"),
        ({"driver": "null", "size": -1}, "size", "is not a size"),
        ({"driver": "null", "read_zeroes": "maybe"}, "read-zeroes", "is not on or off"),
        ({"driver": "null", "size": "1G", "file": {"driver": "null"}}, "file.driver", "has no option"),
    ],
)
def test_wrong_options(eng: engine.Engine, options: dict[str, object], field: str, message: str) -> None:
    with pytest.raises(engine.InvalidArgument, match=message) as caught:
        eng.open(options)
    assert caught.value.field == field
    assert caught.value.operation == "open"
    assert "\n" not in str(caught.value)


def test_a_mapping_and_keywords_go_together(eng: engine.Engine) -> None:
    with eng.open({"driver": "null", "size": 512}, size=1024, read_only=True) as node:
        assert node.size == 1024
        assert node.info.read_only


def test_read_only(eng: engine.Engine) -> None:
    node = eng.open(driver="null", node_name="ro", read_only=True)
    assert len(node.pread(512, 0)) == 512
    for call in (
        lambda: node.pwrite(b"x", 0),
        lambda: node.write_zeroes(1, 0),
        lambda: node.discard(1, 0),
        lambda: node.resize(0),
        lambda: eng.workload(node, rw="randrw", count=1),
    ):
        with pytest.raises(engine.RefusedByPolicy) as caught:
            call()
        assert caught.value.errno in (errno.EROFS, errno.EPERM)
    with pytest.raises(engine.RefusedByPolicy, match="read-only"):
        node.user("writer", permissions="write")


def test_users(null: engine.BlockNode) -> None:
    with null.user("reader", permissions="read") as reader:
        assert (reader.name, reader.node, reader.size) == ("reader", null, GIB)
        assert reader.pread(512, 0) == bytes(512)
        assert len(list(reader.extents())) == 1
        reader.flush()
        for call in (
            lambda: reader.pwrite(b"x", 0),
            lambda: reader.discard(1, 0),
            lambda: reader.write_zeroes(1, 0),
            lambda: reader.resize(0),
        ):
            with pytest.raises(engine.RefusedByPolicy, match="user reader holds no permission") as caught:
                call()
            assert caught.value.errno == errno.EPERM
    assert reader.closed
    reader.close()
    with pytest.raises(engine.Closed, match="user 'reader' of node 'disk' is closed"):
        reader.pread(512, 0)
    assert repr(reader) == "<BlockUser 'reader' of 'disk' closed>"


def test_python_asks_for_no_more_than_it_does(null: engine.BlockNode) -> None:
    """Who opens a node and reads it is in nobody's way; who writes to it is one of its writers."""
    shy = {"permissions": "read,write", "shared": "read"}
    null.user("alone", **shy).close()
    null.pread(512, 0)
    list(null.extents())
    null.flush()
    null.user("alone", **shy).close()
    assert null.info.user_count == 1
    null.pwrite(b"x", 0)
    with pytest.raises(engine.Conflict, match=r"'alone'.*'python'"):
        null.user("alone", **shy)


def test_users_that_do_not_go_together(null: engine.BlockNode) -> None:
    null.pwrite(b"x", 0)
    with pytest.raises(engine.Conflict, match=r"'alone'.*'python'"):
        null.user("alone", shared="read")
    with null.user("one", permissions="read", shared="all"):
        null.user("other", permissions=["read"], shared="all").close()


@pytest.mark.parametrize("permissions", ["reed", "read,wrote", ["write", "x"]])
def test_permissions_that_do_not_exist(null: engine.BlockNode, permissions: str | list[str]) -> None:
    with pytest.raises(engine.InvalidArgument, match=r"permissions: .* is not one of read, write") as caught:
        null.user("u", permissions=permissions)
    assert caught.value.field == "permissions"
    with pytest.raises(engine.InvalidArgument, match="shared"):
        null.user("u", shared=permissions)


def test_a_node_in_use_stays_open(eng: engine.Engine, null: engine.BlockNode) -> None:
    user = null.user("backup", permissions="read")
    with pytest.raises(engine.Conflict, match="'backup'") as caught:
        null.close()
    assert caught.value.errno == errno.EBUSY
    assert not null.closed
    assert null.pread(512, 0) == user.pread(512, 0) == bytes(512)  # all is as it was
    user.close()
    null.close()
    assert null.closed
    null.close()


def test_after_close(eng: engine.Engine, null: engine.BlockNode) -> None:
    extents = null.extents()
    null.close()
    calls = (
        lambda: null.pread(1, 0),
        lambda: null.pread_into(bytearray(1), 0),
        lambda: null.preadv([bytearray(1)], 0),
        lambda: null.pwrite(b"x", 0),
        lambda: null.pwritev([b"x"], 0),
        lambda: null.flush(),
        lambda: null.discard(1, 0),
        lambda: null.write_zeroes(1, 0),
        lambda: null.resize(1),
        lambda: null.extents(),
        lambda: next(extents),
        lambda: null.user("u"),
        lambda: null.child("file"),
        lambda: null.stats(),
        lambda: null.info,
        lambda: null.size,
        lambda: eng.virtio_blk(null),
        lambda: eng.workload(null, rw="read", count=1),
    )
    for call in calls:
        with pytest.raises(engine.Closed, match="node 'disk' is closed") as caught:
            call()
        assert caught.value.errno == errno.EBADF
    assert repr(null) == "<BlockNode 'disk' closed>"


def test_latency_is_waited_out_without_the_gil(eng: engine.Engine) -> None:
    node = eng.open(driver="null", latency_ns="20ms")
    started = time.monotonic()
    node.pread(512, 0)
    assert time.monotonic() - started >= 0.02


def test_extents_of_null(null: engine.BlockNode) -> None:
    [extent] = null.extents()
    assert extent == engine.Extent(0, GIB, data=True, zero=False, unwritten=False)
    assert [(e.start, e.length) for e in null.extents(4096, 8192)] == [(4096, 8192)]
    assert list(null.extents(0, 0)) == list(null.extents(GIB)) == []
    with pytest.raises(engine.InvalidArgument):
        list(null.extents(0, GIB + 1))
