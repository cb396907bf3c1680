"""Aligned memory for direct I/O. A buffer belongs to whoever made it; nothing here is guarded."""

from __future__ import annotations

import mmap

from engine.errors import invalid

_MOST = 2**62


class Buffer(mmap.mmap):
    """Zeroed memory of the process that starts on a page, as nodes with `cache.direct` ask.

    It has the buffer protocol, so NumPy sees it without a copy: `numpy.frombuffer(buffer, dtype="u1")`. While
    a view of it or a request on it lives it cannot be closed (BufferError). Dropping it frees it.
    """

    def __new__(cls, nbytes: int) -> Buffer:
        """nbytes: at least 1."""
        if not 1 <= nbytes <= _MOST:
            raise invalid(f"nbytes: must be at least 1 and at most 2^62, not {nbytes}", "nbytes")
        return super().__new__(cls, -1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    @property
    def nbytes(self) -> int:
        return len(self)

    def __repr__(self) -> str:
        return f"<Buffer closed at {id(self):#x}>" if self.closed else f"<Buffer of {len(self)} bytes>"
