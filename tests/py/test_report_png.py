"""PNG beside SVG: the same picture in another form, and one line where what it takes is missing."""

from __future__ import annotations

import builtins
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from reports import small_result

from engine import cli
from engine.report.picture import compose
from engine.report.png import ZOOM, png
from engine.report.svg import Canvas


def size_of(image: bytes) -> tuple[int, int]:
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", image[16:24])
    return width, height


def pixels(image: bytes) -> bytes:
    """The filtered bytes of all lines: other pictures have others."""
    data, place = b"", 8
    while place < len(image):
        (length,) = struct.unpack(">I", image[place : place + 4])
        if image[place + 4 : place + 8] == b"IDAT":
            data += image[place + 8 : place + 8 + length]
        place += 12 + length
    return zlib.decompress(data)


def picture(text: str) -> str:
    canvas = Canvas(100, "a title", "a description")
    canvas.height = 40
    canvas.text(10, 25, text, 14)
    return canvas.render()


def test_a_png_has_the_text_of_its_picture() -> None:
    images = [png(picture(text)) for text in ("1 M IOPS", "2 M IOPS", "")]
    assert {size_of(image) for image in images} == {(100 * ZOOM, 40 * ZOOM)}
    assert len({pixels(image) for image in images}) == 3


def test_the_command_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_result(tmp_path)
    for _ in range(2):  # into a folder that is there, too
        assert (
            cli.main(["report", str(folder), "--svg", str(tmp_path / "p"), "--png", str(tmp_path / "p")]) == 0
        )
    made = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert made[:2] == ["picture-1.png", "picture-1.svg"]
    assert [name[:-3] for name in made[::2]] == [name[:-3] for name in made[1::2]]
    canvas = compose(cli_data(folder))
    width, height = size_of((tmp_path / "p" / "picture-1.png").read_bytes())
    assert (width, height) == (round(canvas.width * ZOOM), pytest.approx(canvas.height * ZOOM, abs=1))
    assert f"picture  {tmp_path}/p/picture-1.png" in capsys.readouterr().out


def cli_data(folder: Path) -> Any:
    import engine

    return engine.load_results(folder).data


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_result(tmp_path)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "resvg_py":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert cli.main(["report", str(folder), "--png", str(tmp_path / "p")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("engine: PNG needs resvg-py")
    assert 'pip install "blkengine[png]"' in line
    assert not (tmp_path / "p").exists()


def test_without_a_font_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import resvg_py

    real = resvg_py.svg_to_bytes
    monkeypatch.setattr(resvg_py, "svg_to_bytes", lambda **options: real(**options, skip_system_fonts=True))
    with pytest.raises(Exception, match=r"no font is installed .* fonts-dejavu-core"):
        png(picture("x"))
