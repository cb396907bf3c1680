"""The file and raw drivers against qemu-io and qemu-img: the same data, the same holes, the same sizes."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from qemu_tools import merged, needs_qemu, qemu_io, qemu_map, run

import engine

pytestmark = needs_qemu
BLOCK = 65536


@pytest.fixture(params=["io_uring", "threads"])
def eng(request: pytest.FixtureRequest) -> Iterator[engine.Engine]:
    with engine.Engine() as opened:
        opened.add_context("io", backend=request.param)
        yield opened


def extents(node: engine.BlockNode) -> list[tuple[int, int, bool]]:
    return merged([(extent.start, extent.length, extent.data) for extent in node.extents(context="io")])


def sparse(path: Path, seed: int, blocks: int = 64) -> Path:
    """An image with data in some of its blocks, the last one ragged."""
    chosen = random.Random(seed)
    with path.open("wb") as image:
        image.truncate(blocks * BLOCK - (0 if seed % 2 else 5 * 512))
        for block in range(blocks - 1):
            if chosen.random() < 0.4:
                image.seek(block * BLOCK)
                image.write(chosen.randbytes(BLOCK if chosen.random() < 0.5 else 4096))
    return path


def test_what_qemu_writes_we_read(eng: engine.Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(1 << 20))
    qemu_io(path, "write -P 0x5a 4096 65536", "write -P 7 1000000 4096", "flush")
    with eng.open(driver="raw", filename=path, read_only=True) as node:
        expected = bytearray(1 << 20)
        expected[4096 : 4096 + 65536] = b"\x5a" * 65536
        expected[1000000:1004096] = b"\x07" * 4096
        assert node.pread(1 << 20, 0, context="io") == bytes(expected)


def test_what_we_write_qemu_reads(eng: engine.Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(1 << 20))
    with eng.open(driver="raw", filename=path) as node:
        node.pwrite(b"\x5a" * 65536, 4096, context="io")
        node.pwrite(b"\x07" * 512, 131072, fua=True, context="io")
        node.write_zeroes(4096, 8192, context="io")
        node.flush(context="io")
    qemu_io(
        path,
        "read -P 0 0 4096",
        "read -P 0x5a 4096 4096",
        "read -P 0 8192 4096",
        "read -P 0x5a 12288 57344",
        "read -P 7 131072 512",
        "read -P 0 131584 4096",
    )


def test_a_window_is_the_same_window(eng: engine.Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(random.Random(3).randbytes(1 << 20))
    image = f"driver=raw,offset=65536,size=131072,file.driver=file,file.filename={path}"
    qemu_io(Path(image), "write -P 9 4096 4096", "write -P 8 126976 4096", options=("--image-opts",))
    with eng.open(driver="raw", filename=path, offset=65536, size="128k") as node:
        assert node.size == 131072
        assert node.pread(4096, 4096, context="io") == b"\x09" * 4096
        assert node.pread(4096, 126976, context="io") == b"\x08" * 4096
        node.pwrite(b"\x06" * 4096, 0, context="io")
    qemu_io(Path(image), "read -P 6 0 4096", options=("--image-opts",))
    qemu_io(path, "read -P 6 65536 4096", "read -P 9 69632 4096")
    for offset, size in (("2M", "4k"), ("512k", "1M")):
        done = run(
            "qemu-img", "info", "--image-opts", f"driver=raw,offset={offset},size={size},file.filename={path}"
        )
        assert done.returncode != 0
        with pytest.raises(engine.InvalidArgument):
            eng.open(driver="raw", filename=path, offset=offset, size=size)


@pytest.mark.parametrize("seed", range(6))
def test_block_status_is_that_of_qemu_img_map(eng: engine.Engine, tmp_path: Path, seed: int) -> None:
    path = sparse(tmp_path / "a.img", seed)
    for driver in ("file", "raw"):
        with eng.open(driver=driver, filename=path, read_only=True) as node:
            assert extents(node) == qemu_map(path)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("write -z", {}),
        ("write -z -u", {"may_unmap": True}),
        ("discard", None),
    ],
)
def test_zeroes_and_discards_leave_the_same_holes(
    eng: engine.Engine, tmp_path: Path, command: str, arguments: dict[str, bool] | None
) -> None:
    ours = tmp_path / "ours.img"
    ours.write_bytes(random.Random(4).randbytes(1 << 20))
    theirs = tmp_path / "theirs.img"
    shutil.copyfile(ours, theirs)
    ranges = [(0, 4096), (65536, 131072), (500 * 1024, 512), (1 << 19, 1 << 18)]
    with eng.open(driver="raw", filename=ours, discard="unmap") as node:
        for offset, length in ranges:
            if arguments is None:
                node.discard(length, offset, context="io")
            else:
                node.write_zeroes(length, offset, context="io", **arguments)
        node.flush(context="io")
    qemu_io(
        theirs,
        *(f"{command} {offset} {length}" for offset, length in ranges),
        options=("-d", "unmap", "-f", "raw"),
    )
    assert ours.read_bytes() == theirs.read_bytes()
    assert qemu_map(ours) == qemu_map(theirs)
    assert ours.stat().st_blocks == theirs.stat().st_blocks


def test_the_same_size_after_resizing(eng: engine.Engine, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.img", tmp_path / "theirs.img"
    for path in (ours, theirs):
        path.write_bytes(b"x" * 100000)
    with eng.open(driver="raw", filename=ours) as node:
        for size in (1 << 20, 1000 * 512, 5 << 30):
            node.resize(size, context="io")
            assert run("qemu-img", "resize", "-f", "raw", "--shrink", str(theirs), str(size)).returncode == 0
            assert ours.stat().st_size == theirs.stat().st_size == node.size == size


def test_direct_reads_agree(eng: engine.Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    content = random.Random(5).randbytes(100000)  # no multiple of a block
    path.write_bytes(content)
    with eng.open(driver="raw", filename=path, read_only=True, **{"cache.direct": True}) as node:
        alignment = node.info.request_alignment
        assert node.size == -(-len(content) // alignment) * alignment
        ours = node.pread(node.size, 0, context="io")
    assert ours == content.ljust(len(ours), b"\0")
    last = len(content) // 512 * 512  # QEMU rounds up to sectors
    dump = qemu_io(path, f"read -v {last} 512", options=("-t", "none", "-r", "-f", "raw"))
    rows = [line.split()[1:17] for line in dump.splitlines() if re.match("[0-9a-f]{8}:", line)]
    assert ours[last : last + 512] == bytes(int(byte, 16) for row in rows for byte in row)
