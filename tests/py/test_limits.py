"""What one engine may use at most: descriptors, requests, bounce memory; and what is said at the limit."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

import engine
from engine import aio


def test_descriptors(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.img" for i in range(3)]
    for path in paths:
        path.write_bytes(bytes(4096))
    with engine.Engine(max_descriptors=2) as eng:
        first, second = eng.open(paths[0]), eng.open(paths[1])
        with pytest.raises(engine.LimitExceeded, match=r"have 2 files open.*raise max_descriptors") as caught:
            eng.open(paths[2])
        assert caught.value.errno == errno.EMFILE
        assert caught.value.field == "max_descriptors"
        with pytest.raises(engine.EngineError):
            eng.open(tmp_path / "missing.img")  # gives back what it took: nothing
        first.close()
        with eng.open(paths[2]) as third:
            assert third.pread(10, 0) == bytes(10)
        second.close()


def test_requests() -> None:
    async def main() -> None:
        async with aio.Engine(max_requests=8) as eng:
            node = await eng.open({"driver": "null", "size": "1G", "latency-ns": "50ms"})
            reads = [asyncio.create_task(node.pread(512, 0)) for _ in range(8)]
            while node.stats().in_flight < 8:
                await asyncio.sleep(0.001)
            with pytest.raises(engine.LimitExceeded, match=r"limit of 8 .*raise max_requests") as caught:
                await node.pread(512, 0)
            assert caught.value.errno == errno.EAGAIN
            assert await asyncio.gather(*reads) == [bytes(512)] * 8
            assert await node.pread(512, 0) == bytes(512)  # all are given back
            await node.close()

    asyncio.run(main())


def test_bounce_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(range(256)) * 4096)
    with engine.Engine(max_bounce_bytes=1) as eng:
        try:
            node = eng.open(path, **{"cache.direct": True})
        except engine.EngineError as error:
            pytest.skip(f"no O_DIRECT here: {error}")
        with node:
            assert node.pread(100_000, 3) == (bytes(range(256)) * 4096)[3:100_003]
            assert node.pwrite(b"abc", 5) == 3
            assert node.pread(5, 4) == b"\x04abc\x08"


def test_limits_are_checked() -> None:
    with pytest.raises(engine.InvalidArgument, match="max_requests"):
        engine.Engine(max_requests=-1)
    with pytest.raises(TypeError, match="max_bounce_bytes"):
        engine.Engine(max_bounce_bytes="64M")  # type: ignore[arg-type]
