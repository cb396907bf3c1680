"""Pictures as PNG, where SVG is not taken: slides, chats, some wikis. By resvg, which is optional."""

from __future__ import annotations

from engine.experiment.errors import UserError
from engine.report.svg import FONT

ZOOM = 2.0  # dots for each unit of the SVG: readable on dense screens and on paper
_PROBE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">'
    f'<text x="2" y="16" font-size="14" font-family="{FONT}">{{}}</text></svg>'
)


def png(svg: str) -> bytes:
    """The same picture, on white. UserError where what it takes is missing, and how to install it."""
    try:
        import resvg_py
    except ImportError:
        raise UserError('PNG needs resvg-py, which is not installed: pip install "blkengine[png]"') from None
    if resvg_py.svg_to_bytes(svg_string=_PROBE.format("x")) == resvg_py.svg_to_bytes(
        svg_string=_PROBE.format("")
    ):
        raise UserError(
            "PNG: no font is installed to write the figures with: "
            "install one, such as Debian's package fonts-dejavu-core"
        )
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=ZOOM, background="#ffffff"))
