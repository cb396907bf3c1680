"""From a driver in Python to the options of its node, and to the threads that serve it. Any thread."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from engine._bindings import integer
from engine._driver_job import METHODS, Methods
from engine._serve import Server, attach_child
from engine.callbacks import delay_ns
from engine.driver import BlockDriver
from engine.errors import Conflict, invalid
from engine.node import BlockNode

if TYPE_CHECKING:
    from engine.core import Engine

MAX_WORKERS = 256
_IN_BATCHES = ("read", "write", "flush")
_claims = threading.Lock()  # guards BlockDriver._served


def open_driver(
    engine: Engine,
    driver: BlockDriver,
    node_name: str | None,
    file: BlockNode | str | Mapping[str, Any] | None,
    workers: int,
    timeout: float | str,
    options: dict[str, Any],
) -> BlockNode:
    if not isinstance(driver, BlockDriver):
        raise TypeError(f"driver: a BlockDriver is needed, not {type(driver).__name__}")
    workers = integer(workers, "workers", 1, MAX_WORKERS)
    methods = Methods(driver)
    if isinstance(file, BlockNode):
        file = engine._own(file, "file").name
    wanted = {
        "driver": "external",
        "node_name": node_name,
        "file": file,
        "timeout": _timeout(timeout),
        **_properties(driver, methods, file is not None),
        **options,
    }
    _claim(driver)
    try:
        node = engine.open(wanted)
        try:
            _serve(engine, node, methods, workers)
        except BaseException:
            node.close()
            raise
    except BaseException:
        driver._served = False
        raise
    return node


def _serve(engine: Engine, node: BlockNode, methods: Methods, workers: int) -> None:
    server = Server(node._handle, methods, workers, node.name)
    node._handle.then = server.closed
    with node._handle.in_use():
        child = attach_child(engine, node._handle, server)
    if child is not None:
        methods.driver.child = child
    methods.driver.node_name = node.name
    server.start()


def _claim(driver: BlockDriver) -> None:
    with _claims:
        if driver._served:
            raise Conflict(
                errno.EBUSY,
                f"this {type(driver).__name__} serves node {driver.node_name!r} already: make another one",
                operation="open",
                field="driver",
            )
        driver._served = True


def _timeout(timeout: float | str) -> str:
    nanoseconds = delay_ns(timeout)
    if nanoseconds < 1_000_000:
        raise invalid(f"timeout: at least 1 ms, not {timeout!r}", "timeout")
    return str(nanoseconds)


def _properties(driver: BlockDriver, methods: Methods, filters: bool) -> dict[str, Any]:
    """What the driver says of itself, as options of its node."""
    served = _served_ops(driver, methods, filters)
    forwarded = _forwarded_ops(driver, served) if filters else ()
    size = getattr(driver, "size", None)
    if size is None and not filters:
        raise invalid(f"{type(driver).__name__}.size: needed where there is no node below", "size")
    return {
        "size": None if size is None else integer(size, "size"),
        "ops": ",".join(op.replace("_", "-") for op in served),
        "forward": ",".join(op.replace("_", "-") for op in forwarded),
        "fua": "write" in served and methods.fua,
        "holes": "block_status" in methods.by_op or None,
        "read_only": None if "write" in served or "write" in forwarded else True,
        "request_alignment": driver.request_alignment if driver.request_alignment != 1 else None,
        "memory_alignment": driver.memory_alignment if driver.memory_alignment != 1 else None,
        "max_transfer": driver.max_transfer,
    }


def _checked(ops: Iterable[str], field: str) -> list[str]:
    names = list(ops)
    for name in names:
        if name not in METHODS:
            raise invalid(f"{field}: {name!r} is not one of {', '.join(METHODS)}", field)
    return names


def _served_ops(driver: BlockDriver, methods: Methods, filters: bool) -> list[str]:
    if driver.ops is not None:
        return _checked(driver.ops, "ops")
    if methods.batch is not None:
        return list(_IN_BATCHES)
    served = list(methods.by_op)
    if not filters:  # what the server answers by itself
        served += [op for op in ("flush", "block_status") if op not in served]
    return served


def _forwarded_ops(driver: BlockDriver, served: list[str]) -> list[str]:
    if driver.forward is not None:
        return _checked(driver.forward, "forward")
    kept_back = set(served)
    if "read" in served:
        kept_back |= {"write_zeroes", "block_status"}
    if "write" in served:  # or zeroes would go past it
        kept_back.add("write_zeroes")
    return [op for op in METHODS if op not in kept_back]
