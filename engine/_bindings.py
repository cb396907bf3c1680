"""The thin layer over cffi: structs with their size set, texts, and the one translation of native errors.

No state; any thread. The GIL is released in every native call.
"""

from __future__ import annotations

import errno
import operator
import os
from functools import cache
from typing import Any

from engine._native import ffi, lib
from engine.errors import EngineError, error_class, invalid

NULL = ffi.NULL
NO_OFFSET = 2**64 - 1
FOREVER = 2**64 - 1  # a time-out in ns
MAX_BYTES = 2**63 - 1  # offsets, lengths and sizes: what lseek and off_t allow

_KINDS = {
    lib.ENGINE_ERROR_OS: "os",
    lib.ENGINE_ERROR_INVALID: "invalid",
    lib.ENGINE_ERROR_UNSUPPORTED: "unsupported",
    lib.ENGINE_ERROR_CORRUPT: "corrupt",
    lib.ENGINE_ERROR_REFUSED: "refused",
    lib.ENGINE_ERROR_LIMIT: "limit",
    lib.ENGINE_ERROR_CONFLICT: "conflict",
    lib.ENGINE_ERROR_CLOSED: "closed",
}

# For the few calls that answer with a bare errno.
_KIND_OF_ERRNO = {
    errno.EINVAL: "invalid",
    errno.EDEADLK: "invalid",
    errno.ENOTSUP: "unsupported",
    errno.ENOSYS: "unsupported",
    errno.EBUSY: "conflict",
    errno.EBADF: "closed",
    errno.ESHUTDOWN: "closed",
}


def struct(name: str) -> Any:
    """A zeroed struct, owned by Python, with `size` set as the ABI asks."""
    pointer, size = _layout(name)
    value = ffi.new(pointer)
    value.size = size
    return value


@cache
def _layout(name: str) -> tuple[Any, int]:
    return ffi.typeof(f"{name} *"), ffi.sizeof(name)


def text(value: Any) -> str:
    """A NUL-terminated native string; "" for NULL. What is not UTF-8 becomes U+FFFD: it is for people."""
    return "" if value == NULL else bytes(ffi.string(value)).decode("utf-8", "replace")


def path(value: Any) -> str:
    """A file name, which `os.fsencode` turns back into the same bytes."""
    return os.fsdecode(ffi.string(value))


def encode(value: str | bytes, field: str, *, most: int | None = None) -> bytes:
    """Text on its way to C: at most `most` bytes, without NUL."""
    raw = os.fsencode(value)
    if b"\0" in raw:
        raise invalid(f"{field}: {value!r} contains a NUL byte", field)
    if most is not None and len(raw) > most:
        raise invalid(f"{field}: {value!r} is {len(raw)} bytes long, at most {most} are allowed", field)
    return raw


def integer(value: Any, field: str, low: int = 0, high: int = MAX_BYTES) -> int:
    """A number within its range. TypeError for what is not a whole number, InvalidArgument out of range."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{field}: a whole number is needed, not {type(value).__name__}") from None
    if not low <= number <= high:
        limits = f"from {low} to {high}" if low else f"at least 0 and at most {high}"
        raise invalid(f"{field}: must be {limits}, not {number}", field)
    return number


def translate(result: int, error: Any = None, operation: str = "", subject: str = "") -> EngineError:
    """The exception for a native failure: `result` is -errno, `error` the error object, if there was one."""
    if error is None or error.kind == lib.ENGINE_ERROR_NONE:
        errnum = -result
        reason = os.strerror(errnum)
        message = ": ".join(part for part in (subject, operation, reason) if part)
        cls = error_class(_KIND_OF_ERRNO.get(errnum, "os"), errnum)
        return cls(errnum, message, operation=operation)
    errnum = error.errnum or -result
    return error_class(_KINDS.get(error.kind, "os"), errnum)(
        errnum,
        text(error.message),
        node=text(error.node),
        operation=text(error.operation) or operation,
        field=text(error.field),
        offset=None if error.offset == NO_OFFSET else error.offset,
        request_id=error.request_id or None,
    )


def check(result: int, error: Any = None, operation: str = "", subject: str = "") -> int:
    """Returns a native result that is not negative; raises for one that is."""
    if result < 0:
        raise translate(result, error, operation, subject)
    return result
