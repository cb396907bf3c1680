"""Tables in plain text: aligned, thin, no frames. Numbers stand to the right, words to the left."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_GAP = "  "


def width(text: str) -> int:
    """Columns on a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def format_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, indent: str = "  "
) -> list[str]:
    """Lines of a table; the first `left` columns are words, the others figures. Empty columns disappear."""
    keep = [i for i in range(len(head)) if any(row[i] for row in rows)]
    columns = [[head[i], *(row[i] for row in rows)] for i in keep]
    widths = [max(width(cell) for cell in column) for column in columns]
    lines = []
    for number in range(len(rows) + 1):
        cells = []
        for position, index in enumerate(keep):
            cell = columns[position][number]
            padding = " " * (widths[position] - width(cell))
            cells.append(cell + padding if index < left else padding + cell)
        lines.append((indent + _GAP.join(cells)).rstrip())
    return lines


def blank_repeats(rows: Sequence[Sequence[str]], columns: int) -> list[list[str]]:
    """Leaves out what the row above says too, in the first `columns`."""
    result: list[list[str]] = []
    before: Sequence[str] = ()
    for row in rows:
        same = 0
        while same < columns and before and row[same] == before[same]:
            same += 1
        result.append(["" if index < same else cell for index, cell in enumerate(row)])
        before = row
    return result
