"""What this build is, and what the host gives it. No state; any thread."""

from __future__ import annotations

from dataclasses import dataclass

from engine._bindings import struct, text
from engine._native import ffi, lib
from engine.errors import invalid
from engine.stats import record_of

__version__ = text(lib.engine_version())

BACKENDS = {
    "auto": lib.ENGINE_BACKEND_AUTO,
    "io_uring": lib.ENGINE_BACKEND_IO_URING,
    "threads": lib.ENGINE_BACKEND_THREADS,
}


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """How the native core was compiled."""

    version: str
    compiler: str
    liburing: str  # version of its headers
    optimised: bool  # with optimisation, without debug checks: fit to be measured
    sanitized: bool
    flags: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Whether an I/O backend works on this host."""

    works: bool
    features: str  # "" where it does not work
    reason: str  # why it does not; "" where it does


def build_info() -> BuildInfo:
    """Of the native library that is loaded."""
    info = struct("engine_build_info")
    lib.engine_get_build_info(info)
    return record_of(
        BuildInfo,
        info,
        version=text(info.version),
        compiler=text(info.compiler),
        liburing=text(info.liburing),
        optimised=bool(info.optimised),
        sanitized=bool(info.sanitized),
        flags=text(info.flags),
    )


def clock_name() -> str:
    """The clock of `now_ns` and of all latencies: "tsc" or "clock_gettime"."""
    return text(lib.engine_clock_name())


def now_ns() -> int:
    """Monotonic nanoseconds on the engine's own clock."""
    return int(lib.engine_now_ns())


def backend_number(name: str) -> int:
    number = BACKENDS.get(name)
    if number is None:
        raise invalid(f"backend: {name!r} is not one of {', '.join(BACKENDS)}", "backend")
    return int(number)


def probe_backend(name: str) -> ProbeResult:
    """Tries "io_uring" or "threads" on this host, as a context would; nothing stays open."""
    error, features = struct("engine_error"), ffi.new("char[]", 256)
    number = backend_number(name)
    if number == lib.ENGINE_BACKEND_AUTO:
        raise invalid("backend: auto is a choice between backends; probe io_uring or threads", "backend")
    result = lib.engine_probe_backend(number, features, len(features), error)
    if result == 0:
        return ProbeResult(True, text(features), "")
    return ProbeResult(False, "", text(error.message) or "unknown")
