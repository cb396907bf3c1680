"""The exceptions, and the one place where native errors become them."""

from __future__ import annotations

import copy
import errno
import pickle

import pytest

import engine
from engine._bindings import encode, integer, struct, translate
from engine._native import lib
from engine.errors import AccessDenied, NotFound

KINDS = {
    lib.ENGINE_ERROR_OS: ("os", engine.EngineError),
    lib.ENGINE_ERROR_INVALID: ("invalid", engine.InvalidArgument),
    lib.ENGINE_ERROR_UNSUPPORTED: ("unsupported", engine.Unsupported),
    lib.ENGINE_ERROR_CORRUPT: ("corrupt", engine.CorruptImage),
    lib.ENGINE_ERROR_REFUSED: ("refused", engine.RefusedByPolicy),
    lib.ENGINE_ERROR_LIMIT: ("limit", engine.LimitExceeded),
    lib.ENGINE_ERROR_CONFLICT: ("conflict", engine.Conflict),
    lib.ENGINE_ERROR_CLOSED: ("closed", engine.Closed),
}


@pytest.mark.parametrize("native_kind", KINDS)
def test_every_kind_has_its_class(native_kind: int) -> None:
    kind, cls = KINDS[native_kind]
    error = struct("engine_error")
    error.kind, error.errnum, error.offset, error.request_id = native_kind, errno.EIO, 4096, 7
    error.node, error.operation, error.field, error.message = b"disk", b"read", b"offset", b"it went wrong"
    found = translate(-errno.EIO, error, "something")
    assert type(found) is cls
    assert isinstance(found, OSError)
    assert isinstance(found, ValueError) == (kind == "invalid")
    assert (found.kind, found.errno, found.strerror) == (kind, errno.EIO, "it went wrong")
    assert (found.node, found.operation, found.field) == ("disk", "read", "offset")
    assert (found.offset, found.request_id) == (4096, 7)
    assert str(found) == "it went wrong"


def test_nothing_is_none() -> None:
    error = struct("engine_error")
    error.kind, error.offset = lib.ENGINE_ERROR_OS, 2**64 - 1
    found = translate(-errno.EIO, error, "read")
    assert (found.offset, found.request_id, found.operation, found.errno) == (None, None, "read", errno.EIO)


@pytest.mark.parametrize(
    ("errnum", "cls"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EACCES, PermissionError),
        (errno.EPERM, PermissionError),
        (errno.EISDIR, IsADirectoryError),
        (errno.ENOTDIR, NotADirectoryError),
        (errno.EEXIST, FileExistsError),
        (errno.ETIMEDOUT, TimeoutError),
    ],
)
def test_the_kernels_refusals_have_their_usual_names(errnum: int, cls: type[OSError]) -> None:
    error = struct("engine_error")
    error.kind, error.errnum = lib.ENGINE_ERROR_OS, errnum
    found = translate(-errnum, error)
    assert isinstance(found, engine.EngineError)
    assert isinstance(found, cls)
    assert found.errno == errnum


def test_a_bare_errno() -> None:
    found = translate(-errno.EDEADLK, None, "wait", "workload")
    assert isinstance(found, engine.InvalidArgument)
    assert str(found) == "workload: wait: Resource deadlock avoided"
    assert isinstance(translate(-errno.ESHUTDOWN), engine.Closed)
    assert type(translate(-errno.EIO)) is engine.EngineError


def test_a_message_that_is_not_utf8_or_too_long() -> None:
    error = struct("engine_error")
    error.kind, error.errnum, error.message = lib.ENGINE_ERROR_OS, errno.EIO, b"\xff" + b"x" * 510
    assert str(translate(-errno.EIO, error)) == "\ufffd" + "x" * 510


@pytest.mark.parametrize(
    "cls", [engine.EngineError, engine.InvalidArgument, engine.Closed, NotFound, AccessDenied]
)
def test_they_can_be_sent_and_copied(cls: type[engine.EngineError]) -> None:
    error = cls(errno.EIO, "it went wrong", node="disk", operation="read", field="f", offset=0, request_id=9)
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(again) is cls
        assert (again.errno, str(again)) == (errno.EIO, "it went wrong")
        assert vars(again) == vars(error)


def test_numbers_are_checked_before_they_get_to_c() -> None:
    assert integer(5, "offset") == 5
    for value in (-1, 2**63, 2**200):
        with pytest.raises(
            engine.InvalidArgument, match=r"offset: must be at least 0 and at most \d+, not"
        ) as caught:
            integer(value, "offset")
        assert caught.value.field == "offset"
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(engine.InvalidArgument, match="from 1 to 9, not 10"):
        integer(10, "n", 1, 9)
    for wrong in ("5", 5.0, None):
        with pytest.raises(TypeError, match="offset: a whole number is needed"):
            integer(wrong, "offset")


def test_texts_are_checked_before_they_get_to_c() -> None:
    assert encode("ä", "name") == "ä".encode()
    assert encode("\udcff", "name") == b"\xff"  # as the file system's names come
    with pytest.raises(engine.InvalidArgument, match="NUL"):
        encode("a\0", "name")
    with pytest.raises(engine.InvalidArgument, match="5 bytes long, at most 4"):
        encode("abcde", "name", most=4)
    with pytest.raises(TypeError):
        encode(5, "name")  # type: ignore[arg-type]
