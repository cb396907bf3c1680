"""Block nodes and their users: blocking I/O, block status, statistics. Any thread; the GIL is released."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine._bindings import MAX_BYTES, NULL, check, encode, integer, path, struct, text
from engine._buffers import IoVector, aligned_view
from engine._handle import Closeable, Handle, Owner, refuse_in_callback, settle_user
from engine._native import ffi, lib
from engine._vectors import Vector
from engine.errors import invalid
from engine.options import NativeOptions, flatten
from engine.stats import OPERATIONS, NodeLocks, OpStats, op_stats, record_of
from engine.units import parse_time_ns

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from engine.context import AioContext
    from engine.core import Engine

PERMISSIONS = {
    "read": lib.ENGINE_PERM_CONSISTENT_READ,
    "write": lib.ENGINE_PERM_WRITE,
    "write-unchanged": lib.ENGINE_PERM_WRITE_UNCHANGED,
    "resize": lib.ENGINE_PERM_RESIZE,
}
EVERYTHING = ",".join(PERMISSIONS)
HARMLESS = ("read", "flush", "block_status")
EXTENTS_AT_A_TIME = 128
_PARTS_AT_A_TIME = 16384  # of read_many: Ctrl-C is heard in between
_CHECK_SIZE_FROM = (
    1 << 26
)  # bytes; a buffer from this size on is not made before the range is known to be good


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of a node, in bytes, that is alike throughout."""

    start: int
    length: int
    data: bool  # it has data of its own in this node
    zero: bool  # it reads as zeroes
    unwritten: bool  # allocated, never written: reads as zeroes


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as its driver describes it; sizes and alignments in bytes."""

    name: str
    driver: str
    filename: str  # "" where the driver has none
    read_only: bool
    bytes: int  # size of the disk
    request_alignment: int  # offsets and lengths that need no bounce buffer
    memory_alignment: int  # buffers that need none
    max_transfer: int  # 0: no limit
    child_count: int
    user_count: int
    ops: tuple[str, ...]  # what the driver does itself; the rest is emulated
    holes: bool  # its block status tells data from holes


@dataclass(frozen=True, slots=True)
class NodeStats:
    """Counters since the node was opened, summed over its channels; `op` by name of the operation."""

    channels: int
    in_flight: int
    op: dict[str, OpStats]


@dataclass(frozen=True, slots=True)
class PauseStats:
    """How often changes of the graph made a user's requests wait, over all contexts; times in ns."""

    count: int
    total_ns: int
    longest_ns: int


def permission_bits(permissions: str | Iterable[str], field: str) -> int:
    """From "read,write" or ["read", "write"]; "all", and "" or "none", stand for what they say."""
    names = permissions.split(",") if isinstance(permissions, str) else list(permissions)
    bits = 0
    for name in (name.strip() for name in names):
        if name == "all":
            bits |= lib.ENGINE_PERM_ALL
        elif name not in ("", "none"):
            if name not in PERMISSIONS:
                raise invalid(f"{field}: {name!r} is not one of {', '.join(PERMISSIONS)}, all, none", field)
            bits |= PERMISSIONS[name]
    return bits


