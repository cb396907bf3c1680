"""The errors of a wish that cannot be fulfilled: one line that says what, where, why and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can put right. Its text is one line, ready to be printed."""

    status = 1  # of the process


class SettingError(UserError):
    """What a setting asks for cannot be had: the engine said so when it was to be opened. `path` is where the
    setting stands in an experiment file: section, name, and the key if it is known."""

    def __init__(self, message: str, path: tuple[str, ...]) -> None:
        super().__init__(message)
        self.path = path


class UsageError(UserError):
    """Options that do not go together."""

    status = 2


class DocumentError(UserError):
    """A mistake in an experiment file, with the file, the line and the key."""

    def __init__(self, file: str, line: int | None, key: str, message: str) -> None:
        where = f"{file}:{line}" if line else file
        super().__init__(f"{where}: {key}: {message}" if key else f"{where}: {message}")
        self.file = file
        self.line = line
        self.key = key


def describe(error: OSError) -> str:
    """One line for an operating-system or engine error, without Python's `[Errno 2]`."""
    text = str(error.strerror) if error.strerror else str(error)
    if isinstance(error.filename, str):
        text = f"{error.filename}: {text}"
    return " ".join(text.split())
