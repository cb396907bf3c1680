"""Where each key of a TOML file stands: `tomllib` checks the file, this finds the line for an error."""

from __future__ import annotations

import re

_BARE_OR_QUOTED = re.compile(r"""\s*(?:([A-Za-z0-9_-]+)|"((?:[^"\\]|\\.)*)"|'([^']*)')\s*""")
_OPENING = {"[": 1, "{": 1, "]": -1, "}": -1}
_QUOTES = ('"""', "'''", '"', "'")


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line (from 1) of every table header and key outside inline tables, by its full path.

    `text` must be valid TOML. Dotted keys are split; a quoted part stays whole.
    """
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    position, line = 0, 1
    while position < len(text):
        start = position
        if text[position] in "\n \t\r":
            line += text[position] == "\n"
            position += 1
            continue
        if text[position] == "#":
            position = _end_of_line(text, position)
            continue
        if text[position] == "[":
            position = _end_of_line(text, position)
            path, _ = _path(text, start + (2 if text.startswith("[[", start) else 1))
            table = path
            lines.setdefault(path, line)
            continue
        path, position = _path(text, position)
        for depth in range(len(table) + 1, len(table) + len(path) + 1):
            lines.setdefault((table + path)[:depth], line)
        position = _skip_value(text, position + 1)  # past the "="
        line += text.count("\n", start, position)
    return lines


def _end_of_line(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _path(text: str, position: int) -> tuple[tuple[str, ...], int]:
    """The dotted key at `position`, and what follows it."""
    parts: list[str] = []
    while match := _BARE_OR_QUOTED.match(text, position):
        parts.append(next(group for group in match.groups() if group is not None))
        position = match.end()
        if position >= len(text) or text[position] != ".":
            break
        position += 1
    return tuple(parts), position


def _skip_value(text: str, position: int) -> int:
    """The end of the value at `position`: the end of its line, unless brackets or strings go on."""
    depth = 0
    while position < len(text):
        character = text[position]
        if character == "\n" and depth == 0:
            return position
        if character == "#":
            position = _end_of_line(text, position)
            continue
        if character in "\"'":
            position = _skip_string(text, position)
            continue
        depth += _OPENING.get(character, 0)
        position += 1
    return position


def _skip_string(text: str, position: int) -> int:
    quote = next(quote for quote in _QUOTES if text.startswith(quote, position))
    position += len(quote)
    while position < len(text) and not text.startswith(quote, position):
        position += 2 if text[position] == "\\" and quote[0] == '"' else 1
    position += len(quote)
    while len(quote) == 3 and position < len(text) and text[position] == quote[0]:
        position += 1  # up to two quotes may stand right before the closing three
    return position
