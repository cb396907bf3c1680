"""The filter `verify` as Python sees it: options, what is compared, and the fields of what is found."""

from __future__ import annotations

import asyncio
import errno
import logging
from pathlib import Path

import pytest

import engine
from engine import aio


def disk(eng: engine.Engine, name: str, size: str = "1M") -> engine.BlockNode:
    return eng.open(driver="memory", size=size, node_name=name)


def test_the_table_names_it() -> None:
    verify = engine.drivers()["verify"]
    assert verify.layer == "filter"
    assert "reference" in verify.text


def test_what_is_written_is_read(eng: engine.Engine, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    node = eng.open(
        driver="verify",
        filename=str(image),
        discard="unmap",
        reference={"driver": "memory", "size": "1M"},
    )
    node.pwrite(b"data" * 1000, 12345, fua=True)
    node.flush()
    node.write_zeroes(10, 12400)
    node.discard(100000, 13000)
    data = node.pread(120000, 0)
    assert data == image.read_bytes()[:120000]
    assert data[12345:12405] == b"data" * 13 + b"dat" + bytes(5)
    assert data[12990:13000] == b"atadatadat"
    node.resize(2 << 20)
    node.pwrite(b"end", (2 << 20) - 3)
    assert node.pread(4096, (2 << 20) - 4096).endswith(b"\0end")
    assert image.stat().st_size == 2 << 20
    assert [node.child(role).size for role in ("file", "reference")] == [2 << 20, 2 << 20]


def test_a_difference_has_a_place(eng: engine.Engine, caplog: pytest.LogCaptureFixture) -> None:
    left, right = disk(eng, "left"), disk(eng, "right")
    with left.user("before") as user:
        user.pwrite(b"xyz", 5000)
    node = eng.open(driver="verify", node_name="both", file="left", reference="right")
    assert node.pread(5000, 0) == bytes(5000)
    with (
        caplog.at_level(logging.ERROR, "engine"),
        pytest.raises(engine.CorruptImage, match="its children differ from offset 5000 on") as caught,
    ):
        node.pread(4096, 4096)
    found = caught.value
    assert (found.errno, found.offset, found.node, found.operation) == (errno.EIO, 5000, "both", "read")
    assert "'file' (node left) has 78 79 7a 00" in str(found)
    assert "'reference' (node right) has 00 00 00 00" in str(found)
    node.pwrite(bytes(100), 4990)
    assert node.pread(8192, 0) == bytes(8192)
    for closing in (node, left, right):
        closing.close()


def test_bad_options_are_named(eng: engine.Engine) -> None:
    nodes = [disk(eng, "left"), disk(eng, "small", "64k")]
    text = r"'file' \(node left\) has 1048576 bytes, 'reference' \(node small\) 65536"
    with pytest.raises(engine.InvalidArgument, match=text) as sizes:
        eng.open(driver="verify", file="left", reference="small")
    assert sizes.value.field == "reference"
    with pytest.raises(engine.InvalidArgument, match="driver verify needs a 'reference'"):
        eng.open(driver="verify", file="left")
    with pytest.raises(engine.InvalidArgument, match="driver verify has no option 'depth'") as unknown:
        eng.open(driver="verify", file="left", reference={"driver": "memory", "size": "1M"}, depth=3)
    assert unknown.value.field == "depth"
    for node in nodes:
        assert node.info.user_count == 0


def test_it_is_inserted_above_a_busy_node(eng: engine.Engine) -> None:
    with (
        disk(eng, "busy", "8M") as busy,
        disk(eng, "copy", "8M") as copy,
        busy.user("load", "all") as user,
        eng.workload(user, rw="randread", bs=4096, iodepth=16, runtime=60.0) as load,
    ):
        load.start()
        for _ in range(5):
            with busy.insert_filter("verify", reference="copy") as above:
                while above.stats().op["read"].requests < 10:
                    pass
                assert above.child("reference").name == "copy"
        load.stop()
        load.wait()
        assert load.result().errors == 0
        assert copy.stats().op["read"].requests >= 50
        assert copy.info.user_count == 0


def test_asyncio_gathers_and_cancels() -> None:
    async def main() -> None:
        async with aio.Engine(contexts={"io0": None, "io1": None}) as eng:
            node = await eng.open(
                driver="verify",
                file={"driver": "delay", "read": "3600s", "file": {"driver": "memory", "size": "1M"}},
                reference={"driver": "memory", "size": "1M"},
            )
            writes = [node.pwrite(bytes([i]) * 3000, i * 1000, context=f"io{i % 2}") for i in range(50)]
            await asyncio.gather(*writes)
            read = asyncio.ensure_future(node.pread(4096, 0, context="io0"))
            while node.blocking.child("file").stats().in_flight == 0:
                await asyncio.sleep(0.001)
            late = asyncio.ensure_future(node.pwrite(b"late", 100, context="io1"))
            while node.blocking.stats().in_flight < 2:
                await asyncio.sleep(0.001)
            assert not read.done()
            assert not late.done()
            read.cancel()
            with pytest.raises(asyncio.CancelledError):
                await read
            await late

    asyncio.run(main())
