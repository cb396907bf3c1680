"""A small canvas that writes SVG: rectangles, lines, circles, text with known extents. No dependencies.

Text is measured with the widths of DejaVu Sans, the widest of the common sans-serif fonts, so that what fits
here fits everywhere. The canvas remembers the box of each text: `collisions` says which of them meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"

# Advance widths in thousandths of the font size; the class of what is not listed is 640.
_WIDTHS = {
    **dict.fromkeys("ijl'|", 290),
    **dict.fromkeys(" .,:;!·", 330),
    **dict.fromkeys("frtI()[]-/\u2013", 420),
    **dict.fromkeys("cksvxyzJFLs", 580),
    **dict.fromkeys("ABDEGHKNOPQRSTUVXYZCw&", 760),
    **dict.fromkeys("mMW%…@", 990),
    **dict.fromkeys("\u00d7+=<>~±≤≥", 840),
}
_ASCENT, _DESCENT = 0.76, 0.22
_BOLD = 1.12
_Attributes = dict[str, str | float | None]  # what is None is left out


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Upper bound of the width in user units."""
    units = sum(_WIDTHS.get(character, 640) for character in text)
    return units * size / 1000.0 * (_BOLD if bold else 1.0)


def wrap(text: str, size: float, limit: float, bold: bool = False) -> list[str]:
    """Lines no wider than `limit`, broken at spaces; a longer word stays whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold) <= limit:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def fit(text: str, size: float, limit: float, bold: bool = False) -> str:
    """The text, or as much of its beginning as fits."""
    if text_width(text, size, bold) <= limit:
        return text
    while text and text_width(f"{text}…", size, bold) > limit:
        text = text[:-1]
    return f"{text.rstrip()}…"


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float
    text: str

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


class Canvas:
    def __init__(self, width: float, title: str, description: str) -> None:
        self.title = title
        self.width = width
        self.height = 0.0
        self.texts: list[Box] = []
        self._head = f"<title>{escape(title)}</title>\n<desc>{escape(description)}</desc>"
        self._elements: list[str] = []
        self._background = "#ffffff"

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        stroke: str | None = None,
        dash: str | None = None,
        radius: float = 0.0,
        opacity: float = 1.0,
    ) -> None:
        attributes: _Attributes = {"x": x, "y": y, "width": max(0.0, width), "height": height, "fill": fill}
        attributes |= {"rx": radius or None, "stroke": stroke, "stroke-dasharray": dash}
        attributes["fill-opacity"] = None if opacity == 1.0 else opacity
        self._add("rect", attributes)

    def line(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        stroke: str,
        width: float = 1.0,
        dash: str | None = None,
    ) -> None:
        (x1, y1), (x2, y2) = start, end
        attributes: _Attributes = {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "stroke": stroke}
        self._add("line", attributes | {"stroke-width": width, "stroke-dasharray": dash})

    def polyline(
        self, points: Sequence[tuple[float, float]], stroke: str, width: float = 1.0, dash: str | None = None
    ) -> None:
        """Through all of them, as one element."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        attributes: _Attributes = {"points": places, "fill": "none", "stroke": stroke, "stroke-width": width}
        self._add("polyline", attributes | {"stroke-dasharray": dash, "stroke-linejoin": "round"})

    def circle(self, x: float, y: float, radius: float, fill: str, stroke: str) -> None:
        self._add("circle", {"cx": x, "cy": y, "r": radius, "fill": fill, "stroke": stroke})

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        *,
        fill: str = "#1f2328",
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """`y` is the base line; `anchor` start, middle or end."""
        if not text:
            return
        width = text_width(text, size, bold)
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        self.texts.append(Box(left, y - _ASCENT * size, left + width, y + _DESCENT * size, text))
        attributes: _Attributes = {
            "x": x,
            "y": y,
            "font-size": size,
            "fill": fill,
            "text-anchor": None if anchor == "start" else anchor,
            "font-weight": "bold" if bold else None,
        }
        self._add("text", attributes, text)

    def _add(self, tag: str, attributes: _Attributes, text: str | None = None) -> None:
        written = "".join(
            f" {name}={quoteattr(_number(value))}" for name, value in attributes.items() if value is not None
        )
        content = "/>" if text is None else f">{escape(text)}</{tag}>"
        self._elements.append(f"<{tag}{written}{content}")

    def collisions(self) -> list[tuple[str, str]]:
        """Pairs of texts that overlap, and texts that leave the canvas (paired with "")."""
        boxes = self.texts
        found = [(a.text, b.text) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.meets(b)]
        found += [
            (box.text, "")
            for box in boxes
            if box.left < 0 or box.top < 0 or box.right > self.width or box.bottom > self.height
        ]
        return found

    def render(self) -> str:
        """The whole document; it has a background of its own, so that it reads on light and on dark pages."""
        width, height = _number(self.width), _number(self.height)
        body = "\n".join(self._elements)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" font-family={quoteattr(FONT)}>\n{self._head}\n'
            f'<rect x="0.5" y="0.5" width="{_number(self.width - 1)}" height="{_number(self.height - 1)}" '
            f'rx="8" fill="{self._background}" stroke="#d0d7de"/>\n{body}\n</svg>\n'
        )


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
