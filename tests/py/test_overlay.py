"""The overlay: a temporary disk over an image that several share and nobody changes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import engine

KIB = 1024


def test_the_driver_table() -> None:
    overlay = engine.drivers()["overlay"]
    assert overlay.layer == "format"
    options = {option.key: option for option in overlay.options}
    assert (options["data"].default, options["data"].values) == ("memory", "memory|file")
    assert options["cluster-size"].default == "64k"
    assert options["directory"].default == "/var/tmp"
    unnamed = next(option for option in engine.drivers()["file"].options if option.key == "unnamed")
    assert (unnamed.type, unnamed.default) == ("bool", "off")


@pytest.mark.parametrize("data", ["memory", "file"])
def test_two_sandboxes_over_one_image(
    eng: engine.Engine, image: Path, content: bytes, data: str, tmp_path: Path
) -> None:
    base = eng.open(driver="raw", filename=image, read_only=True)
    where = {"directory": str(tmp_path)} if data == "file" else {}
    one = eng.open(driver="overlay", backing=base.name, data=data, **where)
    two = eng.open(driver="overlay", backing=base.name, data=data, **where)
    assert os.listdir(tmp_path) == ["disk.img"]  # the data has no name
    assert one.size == len(content)
    one.pwrite(b"1" * 4096, 8192)
    two.pwrite(b"2" * 4096, 8192, fua=True)
    one.discard(64 * KIB, 128 * KIB)
    assert one.pread(12288, 4096) == content[4096:8192] + b"1" * 4096 + content[12288:16384]
    assert two.pread(4096, 8192, context="io1") == b"2" * 4096
    assert one.pread(64 * KIB, 128 * KIB) == bytes(64 * KIB)
    assert two.pread(64 * KIB, 128 * KIB) == content[128 * KIB : 192 * KIB]
    assert (128 * KIB, 64 * KIB, False) in [(e.start, e.length, e.data) for e in one.extents()]
    one.flush()
    assert image.read_bytes() == content


def test_what_is_below_is_opened_read_only(eng: engine.Engine, image: Path) -> None:
    node = eng.open(driver="overlay", size="2M", backing={"driver": "raw", "filename": image})
    assert node.child("backing").info.read_only
    assert node.child("file").info.driver == "memory"
    assert node.pread(4096, 1 << 20) == bytes(4096)
    locks = {(lock.owner, lock.lock) for lock in eng.locks()}
    assert (node.name, "meta") in locks
    with pytest.raises(engine.Unsupported, match="keeps the size that it was opened with"):
        node.resize(1 << 20)


def test_errors_say_what_to_do(eng: engine.Engine, null: engine.BlockNode, image: Path) -> None:
    with pytest.raises(engine.InvalidArgument, match=r"backing\.filename=… for what is below") as caught:
        eng.open(driver="overlay", filename=image)
    assert caught.value.field == "filename"
    with pytest.raises(engine.InvalidArgument, match="needs a 'backing'"):
        eng.open(driver="overlay")
    with pytest.raises(OSError, match="cannot make an unnamed file in it") as refused:
        eng.open(driver="overlay", backing="disk", data="file", directory="/nowhere")
    assert refused.value.errno == errno.ENOENT
    small = eng.open(driver="overlay", backing="disk", file={"driver": "memory", "size": "128k"})
    small.pwrite(bytes(128 * KIB), 0)
    with pytest.raises(OSError, match="the data node has no free cluster") as full:
        small.pwrite(bytes(4096), 128 * KIB)
    assert full.value.errno == errno.ENOSPC
    assert null.name == "disk"
