"""Recorded operations to be replayed: read from fio's iolog (versions 2 and 3) or from what blkparse prints.

A recording is one array of `engine_replay_op`, 24 bytes an operation, that any number of workloads share; no
line leaves an object behind. What is wrong with a file is one InvalidArgument: file, line and field.
"""

from __future__ import annotations

import mmap
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NoReturn

from engine._bindings import integer
from engine._native import ffi, lib
from engine.errors import invalid

KINDS = ("read", "write", "flush", "discard")
_READ, _WRITE, _FLUSH, _DISCARD = range(4)
EVENTS = ("Q", "D")  # of blkparse: put into a queue, handed to the driver
ALL_FILES = "*"
MAX_OPERATIONS = 50_000_000
MAX_DATA = 2**30  # bytes of a read or write
MAX_DISCARD = 2**32 - 1
_MOST = (MAX_DATA, MAX_DATA, 0, MAX_DISCARD)  # bytes, by kind
MAX_SECONDS = 10**9
SECTOR = 512
_MAX_END = 2**63 - 1
_CHUNK = 1 << 18
_LINE_MOST = 8192
_NAMES_MOST = 1000  # of files in one recording
_TIMES = 1_000_000_000

_OPERATION_BYTES = 24
_FACTS = (
    "counts",
    "nbytes",
    "timed",
    "end",
    "end_line",
    "longest",
    "longest_line",
    "ragged_line",
)

# fio: what an action is; the other three say that a file comes and goes.
_ACTIONS = {
    b"read": _READ,
    b"write": _WRITE,
    b"trim": _DISCARD,
    b"sync": _FLUSH,
    b"datasync": _FLUSH,
}
_FILE_ACTIONS = (b"add", b"open", b"close")
_IOLOG = re.compile(rb"fio version (\d{1,4}) iolog\s*")
_DEVICE = re.compile(rb"\d{1,9},\d{1,9}")
_RWBS = re.compile(rb"(F?)(?:([RWDFN])E?)?(F?)[ASMEZ]*")  # flush before, what, forced through the cache


