"""`engine report`: a page, and the pictures by themselves."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from engine.experiment.results import load_results
from engine.report.page import page
from engine.report.perfetto import perfetto
from engine.report.picture import draw
from engine.report.pictures import charts

PAGE_FILE = "report.html"


def run(arguments: Namespace) -> int:
    results = load_results(arguments.result)
    target = Path(arguments.output) if arguments.output else results.path.parent / PAGE_FILE
    target.write_text(page(results.data), encoding="utf-8")
    print(f"page     {target}")
    if arguments.svg:
        folder = Path(arguments.svg)
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate([draw(results.data), *charts(results.data)], 1):
            path = folder / f"picture-{number}.svg"
            path.write_text(picture, encoding="utf-8")
            print(f"picture  {path}")
    if arguments.perfetto:
        Path(arguments.perfetto).write_bytes(perfetto(results.data, arguments.point))
        print(f"traces   {arguments.perfetto}   (open it at https://ui.perfetto.dev)")
    return 0
