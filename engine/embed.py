"""What a C compiler and linker need to embed the core of this installation: `engine --cflags --libs`.

Works for an installed package, a wheel and an editable install; nothing is built or written.
"""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path

_LIBRARY = "libengine.so.0"


def cflags() -> list[str]:
    """For `#include <engine/engine.h>`."""
    return [f"-I{_path('include', 'engine', 'engine.h').parent.parent}"]


def libs() -> list[str]:
    """The library, and where the program finds it when it runs. They follow the sources."""
    library = _path(_LIBRARY)
    flags = [str(library), f"-Wl,-rpath,{library.parent}"]
    carried = library.parent.parent / "blkengine.libs"  # the liburing of a wheel
    if carried.is_dir():
        flags.append(f"-Wl,-rpath-link,{carried}")
    return flags


def print_flags(compiling: bool, linking: bool) -> int:
    """On one line, quoted for a shell."""
    print(shlex.join((cflags() if compiling else []) + (libs() if linking else [])))
    return 0


def _path(*parts: str) -> Path:
    found = resources.files("engine").joinpath(*parts)
    if not found.is_file():
        raise FileNotFoundError(2, "is not in this installation: install the package anew", "/".join(parts))
    return Path(str(found))