class BlockIO:
    """Reading and writing, which nodes and users have in common.

    Offsets and lengths are bytes. `context`, an AioContext or its name, is where the request runs; `main`
    unless given. All may raise EngineError with the errno of the failure; InvalidArgument for a range beyond
    the end; RefusedByPolicy without the permission; Closed after close. Any offset, length and buffer will
    do; those that are aligned as `info` says spare a copy, and a write also a read and a wait:
    `engine.Buffer` is memory that is aligned for `cache.direct`.
    """

    _engine: Engine
    _alignment: int  # of buffers, bytes

    def _user(self, writing: bool) -> Handle:
        raise NotImplementedError

    @property
    def size(self) -> int:
        raise NotImplementedError

    def pread(self, length: int, offset: int, *, context: AioContext | str | None = None) -> bytes:
        """Reads `length` bytes at `offset`."""
        length, offset = checked_range(length, offset)
        data = self._new_buffer(length, offset)
        with IoVector((data,), writable=True) as vector:
            self._transfer("read", vector, offset, 0, context)
        return bytes(data)

    def _new_buffer(self, length: int, offset: int) -> memoryview:
        """For a read: aligned, and zeroed, so that what a driver leaves alone is no old memory."""
        if length >= _CHECK_SIZE_FROM and offset + length > self.size:
            raise invalid(
                f"read of {length} bytes at offset {offset} reaches beyond the end ({self.size} bytes)",
                "length",
            )
        return aligned_view(length, self._alignment)

    def pread_into(
        self, buffer: WriteableBuffer, offset: int, *, context: AioContext | str | None = None
    ) -> int:
        """Fills a writable buffer from `offset`, without a copy. Returns its size in bytes."""
        with IoVector((buffer,), writable=True) as vector:
            return self._transfer("read", vector, offset, 0, context)

    def preadv(
        self, buffers: Iterable[WriteableBuffer], offset: int, *, context: AioContext | str | None = None
    ) -> int:
        """Fills at most 1024 buffers, one after another, in one request. Returns their size in bytes."""
        with IoVector(buffers, writable=True) as vector:
            return self._transfer("read", vector, offset, 0, context)

    def pwrite(
        self,
        data: ReadableBuffer,
        offset: int,
        fua: bool = False,
        *,
        context: AioContext | str | None = None,
    ) -> int:
        """Writes a buffer at `offset`, without a copy. fua: durable before it returns. Returns its size."""
        with IoVector((data,), writable=False) as vector:
            return self._transfer("write", vector, offset, lib.ENGINE_FUA if fua else 0, context)

    def pwritev(
        self,
        buffers: Iterable[ReadableBuffer],
        offset: int,
        fua: bool = False,
        *,
        context: AioContext | str | None = None,
    ) -> int:
        """Writes at most 1024 buffers, one after another, in one request. Returns their size in bytes."""
        with IoVector(buffers, writable=False) as vector:
            return self._transfer("write", vector, offset, lib.ENGINE_FUA if fua else 0, context)

    def read_many(
        self,
        buffer: WriteableBuffer,
        offsets: Iterable[int] | ReadableBuffer,
        length: int,
        context: AioContext | str | None = None,
        iodepth: int = 64,
        *,
        errors: str = "raise",
        out: Any = None,
    ) -> Any:
        """Reads `length` bytes at each of `offsets` into `buffer`, one after another, natively.

        offsets: integers; an array of 64-bit ones (NumPy's default) is read where it lies. iodepth: parts in
        flight, 1 to 1024. Returns an array of int64, one for each offset: a NumPy array where the offsets
        were one, else an `array.array`; or `out`, if given. errors: "raise" begins nothing more after the
        first failure and raises it; "return" tries all, and failures are -errno in the result.
        """
        with Vector("read", buffer, offsets, length, iodepth=iodepth, errors=errors, out=out) as vector:
            return self._many("read", vector, context)

    def write_many(
        self,
        buffer: ReadableBuffer,
        offsets: Iterable[int] | ReadableBuffer,
        length: int,
        context: AioContext | str | None = None,
        iodepth: int = 64,
        *,
        fua: bool = False,
        errors: str = "raise",
        out: Any = None,
    ) -> Any:
        """Writes `length` bytes of `buffer` at each of `offsets`: see `read_many`.

        Parts that overlap may be written in any order. fua: each is durable before it counts as done.
        """
        flags = lib.ENGINE_FUA if fua else 0
        with Vector(
            "write", buffer, offsets, length, iodepth=iodepth, errors=errors, out=out, flags=flags
        ) as vector:
            return self._many("write", vector, context)

    def _many(self, operation: str, vector: Vector, context: AioContext | str | None) -> Any:
        user, error = self._user(operation == "write"), struct("engine_error")
        target = self._engine._context_handle(context)
        for start in range(0, vector.count, _PARTS_AT_A_TIME):
            part = vector.part(start, min(_PARTS_AT_A_TIME, vector.count - start))
            with target.in_use() if target else nullcontext(), user.in_use():
                result = lib.engine_user_many(user.check(), target.check() if target else NULL, part, error)
            check(result, error, f"{operation} many", user.label)
        return vector.outcome()

    def flush(self, *, context: AioContext | str | None = None) -> None:
        """Writes that have completed are durable when it returns."""
        self._request("flush", 0, 0, 0, context)

    def discard(self, length: int, offset: int, *, context: AioContext | str | None = None) -> None:
        """Says that a range is not needed any more; its content is undefined afterwards."""
        length, offset = checked_range(length, offset)
        self._request("discard", offset, length, 0, context)

    def write_zeroes(
        self,
        length: int,
        offset: int,
        may_unmap: bool = False,
        no_fallback: bool = False,
        fua: bool = False,
        *,
        context: AioContext | str | None = None,
    ) -> None:
        """Makes a range read as zeroes.

        may_unmap: space may be given back. no_fallback: Unsupported rather than writing a buffer of zeroes.
        """
        length, offset = checked_range(length, offset)
        flags = zeroes_flags(may_unmap, no_fallback, fua)
        self._request("write_zeroes", offset, length, flags, context)

    def resize(self, size: int, *, context: AioContext | str | None = None) -> None:
        """Sets the size in bytes; what is added reads as zeroes. Needs the permission `resize`."""
        self._request("resize", integer(size, "size"), 0, 0, context)

    def extents(
        self, offset: int = 0, length: int | None = None, *, context: AioContext | str | None = None
    ) -> Iterator[Extent]:
        """Block status from `offset`, for `length` bytes or to the end, in order and without gaps.

        Lazy: asks as it goes, 128 extents at a time. What changes meanwhile may be seen or not.
        """
        start, end = self._extent_range(offset, length)
        return self._extents(start, end, context)

    def _extent_range(self, offset: int, length: int | None) -> tuple[int, int]:
        offset = integer(offset, "offset")
        if length is None:
            length = max(0, self.size - offset)
        length, offset = checked_range(length, offset)
        return offset, offset + length

    def _extents(self, offset: int, end: int, context: AioContext | str | None) -> Iterator[Extent]:
        extents = ffi.new("engine_extent[]", EXTENTS_AT_A_TIME)
        user, error = self._user(writing=False), struct("engine_error")
        target = self._engine._context_handle(context)
        while offset < end:
            with target.in_use() if target else nullcontext(), user.in_use():
                count = check(
                    lib.engine_user_block_status(
                        user.check(),
                        target.check() if target else NULL,
                        offset,
                        end - offset,
                        extents,
                        EXTENTS_AT_A_TIME,
                        error,
                    ),
                    error,
                    "block status",
                    user.label,
                )
            if count == 0:
                return
            yield from extents_of(extents, count)
            offset = extents[count - 1].offset + extents[count - 1].length

    def _transfer(
        self, operation: str, vector: IoVector, offset: int, flags: int, context: AioContext | str | None
    ) -> int:
        _, offset = checked_range(vector.nbytes, offset)
        return self._request(operation, offset, vector.nbytes, flags, context, vector)

    def _request(
        self,
        operation: str,
        offset: int,
        length: int,
        flags: int,
        context: AioContext | str | None,
        vector: IoVector | None = None,
    ) -> int:
        user, error = self._user(operation not in HARMLESS), struct("engine_error")
        target = self._engine._context_handle(context)
        array, count = (NULL, 0) if vector is None else (vector.array, vector.count)
        with target.in_use() if target else nullcontext(), user.in_use():
            return check(
                lib.engine_user_io(
                    user.check(),
                    target.check() if target else NULL,
                    OPERATIONS[operation],
                    array,
                    count,
                    offset,
                    length,
                    flags,
                    error,
                ),
                error,
                operation,
                user.label,
            )


