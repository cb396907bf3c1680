"""The block I/O engine: contexts, block nodes, virtqueues and workloads. Blocking calls; the GIL is released.

Names load on first use, so that `import engine` costs next to nothing. Every object is a context manager with
an idempotent `close()`; use after close raises `Closed`; what is dropped without close warns and is closed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.about import (
        BuildInfo,
        ProbeResult,
        build_info,
        clock_name,
        now_ns,
        probe_backend,
    )
    from engine.blockio import Extent
    from engine.buffer import Buffer
    from engine.callbacks import BottomHalf, DelayedCall, FdHandler, Timer
    from engine.context import AioContext, ContextInfo, ContextStats
    from engine.copy import Copy, CopyProgress
    from engine.core import Engine
    from engine.driver import BlockDriver, DriverRequest
    from engine.errors import (
        Closed,
        Conflict,
        CorruptImage,
        EngineError,
        InvalidArgument,
        LimitExceeded,
        RefusedByPolicy,
        Unsupported,
    )
    from engine.experiment.results import Results, load_results
    from engine.histogram import Histogram
    from engine.node import BlockNode, BlockUser, NodeInfo, NodeStats, PauseStats
    from engine.options import DriverInfo, OptionInfo, drivers
    from engine.queue import QueueStats, VirtioBlk, VirtQueue
    from engine.replay import Recording
    from engine.stats import LockInfo, OpStats
    from engine.trace import Trace, Traces
    from engine.units import parse_size, parse_time_ns
    from engine.workload import Workload, WorkloadResult

    __version__: str

__all__ = [
    "AioContext",
    "BlockDriver",
    "BlockNode",
    "BlockUser",
    "BottomHalf",
    "Buffer",
    "BuildInfo",
    "Closed",
    "Conflict",
    "ContextInfo",
    "ContextStats",
    "Copy",
    "CopyProgress",
    "CorruptImage",
    "DelayedCall",
    "DriverInfo",
    "DriverRequest",
    "Engine",
    "EngineError",
    "Extent",
    "FdHandler",
    "Histogram",
    "InvalidArgument",
    "LimitExceeded",
    "LockInfo",
    "NodeInfo",
    "NodeStats",
    "OpStats",
    "OptionInfo",
    "PauseStats",
    "ProbeResult",
    "QueueStats",
    "Recording",
    "RefusedByPolicy",
    "Results",
    "Timer",
    "Trace",
    "Traces",
    "Unsupported",
    "VirtQueue",
    "VirtioBlk",
    "Workload",
    "WorkloadResult",
    "__version__",
    "build_info",
    "clock_name",
    "drivers",
    "load_results",
    "now_ns",
    "parse_size",
    "parse_time_ns",
    "probe_backend",
]

_MODULES = {
    "about": (
        "BuildInfo",
        "ProbeResult",
        "__version__",
        "build_info",
        "clock_name",
        "now_ns",
        "probe_backend",
    ),
    "blockio": ("Extent",),
    "buffer": ("Buffer",),
    "callbacks": ("BottomHalf", "DelayedCall", "FdHandler", "Timer"),
    "context": ("AioContext", "ContextInfo", "ContextStats"),
    "copy": ("Copy", "CopyProgress"),
    "core": ("Engine",),
    "driver": ("BlockDriver", "DriverRequest"),
    "errors": (
        "Closed",
        "Conflict",
        "CorruptImage",
        "EngineError",
        "InvalidArgument",
        "LimitExceeded",
        "RefusedByPolicy",
        "Unsupported",
    ),
    "experiment.results": ("Results", "load_results"),
    "histogram": ("Histogram",),
    "node": ("BlockNode", "BlockUser", "NodeInfo", "NodeStats", "PauseStats"),
    "options": ("DriverInfo", "OptionInfo", "drivers"),
    "queue": ("QueueStats", "VirtQueue", "VirtioBlk"),
    "replay": ("Recording",),
    "stats": ("LockInfo", "OpStats"),
    "trace": ("Trace", "Traces"),
    "units": ("parse_size", "parse_time_ns"),
    "workload": ("Workload", "WorkloadResult"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
