"""Write logs: reading what a `write-log` node recorded, and making the disk as it was, or could have been.

The layout is in docs/write-log.md. A log is read lazily and in bounded memory, whatever it holds: it may come
from a stranger. Any thread; an object belongs to one at a time.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from engine._native import ffi, lib
from engine.errors import CorruptImage, invalid

SECTOR: Final = 512  # bytes: what a disk writes whole or not at all
_HEAD = struct.Struct("<QIIQQ24xII")
_ENTRY = struct.Struct("<IBBHQQQQQIIQ")
_HEAD_MAGIC: Final = 0x31474F4C4B4C42FF
_ENTRY_MAGIC: Final = 0x59525445
_VERSION: Final = 1
_BLOCK_MAX: Final = 1 << 20
_PIECE: Final = 1 << 20  # bytes read at a time
OPERATIONS: Final = {1: "write", 2: "write-zeroes", 3: "discard", 4: "flush", 5: "resize"}


def crc32c(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """CRC-32C (RFC 3720) of `data`, going on from `before`."""
    view = ffi.from_buffer(data)
    return int(lib.engine_crc32c(view, len(view), before))


@dataclass(frozen=True, slots=True)
class Entry:
    """One request that was done. Places are bytes in the log; offset and length bytes of the disk.

    Entries before `began` in the log had been done when it was submitted. failed: it may have been done in
    any of its sectors. length of a resize: the new size.
    """

    number: int
    place: int
    op: str
    began: int
    offset: int
    length: int
    fua: bool
    may_unmap: bool
    failed: bool
    data_place: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch without an entry before one: requests that never completed, whose entries are missing."""

    place: int
    length: int


class WriteLog:
    """A log in a file or block device, to be read. CorruptImage: it is none, with the offset and field."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
            self.block, self.id, self.disk_bytes = self._read_head()
        except BaseException:
            self.close()
            raise
        self.gaps: list[Gap] = []  # of the last iteration

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> WriteLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Entry]:
        """The entries in the order of the log, checked, data included; they end where none follows."""
        self.gaps = []
        number = 0
        at = end = self.block
        while (place := self._next_place(at)) is not None:
            entry = self._entry_at(place, number)
            if entry is None:
                at = place + self.block
                continue
            if place != end:
                self.gaps.append(Gap(end, place - end))
            yield entry
            number += 1
            at = end = entry.data_place + self._round(entry.length if entry.op == "write" else 0)

    def data(self, entry: Entry) -> bytes:
        """What a write wrote; b"" of other operations."""
        return b"" if entry.op != "write" else self._read(entry.data_place, entry.length)

    # ---- reading ----

    def _round(self, length: int) -> int:
        return -(-length // self.block) * self.block

    def _read(self, place: int, length: int) -> bytes:
        data = os.pread(self._fd, length, place)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), place + len(data))
            if not more:
                raise self._corrupt(place, "length", f"ends {length - len(data)} bytes too early")
            data += more
        return data

    def _corrupt(self, offset: int, field: str, what: str) -> CorruptImage:
        import errno

        message = f"{self.path}: offset {offset}: {field}: {what}"
        return CorruptImage(errno.EINVAL, message, operation="read log", field=field, offset=offset)

    def _read_head(self) -> tuple[int, int, int]:
        if self._size < _HEAD.size:
            raise self._corrupt(0, "magic", f"is no write log: it has {self._size} bytes")
        raw = self._read(0, _HEAD.size)
        magic, version, block, ident, disk_bytes, checksum, _ = _HEAD.unpack(raw)
        if magic != _HEAD_MAGIC:
            raise self._corrupt(0, "magic", "is no write log")
        if version != _VERSION:
            raise self._corrupt(8, "version", f"is {version}; this program knows {_VERSION}")
        if checksum != _checksum(raw, 56):
            raise self._corrupt(56, "checksum", "does not match the head of the log")
        if not SECTOR <= block <= _BLOCK_MAX or block & (block - 1):
            raise self._corrupt(12, "block", f"is {block}, not a power of two from 512 to {_BLOCK_MAX}")
        return block, ident, disk_bytes

    def _next_place(self, at: int) -> int | None:
        """The next block that begins as an entry does; holes of the file are passed over."""
        sign = _ENTRY_MAGIC.to_bytes(4, "little")
        while at + _ENTRY.size <= self._size:
            try:
                at = max(at, os.lseek(self._fd, at, os.SEEK_DATA) // self.block * self.block)
            except OSError:  # nothing but a hole, to the end
                return None
            piece = os.pread(self._fd, _PIECE, at)
            for start in range(0, len(piece), self.block):
                if piece.startswith(sign, start):
                    return at + start
            at += max(len(piece) // self.block, 1) * self.block
        return None

    def _entry_at(self, place: int, number: int) -> Entry | None:
        """None: what is there only looks like an entry, or has not been written in full."""
        raw = os.pread(self._fd, _ENTRY.size, place)
        if len(raw) < _ENTRY.size:
            return None
        _, op, flags, _, ident, own, began, offset, length, data_sum, own_sum, _ = _ENTRY.unpack(raw)
        if ident != self.id or own != place or own_sum != _checksum(raw, 52) or op not in OPERATIONS:
            return None
        data_place = place + self.block
        if op == 1 and (
            length > self._size - data_place or not self._data_matches(data_place, length, data_sum)
        ):
            return None
        name = OPERATIONS[op]
        return Entry(
            number, place, name, began, offset, length,
            bool(flags & 1), bool(flags & 2), bool(flags & 4), data_place,
        )  # fmt: skip

    def _data_matches(self, place: int, length: int, expected: int) -> bool:
        found = 0
        for start in range(0, length, _PIECE):
            piece = os.pread(self._fd, min(_PIECE, length - start), place + start)
            found = crc32c(piece, found)
        return found == expected


def _checksum(raw: bytes, place: int) -> int:
    """Of a record whose own checksum lies at `place`."""
    return crc32c(raw[:place] + bytes(4) + raw[place + 4 :])


# ---- replaying


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay has done, in entries. durable: of those, how many a power loss could not have touched."""

    entries: int
    durable: int
    lost: int  # of the others: nothing of it is there
    torn: int  # … some of its sectors are


