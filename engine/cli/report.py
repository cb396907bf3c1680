"""`engine report`: a page, and the pictures by themselves."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from engine.experiment.results import load_results
from engine.report.page import page
from engine.report.perfetto import perfetto
from engine.report.picture import draw
from engine.report.pictures import charts
from engine.report.png import png

PAGE_FILE = "report.html"


def run(arguments: Namespace) -> int:
    results = load_results(arguments.result)
    target = Path(arguments.output) if arguments.output else results.path.parent / PAGE_FILE
    target.write_text(page(results.data), encoding="utf-8")
    print(f"page     {target}")
    if arguments.svg or arguments.png:
        pictures = [draw(results.data), *charts(results.data)]
        _write(pictures, arguments.svg, "svg", str.encode)
        _write(pictures, arguments.png, "png", png)
    if arguments.perfetto:
        Path(arguments.perfetto).write_bytes(perfetto(results.data, arguments.point))
        print(f"traces   {arguments.perfetto}   (open it at https://ui.perfetto.dev)")
    return 0


def _write(pictures: list[str], folder: str | None, suffix: str, encode: Callable[[str], bytes]) -> None:
    """Each by itself; `folder` None: not asked for."""
    if folder is None:
        return
    for number, picture in enumerate(pictures, 1):
        path = Path(folder) / f"picture-{number}.{suffix}"
        content = encode(picture)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"picture  {path}")
