"""Images that an experiment makes: whole, random, the same for the same seed, never overwritten."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from engine.experiment.document import ImageSpec
from engine.experiment.errors import UserError
from engine.experiment.images import prepare

MIB = 1 << 20


def ignore(_: str) -> None:
    """Takes what is said."""


def test_an_image_is_fully_written_and_follows_its_seed(tmp_path: Path) -> None:
    size = 3 * MIB + 4096
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(ImageSpec(str(tmp_path / "sub" / name), size, seed, True), ignore)
    a, b, c = ((tmp_path / "sub" / name).read_bytes() for name in "abc")
    assert len(a) == size
    assert a == b
    assert a != c
    assert len(zlib.compress(a, 1)) > size * 0.99
    status = (tmp_path / "sub" / "a").stat()
    assert status.st_blocks * 512 >= size


def test_an_image_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.img"
    path.write_bytes(b"x" * 8192)
    prepare(ImageSpec(str(path), 8192, 1, True), ignore)
    assert path.read_bytes() == b"x" * 8192


def test_an_image_of_another_size_is_refused_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mine.img"
    path.write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="has 100 bytes and the experiment wants 8192"):
        prepare(ImageSpec(str(path), 8192, 1, False), ignore)
    assert path.read_bytes() == b"x" * 100


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a regular file"):
        prepare(ImageSpec(str(tmp_path), 8192, 1, False), ignore)
