"""The filters `delay` and `fault` as Python sees them: options, errors, and resuming what is held."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import engine
from engine import aio


def test_the_table_names_them() -> None:
    drivers = engine.drivers()
    assert drivers["delay"].layer == drivers["fault"].layer == "filter"
    own = {name: [option.key for option in drivers[name].options] for name in ("delay", "fault")}
    assert own["delay"][:6] == ["read", "write", "flush", "other", "spread", "seed"]
    assert own["fault"][:2] == ["rules", "seed"]


def test_a_delay_is_waited_for(eng: engine.Engine) -> None:
    node = eng.open(
        driver="delay", read="50ms", spread="10ms", seed=3, file={"driver": "memory", "size": "1M"}
    )
    start = time.monotonic()
    node.pwrite(b"data", 0)
    node.flush()
    written = time.monotonic()
    assert node.pread(4, 0) == b"data"
    assert time.monotonic() - written >= 0.05
    assert written - start < 40  # no limit of the engine's: only a write that waited for ever
    with pytest.raises(engine.InvalidArgument, match="is not a time such as 20us") as caught:
        eng.open(driver="delay", read="fast", file={"driver": "null"})
    assert caught.value.field == "read"


def faulty(eng: engine.Engine, rules: str, **options: int) -> engine.BlockNode:
    return eng.open(
        driver="fault", node_name="bad", rules=rules, file={"driver": "memory", "size": "1M"}, **options
    )


def test_rules_fail_requests(eng: engine.Engine) -> None:
    node = faulty(eng, "op=read,offset=64k-128k,count=1,errno=ENOSPC; op=flush,errno=5")
    node.pwrite(b"data", 65536)
    with pytest.raises(OSError, match="node bad: read of 4 bytes at offset 65536 fails by rule 1") as caught:
        node.pread(4, 65536)
    assert caught.value.errno == 28
    assert node.pread(4, 65536) == b"data"
    with pytest.raises(OSError, match="fails by rule 2 of 'rules': Input/output error"):
        node.flush()
    assert node.stats().op["flush"].errors == 1


def test_torn_writes_repeat(eng: engine.Engine) -> None:
    left = []
    for seed in (1, 1, 2):
        with faulty(eng, "op=write,torn=on,errno=EIO", seed=seed) as node:
            with pytest.raises(OSError, match="fails by rule 1"):
                node.pwrite(b"n" * 65536, 0)
            data = node.pread(65536, 0)
            sectors = [data[at : at + 512] for at in range(0, 65536, 512)]
            assert set(sectors) == {b"n" * 512, bytes(512)}
            left.append(data)
    assert left[0] == left[1] != left[2]


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ("op=raed,errno=EIO", "rule 1 has key 'op' = 'raed': it takes any, or read, write"),
        ("errno=EIO; op=read", "rule 2 does nothing: give errno=, delay=, pause or new-state="),
        ("errno=EIO,when=later", "rule 1 has no key 'when': there are op, offset, skip"),
    ],
)
def test_bad_rules_are_named(eng: engine.Engine, rules: str, text: str) -> None:
    with pytest.raises(engine.InvalidArgument) as caught:
        faulty(eng, rules)
    assert text in str(caught.value)
    assert caught.value.field == "rules"


def held(node: engine.BlockNode, count: int) -> None:
    for _ in range(4000):
        if node.stats().in_flight == count:
            return
        time.sleep(0.01)
    pytest.fail(f"{node.stats().in_flight} requests are held, not {count}")


def test_what_is_held_is_resumed(eng: engine.Engine) -> None:
    node = faulty(eng, "op=write,pause")
    writers = [threading.Thread(target=node.pwrite, args=(b"n" * 512, i * 512)) for i in range(3)]
    for writer in writers:
        writer.start()
    held(node, 3)
    assert node.pread(512, 0) == bytes(512)
    assert node.resume_faults() == 3
    for writer in writers:
        writer.join(60)
        assert not writer.is_alive()
    assert node.pread(1536, 0) == b"n" * 1536
    assert node.resume_faults() == 0
    with pytest.raises(engine.InvalidArgument, match="only a fault node holds requests"):
        node.child("file").resume_faults()


def test_closing_the_filter_lets_go(eng: engine.Engine) -> None:
    disk = eng.open(driver="memory", size="1M")
    disk.pwrite(b"o" * 512, 0)
    rules = disk.insert_filter("fault", rules="op=write,pause")
    writer = threading.Thread(target=disk.pwrite, args=(b"n" * 512, 0))
    writer.start()
    held(rules, 1)
    rules.close()
    writer.join(60)
    assert not writer.is_alive()
    assert disk.pread(512, 0) == b"n" * 512


def test_asyncio_resumes_and_cancels() -> None:
    async def main() -> None:
        async with aio.Engine(contexts={"io0": None, "io1": None}) as eng:
            node = await eng.open(
                driver="fault", rules="op=write,pause", file={"driver": "memory", "size": "1M"}
            )
            writes = [
                asyncio.ensure_future(node.pwrite(b"n" * 512, i * 512, context=f"io{i % 2}"))
                for i in range(4)
            ]
            await asyncio.sleep(0)
            await asyncio.to_thread(held, node.blocking, 4)
            writes[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await writes[0]
            await asyncio.to_thread(held, node.blocking, 3)
            assert await node.resume_faults() == 3
            await asyncio.gather(*writes[1:])
            assert await node.pread(1024, 0) == bytes(512) + b"n" * 512

    asyncio.run(main())
