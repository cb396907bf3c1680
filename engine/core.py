"""The engine: owns contexts, opens nodes, makes devices and workloads, and closes what is left in order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from engine import _logging
from engine import copy as copies
from engine import workload as workloads
from engine._bindings import NULL, encode, integer, struct
from engine._handle import Handle, Owner, settle_context
from engine._native import ffi, lib
from engine.about import backend_number
from engine.buffer import Buffer
from engine.context import MAX_POLL_NS, AioContext
from engine.copy import Copy, make_copy
from engine.errors import invalid
from engine.node import BlockNode, BlockUser
from engine.options import NativeOptions, flatten
from engine.queue import MAX_QUEUE_SIZE, MAX_QUEUES, SERIAL_BYTES, VirtioBlk, VirtQueue, make_disk
from engine.replay import Recording, recording_of
from engine.stats import LockInfo, lock_info
from engine.workload import Workload, make_workload

if TYPE_CHECKING:
    from engine.driver import BlockDriver

LOCKINGS = {"per-node": lib.ENGINE_LOCKING_PER_NODE, "global": lib.ENGINE_LOCKING_GLOBAL}
SCHED_POLICIES = {"other": os.SCHED_OTHER, "fifo": os.SCHED_FIFO, "rr": os.SCHED_RR}
MAX_QUEUE_DEPTH = 32768  # entries of a submission ring, as the kernel allows

Source = str | os.PathLike[str] | Mapping[str, Any] | None


class Engine(Owner):
    """Contexts, and a graph of block nodes that they serve. Any number of engines may live in a process.

    locking: "per-node", or "global" for one mutex that every context holds while it works, as a yardstick.
    lock_profile: keep histograms of wait and hold for every lock. backend: of the context `main`. contexts:
    name to CPUs, made at once; None or [] leaves a context unpinned.

    What all nodes and queues together may use, 0 for the default. max_bounce_bytes: buffers for requests
    that do not suit a driver (64 MiB); at the limit such requests take turns. max_requests: asynchronous
    requests in flight or not yet collected (1 Mi); LimitExceeded beyond it. max_descriptors: files that nodes
    keep open (no limit); LimitExceeded beyond it.
    """

    def __init__(
        self,
        *,
        locking: str = "per-node",
        lock_profile: bool = False,
        backend: str = "auto",
        contexts: Mapping[str, Sequence[int] | None] | None = None,
        max_bounce_bytes: int = 0,
        max_requests: int = 0,
        max_descriptors: int = 0,
    ) -> None:
        if locking not in LOCKINGS:
            raise invalid(f"locking: {locking!r} is not one of {', '.join(LOCKINGS)}", "locking")
        config = struct("engine_config")
        config.locking = LOCKINGS[locking]
        config.lock_profile = int(lock_profile)
        config.backend = backend_number(backend)
        config.max_bounce_bytes = integer(max_bounce_bytes, "max_bounce_bytes")
        config.max_requests = integer(max_requests, "max_requests")
        config.max_descriptors = integer(max_descriptors, "max_descriptors")
        self._handle = Handle.make(
            "engine_t",
            lambda out, error: lib.engine_create(config, out, error),
            lib.engine_close,
            "engine",
        )
        self._context_handles: dict[str, Handle] = {}  # strong: contexts are found by name
        self._contexts: WeakValueDictionary[str, AioContext] = WeakValueDictionary()
        self._nodes: WeakValueDictionary[int, BlockNode] = WeakValueDictionary()  # by native address
        self._handle.then = _logging.hold()
        try:
            self._add_main()
            for name, cpus in (contexts or {}).items():
                self.add_context(name, cpus)
        except BaseException:
            self.close()
            raise

    # ---- contexts ----

    def _add_main(self) -> None:
        with self._handle.in_use():
            pointer = lib.engine_context_find(self._handle.check(), b"main")
        self._context_handles["main"] = Handle(pointer, None, "context 'main'", self._handle)

    def add_context(
        self,
        name: str,
        cpus: Sequence[int] | None = None,
        poll_max_ns: int | None = None,
        backend: str = "auto",
        queue_depth: int = 0,
        *,
        sched_policy: str = "other",
        sched_priority: int = 0,
        caller_driven: bool = False,
    ) -> AioContext:
        """Starts an event loop on a thread of its own; with `caller_driven`, one that `run_once()` drives.

        cpus: where it may run; None or []: anywhere. poll_max_ns: longest busy poll before sleeping; None:
        the default (32768), 0: never. backend: "auto", "io_uring" or "threads". queue_depth: entries of the
        submission ring; 0: the default. sched_policy: "other", "fifo" or "rr", as in sched(7). What its
        caller drives is not pinned or scheduled by the engine: cpus and sched_policy stay out.

        InvalidArgument for a CPU that does not exist, Conflict for a name that is taken, Unsupported for a
        backend that does not work here.
        """
        config = struct("engine_context_config")
        native_name = ffi.new("char[]", encode(name, "name", most=31))
        numbers = [integer(cpu, "cpus", high=lib.ENGINE_MAX_CPUS - 1) for cpu in cpus or ()]
        native_cpus = ffi.new("int32_t[]", numbers) if numbers else NULL
        if sched_policy not in SCHED_POLICIES:
            raise invalid(
                f"sched_policy: {sched_policy!r} is not one of {', '.join(SCHED_POLICIES)}", "sched_policy"
            )
        config.name = native_name
        config.cpus = native_cpus
        config.cpu_count = len(numbers)
        config.backend = backend_number(backend)
        config.queue_depth = integer(queue_depth, "queue_depth", high=MAX_QUEUE_DEPTH)
        config.poll_max_ns = (
            -1 if poll_max_ns is None else integer(poll_max_ns, "poll_max_ns", high=MAX_POLL_NS)
        )
        config.sched_policy = SCHED_POLICIES[sched_policy]
        config.sched_priority = integer(sched_priority, "sched_priority", high=99)
        config.caller_driven = int(caller_driven)
        with self._handle.in_use():
            instance = self._handle.check()
            handle = self._context_handles[name] = Handle.make(
                "engine_context_t",
                lambda out, error: lib.engine_context_create(instance, config, out, error),
                lib.engine_context_close,
                f"context {name!r}",
                self._handle,
                settle=settle_context,
            )
            if caller_driven:
                handle.interrupt = lib.engine_context_wake
        return self._context(name)

    @property
    def contexts(self) -> Mapping[str, AioContext]:
        """The open contexts by name, `main` first."""
        return _Contexts(self)

    @property
    def main(self) -> AioContext:
        """The context that exists from the start, and serves what is not told otherwise."""
        return self._context("main")

    def _context(self, name: str) -> AioContext:
        context = self._contexts.get(name)
        handle = self._context_handles.get(name)
        if handle is None or (handle.closed and not self.closed):
            known = ", ".join(self.contexts)
            raise invalid(f"there is no context {name!r}; there are {known}", "context")
        if context is None or context._handle is not handle:
            context = self._contexts[name] = AioContext(self, handle, name)
        return context

    def _context_handle(self, context: AioContext | str | None) -> Handle | None:
        if context is None:
            return None
        if isinstance(context, str):
            return self._context(context)._handle
        if not isinstance(context, AioContext):
            raise TypeError(f"context: an AioContext or its name is needed, not {type(context).__name__}")
        if context._engine is not self:
            raise invalid(f"context {context.name!r} belongs to another engine", "context")
        return context._handle

    # ---- nodes ----

    def open(self, source: Source = None, /, **options: Any) -> BlockNode:
        """Opens a block node: `open("a.img")`, or `open(driver="raw", filename="a.img", read_only=True)`.

        A text or path given alone is a plain file name, opened with driver "file"; a mapping is as good as
        keywords. Options are those of `engine.drivers()`: nested mappings are dotted keys, underscores are
        dashes, None means not given. A colon or `json:` in a file name means nothing.

        InvalidArgument, whose `field` is the option, for what the driver does not know; FileNotFoundError,
        PermissionError and so on where the kernel refuses; Conflict where the image is locked.
        """
        if isinstance(source, Mapping):
            options = {**source, **options}
        elif source is not None:
            if "driver" in options or "filename" in options:
                raise invalid("open: give a file name alone, or driver= and filename=", "filename")
            options = {"driver": "file", "filename": os.fspath(source), **options}
        flat = flatten(options)
        native = NativeOptions(flat)
        with self._handle.in_use():
            instance = self._handle.check()
            handle = Handle.make(
                "engine_node_t",
                lambda out, error: lib.engine_node_open(instance, native.array, native.count, out, error),
                lib.engine_node_close,
                "new node",
                self._handle,
            )
            try:
                node = self._node_at(handle.pointer, handle, owned=True)
            except BaseException:
                handle.close()
                raise
        handle.label = f"node {node.name!r}"
        return node

    def open_driver(
        self,
        driver: BlockDriver,
        node_name: str | None = None,
        file: BlockNode | str | Mapping[str, Any] | None = None,
        workers: int = 1,
        timeout: float | str = "60s",
        **options: Any,
    ) -> BlockNode:
        """A node whose requests are served by a driver in Python: see `engine.BlockDriver`.

        It can be used like any other: under formats and filters, by virtqueues and workloads. file: the node
        below, or its name, or options to open it with, which makes a filter of it. workers: threads that call
        its methods, where these are not `async def`. timeout: how long a request may take, in seconds or as a
        text, before it fails with ETIMEDOUT. options: what every node has, such as read_only or discard.

        A driver serves one node at a time: Conflict.
        """
        from engine._open_driver import open_driver

        return open_driver(self, driver, node_name, file, workers, timeout, options)

    def _node_at(self, pointer: Any, handle: Handle, owned: bool = False) -> BlockNode:
        """The Python object of a native node. Under `in_use()` of `handle`, which keeps the node open."""
        address = int(ffi.cast("uintptr_t", pointer))
        node = None if owned else self._nodes.get(address)
        if node is None or node.closed:
            node = self._nodes[address] = BlockNode(self, handle, pointer, borrowed=not owned)
        return node

    # ---- devices and workloads ----

    def virtio_blk(
        self,
        node: BlockNode,
        queues: Iterable[AioContext | str] = ("main",),
        queue_size: int = 256,
        write_cache: bool = True,
        read_only: bool | None = None,
        event_index: bool = True,
        indirect: bool = True,
        polled: bool = False,
        serial: str | bytes = "",
        *,
        name: str = "virtio-blk",
    ) -> VirtioBlk:
        """A virtio-blk device on a node: queue i is served by the i-th context of `queues`.

        queue_size: descriptors, a power of two, at most 32768. write_cache: False is writethrough. read_only:
        None takes it from the node. event_index, indirect: the features of the ring. polled: contexts look at
        the rings every turn and ask for no kicks. serial: at most 20 bytes. name: of the user on the node.
        """
        self._own(node, "node")
        contexts = [self._context(c) if isinstance(c, str) else self._own(c, "queues") for c in queues]
        integer(len(contexts), "queues", 1, MAX_QUEUES)
        size = integer(queue_size, "queue_size", 1, MAX_QUEUE_SIZE)
        if size & (size - 1):
            raise invalid(f"queue_size: {size} is not a power of two", "queue_size")
        flags = {
            "write_cache": write_cache,
            "event_index": event_index,
            "indirect": indirect,
            "polled": polled,
        }
        with ExitStack() as stack:
            for owner in (self._handle, node._handle, *(context._handle for context in contexts)):
                stack.enter_context(owner.in_use())
            self._handle.check()
            flags["read_only"] = node.info.read_only if read_only is None else read_only
            return make_disk(
                self,
                node,
                contexts,
                name=encode(name, "name", most=63).decode(),
                queue_size=size,
                serial=encode(serial, "serial", most=SERIAL_BYTES),
                flags=flags,
            )

    def workload(
        self,
        target: BlockNode | BlockUser | VirtQueue,
        *,
        rw: str | None = None,
        bs: int | str = 4096,
        iodepth: int = 64,
        count: int = 0,
        runtime: float | str = 0.0,
        rate_iops: int = 0,
        seed: int = 1,
        rwmixread: int = 50,
        offset: int | str = 0,
        length: int | str = 0,
        flush_every: int = 0,
        latency: bool = True,
        verify: bool = False,
        trace: int = 0,
        context: AioContext | str | None = None,
        replay: Recording | str | os.PathLike[str] | None = None,
        replay_speed: float | str | None = None,
        replay_wrap: bool = False,
        replay_share: tuple[int, int] = (0, 1),
    ) -> Workload:
        """A stream of requests over a node, a user of one, or a virtqueue; `start()` sets it going.

        rw: "read", "write", "rw" in order; "randread", "randwrite", "randrw" at random; rwmixread: percent of
        reads in a mix. bs: bytes of a request. iodepth: requests in flight. It ends after `count` requests or
        `runtime` seconds, whichever is given and comes first. rate_iops: 0 is a closed loop; else requests
        start at that rate, and latency counts from the intended start. offset, length: the range, in bytes;
        length 0: to the end. flush_every: a flush after so many writes. latency: keep histograms. verify:
        reads of what was written are checked. trace: one request in so many is traced, 0 none (see `traces`).
        context: where it runs; None: with its queue, or main. Sizes and times may be texts: "4k", "5s".

        replay: a recording, or its path, in place of rw and bs. replay_speed: 1.0 at its times (the default
        where there are any), 2.0 twice as fast; "max": as iodepth allows. replay_wrap: what lies beyond the
        end starts over. replay_share: (i, n): each n-th operation from i on, for n workloads that share it.
        """
        recording = None if replay is None else recording_of(replay)
        config = workloads.configure(
            rw=rw,
            bs=bs,
            iodepth=iodepth,
            count=count,
            runtime=runtime,
            rate_iops=rate_iops,
            seed=seed,
            rwmixread=rwmixread,
            offset=offset,
            length=length,
            flush_every=flush_every,
            latency=latency,
            verify=verify,
            trace=trace,
            replay=recording is not None,
        )
        self._own(target, "target")
        if recording is not None:
            recording.fit(config, target, replay_speed, replay_wrap, replay_share)
        home = self._context_handle(context)
        if isinstance(target, VirtQueue):
            handle = target._handle
        else:
            writing = config.read_percent < 100 if recording is None else recording.writes
            handle = target._user(writing=writing)
        with ExitStack() as stack:
            for owner in (self._handle, handle, *((home,) if home else ())):
                stack.enter_context(owner.in_use())
            if isinstance(target, VirtQueue):
                config.queue = target._live()
            else:
                config.user = handle.check()
            if home:
                config.context = home.check()
            return make_workload(self, config, target, f"{rw or 'replay'} over {handle.label}", recording)

    def copy(
        self,
        source: BlockNode,
        target: BlockNode,
        *,
        context: AioContext | str | None = None,
        offset: int | str = 0,
        length: int | str = 0,
        chunk_size: int | str = 0,
        chunks: int = 0,
        detect_zeroes: bool = False,
        target_is_zero: bool = False,
        exclusive: bool = False,
    ) -> Copy:
        """A copy from node to node, on `context`; None: main. `run()` does it, or `start()` and `wait()`.

        offset, length: the range, in both; length 0: to the end of the source. chunk_size: bytes a request;
        0: 1 MiB. chunks: how many in flight; 0: 16. detect_zeroes: data that is all zeroes is written as
        zeroes. target_is_zero: the target reads as zeroes, so what is zero is left out. exclusive: nobody
        else may write to either of the two meanwhile.

        Holes of the source become zeroes. InvalidArgument where the target is too small, Conflict, which
        names the other user, where somebody does not share what the copy needs.
        """
        config = copies.configure(
            offset=offset,
            length=length,
            chunk_size=chunk_size,
            chunks=chunks,
            detect_zeroes=detect_zeroes,
            target_is_zero=target_is_zero,
            exclusive=exclusive,
        )
        for node, field in ((source, "source"), (target, "target")):
            if not isinstance(node, BlockNode):
                raise TypeError(f"{field}: a block node is needed, not {type(node).__name__}")
            self._own(node, field)
        home = self._context_handle(context)
        with ExitStack() as stack:
            for owner in (self._handle, source._handle, target._handle, *((home,) if home else ())):
                stack.enter_context(owner.in_use())
            config.source = source._live()
            config.target = target._live()
            if home:
                config.context = home.check()
            label = f"copy of node {source.name!r} to node {target.name!r}"
            return make_copy(self, config, (source, target), label)

    def buffer(self, nbytes: int) -> Buffer:
        """Zeroed memory that is aligned for direct I/O, and that NumPy sees without a copy."""
        return Buffer(nbytes)

    def _own(self, thing: Any, field: str) -> Any:
        """What was given as argument, if it belongs to this engine."""
        if isinstance(thing, VirtQueue):
            owner = thing.disk._engine
        elif isinstance(thing, (BlockNode, BlockUser, AioContext)):
            owner = thing._engine
        else:
            raise TypeError(f"{field}: an object of the engine is needed, not {type(thing).__name__}")
        if owner is not self:
            raise invalid(f"{field}: {thing!r} belongs to another engine", field)
        return thing

    # ---- reports, end ----

    def locks(self) -> list[LockInfo]:
        """Every lock of the engine. Counts are always kept; histograms with `lock_profile`."""
        found = []
        with self._handle.in_use():
            engine = self._handle.check()
            for index in range(lib.engine_lock_count(engine)):
                info = struct("engine_lock_info")
                if lib.engine_lock_get(engine, index, info) == 0:  # else a node was closed meanwhile
                    found.append(lock_info(info))
        return found

    def close(self) -> None:
        """Closes everything that is open in it, newest first, and ends its threads; idempotent.

        Waits for calls in flight. In the child of a fork it does nothing: there is nothing there to close.
        """
        self._handle.close()

    def __repr__(self) -> str:
        return "<Engine closed>" if self.closed else f"<Engine, contexts {', '.join(self.contexts)}>"


class _Contexts(Mapping[str, AioContext]):
    """A live view."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getitem__(self, name: str) -> AioContext:
        handle = self._engine._context_handles.get(name)
        if handle is None or handle.closed:
            raise KeyError(name)
        return self._engine._context(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, handle in list(self._engine._context_handles.items()) if not handle.closed)

    def __len__(self) -> int:
        return sum(1 for _ in self)
