"""`engine write-log`: what a write log holds, and the disk that it makes."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict

from engine.experiment.errors import UsageError
from engine.write_log import Entry, WriteLog, cut, durable_up_to, replay


def show(arguments: Namespace) -> int:
    """One line for each entry, and what they come to."""
    counts: dict[str, int] = {}
    with WriteLog(arguments.log) as log:
        if not arguments.json:
            print(f"{log.path}: blocks of {log.block} bytes, of a disk of {log.disk_bytes} bytes")
            print(f"{'entry':>8}  {'operation':<12} {'offset':>14} {'length':>12}  flags")
        durable = 0
        for entry in log:
            counts[entry.op] = counts.get(entry.op, 0) + 1
            durable = max(durable, durable_up_to([entry]))
            print(json.dumps(asdict(entry)) if arguments.json else _line(entry))
        if not arguments.json:
            parts = [f"{count} {op}" for op, count in counts.items()]
            print(f"{sum(counts.values())} entries: {', '.join(parts) or 'none'}")
            if durable:
                print(f"what lies before byte {durable} of the log is durable")
            for gap in log.gaps:
                print(f"{gap.length} bytes at {gap.place} hold no entry: requests that never completed")
    return 0


def _line(entry: Entry) -> str:
    flags = [name for name in ("fua", "may_unmap", "failed") if getattr(entry, name)]
    placed = entry.op not in ("flush", "resize")
    offset = str(entry.offset) if placed else ""
    length = str(entry.length) if entry.op != "flush" else ""
    return f"{entry.number:>8}  {entry.op:<12} {offset:>14} {length:>12}  {' '.join(flags)}".rstrip()


def make(arguments: Namespace) -> int:
    """Replays a log on an image."""
    if arguments.to is not None and arguments.flush is not None:
        raise UsageError("--to and --flush both say where to stop: give one of them")
    with WriteLog(arguments.log) as log:
        entries = cut(log, entries=arguments.to, flushes=arguments.flush)
        done = replay(log, arguments.image, entries, power_loss=arguments.power_loss)
    text = f"{arguments.image}: {done.entries} entries replayed"
    if arguments.power_loss is not None:
        whole = done.entries - done.durable - done.lost - done.torn
        text += (
            f", power lost after them: {done.durable} durable, of the others "
            f"{done.lost} lost, {done.torn} torn, {whole} whole"
        )
    print(text)
    return 0
