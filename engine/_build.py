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

# What native threads call instead of Python itself. They take the GIL only to run what the user installed:
# not for a timer that was cancelled, and not at all once the interpreter is ending.
_CALLBACKS = """
extern int engine_python_listens;
enum engine_python_event {
    ENGINE_PYTHON_RUN,
    ENGINE_PYTHON_FIRED,
    ENGINE_PYTHON_CANCELLED,
    ENGINE_PYTHON_READABLE,
    ENGINE_PYTHON_WRITABLE,
};
extern "Python" void engine_python_call(void *opaque, int event);
extern "Python" int engine_python_look(void *opaque);
void engine_python_bh(void *opaque);
void engine_python_timer(void *opaque, int fired);
void engine_python_delay(void *opaque, int fired);
void engine_python_readable(void *opaque);
void engine_python_writable(void *opaque);
int engine_python_poll(void *opaque);
int engine_python_delete_bh(engine_context_t *context, engine_bh_t *bh);
int engine_python_delete_timer(engine_context_t *context, engine_timer_t *timer);
int engine_python_delete_fd_handler(engine_context_t *context, engine_fd_handler_t *handler);
"""
_SOURCE = """
static int engine_python_listens = 1;
enum engine_python_event {
    ENGINE_PYTHON_RUN,
    ENGINE_PYTHON_FIRED,
    ENGINE_PYTHON_CANCELLED,
    ENGINE_PYTHON_READABLE,
    ENGINE_PYTHON_WRITABLE,
};
static void engine_python_call(void *opaque, int event);
static int engine_python_look(void *opaque);

static void call(void *opaque, int event) {
    if (__atomic_load_n(&engine_python_listens, __ATOMIC_SEQ_CST)) engine_python_call(opaque, event);
}
static void engine_python_bh(void *opaque) { call(opaque, ENGINE_PYTHON_RUN); }
static void engine_python_timer(void *opaque, int fired) {
    if (fired) call(opaque, ENGINE_PYTHON_FIRED);
}
static void engine_python_delay(void *opaque, int fired) {
    call(opaque, fired ? ENGINE_PYTHON_FIRED : ENGINE_PYTHON_CANCELLED);
}
static void engine_python_readable(void *opaque) { call(opaque, ENGINE_PYTHON_READABLE); }
static void engine_python_writable(void *opaque) { call(opaque, ENGINE_PYTHON_WRITABLE); }
static int engine_python_poll(void *opaque) {
    return __atomic_load_n(&engine_python_listens, __ATOMIC_SEQ_CST) ? engine_python_look(opaque) : 0;
}

/* Delete, and return when no callback can run any more, so that what it points to may go. On the context's
own
 * thread that is so at once; the barrier refuses there. */
static int engine_python_delete_bh(engine_context_t *context, engine_bh_t *bh) {
    engine_bh_delete(bh);
    engine_context_barrier(context);
    return 0;
}
static int engine_python_delete_timer(engine_context_t *context, engine_timer_t *timer) {
    engine_timer_delete(timer);
    engine_context_barrier(context);
    return 0;
}
static int engine_python_delete_fd_handler(engine_context_t *context, engine_fd_handler_t *handler) {
    (void)context;
    engine_fd_handler_delete(handler);
    return 0;
}
"""


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
    source = f"#include <{include}>\n"
    if module == "engine._native":
        ffi.cdef(_CALLBACKS)
        source += _SOURCE
    ffi.set_source(module, source)
    return ffi


def main(arguments: list[str]) -> int:
    module, include, *headers, output = arguments
    builder(module, include, [Path(header) for header in headers]).emit_c_code(output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
