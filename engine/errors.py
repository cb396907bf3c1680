"""What can go wrong, as exceptions: all are OSErrors that know node, operation, offset and field.

No state. The native error object becomes one of these in `engine._bindings.translate`, and nowhere else.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class EngineError(OSError):
    """An operation failed; `str()` is one line: what, where, why, what to do.

    errno: positive, as in the errno module. kind: one word for the class of failure. node, operation, field:
    "" where there is none. offset: bytes in the node or file; request_id: of the request; None where there is
    none. Where the kernel refused, the error is also a FileNotFoundError, PermissionError and so on.
    """

    kind: ClassVar[str] = "os"

    def __init__(
        self,
        errnum: int,
        message: str,
        *,
        node: str = "",
        operation: str = "",
        field: str = "",
        offset: int | None = None,
        request_id: int | None = None,
    ) -> None:
        super().__init__(errnum, message)
        self.node = node
        self.operation = operation
        self.field = field
        self.offset = offset
        self.request_id = request_id

    def __str__(self) -> str:
        return str(self.strerror)


class InvalidArgument(EngineError, ValueError):
    """An argument or option is wrong; `field` names it."""

    kind = "invalid"


class Unsupported(EngineError):
    """A valid wish that this driver, build or host cannot fulfil."""

    kind = "unsupported"


class CorruptImage(EngineError):
    """An image or a ring contradicts its specification, or a disk what the filter `verify` compares it with;
    `offset` and `field` say where."""

    kind = "corrupt"


class RefusedByPolicy(EngineError):
    """Forbidden by permissions or by what the caller allowed; `field` says what was refused."""

    kind = "refused"


class LimitExceeded(EngineError):
    """A limit of the engine or of the host was reached."""

    kind = "limit"


class Conflict(EngineError):
    """Another user or process holds what was asked for; the message names it."""

    kind = "conflict"


class Closed(EngineError):
    """The object is closed, or belongs to the parent of a fork."""

    kind = "closed"


# What the kernel refused. Outside this module they are caught as EngineError or by their built-in names.
class NotFound(EngineError, FileNotFoundError): ...


class AccessDenied(EngineError, PermissionError): ...


class IsDirectory(EngineError, IsADirectoryError): ...


class NotDirectory(EngineError, NotADirectoryError): ...


class AlreadyExists(EngineError, FileExistsError): ...


class TimedOut(EngineError, TimeoutError): ...


_BY_KIND: dict[str, type[EngineError]] = {
    cls.kind: cls
    for cls in (InvalidArgument, Unsupported, CorruptImage, RefusedByPolicy, LimitExceeded, Conflict, Closed)
}
_BY_ERRNO: dict[int, type[EngineError]] = {
    errno.ENOENT: NotFound,
    errno.EACCES: AccessDenied,
    errno.EPERM: AccessDenied,
    errno.EISDIR: IsDirectory,
    errno.ENOTDIR: NotDirectory,
    errno.EEXIST: AlreadyExists,
    errno.ETIMEDOUT: TimedOut,
}


def error_class(kind: str, errnum: int) -> type[EngineError]:
    """The class for a kind of failure; where the kernel refused, errno decides."""
    return _BY_KIND.get(kind) or _BY_ERRNO.get(errnum, EngineError)


def invalid(message: str, field: str, *, node: str = "", operation: str = "") -> InvalidArgument:
    return InvalidArgument(errno.EINVAL, message, node=node, operation=operation, field=field)
