"""The code in README.md runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_block_runs(code: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_there_are_examples() -> None:
    assert len(blocks("python")) >= 2


def test_named_commands_exist() -> None:
    """Every `engine COMMAND` that the README shows is one that --help lists."""
    text = subprocess.run(
        [sys.executable, "-m", "engine", "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    named = {match for block in blocks("sh") for match in re.findall(r"^engine (\w+)", block, re.MULTILINE)}
    assert named
    for command in named:
        assert re.search(rf"^\s+{command}\b", text, re.MULTILINE), f"README shows `engine {command}`"