def _timeout_ns(timeout: float | str) -> int:
    """For the C interface, where 0 stands for a default."""
    nanoseconds = parse_time_ns(timeout) if isinstance(timeout, str) else round(timeout * 1e9)
    return integer(max(nanoseconds, 1) if nanoseconds >= 0 else nanoseconds, "timeout", 1)


def zeroes_flags(may_unmap: bool, no_fallback: bool, fua: bool) -> int:
    flags = lib.ENGINE_MAY_UNMAP if may_unmap else 0
    flags |= lib.ENGINE_NO_FALLBACK if no_fallback else 0
    return int(flags | (lib.ENGINE_FUA if fua else 0))


def extents_of(native: Any, count: int) -> list[Extent]:
    """The first `count` of an array of `engine_extent`."""
    return [
        Extent(
            each.offset,
            each.length,
            bool(each.flags & lib.ENGINE_EXTENT_DATA),
            bool(each.flags & lib.ENGINE_EXTENT_ZERO),
            bool(each.flags & lib.ENGINE_EXTENT_UNWRITTEN),
        )
        for each in native[0:count]
    ]


def checked_range(length: int, offset: int) -> tuple[int, int]:
    if type(length) is type(offset) is int and length >= 0 and 0 <= offset <= MAX_BYTES - length:
        return length, offset
    length = integer(length, "length")
    offset = integer(offset, "offset")
    if offset > MAX_BYTES - length:
        raise invalid(f"offset: {length} bytes at offset {offset} reach beyond 2^63 - 1", "offset")
    return length, offset


