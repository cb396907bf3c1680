"""A result as one HTML page that needs nothing else: pictures, table, host, settings. Light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from engine.report import figures
from engine.report.experiment_table import host_lines, note_lines, placement_lines, preflight_lines
from engine.report.picture import draw
from engine.report.pictures import charts
from engine.report.rows import column_name, read_rows
from engine.report.workloads import workload_table

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1f2328; background: #ffffff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
svg { width: 100%; min-width: 38rem; max-width: 60rem; height: auto; display: block; margin: 1rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #d0d7de; text-align: right; white-space: nowrap; }
th.word, td.word { text-align: left; }
pre { overflow-x: auto; background: #f3f5f7; padding: .8rem; border-radius: 6px; font-size: .85rem; }
.note { color: #59636e; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; }
  th, td { border-color: #3d444d; } pre { background: #161b22; } .note { color: #9198a1; }
}
"""


def page(data: Mapping[str, Any]) -> str:
    """HTML of a result as `engine run` keeps it."""
    title = str(data["title"])
    ended = f" to {data['ended']}" if data["ended"] else ", not ended"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">Measured from {escape(data["started"])}{escape(ended)}.</p>',
        *(f'<div class="wide">{picture}</div>' for picture in (draw(data), *charts(data))),
        "<h2>Figures</h2>",
        _table(data),
        _workloads(data),
        *(f'<p class="note">{escape(line)}</p>' for line in note_lines(data)),
        "<h2>Where it was measured</h2>",
        circumstances(data),
        "<h2>Experiment</h2>",
        preformatted(str(data["experiment"]["text"]).splitlines()),
    ]
    return document(title, parts)


def circumstances(data: Mapping[str, Any]) -> str:
    return preformatted([*host_lines(data), *placement_lines(data["placement"]), *preflight_lines(data)])


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page of these pieces of HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def excerpt(data: Mapping[str, Any]) -> str:
    """Pictures and table as a piece of HTML, for notebooks; dark text on white whatever is around."""
    pictures = "".join(f"<div>{picture}</div>" for picture in (draw(data), *charts(data)))
    tables = _table(data) + _workloads(data)
    return f'<div style="background:#ffffff;color:#1f2328;max-width:60rem">{pictures}{tables}</div>'


def preformatted(lines: Sequence[str]) -> str:
    return "<pre>" + escape("\n".join(lines)) + "</pre>"


def _table(data: Mapping[str, Any]) -> str:
    keys = list(data["plan"]["sweep"])
    table = list(read_rows(data))
    marks = any(row.mark or row.disturbed for row in table)
    words = [*(column_name(key) for key in keys), *(["mark"] if marks else [])]
    head = ["runs", "IOPS", "min", "max", figures.TIMES, "CPU/request", "lock wait", "p50", "p99", "p99.9"]
    rows = []
    for row in table:
        spread = row.summary["iops"]
        own = [row.labels.get(key, "") for key in keys]
        if marks:
            own.append((row.mark or "") + (" *" if row.disturbed else ""))
        values = [
            str(row.summary["runs"]),
            *(figures.count(spread[key]) for key in ("median", "min", "max")),
            figures.ratio(row.ratio),
            figures.microseconds(row.median("cpu_us_per_request")),
            figures.percent(row.median("lock_wait_share")),
            *(figures.duration_ns(row.median(f"latency_p{p}_ns")) for p in ("50", "99", "99.9")),
        ]
        rows.append((own, values))
    return table_of(words, head, rows)


def table_of(
    words: Sequence[str], head: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> str:
    """The first columns hold words, the others figures."""
    body = "".join(_row("td", *row) for row in rows)
    return f'<div class="wide"><table>{_row("th", words, head)}{body}</table></div>'


def _workloads(data: Mapping[str, Any]) -> str:
    """Each workload by itself, where there are several."""
    head, rows, words = workload_table(data)
    if not rows:
        return ""
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [_row("th", [head[i] for i in used if i < words], [head[i] for i in used if i >= words])]
    for row in rows:
        lines.append(_row("td", [row[i] for i in used if i < words], [row[i] for i in used if i >= words]))
    return f'<h3>Each workload by itself</h3><div class="wide"><table>{"".join(lines)}</table></div>'


def _row(tag: str, words: Sequence[str], values: Sequence[str]) -> str:
    cells = [f'<{tag} class="word">{escape(word)}</{tag}>' for word in words]
    cells += [f"<{tag}>{escape(value)}</{tag}>" for value in values]
    return f"<tr>{''.join(cells)}</tr>"
