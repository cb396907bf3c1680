"""Makes the images that an experiment needs: fully written with seeded random data, synced, in one piece."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from engine.experiment.document import ImageSpec
from engine.experiment.errors import UserError

_PIECE = 1 << 20


def prepare(image: ImageSpec, say: Callable[[str], None]) -> None:
    """Makes the file if it is missing; with `preload`, reads it once so that it is in the page cache."""
    path = Path(image.path)
    if not path.exists():
        say(f"making {path}: {image.size >> 20} MiB of random data, seed {image.seed}")
        _make(path, image)
    elif not path.is_file():
        raise UserError(f"{path}: is not a regular file, and image files are")
    elif path.stat().st_size != image.size:
        raise UserError(
            f"{path}: has {path.stat().st_size} bytes and the experiment wants {image.size}; "
            "remove it, and it will be made again"
        )
    if image.preload:
        _preload(path)


def _make(path: Path, image: ImageSpec) -> None:
    """Writes under another name first: a file that has the right name is whole."""
    from random import Random

    path.parent.mkdir(parents=True, exist_ok=True)
    random = Random(image.seed)
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            left = image.size
            while left:
                piece = random.randbytes(min(_PIECE, left))
                file.write(piece)
                left -= len(piece)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _preload(path: Path) -> None:
    buffer = bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
