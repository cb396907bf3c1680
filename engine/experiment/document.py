"""An experiment file: reads the TOML, checks every key, and resolves one point's settings into a Setup.

Every mistake becomes a DocumentError that names the file, the line and the key; where a value came from the
sweep or a mark, the line is that of the sweep or the mark.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.experiment.errors import DocumentError, UserError
from engine.experiment.model import (
    ContextSpec,
    DeviceSpec,
    EngineSpec,
    NodeSpec,
    Setup,
    WorkloadSpec,
)
from engine.experiment.options import check_options, references
from engine.experiment.positions import key_lines
from engine.experiment.replay import ReplayError, replay_of
from engine.experiment.schema import FREE, NAMED, SECTIONS, SINGLE, Key

Path_ = tuple[str, ...]

MAX_TRACE = 2**31  # of run.trace


@dataclass(frozen=True)
class Override:
    """One setting of a point: a dotted key of the file and the value that stands in for the file's own."""

    key: str
    value: Any
    line: int | None = None

    @property
    def path(self) -> Path_:
        """(section, name, option) or (section, option); without the option it stands for the whole table."""
        head, *rest = self.key.split(".")
        if head in SINGLE:
            return (head, ".".join(rest)) if rest else (head,)
        return (head, *rest[:1], *([".".join(rest[1:])] if len(rest) > 1 else []))


@dataclass(frozen=True)
class ImageSpec:
    """A file that the experiment needs and makes when it is missing."""

    path: str
    size: int
    seed: int
    preload: bool


