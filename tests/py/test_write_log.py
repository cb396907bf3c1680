"""The `write-log` filter, its reader and its replay; what a hostile log does; the command line."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from pathlib import Path

import pytest

import engine
from engine import cli
from engine.write_log import WriteLog, crc32c, cut, durable_up_to, replay

DISK = 1 << 20


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(64 << 20)
    return path


def logged(eng: engine.Engine, log: Path, **options: object) -> engine.BlockNode:
    below = options.pop("file", {"driver": "memory", "node-name": "disk", "size": DISK})
    return eng.open(
        driver="write-log", node_name="logged", file=below, log={"driver": "file", "filename": str(log)},
        discard="unmap", **options,
    )  # fmt: skip


def test_checksum_is_the_field_s() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"") == 0


def test_everything_that_changes_the_disk_is_there(eng: engine.Engine, log_file: Path) -> None:
    with logged(eng, log_file) as node:
        node.pwrite(b"a" * 512, 0)
        node.pwrite(b"b" * 1024, 4096, fua=True)
        node.pread(512, 0)
        node.flush()
        node.write_zeroes(512, 0, may_unmap=True)
        node.discard(4096, 8192)
        node.resize(2 * DISK)
    with WriteLog(log_file) as log:
        assert (log.disk_bytes, log.block) == (DISK, 512)
        entries = list(log)
        assert [(e.op, e.offset, e.length) for e in entries if e.op != "flush"] == [
            ("write", 0, 512), ("write", 4096, 1024), ("write-zeroes", 0, 512),
            ("discard", 8192, 4096), ("resize", 0, 2 * DISK),
        ]  # fmt: skip
        assert log.gaps == []
        assert [log.data(e) for e in entries[:2]] == [b"a" * 512, b"b" * 1024]
        flush = next(e for e in entries if e.op == "flush")
        assert entries[0].place < flush.began <= flush.place
        assert entries[0].began == 512, "nothing was there before"
        assert [e.may_unmap for e in entries if e.op == "write-zeroes"] == [True]
        assert durable_up_to(entries) == max(e.began for e in entries if e.op == "flush")


def test_fua_is_durable_by_itself(eng: engine.Engine, log_file: Path, tmp_path: Path) -> None:
    with logged(eng, log_file) as node:
        node.pwrite(b"x" * 512, 0)
        node.pwrite(b"y" * 512, 512, fua=True)
    for seed in range(20):
        image = tmp_path / f"image{seed}"
        with WriteLog(log_file) as log:
            done = replay(log, image, log, power_loss=seed)
        data = image.read_bytes()
        assert data[512:1024] == b"y" * 512
        assert data[:512] in (b"x" * 512, bytes(512))
        assert done.durable >= 1
        if data[0] == 0:
            break
    else:
        pytest.fail("no seed loses what nothing made durable")


def test_a_replay_is_the_disk(eng: engine.Engine, log_file: Path, tmp_path: Path) -> None:
    chance = random.Random(5)
    with logged(eng, log_file) as node:
        for _ in range(200):
            length = 512 * chance.randrange(1, 700)
            offset = 512 * chance.randrange(0, (DISK - length) // 512)
            if chance.random() < 0.2:
                node.write_zeroes(length, offset)
            else:
                node.pwrite(chance.randbytes(length), offset)
        expected = node.pread(DISK, 0)
    image = tmp_path / "image"
    assert cli.main(["write-log", "replay", str(log_file), str(image)]) == 0
    assert image.read_bytes() == expected


def test_parts_of_the_log(eng: engine.Engine, log_file: Path, tmp_path: Path) -> None:
    with logged(eng, log_file) as node:
        for i in range(1, 4):
            node.pwrite(bytes([i]) * 512, 0)
            node.flush()
    with WriteLog(log_file) as log:
        assert [len(cut(log, flushes=2)), len(cut(log, entries=5))] == [4, 5]
        with pytest.raises(ValueError, match="the log has 6 entries, not 7"):
            cut(log, entries=7)
        with pytest.raises(ValueError, match="2 flushes fewer"):
            cut(log, flushes=5)
        for flushes in (1, 2, 3):
            image = tmp_path / f"image{flushes}"
            replay(log, image, cut(log, flushes=flushes), power_loss=flushes)
            assert image.read_bytes()[:512] == bytes([flushes]) * 512


def test_several_contexts_write_one_log(eng: engine.Engine, log_file: Path, tmp_path: Path) -> None:
    """Each thread owns a part of the disk; what it knows to be done is in the log first."""
    contexts = [eng.add_context(f"writer{i}") for i in range(4)]
    with logged(eng, log_file) as node:

        def work(index: int) -> None:
            chance = random.Random(index)
            for n in range(60):
                sector = index * 256 + chance.randrange(250)
                data = bytes([index + 1, n]) * 256
                node.pwrite(data, 512 * sector, context=contexts[index])
                if n % 10 == 9:
                    node.flush(context=contexts[index])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = node.pread(DISK, 0)
    with WriteLog(log_file) as log:
        entries = list(log)
        assert (log.gaps, len(entries)) == ([], 4 * 66)
        for index in range(4):
            own = [e for e in entries if e.op == "write" and e.offset // (256 * 512) == index]
            numbers = [log.data(e)[1] for e in own]
            assert numbers == list(range(60))
            for before, after in itertools.pairwise(own):
                assert before.place < after.began <= after.place
        image = tmp_path / "image"
        replay(log, image, entries)
        assert image.read_bytes() == expected


def test_a_full_log_is_said(eng: engine.Engine, log_file: Path) -> None:
    with log_file.open("r+b") as file:
        file.truncate(8192)
    with logged(eng, log_file) as node:
        for _ in range(7):
            node.pwrite(bytes(512), 0)
        with pytest.raises(
            OSError, match="node logged: write of 512 bytes at offset 0: the log is full: give"
        ) as caught:
            node.pwrite(bytes(512), 0)
        assert caught.value.errno == 28
        node.pread(512, 0)
    with WriteLog(log_file) as log:
        assert len(list(log)) == 7


def test_what_fails_below_may_have_been_done(eng: engine.Engine, log_file: Path, tmp_path: Path) -> None:
    below = {
        "driver": "fault", "rules": "op=write,skip=1,count=1,torn=on,errno=EIO", "seed": 3,
        "file": {"driver": "memory", "size": DISK},
    }  # fmt: skip
    with logged(eng, log_file, file=below) as node:
        node.pwrite(b"1" * 4096, 0)
        with pytest.raises(OSError, match="fails by rule 1"):
            node.pwrite(b"2" * 4096, 0)
        node.flush()
        left = node.pread(4096, 0)
    assert set(left) == {ord("1"), ord("2")}
    with WriteLog(log_file) as log:
        entries = list(log)
        assert [e.failed for e in entries] == [False, True, False]
        seen = set()
        for seed in range(30):
            image = tmp_path / "image"
            image.unlink(missing_ok=True)
            replay(log, image, entries, power_loss=seed)
            data = image.read_bytes()[:4096]
            assert set(data) <= {ord("1"), ord("2")}
            seen.add(data)
        assert len(seen) > 2


def test_a_log_is_not_overwritten_unasked(eng: engine.Engine, log_file: Path) -> None:
    with logged(eng, log_file) as node:
        node.pwrite(bytes(512), 0)
    with pytest.raises(OSError, match="holds a write log already: keep it and use another node") as caught:
        logged(eng, log_file)
    assert (caught.value.errno, caught.value.field) == (17, "overwrite")
    with logged(eng, log_file, overwrite=True) as node:
        node.pwrite(bytes(1024), 0)
    with WriteLog(log_file) as log:
        assert [e.length for e in log] == [1024], "what the older one left behind is none of it"


def test_what_cannot_be_logged_is_refused(eng: engine.Engine, log_file: Path) -> None:
    with pytest.raises(OSError, match="not a multiple of the sector size of the log"):
        logged(eng, log_file, file={"driver": "memory", "size": 1000})
    with log_file.open("r+b") as file:
        file.truncate(1024)
    with pytest.raises(OSError, match="too small for a log"):
        logged(eng, log_file)


# ---- logs from strangers


def damaged(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_what_is_no_log_is_said(log_file: Path) -> None:
    with pytest.raises(engine.CorruptImage, match=f"{log_file}: offset 0: magic: is no write log") as caught:
        WriteLog(log_file)
    assert (caught.value.offset, caught.value.field) == (0, "magic")
    log_file.write_bytes(b"short")
    with pytest.raises(engine.CorruptImage, match="it has 5 bytes"):
        WriteLog(log_file)


@pytest.fixture
def three(eng: engine.Engine, log_file: Path) -> Path:
    with logged(eng, log_file) as node:
        for i in range(3):
            node.pwrite(bytes([i + 1]) * 512, 512 * i)
    return log_file


@pytest.mark.parametrize(("at", "field"), [(8, "version"), (12, "checksum"), (24, "checksum")])
def test_a_damaged_head_is_said(three: Path, at: int, field: str) -> None:
    damaged(three, at, b"\x63\x00\x00\x00")
    with pytest.raises(engine.CorruptImage, match=f": {field}: ") as caught:
        WriteLog(three)
    assert caught.value.field == field


def test_an_entry_without_all_of_its_bytes_is_none(three: Path) -> None:
    """The second: its data, its length (beyond the end of the log), its place."""
    second = 512 + 1024
    original = three.read_bytes()[: 8 << 10]
    for at, data in ((second + 512 + 7, b"\xff"), (second + 40, b"\xff" * 8), (second + 16, bytes(8))):
        damaged(three, at, data)
        with WriteLog(three) as log:
            assert [e.offset for e in log] == [0, 1024]
            assert [(gap.place, gap.length) for gap in log.gaps] == [(second, 1024)]
        damaged(three, 0, original)


def test_every_byte_may_be_anything(three: Path) -> None:
    original = three.read_bytes()[: 4 << 10]
    for seed in range(300):
        chance = random.Random(seed)
        for _ in range(chance.randrange(1, 6)):
            damaged(three, chance.randrange(len(original)), chance.randbytes(chance.choice((1, 8))))
        with contextlib.suppress(engine.CorruptImage), WriteLog(three) as log:
            for entry in log:
                assert len(log.data(entry)) == entry.length
        damaged(three, 0, original)


# ---- the command line


def test_show(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["write-log", "show", str(three)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{three}: blocks of 512 bytes, of a disk of {DISK} bytes"
    assert lines[2].split() == ["0", "write", "0", "512"]
    assert lines[-1] == "3 entries: 3 write"
    assert cli.main(["write-log", "show", "--json", str(three)]) == 0
    assert '"op": "write"' in capsys.readouterr().out


def test_replay_says_what_it_did(three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image"
    assert cli.main(["write-log", "replay", str(three), str(image), "--to", "2", "--power-loss", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{image}: 2 entries replayed, power lost after them: 0 durable, of the others ")
    assert image.stat().st_size == DISK
    assert cli.main(["write-log", "replay", str(three), str(image), "--to", "1", "--flush", "1"]) == 2
    assert "--to and --flush both say where to stop" in capsys.readouterr().err
    assert cli.main(["write-log", "replay", str(image), str(image)]) == 1
    assert capsys.readouterr().err == f"engine: {image}: offset 0: magic: is no write log\n"
