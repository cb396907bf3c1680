"""The image under test: fully written with seeded data and synced, on a real file system.
Single-threaded.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from harness import ROOT, BenchError

MIB = 1 << 20
REFUSED = {
    "tmpfs": "has no non-blocking reads",
    "ramfs": "has no non-blocking reads",
    "overlay": "is not a disk's",
}


def file_system(path: Path) -> str:
    """The type of the file system that holds it, from the mount table: the longest mount point wins."""
    best, kind = "", "unknown"
    resolved = str(path.resolve())
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, point, name, *_ = line.split()
        point = point.replace("\\040", " ")
        if (resolved == point or resolved.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, name
    return kind


def folder() -> Path:
    """$ENGINE_BENCH_DIR, else build/bench-data."""
    chosen = Path(os.environ.get("ENGINE_BENCH_DIR") or ROOT / "build" / "bench-data").absolute()
    chosen.mkdir(parents=True, exist_ok=True)
    kind = file_system(chosen)
    if kind in REFUSED:
        raise BenchError(
            f"{chosen} is on {kind}, which {REFUSED[kind]}: choose another with ENGINE_BENCH_DIR="
        )
    return chosen


def seeded(mebibytes: int = 1024, seed: int = 1) -> Path:
    """A raw image of pseudo-random data without a hole; made once."""
    path = folder() / f"seeded-{mebibytes}m-{seed}.img"
    if path.exists() and path.stat().st_size == mebibytes * MIB:
        return path
    generator = random.Random(seed)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        for _ in range(mebibytes):
            file.write(generator.randbytes(MIB))
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    return path


def warm(path: Path) -> None:
    """Reads all of it, so that the page cache holds it."""
    buffer = bytearray(4 * MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def describe(path: Path) -> str:
    return f"{path.stat().st_size // MIB} MiB of seeded data, fully written, on {file_system(path)}"
