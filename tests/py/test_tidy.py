"""House rules that no linter sees: each file has one subject and says what it is, functions stay readable,
nothing of one machine or of unfinished work is left in the tree. Single-threaded.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FILE_LINES_MAX = 660  # "about 600": past that a file has two subjects
FUNCTION_LINES_MAX = 75  # "about 70"
# Past that, look again. These were looked at, and stay as they are.
LOOKED_AT: dict[str, str] = {}
NATIVE = (".c", ".cc", ".h", ".hh")
TEXT = (*NATIVE, ".py", ".pyi", ".sh", ".md", ".toml", ".build", ".options", ".map", ".json", ".svg")
FOLDERS = ("csrc", "engine", "tests", "bench", "scripts", ".ci")

# Each finds what must not be in a file. Spelt in pieces, so that this file passes its own test.
FORBIDDEN = {
    "unfinished work": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b"),
    "a path of one machine": re.compile(r"(?<![\w.}$/])/(?:ro" "ot|ho" "me|wo" r"rk)/\w"),
    "a conflict marker": re.compile(r"^(?:<{7}|>{7}|={7})(?:\s|$)", re.MULTILINE),
    "a tab": re.compile(r"^ *\t", re.MULTILINE),
    "a blank at the end of a line": re.compile(r"[ \t]+$", re.MULTILINE),
}


def tracked_files() -> list[Path]:
    """What git would commit: tracked, and new but not ignored; without git, all of the known folders."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return sorted(path for path in paths if path.is_file() and "__pycache__" not in path.parts)


def text_files() -> list[Path]:
    named = ("Makefile", "run", ".clang-tidy", ".clang-format", ".gitignore")
    return [path for path in tracked_files() if path.suffix in TEXT or path.name in named]


def files_of(*suffixes: str) -> list[Path]:
    return [path for path in tracked_files() if path.suffix in suffixes]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_tree_is_seen() -> None:
    """The other tests pass on an empty list of files: this one does not."""
    names = {name_of(path) for path in text_files()}
    assert {"Makefile", "csrc/include/engine/aio.h", "engine/__init__.py", "tests/py/test_tidy.py"} <= names


def test_a_file_has_one_subject() -> None:
    long = {
        name_of(path): lines
        for path in files_of(*NATIVE, ".py", ".sh")
        if (lines := len(read(path).splitlines())) > FILE_LINES_MAX
    }
    assert not long, f"more than {FILE_LINES_MAX} lines: {long}"


def test_a_file_opens_with_what_it_is() -> None:
    """Native files and scripts with a comment; Python modules with a docstring."""
    openings = {".c": "/*", ".h": "/*", ".cc": "//", ".hh": "//", ".sh": "#"}
    silent = [
        name_of(path)
        for suffix, opening in openings.items()
        for path in files_of(suffix)
        if not without_shebang(read(path)).lstrip().startswith(opening)
    ]
    silent += [name_of(path) for path in files_of(".py") if read(path) and not ast.get_docstring(parse(path))]
    assert not silent, f"do not open with two or three lines that say what they are: {silent}"


def without_shebang(text: str) -> str:
    return text.partition("\n")[2] if text.startswith("#!") else text


def parse(path: Path) -> ast.Module:
    return ast.parse(read(path), filename=str(path))


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_is_left_behind(what: str) -> None:
    found = [
        f"{name_of(path)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0].strip()!r}"
        for path in text_files()
        if not (what == "a tab" and path.name == "Makefile")
        and not (what.startswith("a blank") and path.suffix == ".md")
        for text in (read(path),)
        for match in FORBIDDEN[what].finditer(text)
    ]
    assert not found, f"{what}: {found}"


def test_the_forbidden_is_found() -> None:
    """A pattern that matches nothing would let everything pass."""
    samples = {
        "unfinished work": "// TO" + "DO: later",
        "a path of one machine": 'open("/ho' + 'me/someone/a.img")',
        "a conflict marker": "<" * 7 + " HEAD",
        "a tab": "    \tx",
        "a blank at the end of a line": "x = 1 \n",
    }
    assert samples.keys() == FORBIDDEN.keys()
    missed = [what for what, sample in samples.items() if not FORBIDDEN[what].search(sample)]
    assert not missed


def test_a_python_function_does_one_thing() -> None:
    long = {
        f"{name_of(path)}:{node.name}": lines
        for path in files_of(".py")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert long.keys() == LOOKED_AT.keys(), f"more than {FUNCTION_LINES_MAX} lines: {long}"


def native_functions(text: str) -> list[tuple[str, int]]:
    """(first line, number of lines) of each function body that clang-format laid out: its opening line starts
    in column 0 or inside a class, holds a parenthesis and ends in a brace; it ends at the brace below it.
    """
    found = []
    lines = text.splitlines()
    for start, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        opens = line.rstrip().endswith("{") and "(" in line and indent in (0, 4)
        if not opens or re.match(
            r"\s*(?:if|for|while|switch|else|namespace|extern|struct|class|enum)\b", line
        ):
            continue
        closing = " " * indent + "}"
        end = next(
            (
                n
                for n in range(start + 1, len(lines))
                if lines[n].rstrip() in (closing, closing + ";", closing + ");")
            ),
            None,
        )
        if end is not None:
            found.append((line.strip(), end - start + 1))
    return found


def test_a_native_function_does_one_thing() -> None:
    long = {
        f"{name_of(path)}: {opening}": lines
        for path in files_of(".c", ".cc", ".hh")
        for opening, lines in native_functions(read(path))
        if lines > FUNCTION_LINES_MAX
    }
    assert not long, f"more than {FUNCTION_LINES_MAX} lines: {long}"


def test_native_functions_are_found() -> None:
    text = "int f(int a) {\n" + "    a++;\n" * 80 + "    return a;\n}\nvoid g() {\n}\n"
    assert native_functions(text) == [("int f(int a) {", 83), ("void g() {", 2)]


def test_public_headers_are_plain_c() -> None:
    """A C compiler and cffi read them: no C++, no one-line comments."""
    headers = [path for path in files_of(".h") if "include" in path.parts]
    assert headers
    wrong = [
        name_of(path)
        for path in headers
        if re.search(r"^\s*//|\bclass\b|\bnamespace\b|::", read(path), re.MULTILINE)
    ]
    assert not wrong


def test_free_standing_fences_are_not_used() -> None:
    """Ordering is by operations on named atomics: thread sanitizer and the explorer know no fences."""
    fence = re.compile(r"\batomic_thread_fence\b|__sync_synchronize|\bmembarrier\s*\(")
    found = [
        name_of(path) for path in files_of(".cc", ".hh") if "csrc" in path.parts and fence.search(read(path))
    ]
    assert not found


def test_known_bugs_name_text_that_is_there() -> None:
    """Each changes one piece of a source file; the simulator's run, which is longer, would say so late."""
    bugs = tomllib.loads(read(ROOT / "tests" / "sim" / "bugs.toml"))["bug"]
    assert bugs
    wrong = {bug["name"]: count for bug in bugs if (count := read(ROOT / bug["file"]).count(bug["old"])) != 1}
    assert not wrong, f"how often their file has their text: {wrong}"
