"""Where in the experiment file an error of the engine comes from: section, name, and key if it says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from engine.experiment.errors import SettingError, UserError, describe

_KEYS = {"block_size": "bs", "read_percent": "rwmixread", "runtime_ns": "runtime"}  # of a workload


@contextmanager
def place(section: str, name: str, keys: Iterable[str] = ()) -> Iterator[None]:
    """What goes wrong inside is a matter of [section.name], and of one of `keys` where the error names it."""
    try:
        yield
    except SettingError:
        raise
    except UserError as error:
        raise SettingError(str(error), (section, name)) from None
    except OSError as error:
        raise SettingError(
            describe(error), (section, name, *_key(getattr(error, "field", ""), keys))
        ) from None


def _key(field: str, keys: Iterable[str]) -> tuple[str, ...]:
    """The key that a field of an error stands for: itself, or the only one of a child that ends with it."""
    wanted = _KEYS.get(field, field.replace("_", "-"))
    if not wanted:
        return ()
    known = list(keys)
    if wanted in known:
        return (wanted,)
    below = [key for key in known if key.endswith(f".{wanted}")]
    return (below[0],) if len(below) == 1 else ()
