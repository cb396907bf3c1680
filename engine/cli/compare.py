"""`engine compare`: what differs between two results beyond noise, in words and as a picture."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from engine.experiment.compare import RUNS_LEAST, Comparison, Difference, compare
from engine.experiment.results import Results, load_results
from engine.report import figures


def run(arguments: Namespace) -> int:
    """Exit status 1 where --fail-if-slower was given and a point is, or nothing could be compared."""
    a, b = load_results(arguments.a), load_results(arguments.b)
    found = compare(a, b)
    print(f"A  {a.path}: {a.title}")
    print(f"B  {b.path}: {b.title}")
    for line in _lines(found):
        print(line)
    _draw(arguments, found, a, b)
    limit = arguments.fail_if_slower
    if limit is None:
        return 0
    slower = [difference for difference in found.differences if difference.slower_by(limit)]
    mute = [difference for difference in found.differences if difference.low is None]
    for difference in slower:
        print(f"FAILED: {difference.title} is slower by {figures.percent(1 - difference.ratio)}")
    if mute:
        print(
            f"FAILED: {figures.plural(len(mute), 'point')} with fewer than {RUNS_LEAST} runs on either side"
        )
    if not found.differences:
        print("FAILED: the results have no point in common")
    return 1 if slower or mute or not found.differences else 0


def _draw(arguments: Namespace, found: Comparison, a: Results, b: Results) -> None:
    if not (arguments.html or arguments.svg or arguments.png):
        return
    from engine.report.against import draw, page
    from engine.report.png import png

    picture = draw(found, a.data, b.data)
    contents = [
        ("page", arguments.html, page(found, a, b).encode()),
        ("picture", arguments.svg, picture.encode()),
        ("picture", arguments.png, png(picture) if arguments.png else b""),
    ]
    for kind, name, content in contents:
        if name:
            Path(name).write_bytes(content)
            print(f"{kind:<9}{name}")


def _lines(found: Comparison) -> list[str]:
    lines = [f"not the same: {text}" for text in found.circumstances]
    width = max((len(difference.title) for difference in found.differences), default=0)
    lines += [f"  {difference.title:<{width}}  {_words(difference)}" for difference in found.differences]
    lines += [f"  only in A: {title}" for title in found.only_a]
    lines += [f"  only in B: {title}" for title in found.only_b]
    return lines


def _words(difference: Difference) -> str:
    ratio, low, high = difference.ratio, difference.low, difference.high
    if low is None or high is None:
        runs = f"{len(difference.runs_a)} and {len(difference.runs_b)} runs"
        return f"B has {ratio:.3f} of A's rate; {runs} are too few to say more"
    between = f"({_signed(low)} to {_signed(high)})"
    if not difference.beyond_noise:
        return f"no difference beyond noise {between}"
    return f"B is {figures.percent(abs(ratio - 1))} {'faster' if ratio > 1 else 'slower'} {between}"


def _signed(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"