class Document:
    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        try:
            self.tree: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            message, _, position = str(error).partition(" (at line ")
            message = re.sub(
                r"\('(.*?)',?\)", lambda m: f"[{m[1].replace(chr(39), '').replace(', ', '.')}]", message
            )
            line = int(position.split(",")[0]) if position[:1].isdigit() else None
            raise DocumentError(file, line, "", f"not valid TOML: {message}") from None
        self.lines = key_lines(text)
        self._check_sections()
        self.settings = {section: self._flat_tables(section) for section in (*NAMED, "blockdev")}

    @classmethod
    def read(cls, path: str) -> Document:
        try:
            return cls(path, Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise UserError(f"{path}: not a text file in UTF-8") from None

    def line(self, path: Path_) -> int | None:
        """The line of a key, of the nearest table around it, or of the first below it."""
        for length in range(len(path), 0, -1):
            for candidate in (path[:length], (*path[: length - 1], *path[length - 1].split("."))):
                if candidate in self.lines:
                    return self.lines[candidate]
        below = (line for key, line in self.lines.items() if path and key[: len(path)] == path)
        return min(below, default=None)

    def error(self, path: Path_, message: str, overrides: Iterable[Override] = ()) -> DocumentError:
        for override in overrides:
            if path[: len(override.path)] == override.path:
                return DocumentError(self.file, override.line, ".".join(path), message)
        return DocumentError(self.file, self.line(path), ".".join(path), message)

    def _check_sections(self) -> None:
        for section, table in self.tree.items():
            if section not in SECTIONS:
                raise self.error((section,), _unknown("table", section, SECTIONS))
            if not isinstance(table, dict):
                raise self.error((section,), f"must be a table: [{section}]")
            if section in NAMED or section in ("blockdev", "mark"):
                for name, entry in table.items():
                    if not isinstance(entry, dict):
                        raise self.error((section, name), f"must be a table: [{section}.NAME]")
                    if "." in name:
                        raise self.error((section, name), "a name has no dots")

    def _flat_tables(self, section: str) -> dict[str, dict[str, Any]]:
        return {name: flatten(table) for name, table in self.tree.get(section, {}).items()}

    # ---- one point ----

    def setup(self, overrides: Sequence[Override] = ()) -> Setup:
        """The point at which these overrides stand in for the file's own values."""
        return _Resolver(self, overrides).setup()

    def single(self, section: str, overrides: Sequence[Override] = ()) -> dict[str, Any]:
        """The checked values of [run] or [engine]; absent keys have their defaults."""
        table = flatten(self.tree.get(section, {}))
        for override in overrides:
            if override.path[0] == section:
                if len(override.path) == 1:
                    table = self._table(override)
                else:
                    table[override.path[1]] = override.value
        return self.check(table, SINGLE[section], (section,), overrides)

    def images(self) -> list[ImageSpec]:
        tables = self.settings["image"]
        checked = [self.check(table, NAMED["image"], ("image", name), ()) for name, table in tables.items()]
        return [ImageSpec(**values) for values in checked]

    def check(
        self, table: Mapping[str, Any], keys: Mapping[str, Key], path: Path_, overrides: Iterable[Override]
    ) -> dict[str, Any]:
        """Parses a table; the keys of the result are Python names."""
        for name in table:
            if name not in keys:
                raise self.error((*path, name), _unknown("key", name, tuple(keys)), overrides)
        values: dict[str, Any] = {}
        for name, key in keys.items():
            if name not in table:
                if key.required:
                    raise self.error(path, f"{name} is missing", overrides)
                values[name.replace("-", "_")] = key.default
                continue
            try:
                values[name.replace("-", "_")] = key.parse(table[name])
            except ValueError as error:
                raise self.error((*path, name), str(error), overrides) from None
        return values

    def _table(self, override: Override) -> dict[str, Any]:
        if not isinstance(override.value, dict):
            raise self.error(override.path, "must be a table: the key names a whole table", [override])
        return flatten(override.value)

    def override(self, source: Path_, key: str, value: Any) -> Override:
        """Checks that a key of a sweep or a mark names something in this file."""
        override = Override(key, value, self.line((*source, key)))
        path = override.path
        if path[0] in SINGLE:
            if len(path) == 1 and not isinstance(value, dict):
                raise DocumentError(
                    self.file, override.line, key, "names a whole table: its values are tables"
                )
            return override
        if path[0] in FREE and path[0] != "blockdev":
            raise DocumentError(self.file, override.line, key, f"[{path[0]}] cannot be swept")
        if path[0] not in self.settings or path[0] == "image":
            known = tuple(s for s in SECTIONS if s != "image" and (s not in FREE or s == "blockdev"))
            raise DocumentError(self.file, override.line, key, _unknown("table", path[0], known))
        if len(path) == 1:
            raise DocumentError(self.file, override.line, key, f"needs a name: {path[0]}.NAME")
        names = tuple(self.settings[path[0]])
        if path[1] not in names:
            message = _unknown(path[0], path[1], names, " in this file")
            raise DocumentError(self.file, override.line, key, message)
        return override


class _Resolver:
    """Resolves the names of one point: from the workloads down, so that what is unused is not created."""

    def __init__(self, document: Document, overrides: Sequence[Override]) -> None:
        self.document = document
        self.overrides = overrides
        self.tables = copy.deepcopy(document.settings)
        for override in overrides:
            section, *rest = override.path
            if section in SINGLE:
                continue
            if len(rest) == 1:
                self.tables[section][rest[0]] = document._table(override)
            else:
                self.tables[section][rest[0]][rest[1]] = override.value

    def error(self, path: Path_, message: str) -> DocumentError:
        return self.document.error(path, message, self.overrides)

    def named(self, section: str, name: str, user: Path_) -> dict[str, Any]:
        """The checked table of a thing that `user` names."""
        if name not in self.tables[section]:
            known = tuple(self.tables[section])
            raise self.error(user, _unknown(section, name, known, " in this file"))
        path = (section, name)
        return self.document.check(self.tables[section][name], NAMED[section], path, self.overrides)

    def setup(self) -> Setup:
        run = self.document.single("run", self.overrides)
        engine = EngineSpec(**self.document.single("engine", self.overrides))
        workloads = tuple(self.workload(name) for name in self.tables["workload"])
        if not workloads:
            raise self.error(("workload",), "a [workload.NAME] table is missing: there is nothing to run")
        devices = self.devices(workloads)
        contexts = self.contexts(workloads, devices)
        nodes = self.nodes(workloads, devices)
        processes = run["processes"]
        if run["trace"] > MAX_TRACE:
            raise self.error(("run", "trace"), f"must be at most {MAX_TRACE}: one request in so many")
        setup = Setup(
            engine,
            contexts,
            nodes,
            devices,
            workloads,
            processes,
            run["warmup"],
            run["allow_holes"],
            run["sample"],
            run["trace"],
        )
        for workload in workloads:
            have = len(setup.serving_contexts(workload))
            if have < processes:
                what = "queues" if workload.device else "contexts"
                message = f"{processes} processes need as many {what}: workload {workload.name} has {have}"
                raise self.error(("run", "processes"), message)
        return setup

    def workload(self, name: str) -> WorkloadSpec:
        path = ("workload", name)
        values = self.named("workload", name, path)
        if (values["device"] is None) == (values["node"] is None):
            raise self.error(path, "needs either `device` or `node`")
        if values["node"] is not None and not values["contexts"]:
            raise self.error(path, "`node` needs `contexts`: those that serve it")
        if values["device"] is not None and values["contexts"]:
            raise self.error((*path, "contexts"), "goes with `node`; a device's contexts are its `queues`")
        try:
            values |= replay_of(values, self.tables["workload"][name])
        except ReplayError as error:
            raise self.error((*path, error.key), str(error)) from None
        if not values["runtime"] and not values["count"] and not values["replay"]:
            raise self.error(path, 'needs `runtime` (such as "5s") or `count`')
        if values["rwmixread"] > 100:
            raise self.error((*path, "rwmixread"), f"is a percentage, not {values['rwmixread']}")
        return WorkloadSpec(name, **values)

    def devices(self, workloads: Sequence[WorkloadSpec]) -> tuple[DeviceSpec, ...]:
        found: dict[str, DeviceSpec] = {}
        for workload in workloads:
            if workload.device is None or workload.device in found:
                continue
            values = self.named("device", workload.device, ("workload", workload.name, "device"))
            found[workload.device] = DeviceSpec(workload.device, **values)
        return tuple(found.values())

    def contexts(
        self, workloads: Sequence[WorkloadSpec], devices: Sequence[DeviceSpec]
    ) -> tuple[ContextSpec, ...]:
        users = [(name, ("device", d.name, "queues")) for d in devices for name in d.queues]
        for workload in workloads:
            for key in ("contexts", "generators"):
                users += [(name, ("workload", workload.name, key)) for name in getattr(workload, key)]
        found: dict[str, ContextSpec] = {}
        for name, user in users:
            if name not in found:
                found[name] = ContextSpec(name, **self.named("context", name, user))
        return tuple(found.values())

    def nodes(self, workloads: Sequence[WorkloadSpec], devices: Sequence[DeviceSpec]) -> tuple[NodeSpec, ...]:
        users = [(device.node, ("device", device.name, "node")) for device in devices]
        users += [(w.node, ("workload", w.name, "node")) for w in workloads if w.node is not None]
        by_device = {device.name: device.node for device in devices}
        written = {by_device.get(w.device or "", w.node) for w in workloads if w.writes}
        found: dict[str, NodeSpec | None] = {}
        for name, user in users:
            self.add_node(name, user, name in written, found)
        return tuple(node for node in found.values() if node is not None)

    def add_node(
        self, name: str, user: tuple[str, ...], written: bool, found: dict[str, NodeSpec | None]
    ) -> None:
        """With what it stands on before it. None in `found`: it is being looked at."""
        if name in found:
            if found[name] is None:
                raise self.error(user, f"node {name!r} would stand on itself")
            return
        table = self.tables["blockdev"].get(name)
        if table is None:
            known = tuple(self.tables["blockdev"])
            raise self.error(user, _unknown("blockdev", name, known, " in this file"))
        if wrong := check_options(table):
            option, message = wrong
            raise self.error(("blockdev", name, option) if option else ("blockdev", name), message)
        found[name] = None
        below = list(references(table))
        for key, other in below:
            self.add_node(other, ("blockdev", name, key), written, found)
        del found[name]  # it comes after them
        options = dict(table)
        options.setdefault("node-name", name)
        options.setdefault("read-only", not written)
        found[name] = NodeSpec(name, options, tuple(other for _, other in below))


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _unknown(what: str, name: str, known: Sequence[str], where: str = "") -> str:
    from difflib import get_close_matches

    if close := get_close_matches(name, known, 1, 0.7):
        return f"there is no {what} {name!r}{where}; did you mean {close[0]!r}?"
    return f"there is no {what} {name!r}{where}; there is {', '.join(known) or 'none'}"
