"""Locks on image files, against QEMU: each side sees what the other holds, and no more than that."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from qemu_tools import held_by_qemu, needs_qemu, qemu_io, refusal, run

import engine

pytestmark = needs_qemu
SIZE = 1 << 20


@pytest.fixture
def eng() -> Iterator[engine.Engine]:
    with engine.Engine(contexts={"io0": None}) as opened:
        yield opened


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    assert run("qemu-img", "create", "-f", "qcow2", str(path), "1M").returncode == 0
    return path


def locked_bytes(path: Path) -> set[int]:
    """The bytes of the file that anybody has locked, from the kernel's table."""
    inode = path.stat().st_ino
    found = set()
    for line in Path("/proc/locks").read_text().splitlines():
        match = re.search(r"OFDLCK\s+ADVISORY\s+READ\s+-?\d+\s+\w+:\w+:(\d+)\s+(\d+)\s+(\d+)", line)
        if match and int(match[1]) == inode:
            found |= set(range(int(match[2]), int(match[3]) + 1))
    return found


def test_bytes_of_a_writer_and_a_reader(eng: engine.Engine, raw: Path) -> None:
    # QEMU's docs/devel: 100 + permission held, 200 + permission not shared.
    with eng.open(driver="file", filename=raw):
        assert locked_bytes(raw) == {100, 101, 102, 103, 201, 203}
    assert locked_bytes(raw) == set()
    with eng.open(driver="file", filename=raw, read_only=True):
        assert locked_bytes(raw) == {100}
    with eng.open(driver="file", filename=raw, locking="off"):
        assert locked_bytes(raw) == set()
    assert locked_bytes(raw) == set()


def test_bytes_of_a_reader_are_those_of_qemu(eng: engine.Engine, raw: Path) -> None:
    with eng.open(driver="file", filename=raw, read_only=True):
        ours = locked_bytes(raw)
    with held_by_qemu(raw, "-r", "-f", "raw"):
        assert locked_bytes(raw) == ours


def test_qemu_sees_our_writer(eng: engine.Engine, raw: Path) -> None:
    with eng.open(driver="file", filename=raw):
        assert 'Failed to get "write" lock' in refusal(raw)
        assert refusal(raw, options=("-r", "-f", "raw")) == ""  # a reader is welcome
    assert refusal(raw) == ""


def test_qemu_sees_our_writer_below_a_format(eng: engine.Engine, qcow2: Path) -> None:
    with eng.open(driver="file", filename=qcow2):
        why = run("qemu-img", "info", str(qcow2))
        assert why.returncode != 0
        assert 'Failed to get shared "write" lock' in why.stderr
        assert run("qemu-img", "info", "-U", str(qcow2)).returncode == 0
    assert run("qemu-img", "info", str(qcow2)).returncode == 0


def test_qemu_minds_no_reader_of_ours(eng: engine.Engine, raw: Path, qcow2: Path) -> None:
    with (
        eng.open(driver="file", filename=raw, read_only=True),
        eng.open(driver="file", filename=qcow2, read_only=True),
    ):
        assert refusal(raw) == ""
        assert refusal(qcow2, options=("-f", "qcow2")) == ""


def assert_conflict(error: pytest.ExceptionInfo[engine.Conflict], path: Path, *words: str) -> None:
    assert error.value.errno == errno.EBUSY
    assert error.value.field == "locking"
    text = str(error.value)
    assert "\n" not in text
    for word in (str(path), *words):
        assert word in text


def test_we_see_the_writer_of_qemu(eng: engine.Engine, raw: Path) -> None:
    with held_by_qemu(raw, "-f", "raw"):
        with pytest.raises(engine.Conflict) as error:
            eng.open(driver="file", filename=raw)
        assert_conflict(error, raw, 'holds "write"', "read-only=on")
        with eng.open(driver="file", filename=raw, read_only=True) as node:
            assert node.pread(512, 0) == bytes(512)
        with eng.open(driver="file", filename=raw, locking="off") as node:
            node.pwrite(b"x" * 512, 0)
    with eng.open(driver="file", filename=raw) as node:
        assert node.pread(512, 0) == b"x" * 512


def test_we_see_the_format_of_qemu(eng: engine.Engine, qcow2: Path) -> None:
    with held_by_qemu(qcow2, "-f", "qcow2"):
        with pytest.raises(engine.Conflict) as error:
            eng.open(driver="file", filename=qcow2)
        assert_conflict(error, qcow2)
        with eng.open(driver="file", filename=qcow2, read_only=True):
            pass
    # A reader of a format does not share writing: its tables must not change.
    with held_by_qemu(qcow2, "-r", "-f", "qcow2"):
        with pytest.raises(engine.Conflict) as error:
            eng.open(driver="file", filename=qcow2)
        assert_conflict(error, qcow2, 'does not share "write"')
    with held_by_qemu(qcow2, "-r", "-U", "-f", "qcow2"), eng.open(driver="file", filename=qcow2):
        pass


def test_we_mind_no_raw_reader_of_qemu(eng: engine.Engine, raw: Path) -> None:
    with held_by_qemu(raw, "-r", "-f", "raw"), eng.open(driver="file", filename=raw) as node:
        node.pwrite(b"y" * 512, 0)


def test_locks_below_a_raw_node(eng: engine.Engine, raw: Path) -> None:
    with eng.open(driver="raw", filename=raw):
        assert 'Failed to get "write" lock' in refusal(raw)
    with eng.open(driver="raw", filename=raw, read_only=True):
        assert locked_bytes(raw) == {100}


def test_an_image_that_cannot_be_opened_stays_unlocked(eng: engine.Engine, raw: Path) -> None:
    with held_by_qemu(raw, "-f", "raw"), pytest.raises(engine.Conflict):
        eng.open(driver="file", filename=raw)
    assert locked_bytes(raw) == set()
    with pytest.raises(engine.EngineError):
        eng.open(driver="raw", filename=raw, offset=SIZE * 2)
    assert locked_bytes(raw) == set()


def test_other_names_of_one_image(eng: engine.Engine, raw: Path) -> None:
    link = raw.with_name("link.img")
    link.symlink_to(raw)
    hard = raw.with_name("hard.img")
    os.link(raw, hard)
    with eng.open(driver="file", filename=link):
        for name in (raw, hard):
            with pytest.raises(engine.Conflict):
                eng.open(driver="file", filename=name)
            assert "Failed to get" in refusal(name)
    qemu_io(hard, "write -P 7 0 512")