def cut(log: Iterable[Entry], *, entries: int | None = None, flushes: int | None = None) -> list[Entry]:
    """The log up to so many entries, or up to the K-th flush, which is in it."""
    taken: list[Entry] = []
    for entry in log:
        if entries is not None and len(taken) == entries:
            break
        taken.append(entry)
        if flushes is not None and entry.op == "flush":
            flushes -= 1
            if flushes == 0:
                return taken
    if flushes:
        raise invalid(f"the log has {flushes} flushes fewer than that", field="flush")
    if entries is not None and len(taken) < entries:
        raise invalid(f"the log has {len(taken)} entries, not {entries}", field="to")
    return taken


def durable_up_to(entries: Iterable[Entry]) -> int:
    """The place up to which flushes have made everything durable."""
    return max((entry.began for entry in entries if entry.op == "flush" and not entry.failed), default=0)


def replay(
    log: WriteLog, image: str | os.PathLike[str], entries: Iterable[Entry], *, power_loss: int | None = None
) -> Replayed:
    """Does the entries again on `image`, as the disk was when the log was begun; a new one is zeroes.

    power_loss: a seed. Then what no flush and no FUA has made durable may be lost, sector by sector; requests
    that were under way together may have been done in either order.
    """
    path = Path(image)
    chosen = list(entries)
    if power_loss is not None:
        chance = random.Random(power_loss)
        _swap_concurrent(chosen, chance)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if os.lseek(fd, 0, os.SEEK_END) == 0:
            os.ftruncate(fd, log.disk_bytes)
        limit = durable_up_to(chosen)
        durable = lost = torn = 0
        for entry in chosen:
            safe = not entry.failed and (entry.fua or entry.place < limit)
            durable += safe
            if safe or (power_loss is None and not entry.failed):
                _apply(fd, log, entry, None)
            elif entry.op != "flush":
                chosen_by = chance if power_loss is not None else random.Random(entry.place)
                left, of = _apply(fd, log, entry, chosen_by)
                lost += left == 0
                torn += 0 < left < of
        return Replayed(len(chosen), durable, lost, torn)
    finally:
        os.close(fd)


def _swap_concurrent(entries: list[Entry], chance: random.Random) -> None:
    """Neighbours of which the second was submitted before the first was done."""
    for i in range(len(entries) - 1):
        first, second = entries[i], entries[i + 1]
        together = second.began <= first.place
        if together and "flush" not in (first.op, second.op) and chance.random() < 0.5:
            entries[i], entries[i + 1] = second, first


def _apply(fd: int, log: WriteLog, entry: Entry, chance: random.Random | None) -> tuple[int, int]:
    """(sectors done, sectors). chance: each of them or not; half of the time none, or all."""
    if entry.op == "resize":
        if chance is None or chance.random() < 0.5:
            os.ftruncate(fd, entry.length)
            return 1, 1
        return 0, 1
    if entry.op in ("flush", "discard"):  # what a discarded range reads as is nobody's to say
        return 1, 1
    sectors = -(-entry.length // SECTOR)
    if chance is None:
        keep = None
    else:
        share = chance.choice((0.0, 0.5, 0.5, 1.0))
        keep = [chance.random() < share for _ in range(sectors)]
    done = 0
    size = os.lseek(fd, 0, os.SEEK_END)
    for start in range(0, entry.length, _PIECE):
        length = min(_PIECE, entry.length - start)
        data = log._read(entry.data_place + start, length) if entry.op == "write" else bytes(length)
        for at in range(0, length, length if keep is None else SECTOR):
            sector = (start + at) // SECTOR
            if keep is not None and not keep[sector]:
                continue
            part = data[at : at + (length if keep is None else SECTOR)]
            place = entry.offset + start + at
            if place < size:  # a resize that was lost
                os.pwrite(fd, part[: size - place], place)
            done += 1 if keep is not None else -(-len(part) // SECTOR)
    return done, sectors
