"""Block nodes and their users: permissions, statistics, changes under load. Any thread; no GIL meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine._bindings import NULL, check, encode, integer, path, struct, text
from engine._handle import Closeable, Handle, Owner, here, refuse_in_callback, settle_user
from engine._native import ffi, lib
from engine.blockio import BlockIO
from engine.errors import invalid
from engine.options import NativeOptions, flatten
from engine.stats import OPERATIONS, NodeLocks, OpStats, op_stats, record_of
from engine.units import parse_time_ns

if TYPE_CHECKING:
    from engine.context import AioContext
    from engine.core import Engine

PERMISSIONS = {
    "read": lib.ENGINE_PERM_CONSISTENT_READ,
    "write": lib.ENGINE_PERM_WRITE,
    "write-unchanged": lib.ENGINE_PERM_WRITE_UNCHANGED,
    "resize": lib.ENGINE_PERM_RESIZE,
}
EVERYTHING = ",".join(PERMISSIONS)


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
    id: int  # in traces


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


def _timeout_ns(timeout: float | str) -> int:
    """For the C interface, where 0 stands for a default."""
    nanoseconds = parse_time_ns(timeout) if isinstance(timeout, str) else round(timeout * 1e9)
    return integer(max(nanoseconds, 1) if nanoseconds >= 0 else nanoseconds, "timeout", 1)


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
        if here.context is not None:  # asked here, because the label takes longer than all the rest
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

    @property
    def children(self) -> dict[str, BlockNode]:
        """The nodes below, by their roles, in the driver's order."""
        found, buffer = {}, ffi.new("char[]", 64)
        with self._handle.in_use():
            for index in range(self._native_info().child_count):
                pointer = lib.engine_node_get_child(self._live(), index, buffer, len(buffer))
                if pointer == NULL:
                    break
                found[text(buffer)] = self._engine._node_at(pointer, self._handle)
        return found

    def child(self, role: str) -> BlockNode:
        """The node below, by its role ("file"). InvalidArgument, naming the roles, where there is none.

        What was opened along with this node closes with it, and only with it.
        """
        children = self.children
        if role in children:
            return children[role]
        known = f"it has {', '.join(children)}" if children else "it has no children"
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
        """All users of this node use another from then on, which is not smaller.

        Both stay open; one that was opened along with a node above it does so until the engine is closed, and
        this object of it until that node is. Where `other` is above this node, an overlay say, its own use of
        this node stays.

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

    def resume_faults(self) -> int:
        """Lets all requests go that a fault node holds by `pause`, on every context: how many that were.

        A filter that comes or goes at the node, closing the fault filter included, lets them go as well.
        InvalidArgument for a node with another driver.
        """
        error = struct("engine_error")
        with self._handle.in_use():
            return check(
                lib.engine_fault_resume(self._live(), error), error, "resume faults", self._handle.label
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
