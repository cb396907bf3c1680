"""All pictures of a report, in the order of reading, with the names of their files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.report import curves
from engine.report.locks import lock_picture
from engine.report.maps import rate_maps
from engine.report.over_time import over_time
from engine.report.scaling import scaling
from engine.report.stages import stage_pictures
from engine.report.svg import Canvas


def compose(data: Mapping[str, Any]) -> list[Canvas]:
    """Each that the result has something for, beside the first one, which picture.py draws."""
    return [
        *scaling(data),
        *curves.compose(data),
        *rate_maps(data),
        *stage_pictures(data),
        *lock_picture(data),
        *over_time(data),
    ]


def charts(data: Mapping[str, Any]) -> list[str]:
    """The same, as SVG."""
    return [canvas.render() for canvas in compose(data)]