class BlockNode(BlockIO, Closeable):
    """A node of the block graph.

    I/O through it goes by a user called "python", which is made by the first read, holds the permissions to
    write and resize from the first write on, and shares everything: until then it is in nobody's way. Nodes
    opened along with their parent (see `child`) belong to it.
    """

    def __init__(self, engine: Engine, handle: Handle, pointer: Any, borrowed: bool = False) -> None:
        self._engine = engine
        self._handle = handle  # of a borrowed node: that of the node which it was opened with
        self._pointer = pointer
        self._borrowed = borrowed
        self._users: dict[bool, Handle] = {}  # "python", who reads, and who writes as well
        self._attaching = threading.RLock()  # guards _users
        info = self._native_info()
        self._name = text(info.name)
        self._alignment = int(info.memory_alignment)

    def _live(self) -> Any:
        """Under `in_use()` of the handle."""
        self._handle.check()
        return self._pointer

    def _native_info(self) -> Any:
        info = struct("engine_node_info")
        with self._handle.in_use():
            check(lib.engine_node_get_info(self._live(), info), None, "get info", self._handle.label)
        return info

    def _user(self, writing: bool) -> Handle:
        refuse_in_callback(f"node {self._name!r}", "I/O")
        user = self._users.get(True) or self._users.get(writing)
        if user is not None and not user.closed:
            return user
        with self._handle.in_use(), self._attaching:
            self._handle.check()
            user = self._users.get(writing)
            if user is None or user.closed:  # closed: a close of the node was refused half-way
                wanted = EVERYTHING if writing else "read"
                user = self._attach("python", wanted, EVERYTHING, f"node {self._name!r}", self._handle)
                self._users[writing] = user
            return user

    def _attach(
        self,
        name: str,
        permissions: str | Iterable[str],
        shared: str | Iterable[str],
        label: str,
        parent: Handle,
    ) -> Handle:
        bits = permission_bits(permissions, "permissions")
        shared_bits = permission_bits(shared, "shared")
        native_name = ffi.new("char[]", encode(name, "name", most=63))
        with self._handle.in_use(), parent.in_use():
            parent.check()
            node = self._live()
            return Handle.make(
                "engine_user_t",
                lambda out, error: lib.engine_user_create(node, native_name, bits, shared_bits, out, error),
                lib.engine_user_close,
                label,
                parent,
                settle=settle_user,
            )

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        """Of the disk, in bytes."""
        return int(self._native_info().bytes)

    @property
    def info(self) -> NodeInfo:
        info = self._native_info()
        return record_of(
            NodeInfo,
            info,
            name=text(info.name),
            driver=text(info.driver),
            filename=path(info.filename),
            read_only=bool(info.read_only),
            holes=bool(info.holes),
            ops=tuple(name for name, op in OPERATIONS.items() if info.ops >> op & 1),
        )

    def stats(self, context: AioContext | str | None = None) -> NodeStats:
        """Of all contexts, or of one."""
        stats = struct("engine_node_stats")
        target = self._engine._context_handle(context)
        with target.in_use() if target else nullcontext(), self._handle.in_use():
            native = target.check() if target else NULL
            check(
                lib.engine_node_get_stats(self._live(), native, stats), None, "get stats", self._handle.label
            )
        return record_of(NodeStats, stats, op=op_stats(stats.op))

    @property
    def locks(self) -> NodeLocks:
        """Its locks: `node.locks.edges.wait_ns.p99`. One that its driver lacks was never taken."""
        return NodeLocks.among(self._engine.locks(), self._name)

    def child(self, role: str) -> BlockNode:
        """The node below, by its role ("file"). InvalidArgument, naming the roles, where there is none.

        What was opened along with this node closes with it, and only with it.
        """
        buffer, roles = ffi.new("char[]", 64), []
        with self._handle.in_use():
            for index in range(self._native_info().child_count):
                pointer = lib.engine_node_get_child(self._live(), index, buffer, len(buffer))
                if pointer == NULL:
                    break
                if text(buffer) == role:
                    return self._engine._node_at(pointer, self._handle)
                roles.append(text(buffer))
        known = f"it has {', '.join(roles)}" if roles else "it has no children"
        raise invalid(f"node {self._name!r}: no child {role!r}; {known}", "role", node=self._name)

    def user(
        self,
        name: str,
        permissions: str | Iterable[str] = "read,write",
        shared: str | Iterable[str] = EVERYTHING,
    ) -> BlockUser:
        """A user of its own: what it does, and what it lets others do.

        Permissions are "read", "write", "write-unchanged", "resize"; "all" and "none". Conflict, naming both
        users, where they do not go together; RefusedByPolicy for writing on a read-only node.
        """
        label = f"user {name!r} of node {self._name!r}"
        return BlockUser(self, self._attach(name, permissions, shared, label, self._engine._handle), name)

    # ---- changes under load ----

    def insert_filter(self, driver: str, /, *, timeout: float | str = 30.0, **options: Any) -> BlockNode:
        """Opens a filter above this node; all its users, nodes above included, use the filter from then on.

        Their requests wait meanwhile, some microseconds as a rule. The filter is an ordinary node, whose
        `close()` takes it out again: its users come back. Options as for `Engine.open`, without `file`.

        LimitExceeded, naming node, context and request, when a request inside does not complete within
        `timeout`: then nothing was changed. InvalidArgument for a driver that is no filter.
        """
        native = NativeOptions(flatten({"driver": driver, **options}))
        limit = _timeout_ns(timeout)
        with self._engine._handle.in_use(), self._handle.in_use():
            below = self._live()
            handle = Handle.make(
                "engine_node_t",
                lambda out, error: lib.engine_node_insert_filter(
                    below, native.array, native.count, limit, out, error
                ),
                lambda pointer, error: lib.engine_node_remove_filter(pointer, 0, NULL, error),
                "new filter",
                self._engine._handle,
            )
            try:
                node = self._engine._node_at(handle.pointer, handle, owned=True)
            except BaseException:
                handle.close()
                raise
        handle.label = f"node {node.name!r}"
        return node

    def replace_with(self, other: BlockNode, *, timeout: float | str = 30.0) -> None:
        """All users of this node use another from then on, which is not smaller; both stay open.

        LimitExceeded as for `insert_filter`; Conflict, naming both, where users do not go together.
        """
        self._engine._own(other, "other")
        error = struct("engine_error")
        with self._handle.in_use(), other._handle.in_use():
            check(
                lib.engine_node_replace(self._live(), other._live(), _timeout_ns(timeout), error),
                error,
                "replace",
                self._handle.label,
            )

    def set_throttle(self, **limits: int | str) -> None:
        """New limits for a throttle node and all that share its group: `set_throttle(iops_total=1000)`.

        Names are those of the driver's options after "limits."; what is not given is unlimited. Requests
        that wait are looked at again within 100 ms. InvalidArgument, whose `field` is the option.
        """
        native, error = NativeOptions(flatten({"limits": limits})), struct("engine_error")
        with self._handle.in_use():
            check(
                lib.engine_throttle_set(self._live(), native.array, native.count, error),
                error,
                "set throttle",
                self._handle.label,
            )

    def close(self) -> None:
        """Closes the node, and the nodes that were opened along with it; idempotent.

        An inserted filter is taken out first. Conflict, naming the users, while others than "python" are
        attached. A borrowed node is left alone.
        """
        if not self._borrowed:
            self._handle.close()

    def __del__(self) -> None:
        handle: Handle | None = getattr(self, "_handle", None)  # not there when __init__ failed
        if handle is not None and not self._borrowed:
            handle.dropped(self)

    def __repr__(self) -> str:
        return f"<BlockNode {self._name!r}{' closed' if self.closed else ''}>"


