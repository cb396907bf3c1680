"""The requests that a run kept as they were, as a file for https://ui.perfetto.dev: a track for each context,
a slice for each request with its stages inside, and arrows where a request goes to another context.

The encoding is protobuf's, of the few messages that are needed (perfetto.protos.Trace: TracePacket,
TrackDescriptor, TrackEvent).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from engine.experiment.errors import UserError
from engine.report import figures

_BEGIN, _END = 1, 2
_SEQUENCE, _STATE_CLEARED = 1, 1


def perfetto(data: Mapping[str, Any], point: int | None = None) -> bytes:
    """Of a result as `engine run` keeps it: the first run with traces, or that of a point. UserError: there
    are none."""
    for run in data["runs"]:
        traces = run["record"]["engine"].get("traces", {})
        if traces.get("examples") and not run.get("discarded") and point in (None, run["point"]):
            return encode(traces)
    which = "no run" if point is None else f"no run of point {point}"
    raise UserError(f"{which} has traces: add `trace = 100` to [run] of the experiment and run it again")


def encode(traces: Mapping[str, Any]) -> bytes:
    """`traces` as a run has them: `examples`, and the names of nodes and contexts."""
    packets: list[bytes] = []
    events: list[tuple[int, bytes]] = []
    lanes = _Lanes(packets, traces["contexts"])
    for request in traces["examples"]:
        _request(request, traces["nodes"], lanes, events)
    events.sort(key=lambda event: event[0])  # stable: what ends comes before what begins at the same time
    for at_ns, event in events:
        packets.append(_varint(8, at_ns) + _bytes(11, event))
    packets[0] += _varint(13, _STATE_CLEARED)
    return b"".join(_bytes(1, packet + _varint(10, _SEQUENCE)) for packet in packets)


class _Lanes:
    """Tracks below that of their context, on each of which requests follow one another."""

    def __init__(self, packets: list[bytes], names: Mapping[str, str]) -> None:
        self._packets = packets
        self._names = names
        self._free_at: dict[int, list[int]] = {}  # by context: when each of its lanes is free

    def take(self, context: int, begin_ns: int, end_ns: int) -> int:
        """The track for something from begin to end."""
        if context not in self._free_at:
            self._free_at[context] = []
            name = self._names.get(str(context), f"context {context}")
            self._describe(self._uuid(context, 0), name, None)
        lanes = self._free_at[context]
        for lane, free_at in enumerate(lanes):
            if free_at <= begin_ns:
                lanes[lane] = end_ns
                return self._uuid(context, lane + 1)
        lanes.append(end_ns)
        uuid = self._uuid(context, len(lanes))
        self._describe(uuid, f"requests {len(lanes)}", self._uuid(context, 0))
        return uuid

    @staticmethod
    def _uuid(context: int, lane: int) -> int:
        return (context + 1) << 32 | lane

    def _describe(self, uuid: int, name: str, parent: int | None) -> None:
        above = b"" if parent is None else _varint(5, parent)
        self._packets.append(_bytes(60, _varint(1, uuid) + _text(2, name) + above))


def _request(
    request: Mapping[str, Any], nodes: Mapping[str, str], lanes: _Lanes, events: list[tuple[int, bytes]]
) -> None:
    start, end = request["start_ns"], request["start_ns"] + request["latency_ns"]
    title = f"{request['op']} {figures.size(request['length'])}"
    about = [("offset", request["offset"]), ("result", request["result"]), ("request", request["id"])]
    by_context: dict[int, list[list[Any]]] = {request["front"]: []}
    for stage in request["stages"]:
        by_context.setdefault(stage[4], []).append(stage)
    for context, stages in by_context.items():
        front = context == request["front"]
        first = start if front else start + stages[0][0]
        last = end if front else start + stages[-1][1]
        track = lanes.take(context, first, last)
        events.append((first, _begin(track, title, about, request["id"])))
        for begin, done, name, node, _ in stages:
            where = nodes.get(str(node), "")
            flow = request["id"] if name == "callback" and len(by_context) > 1 else None
            events.append((start + begin, _begin(track, f"{name} · {where}" if where else name, [], flow)))
            events.append((start + done, _varint(9, _END) + _varint(11, track)))
        events.append((last, _varint(9, _END) + _varint(11, track)))


def _begin(track: int, name: str, about: Iterable[tuple[str, int]], flow: int | None) -> bytes:
    notes = b"".join(_bytes(4, _text(10, key) + _varint(4, value)) for key, value in about)
    arrow = b"" if flow is None else _key(47, 1) + struct.pack("<Q", flow)
    return _varint(9, _BEGIN) + _varint(11, track) + _text(23, name) + notes + arrow


# ---- protobuf


def _number(value: int) -> bytes:
    value &= 2**64 - 1  # negative ones as two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(field: int, wire: int) -> bytes:
    return _number(field << 3 | wire)


def _varint(field: int, value: int) -> bytes:
    return _key(field, 0) + _number(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _number(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())