class Recording:
    """What was once done to a disk, in order: `Recording.read(path)`, or `Recording.of(operations)`."""

    def __init__(self, name: str, made: _Builder) -> None:
        self.name = name  # the path that it was read from
        self.timed = made.timed  # False: nothing says when, so it is replayed as fast as it goes
        self.files = tuple(os.fsdecode(file) for file in made.files)
        self.end = made.end  # bytes: how far it reaches into the disk
        self._made = made
        self._words: array[int] | memoryview = made.words
        self._count = len(made.words) // 3
        self._lent: list[Any] = []  # what workloads read

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], *, file: str | None = None, event: str | None = None
    ) -> Recording:
        """From a file of fio's or blkparse's, which its first line tells apart.

        `file`: of a recording of several files or devices, the one that is wanted, as the recording names it
        (blkparse: "8,0"); "*": all of them, onto one disk. `event`: of blkparse's events, "Q" (put into the
        queue) or "D" (handed to the driver); None: Q, or D where there are no Q.
        """
        name = os.fspath(path)
        if event is not None and event not in EVENTS:
            raise invalid(f"event: {event!r} is not one of {', '.join(EVENTS)}", "event")
        with open(path, "rb") as opened:
            made = _Reader(name, file, event).read(opened)
        return cls(name, made)

    @classmethod
    def of(cls, operations: Iterable[Sequence[Any]], name: str = "operations") -> Recording:
        """From (kind, offset, length) or (kind, offset, length, seconds), in order; of a flush offset and
        length do not matter."""
        made = _Builder(name, None)
        for number, operation in enumerate(operations, 1):
            kind, offset, length, *rest = operation
            if kind not in KINDS:
                made.fail(number, "kind", f"{kind!r} is not one of {', '.join(KINDS)}")
            seconds = rest[0] if rest else 0
            if not 0 <= seconds <= MAX_SECONDS:
                made.fail(number, "seconds", f"must be from 0 to 10^9, not {seconds!r}")
            made.timed = made.timed or bool(rest)
            made.add(number, int(seconds * 1e9), KINDS.index(kind), int(offset), int(length))
        made.finish()
        return cls(name, made)

    # ---- between processes, without reading it again

    def export(self) -> tuple[int, dict[str, Any]]:
        """Moves it into memory that a descriptor stands for, which a child may inherit; and what `imported`
        wants beside it. The descriptor is the caller's."""
        descriptor = os.memfd_create("recording")
        view = memoryview(self._words).cast("B")
        for at in range(0, len(view), _CHUNK):
            os.write(descriptor, view[at : at + _CHUNK])
        self._words = _mapped(descriptor, len(view))
        self._made.words = array("Q")
        facts = {name: getattr(self._made, name) for name in _FACTS}
        return descriptor, {"name": self.name, "files": list(self.files), "count": self._count, **facts}

    @classmethod
    def imported(cls, descriptor: int, facts: dict[str, Any]) -> Recording:
        made = _Builder(facts["name"], None)
        for name in _FACTS:
            setattr(made, name, facts[name])
        made.files = {os.fsencode(file): 0 for file in facts["files"]}
        self = cls(facts["name"], made)
        self._count = facts["count"]
        self._words = _mapped(descriptor, _OPERATION_BYTES * self._count)
        return self

    # ---- what it is

    def __len__(self) -> int:
        return self._count

    @property
    def counts(self) -> dict[str, int]:
        """Operations of each kind."""
        return dict(zip(KINDS, self._made.counts, strict=True))

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes read, written and discarded."""
        return {kind: self._made.nbytes[KINDS.index(kind)] for kind in KINDS if kind != "flush"}

    @property
    def seconds(self) -> float:
        """From its first operation to the start of its last."""
        return float(self._words[-3] / 1e9)

    @property
    def writes(self) -> bool:
        return bool(self._made.counts[_WRITE] or self._made.counts[_DISCARD])

    def operations(self) -> Iterator[tuple[str, int, int, float]]:
        """(kind, offset, length, seconds) of each."""
        words = self._words
        for at in range(0, len(words), 3):
            last = words[at + 2]
            yield KINDS[last >> 32], words[at + 1], last & 0xFFFFFFFF, words[at] / 1e9

    def check(self, size: int, wrap: bool, sectors: bool) -> None:
        """Whether it can be replayed onto that many bytes; `sectors`: of a disk with sectors of 512 bytes."""
        made = self._made
        if sectors and made.ragged_line:
            made.fail(
                made.ragged_line, "offset, length", "a queue takes whole sectors of 512 bytes: use a node"
            )
        if made.longest > size:
            made.fail(
                made.longest_line, "length", f"{made.longest} bytes are more than the disk's {size} bytes"
            )
        if made.end > size and not wrap:
            made.fail(
                made.end_line,
                "offset",
                f"ends at {made.end}, beyond the disk's {size} bytes: replay it onto a larger disk, or let "
                'it wrap around ("wrap")',
            )

    def fit(
        self, config: Any, target: Any, speed: float | str | None, wrap: bool, share: tuple[int, int]
    ) -> None:
        """Checked against the target, sets what an `engine_workload_config` says of a replay. Keep this alive
        as long as its workload."""
        queue = hasattr(target, "disk")
        size = (target.disk.node if queue else target).size
        if config.offset <= size:  # the core says it of one that is not, and of a length that is too much
            self.check(config.length or size - config.offset, wrap, queue)
        first, stride = share
        stride = integer(stride, "replay_share", low=1)
        first = integer(first, "replay_share", high=stride - 1)
        if first >= self._count:
            raise invalid(
                f"replay_share: {self.name} has no more than {self._count} operations", "replay_share"
            )
        self._lent.append(ffi.from_buffer(self._words))  # stays where it is, export() or not
        config.ops = ffi.cast("engine_replay_op *", self._lent[-1])
        config.op_count = self._count
        config.op_first, config.op_stride = first, stride
        config.replay_speed_ppm = self._speed(speed)
        config.flags |= lib.ENGINE_WORKLOAD_WRAP if wrap else 0

    def _speed(self, speed: float | str | None) -> int:
        if speed == "max" or (speed is None and not self.timed):
            return 0
        speed = 1.0 if speed is None else speed
        if isinstance(speed, (str, bool)) or not 0.000_001 <= speed <= 1000:  # also refuses NaN
            raise invalid(
                f'replay_speed: must be "max" or a factor from 0.000001 to 1000, not {speed!r}',
                "replay_speed",
            )
        if not self.timed:
            raise invalid(f'{self.name}: has no times, so replay_speed can only be "max"', "replay_speed")
        return round(speed * 1_000_000)

    def __repr__(self) -> str:
        parts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items() if count)
        return f"<Recording: {self.name}, {parts}, {self.seconds:.3f} s>"


class _Builder:
    """Takes operations one by one, checked."""

    def __init__(self, name: str, wanted: bytes | None) -> None:
        self.name = name
        self.words = array("Q")  # of an engine_replay_op: time, offset, length below the kind
        self.counts = [0, 0, 0, 0]
        self.nbytes = [0, 0, 0, 0]
        self.timed = False
        self.files: dict[bytes, int] = {}
        self.end = self.end_line = self.longest = self.longest_line = self.ragged_line = 0
        self._wanted = wanted
        self._began: int | None = None
        self._last = 0

    def fail(self, line: int, field: str, text: str) -> NoReturn:
        where = f"{self.name}:{line}" if line else self.name
        raise invalid(f"{where}: {field}: {text}" if field else f"{where}: {text}", field)

    def of_file(self, line: int, file: bytes) -> bool:
        """Whether operations on that file are wanted."""
        if file not in self.files:
            if self._wanted is None and self.files:
                first, second = (_shown(name) for name in (*self.files, file))
                self.fail(
                    line, "file", f'{second} is a second file beside {first}: choose one, or all by "*"'
                )
            if len(self.files) >= _NAMES_MOST:
                self.fail(line, "file", f"more than {_NAMES_MOST} files in one recording")
            self.files[file] = 0
        return self._wanted is None or self._wanted in (b"*", file)

    def clock(self, time_ns: int) -> int:
        """Since the first operation of all files; never back."""
        if self._began is None:
            self._began = time_ns
        self._last = max(self._last, time_ns - self._began)
        return self._last

    def add(self, line: int, time_ns: int, kind: int, offset: int, length: int) -> None:
        if kind == _FLUSH:
            offset = length = 0
        else:
            end = offset + length
            if not (0 < length <= _MOST[kind] and offset >= 0 and end <= _MAX_END):
                self._out_of_range(line, kind, offset, length)
            if end > self.end:
                self.end, self.end_line = end, line
            if length > self.longest:
                self.longest, self.longest_line = length, line
            if (offset | length) % SECTOR and not self.ragged_line:
                self.ragged_line = line
            self.nbytes[kind] += length
        self.counts[kind] += 1
        if len(self.words) >= 3 * MAX_OPERATIONS:
            self.fail(line, "", f"more than {MAX_OPERATIONS} operations: replay it in parts")
        self.words.extend((self.clock(time_ns), offset, length | kind << 32))

    def _out_of_range(self, line: int, kind: int, offset: int, length: int) -> NoReturn:
        if not 0 < length <= _MOST[kind]:
            self.fail(line, "length", f"must be from 1 to {_MOST[kind]} bytes, not {length}")
        self.fail(line, "offset", f"must be from 0 to 2^63 - 1 less the length, not {offset}")

    def finish(self) -> None:
        if self.words:
            return
        if self.files and self._wanted is not None:
            names = ", ".join(_shown(name) for name in list(self.files)[:5])
            self.fail(0, "file", f"no operation on {_shown(self._wanted)}; there are some on {names}")
        self.fail(0, "", "no line is an operation of fio's iolog (version 2 or 3) or an event of blkparse")


class _Reader:
    """Reads one file."""

    def __init__(self, name: str, file: str | None, event: str | None) -> None:
        self.name = name
        self.wanted = None if file is None else os.fsencode(file)
        self.event = event.encode() if event else None
        self.made = _Builder(name, self.wanted)
        self._rwbs: dict[bytes, tuple[int, ...] | None] = {}

    def read(self, opened: BinaryIO) -> _Builder:
        lines = self._lines(opened)
        number, first = next(lines, (1, b""))
        if header := _IOLOG.fullmatch(first):
            version = int(header[1])
            if version not in (2, 3):
                self.made.fail(1, "version", f"{version} is not read here: fio's iolog has versions 2 and 3")
            self._iolog(lines, version)
        else:
            self._blkparse(number, first, lines)
        self.made.finish()
        return self.made

    def _lines(self, opened: BinaryIO) -> Iterator[tuple[int, bytes]]:
        rest, number = b"", 0
        while chunk := opened.read(_CHUNK):
            if number == 0 and b"\0" in chunk[:_LINE_MOST]:
                self.made.fail(0, "", "is not text; of blktrace's binary files read what blkparse prints")
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                number += 1
                yield number, line
            if len(rest) > _LINE_MOST:
                self.made.fail(number + 1, "", f"is longer than {_LINE_MOST} bytes")
        if rest:
            yield number + 1, rest

    def _number(self, line: int, field: str, raw: bytes, most: int) -> int:
        if raw.isdigit() and len(raw) <= 20:
            number = int(raw)
            if number <= most:
                return number
        self.made.fail(line, field, f"must be a whole number from 0 to {most}, not {_shown(raw)}")

    # ---- fio

    def _iolog(self, lines: Iterator[tuple[int, bytes]], version: int) -> None:
        made, number_of, now = self.made, self._number, 0
        made.timed = stamped = version == 3
        for number, line in lines:
            parts = line.split()
            if not parts:
                continue
            if stamped:
                stamp = parts.pop(0)
                if stamp.isdigit() and len(stamp) < 16:  # what `number_of` does, where that is quicker
                    now = 1000 * int(stamp)
                else:
                    self._no_second_header(number, line)
                    now = 1000 * number_of(number, "timestamp", stamp, MAX_SECONDS * 1_000_000)
            if len(parts) == 2 and parts[1] in _FILE_ACTIONS:
                continue
            if len(parts) != 4:
                self._not_an_action(number, line, parts)
            file, action, offset, length = parts
            kind = _ACTIONS.get(action)
            if kind is None:
                if action != b"wait" or stamped:
                    made.fail(
                        number, "action", f"{_shown(action)} is none of read, write, sync, datasync, trim"
                    )
                now += 1000 * number_of(number, "offset", offset, MAX_SECONDS * 1_000_000)
                made.timed = True
                continue
            if offset.isdigit() and length.isdigit() and len(offset) < 19 and len(length) < 19:
                start, size = int(offset), int(length)
            else:
                start = number_of(number, "offset", offset, _MAX_END)
                size = number_of(number, "length", length, _MAX_END)
            if made.of_file(number, file):
                made.add(number, now, kind, start, size)
            else:
                made.clock(now)

    def _no_second_header(self, number: int, line: bytes) -> None:
        if _IOLOG.fullmatch(line):
            self.made.fail(number, "", "a second header: two logs were written into one file, part them")

    def _not_an_action(self, number: int, line: bytes, parts: list[bytes]) -> NoReturn:
        self._no_second_header(number, line)
        self.made.fail(
            number,
            "",
            f"{len(parts)} fields of file, action, offset, length (or file and action) in {_shown(line)}",
        )

    # ---- blkparse

    def _blkparse(self, number: int, first: bytes, lines: Iterator[tuple[int, bytes]]) -> None:
        """Lines that do not begin with a device are messages or the summary."""
        builders = {event: _Builder(self.name, self.wanted) for event in (b"Q", b"D")}
        wanted = (self.event,) if self.event else (b"Q", b"D")
        self._event(number, first, builders, wanted)
        for number, line in lines:
            self._event(number, line, builders, wanted)
            if len(wanted) == 2 and builders[b"Q"].words:
                wanted = (b"Q",)
                del builders[b"D"]
        self.made = next((builders[event] for event in wanted if builders[event].words), builders[wanted[0]])
        self.made.timed = True

    def _event(
        self, number: int, line: bytes, builders: dict[bytes, _Builder], wanted: Sequence[bytes]
    ) -> None:
        """`maj,min cpu sequence seconds.ns pid action rwbs [sector + sectors] [process]`"""
        parts = line.split(None, 10)
        if not parts or not _DEVICE.fullmatch(parts[0]):
            return
        if len(parts) < 6:
            self.made.fail(number, "", f"an event has at least 6 fields, not {len(parts)}: {_shown(line)}")
        if parts[5] not in wanted:
            return
        made = builders[parts[5]]
        seconds, point, fraction = parts[3].partition(b".")
        if not point or len(fraction) != 9:
            self.made.fail(number, "time", f"must be seconds.nanoseconds, not {_shown(parts[3])}")
        now = self._number(number, "time", seconds, MAX_SECONDS - 1) * _TIMES
        now += self._number(number, "time", fraction, _TIMES - 1)
        kinds = self._kinds(number, parts[6] if len(parts) > 6 else b"")
        if kinds is None:
            return
        offset = length = 0
        if len(parts) >= 10 and parts[8] == b"+":
            offset = SECTOR * self._number(number, "sector", parts[7], _MAX_END // SECTOR)
            length = SECTOR * self._number(number, "sectors", parts[9], MAX_DISCARD // SECTOR)
        kinds = kinds if length else tuple(kind for kind in kinds if kind == _FLUSH)
        if not kinds:
            return  # a command that is no I/O
        if not made.of_file(number, parts[0]):
            made.clock(now)
            return
        for kind in kinds:
            made.add(number, now, kind, offset, length)

    def _kinds(self, number: int, rwbs: bytes) -> tuple[int, ...] | None:
        """What RWBS stands for, in order: a flush before is one, and so is what forces it through a cache."""
        if rwbs in self._rwbs:
            return self._rwbs[rwbs]
        match = _RWBS.fullmatch(rwbs)
        if not match or not rwbs:
            self.made.fail(number, "rwbs", f"{_shown(rwbs)} is no RWBS such as R, WS or FWFS")
        before, what, through = match.groups()
        own = {b"R": (_READ,), b"W": (_WRITE,), b"D": (_DISCARD,)}.get(what, ())
        flush = (_FLUSH,)
        if what == b"F" or not own:
            kinds = flush if before or what == b"F" else ()
        else:
            kinds = (*(flush if before else ()), *own, *(flush if through else ()))
        self._rwbs[rwbs] = kinds or None
        return self._rwbs[rwbs]


def _mapped(descriptor: int, size: int) -> memoryview:
    return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ)).cast("Q")


def _shown(raw: bytes) -> str:
    """What stands in a file, short and on one line."""
    text = ascii(raw[:40].decode("latin-1"))
    return text + "…" if len(raw) > 40 else text


def recording_of(replay: object, file: str | None = None, event: str | None = None) -> Recording:
    """A recording, or the path of one."""
    if isinstance(replay, Recording):
        return replay
    if isinstance(replay, (str, os.PathLike)):
        return Recording.read(replay, file=file, event=event)
    raise TypeError(f"replay: a Recording or a path is needed, not {type(replay).__name__}")