class BlockUser(BlockIO, Owner):
    """Who does I/O on a node, with the permissions that it asked for. Keeps the node open."""

    def __init__(self, node: BlockNode, handle: Handle, name: str) -> None:
        self._engine = node._engine
        self._node = node
        self._alignment = node._alignment
        self._handle = handle
        self._name = name

    def _user(self, writing: bool) -> Handle:
        return self._handle

    @property
    def name(self) -> str:
        return self._name

    @property
    def node(self) -> BlockNode:
        """The node that it was made on. Where a filter was inserted above that, it works on the filter."""
        return self._node

    def pauses(self) -> PauseStats:
        """How often changes of the graph made its requests wait, and for how long."""
        stats = struct("engine_pause_stats")
        with self._handle.in_use():
            check(lib.engine_user_get_pauses(self._handle.check(), stats), None, "pauses", self._handle.label)
        return record_of(PauseStats, stats)

    @property
    def size(self) -> int:
        """Of the node, in bytes."""
        return self._node.size

    def close(self) -> None:
        """Waits for its calls in flight and detaches; idempotent. Conflict while a workload uses it."""
        self._handle.close()

    def __repr__(self) -> str:
        return f"<BlockUser {self._name!r} of {self._node.name!r}{' closed' if self.closed else ''}>"
