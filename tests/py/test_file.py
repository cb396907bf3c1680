"""Images on disk: the file and raw drivers as Python sees them, and what is wrong with images."""

from __future__ import annotations

import array
import fcntl
import itertools
import mmap
import os
import struct
from pathlib import Path

import pytest
from conftest import IMAGE_BYTES

import engine

BLOCK = 4096
F_OFD_SETLK = 37  # fcntl has no name for it before Python 3.14


def test_a_text_is_a_file_name(eng: engine.Engine, image: Path, content: bytes) -> None:
    for name in (str(image), image):
        with eng.open(name) as node:
            assert (node.info.driver, node.info.filename, node.size) == ("file", str(image), IMAGE_BYTES)
            assert node.pread(IMAGE_BYTES, 0) == content
    with eng.open(image, read_only=True) as node:
        assert node.info.read_only


@pytest.mark.parametrize("name", ["nbd:host:10809", "json:{}", "file:a b.img", "a=b,c.img", "-"])
def test_nothing_in_a_file_name_means_anything(eng: engine.Engine, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 512)
    os.chdir(tmp_path)
    with eng.open(name) as node:
        assert node.pread(512, 0) == b"x" * 512


def test_a_name_that_is_not_utf8(eng: engine.Engine, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.img")
    Path(path).write_bytes(b"x" * 512)
    with eng.open(path) as node:
        assert node.info.filename == path
        assert node.pread(1, 0) == b"x"


def test_a_name_alone_or_options(eng: engine.Engine, image: Path) -> None:
    for options in ({"driver": "raw"}, {"filename": "b.img"}):
        with pytest.raises(engine.InvalidArgument, match="alone, or driver= and filename="):
            eng.open(str(image), **options)


@pytest.mark.parametrize("context", [None, "io0"])
def test_content(eng: engine.Engine, image: Path, content: bytes, context: str | None) -> None:
    with eng.open(driver="raw", filename=image) as node:
        assert node.pread(BLOCK, 12345, context=context) == content[12345 : 12345 + BLOCK]
        parts = [bytearray(1), bytearray(10_000), bytearray(5)]
        node.preadv(parts, 7, context=context)
        assert b"".join(parts) == content[7 : 7 + 10_006]
        node.pwrite(b"abc", 5, context=context)
        node.pwritev([b"d", b"", b"ef"], 8, fua=True, context=context)
        node.write_zeroes(100, 20, context=context)
        node.flush(context=context)
    after = image.read_bytes()
    assert after[5:11] == b"abcdef"
    assert after[20:120] == bytes(100)
    assert after[:5] + after[11:20] + after[120:] == content[:5] + content[11:20] + content[120:]


def test_nested_options_and_children(eng: engine.Engine, image: Path, content: bytes) -> None:
    node = eng.open(
        driver="raw",
        node_name="top",
        offset="4k",
        file={"driver": "file", "filename": image, "node_name": "low"},
    )
    assert node.info.child_count == 1
    assert node.size == IMAGE_BYTES - 4096
    child = node.child("file")
    assert (child.name, child.size) == ("low", IMAGE_BYTES)
    assert node.child("file") is child
    assert node.pread(10, 0) == content[4096:4106]
    assert child.stats().op["read"].requests == 1  # the same request, one level down
    with pytest.raises(engine.InvalidArgument, match="no child 'backing'; it has file"):
        node.child("backing")
    child.close()  # it belongs to its parent
    assert not child.closed
    node.close()
    assert child.closed
    with pytest.raises(engine.Closed, match="node 'top' is closed"):
        child.pread(1, 0)
    eng.open(image, node_name="low").close()  # its name is free again


def test_a_child_has_its_own_rules(eng: engine.Engine, image: Path, content: bytes) -> None:
    """A format shares neither writing nor resizing: below it one may only read."""
    node = eng.open(driver="raw", filename=image)
    child = node.child("file")
    with pytest.raises(engine.Conflict, match="python"):
        child.pwrite(b"x", 0)
    assert child.pread(10, 0) == content[:10]
    with child.user("reader", permissions="read") as reader:
        assert reader.pread(10, 0) == content[:10]
    node.close()


def test_a_node_by_name_as_child(eng: engine.Engine, image: Path, content: bytes) -> None:
    low = eng.open(image, node_name="low")
    assert low.pread(10, 0) == content[:10]
    top = eng.open(driver="raw", file="low")
    assert top.child("file") is low
    top.pwrite(b"abc", 0)
    with pytest.raises(engine.Conflict, match="low"):
        low.close()
    assert low.pread(10, 0) == b"abc" + content[3:10]
    with pytest.raises(engine.Conflict, match="python"):
        low.pwrite(b"x", 0)
    top.close()
    low.close()


def test_direct(eng: engine.Engine, image: Path, content: bytes) -> None:
    try:
        node = eng.open(driver="raw", filename=image, **{"cache.direct": True})
    except engine.EngineError as error:
        pytest.skip(f"no O_DIRECT here: {error}")
    info = node.info
    align = max(info.request_alignment, info.memory_alignment)
    assert align > 1
    assert node.pread(BLOCK, BLOCK) == content[BLOCK : 2 * BLOCK]  # its buffer is aligned
    buffer = engine.Buffer(BLOCK)
    node.pread_into(buffer, 0)
    assert buffer[:] == content[:BLOCK]
    buffer[:] = b"z" * BLOCK
    node.pwrite(buffer, BLOCK)
    assert node.pread(BLOCK, BLOCK) == b"z" * BLOCK
    # What is not aligned goes through a buffer that is.
    now = content[:BLOCK] + b"z" * BLOCK + content[2 * BLOCK :]
    assert node.pread(BLOCK, 1) == now[1 : 1 + BLOCK]
    askew = memoryview(engine.Buffer(2 * BLOCK))[1 : 1 + BLOCK]
    assert node.pread_into(askew, 100) == BLOCK
    assert askew == now[100 : 100 + BLOCK]
    assert node.pwrite(b"abc", BLOCK - 1) == 3
    assert node.pread(5, BLOCK - 2) == now[BLOCK - 2 : BLOCK - 1] + b"abc" + b"z"


def test_resizing(eng: engine.Engine, image: Path) -> None:
    with eng.open(image) as node:
        node.resize(2 * IMAGE_BYTES)
        assert node.size == 2 * IMAGE_BYTES == image.stat().st_size
        assert node.pread(10, IMAGE_BYTES) == bytes(10)
        node.resize(512)
        assert image.stat().st_size == 512


def test_extents_of_a_sparse_image(eng: engine.Engine, tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    piece = 1 << 16
    with path.open("wb") as file:
        for index in range(0, 400, 2):
            os.pwrite(file.fileno(), b"x" * piece, index * piece)
        os.truncate(file.fileno(), 401 * piece)
        os.fsync(file.fileno())
    with eng.open(path) as node:
        if not node.info.holes:
            pytest.skip("this file system does not tell holes")
        extents = list(node.extents())
        assert extents[0].start == 0
        for one, following in itertools.pairwise(extents):
            assert one.start + one.length == following.start
        assert extents[-1].start + extents[-1].length == node.size
        data = {
            offset // piece for e in extents if e.data for offset in range(e.start, e.start + e.length, piece)
        }
        assert data == set(range(0, 400, 2))
        assert all(extent.zero for extent in extents if not extent.data)
        assert len(extents) > 128  # more than one question
        [part] = node.extents(piece + 10, 100)
        assert (part.start, part.length, part.data) == (piece + 10, 100, False)
        lazily = node.extents()
        next(lazily)
        assert node.stats().op["block_status"].requests < 10


def test_images_that_cannot_be_opened(eng: engine.Engine, tmp_path: Path, image: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for options, cls in (
        ({"filename": tmp_path / "missing.img"}, FileNotFoundError),
        ({"filename": tmp_path}, engine.InvalidArgument),
        ({"filename": image / "below"}, NotADirectoryError),
        ({"filename": ""}, engine.EngineError),
    ):
        for driver in ("file", "raw"):
            with pytest.raises(cls) as caught:
                eng.open(driver=driver, **options)
            assert isinstance(caught.value, engine.EngineError)
            assert str(options["filename"]) in str(caught.value)
            assert "\n" not in str(caught.value)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_an_image_that_may_not_be_read(eng: engine.Engine, image: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    image.chmod(0)
    with pytest.raises(PermissionError, match=r"disk\.img"):
        eng.open(image)


def test_two_writers_of_one_image(eng: engine.Engine, image: Path) -> None:
    with (
        eng.open(image, locking="on"),
        engine.Engine() as other,
        pytest.raises(engine.Conflict, match=r"disk\.img"),
    ):
        other.open(image, locking="on")
    eng.open(image, locking="on").close()  # the lock went with the node


def test_an_image_that_another_process_locked(eng: engine.Engine, image: Path) -> None:
    """A lock on byte 201 is how QEMU says that it does not share writing."""
    with image.open("r+b") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 201, 1, 0)
        try:
            fcntl.fcntl(file, F_OFD_SETLK, lock)
        except OSError as error:
            pytest.skip(f"no OFD locks: {error}")
        with pytest.raises(engine.Conflict, match=r"disk\.img.*write"):
            eng.open(image, locking="on")
        eng.open(image, locking="off").close()
        eng.open(image, locking="on", read_only=True).close()


def test_buffers_of_all_kinds(eng: engine.Engine, image: Path, content: bytes) -> None:
    with eng.open(image) as node:
        words = array.array("Q", bytes(64))
        node.pread_into(words, 0)
        assert words.tobytes() == content[:64]
        with mmap.mmap(-1, 4096) as mapped:
            node.pread_into(mapped, 4096)
            assert mapped[:] == content[4096:8192]
        view = memoryview(bytearray(100))[10:20]
        node.pread_into(view, 0)
        assert bytes(view.obj)[10:20] == content[:10]  # type: ignore[arg-type]
        numpy = pytest.importorskip("numpy")
        numbers = numpy.zeros((4, 8), dtype="u4")
        node.pread_into(numbers, 0)
        assert numbers.tobytes() == content[:128]
        buffer = engine.Buffer(4096)
        node.pread_into(buffer, 0)
        assert numpy.frombuffer(buffer, dtype="u1").tobytes() == content[:4096]


def test_a_closed_file_opens_again_at_once(tmp_path: Path) -> None:
    """The kernel may keep the open file for a moment after its last request: our own locks must be gone."""
    image = tmp_path / "again.img"
    image.write_bytes(bytes(8192))
    with engine.Engine() as eng:
        for _ in range(300):
            with eng.open(driver="raw", filename=str(image)) as node:
                assert node.pwrite(b"x" * 512, 0) == 512
