"""Generates the C source of a cffi module from C headers (API mode): engine._native, engine._uring.

Run by meson: python _build.py MODULE INCLUDE HEADER... OUTPUT, the headers in the order in which they include
each other; the C source includes INCLUDE, which leads to all of them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi

# Macros of base.h that mean something to a C compiler and nothing to cffi.
_MACROS = re.compile(r"\b(ENGINE_API|ENGINE_BEGIN_DECLS|ENGINE_END_DECLS)\b")


def declarations(header: str) -> str:
    """The plain C declarations of one header: no preprocessor lines (continued ones included), no macros."""
    lines: list[str] = []
    directive = False
    for line in header.splitlines():
        directive = directive or line.lstrip().startswith("#")
        if not directive:
            lines.append(_MACROS.sub("", line))
        directive = directive and line.endswith("\\")
    return "\n".join(lines)


def builder(module: str, include: str, headers: list[Path]) -> cffi.FFI:
    ffi = cffi.FFI()
    for header in headers:
        ffi.cdef(declarations(header.read_text(encoding="utf-8")))
    # A name that the headers do not declare, or declare otherwise, fails to compile: nothing can drift.
    ffi.set_source(module, f"#include <{include}>\n")
    return ffi


def main(arguments: list[str]) -> int:
    module, include, *headers, output = arguments
    builder(module, include, [Path(header) for header in headers]).emit_c_code(output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
