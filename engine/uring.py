"""liburing from Python: a ring, requests on it, their completions in batches. Small, and safe to get wrong.

For learning, for probing a kernel and for comparisons: the engine itself does its I/O in native code. A ring
is used by one thread at a time; a second one that comes meanwhile gets Conflict. The GIL is released in every
system call. What a request needs (buffer, file object) stays alive, and the buffer exported, until its
completion was returned or the ring is closed; closing cancels what is in flight and waits for it.

    with Ring(entries=8) as ring:
        ring.read(file, buffer, 0, token="header")
        ring.read(file, other, 4096, token="data")
        ring.submit()
        for completion in ring.wait(2):
            print(completion.token, completion.check(), "bytes")
"""

from __future__ import annotations

import errno
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from engine._bindings import MAX_BYTES, integer
from engine._buffers import view_of
from engine._uring import ffi, lib
from engine.errors import Closed, Conflict, EngineError, LimitExceeded, Unsupported, error_class, invalid

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["Completion", "Message", "Probe", "Ring", "probe"]

# Numbered by the kernel (include/uapi/linux/io_uring.h): operations in order, features by bit.
_OPERATIONS = """
nop readv writev fsync read_fixed write_fixed poll_add poll_remove sync_file_range sendmsg recvmsg timeout
timeout_remove accept async_cancel link_timeout connect fallocate openat close files_update statx read write
fadvise madvise send recv openat2 epoll_ctl splice provide_buffers remove_buffers tee shutdown renameat
unlinkat mkdirat symlinkat linkat msg_ring fsetxattr setxattr fgetxattr getxattr socket uring_cmd send_zc
sendmsg_zc read_multishot waitid futex_wait futex_wake futex_waitv fixed_fd_install ftruncate bind listen
recv_zc epoll_wait readv_fixed writev_fixed pipe
"""
_FEATURES = """
single_mmap nodrop submit_stable rw_cur_pos cur_personality fast_poll poll_32bits sqpoll_nonfixed ext_arg
native_workers rsrc_tags cqe_skip linked_file reg_reg_ring recvsend_bundle min_timeout rw_attr no_iowait
"""
OPERATIONS = tuple(_OPERATIONS.split())
FEATURES = tuple(_FEATURES.split())
SETUP_FLAGS = {
    "coop_taskrun": lib.URING_COOP_TASKRUN,
    "single_issuer": lib.URING_SINGLE_ISSUER,
    "defer_taskrun": lib.URING_DEFER_TASKRUN,
}

_MESSAGE = 1 << 63  # of a completion's number: sent by another ring
_BYTES_MAX = 2**32 - 1  # in one request; the kernel itself transfers at most 2 GiB - 4 KiB
_SECONDS_MAX = 10**9
_CANCEL_AGAIN_S = 1


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class Completion(NamedTuple):
    """The outcome of one request."""

    token: Any  # as it was given with the request; a Message where another ring sent it
    result: int  # bytes, an event mask or 0; below 0: an errno, negated

    def check(self) -> int:
        """The result; EngineError, an OSError with its errno, where the request failed."""
        if self.result < 0:
            raise _failure(-self.result, f"request {self.token!r}: {os.strerror(-self.result)}")
        return self.result


class Message(NamedTuple):
    """The token of a completion that `msg_ring` of another ring posted here."""

    data: int


@dataclass(frozen=True, slots=True)
class Probe:
    """What the io_uring of this kernel has, by name; what has no name here yet by its number."""

    features: tuple[str, ...]  # "ext_arg" …
    operations: tuple[str, ...]  # "read" …
    setup_flags: tuple[str, ...]  # of "coop_taskrun", "single_issuer", "defer_taskrun"


class _Request(NamedTuple):
    """What stays alive until a completion."""

    token: Any
    keep: Any = None  # the file object, the time, the other ring
    view: memoryview | None = None
    pointer: Any = None

    def release(self) -> None:
        if self.pointer is not None:
            ffi.release(self.pointer)  # before the view under it
        if self.view is not None:
            self.view.release()


class _Core:
    """The native ring and what its requests hold. `lock` guards all but `pid`; after a fork the child has a
    copy of the mapping, which it may only let go of.

    `pending` holds every request that the kernel may know of, and perhaps one that Ctrl-C kept from being
    prepared: the native counts say how many there are.
    """

    def __init__(self, entries: int, cq_entries: int, flags: int) -> None:
        out, info = ffi.new("uring_ring_t **"), ffi.new("uring_info *")
        result = lib.uring_open(entries, cq_entries, flags, out, info)
        if result < 0:
            raise _refusal(-result)
        self.pointer = out[0]
        self.fd = int(info.fd)
        self.features = int(info.features)
        self.sq_entries = int(info.sq_entries)
        self.cq_entries = int(info.cq_entries)
        self.pid = os.getpid()
        self.owner = threading.get_ident() if flags & lib.URING_SINGLE_ISSUER else None
        self.closing = False
        self.closed = False
        self.lock = threading.Lock()
        self.pending: dict[int, _Request] = {}
        self.number = 0
        self._numbers = ffi.new("uint64_t[]", self.cq_entries)
        self._results = ffi.new("int32_t[]", self.cq_entries)

    def use(self) -> threading.Lock:
        """The lock to hold in a call: `with core.use(): core.check(); lib.…`."""
        if os.getpid() != self.pid:
            raise Closed(
                errno.EBADF,
                f"this ring belongs to process {self.pid} and cannot be used after fork(): "
                "make a new one in the child",
            )
        if self.lock.locked():
            raise Conflict(
                errno.EBUSY,
                "another thread, or the call that a signal handler interrupted, is using this ring: "
                "give each thread a ring of its own",
            )
        return self.lock

    def check(self) -> Any:
        """Under the lock: the native ring, or Closed."""
        if self.closing or self.closed:
            raise Closed(errno.EBADF, "this ring is closed")
        return self.pointer

    def reap(self) -> list[Completion]:
        """All completions that are ready."""
        found: list[Completion] = []
        count = self.cq_entries
        while count == self.cq_entries:
            count = lib.uring_reap(self.pointer, self._numbers, self._results, self.cq_entries)
            numbers, results = ffi.unpack(self._numbers, count), ffi.unpack(self._results, count)
            for number, result in zip(numbers, results, strict=True):
                request = self.pending.pop(number, None)
                if request is not None:
                    request.release()
                    found.append(Completion(request.token, result))
                elif number & _MESSAGE:
                    found.append(Completion(Message(number ^ _MESSAGE), result))
        return found

    def close(self) -> None:
        """Under the lock. What was prepared never runs; what is in flight is cancelled and waited for. Where
        Ctrl-C ends that, closing again goes on."""
        busy = lib.uring_prepared(self.pointer) or lib.uring_in_flight(self.pointer)
        if busy and self.owner not in (None, threading.get_ident()):
            raise Conflict(
                errno.EEXIST,
                "this ring has requests, and only the thread that made it can cancel them (single_issuer): "
                "close it there",
            )
        self.closing = True
        lib.uring_disarm(self.pointer)
        while lib.uring_prepared(self.pointer) or lib.uring_in_flight(self.pointer):
            self._cancel_all()
            limit = time.monotonic() + _CANCEL_AGAIN_S
            while lib.uring_in_flight(self.pointer) and time.monotonic() < limit:
                self._settle(lib.uring_wait(self.pointer, 1, _timespec(_CANCEL_AGAIN_S)))
                self.reap()
        self.free()

    def _cancel_all(self) -> None:
        for number in list(self.pending):
            while lib.uring_cancel(self.pointer, number) < 0:  # the queue is full
                self._settle(lib.uring_submit(self.pointer))
                self.reap()
        self._settle(lib.uring_submit(self.pointer))

    @staticmethod
    def _settle(result: int) -> None:
        """Of a call that is made again, whatever it says now."""
        if result < 0 and result not in (-errno.EINTR, -errno.ETIME, -errno.EAGAIN, -errno.EBUSY):
            raise _failure(-result, f"closing a ring: {os.strerror(-result)}")

    def free(self) -> None:
        self.closed = True
        pointer, self.pointer = self.pointer, None
        lib.uring_free(pointer)
        for request in self.pending.values():
            request.release()
        self.pending.clear()


# Rings that were dropped where their requests could not be cancelled: kept for good, with the buffers that
# the kernel may still write to.
_abandoned: list[_Core] = []


def _dropped(core: _Core) -> None:
    """The Ring went away, or the interpreter is going."""
    if core.closed:
        return
    if os.getpid() != core.pid:
        core.free()  # this process's copy of it
        return
    if not core.lock.acquire(blocking=False):
        return  # the interpreter is going, and a daemon thread is in a call
    outcome = "closed"
    try:
        core.close()
    except EngineError as error:
        _abandoned.append(core)
        outcome = f"kept, with its buffers: {error}"
    finally:
        core.lock.release()
    warnings.warn(f"unclosed ring of io_uring ({outcome})", ResourceWarning, stacklevel=2)


class Ring:
    """One io_uring. A context manager; `close()` is idempotent.

    entries: of the submission queue, 1 to 32768: how many requests can be prepared before a submit; the
    kernel rounds it up to a power of two. cq_entries: of the completion queue, the most in flight; 0: twice
    as many. single_issuer, defer_taskrun (which needs the former), coop_taskrun: the set-up flags of the
    kernel; with single_issuer only the thread that made the ring may use it.

    Each request takes a token, any object, that its completion carries. A file is a descriptor or has
    `fileno()`; such an object is kept alive. An offset of None is the file's own position.

    Raises Unsupported or PermissionError where the kernel or the container refuses io_uring, LimitExceeded
    where memory that may be locked does not suffice.
    """

    def __init__(
        self,
        entries: int = 64,
        *,
        cq_entries: int = 0,
        single_issuer: bool = False,
        defer_taskrun: bool = False,
        coop_taskrun: bool = False,
    ) -> None:
        entries = integer(entries, "entries", 1, lib.URING_ENTRIES_MAX)
        cq_entries = integer(cq_entries, "cq_entries", 0, 2 * lib.URING_ENTRIES_MAX)
        if cq_entries and cq_entries < entries:
            raise invalid(f"cq_entries: {cq_entries} is less than entries, {entries}", "cq_entries")
        if defer_taskrun and not single_issuer:
            raise invalid("defer_taskrun: needs single_issuer", "defer_taskrun")
        wishes = {
            "coop_taskrun": coop_taskrun,
            "single_issuer": single_issuer,
            "defer_taskrun": defer_taskrun,
        }
        flags = sum(SETUP_FLAGS[name] for name, wanted in wishes.items() if wanted)
        self._core = _Core(entries, cq_entries, flags)
        self._finalizer = weakref.finalize(self, _dropped, self._core)

    # ---- what it is ----

    @property
    def closed(self) -> bool:
        return self._core.closed

    @property
    def entries(self) -> int:
        """Of the submission queue, as the kernel made it."""
        return self._core.sq_entries

    @property
    def cq_entries(self) -> int:
        """Of the completion queue."""
        return self._core.cq_entries

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the kernel's features: "nodrop", "ext_arg" …"""
        bits = self._core.features
        return tuple(_name(FEATURES, bit, "feature") for bit in range(bits.bit_length()) if bits >> bit & 1)

    @property
    def prepared(self) -> int:
        """Requests that wait for a submit."""
        with self._core.use():
            return int(lib.uring_prepared(self._core.check()))

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and not yet returned by a wait."""
        with self._core.use():
            return int(lib.uring_in_flight(self._core.check()))

    def operations(self) -> tuple[str, ...]:
        """Names of the operations that the kernel supports: "read", "msg_ring" …"""
        with self._core.use():
            ring = self._core.check()
            known = ffi.new("uint8_t[]", lib.URING_OPERATIONS_MAX)
            count = lib.uring_probe(ring, known, lib.URING_OPERATIONS_MAX)
        if count < 0:
            raise _failure(-count, "this kernel cannot say which operations it supports (5.6 or newer can)")
        return tuple(_name(OPERATIONS, number, "operation") for number in range(count) if known[number])

    def fileno(self) -> int:
        """Readable while completions are ready: for select, poll and asyncio."""
        with self._core.use():
            self._core.check()
            return self._core.fd

    def __repr__(self) -> str:
        state = "closed" if self._core.closed else f"of {self.entries} entries"
        return f"<Ring {state} at {id(self):#x}>"

    # ---- preparing ----

    def nop(self, *, token: Any = None) -> None:
        """Prepares a request that does nothing; its result is 0."""
        self._prepare(_Request(token), lib.uring_nop)

    def read(
        self, file: int | HasFileno, buffer: WriteableBuffer, offset: int | None = 0, *, token: Any = None
    ) -> None:
        """Prepares a read of len(buffer) bytes at most; the result is the number of bytes, 0 at the end."""
        self._transfer(lib.uring_read, file, buffer, offset, token, writable=True)

    def write(
        self, file: int | HasFileno, data: ReadableBuffer, offset: int | None = 0, *, token: Any = None
    ) -> None:
        """Prepares a write; the result is the number of bytes. The data must not change before its
        completion."""
        self._transfer(lib.uring_write, file, data, offset, token, writable=False)

    def fsync(self, file: int | HasFileno, *, datasync: bool = False, token: Any = None) -> None:
        """Prepares an fsync, or an fdatasync; it does not wait for writes that are in flight with it."""
        self._prepare(_Request(token, file), lib.uring_fsync, _descriptor(file), bool(datasync))

    def timeout(self, seconds: float, *, count: int = 0, token: Any = None) -> None:
        """Prepares a time-out. Its result is -ETIME when it expires; 0 when `count` other requests (0: not
        counted) completed before."""
        after = _timespec(seconds)
        self._prepare(
            _Request(token, after), lib.uring_timeout, after, integer(count, "count", 0, _BYTES_MAX)
        )

    def poll(self, file: int | HasFileno, events: int, *, token: Any = None) -> None:
        """Prepares a wait for events, once: a mask of `select.POLLIN` and the like, as is the result."""
        mask = integer(events, "events", 0, _BYTES_MAX)
        self._prepare(_Request(token, file), lib.uring_poll, _descriptor(file), mask)

    def msg_ring(self, target: Ring, value: int, data: int, *, token: Any = None) -> None:
        """Prepares a message to another ring, where it arrives as `Completion(Message(data), value)`; the
        result here is 0. value: 0 to 2^31 - 1. data: 0 to 2^63 - 1."""
        if not isinstance(target, Ring):
            raise TypeError(f"target: a Ring is needed, not {type(target).__name__}")
        if target._core.closed or target._core.pid != os.getpid():
            raise Closed(errno.EBADF, "target: that ring is closed, or belongs to another process")
        self._prepare(
            _Request(token, target),
            lib.uring_message,
            target._core.fd,
            integer(value, "value", 0, 2**31 - 1),
            integer(data, "data", 0, _MESSAGE - 1),
        )

    def _transfer(
        self,
        function: Callable[..., int],
        file: int | HasFileno,
        buffer: object,
        offset: int | None,
        token: Any,
        writable: bool,
    ) -> None:
        descriptor = _descriptor(file)
        start = 2**64 - 1 if offset is None else integer(offset, "offset", 0, MAX_BYTES)
        view = view_of(buffer, writable)
        try:
            nbytes = integer(view.nbytes, "buffer", 0, _BYTES_MAX)
            pointer = ffi.from_buffer(view, require_writable=writable)
        except BaseException:
            view.release()
            raise
        self._prepare(_Request(token, file, view, pointer), function, descriptor, pointer, nbytes, start)

    def _prepare(self, request: _Request, function: Callable[..., int], *arguments: Any) -> None:
        """The arguments are checked: the native call can only say that there is no room."""
        core = self._core
        try:
            with core.use():
                ring = core.check()
                core.number = number = core.number + 1
                core.pending[number] = request  # before the kernel may know of it
                result = function(ring, number, *arguments)
                if result == 0:
                    return
                del core.pending[number]
        except EngineError:
            request.release()
            raise
        request.release()
        if result == -errno.ENOSPC:
            raise LimitExceeded(
                errno.ENOSPC,
                f"{core.cq_entries} requests are in flight, as many as the completion queue holds: "
                "wait() for some, or make the ring with more cq_entries",
            )
        raise LimitExceeded(
            errno.EBUSY,
            f"the submission queue is full, {core.sq_entries} requests are prepared: submit() first",
        )

    # ---- submitting and waiting ----

    def submit(self) -> int:
        """Hands what is prepared to the kernel, in one system call; returns how many it took."""
        core = self._core
        with core.use():
            result = lib.uring_submit(core.check())
        if result < 0:
            raise _submission(-result)
        return int(result)

    def wait(self, count: int = 1, timeout: float | None = None) -> list[Completion]:
        """Blocks until at least `count` completions are ready, or for `timeout` seconds; returns all that are
        ready, oldest first. count 0: what is ready now. What is only prepared is not submitted.

        InvalidArgument where it would never return: more than are in flight, and no timeout. To wait for
        messages of other rings alone, give one; `math.inf` is none.
        """
        return self._wait(count, timeout, submit=False)

    def submit_and_wait(self, count: int = 1, timeout: float | None = None) -> list[Completion]:
        """`submit` and `wait` in one system call."""
        return self._wait(count, timeout, submit=True)

    def _wait(self, count: int, timeout: float | None, submit: bool) -> list[Completion]:
        core = self._core
        count = integer(count, "count", 0, core.cq_entries)
        deadline = None
        if timeout is not None and timeout != float("inf"):
            after = _timespec(timeout)
            deadline = time.monotonic() + timeout
        else:
            after = ffi.NULL
        with core.use():
            ring = core.check()
            if timeout is None:
                _refuse_endless(ring, count, submit)
            call = lib.uring_submit_and_wait if submit else lib.uring_wait
            while True:
                result = call(ring, count, after)
                if lib.uring_ready(ring) >= count or result == -errno.ETIME:
                    break
                if result < 0 and result != -errno.EINTR:
                    raise _submission(-result)
                if deadline is not None:  # liburing says 0, too, where the time is over and some are ready
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    after = _timespec(left)
            completions = core.reap()
            if result < 0 and not completions and result not in (-errno.ETIME, -errno.EINTR):
                raise _submission(-result)
        return completions

    # ---- life ----

    def close(self) -> None:
        """What is prepared never runs; what is in flight is cancelled and waited for; then all is freed.
        Idempotent. In the child of a fork it only lets go of the child's copy."""
        core = self._core
        if core.pid != os.getpid():
            if not core.closed:
                core.free()
        else:
            with core.use():
                if not core.closed:
                    core.close()
        self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def probe() -> Probe:
    """What this kernel's io_uring has. Raises as `Ring` does where there is none."""
    flags = []
    for name in SETUP_FLAGS:
        try:
            Ring(1, **{name: True, "single_issuer": name != "coop_taskrun"}).close()
        except Unsupported as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            flags.append(name)
    with Ring(1) as ring:
        return Probe(ring.features, ring.operations(), tuple(flags))


# ---- values and errors ----


def _name(names: tuple[str, ...], number: int, kind: str) -> str:
    return names[number] if number < len(names) else f"{kind} {number}"


def _descriptor(file: int | HasFileno) -> int:
    return integer(file if isinstance(file, int) else file.fileno(), "file", 0, 2**31 - 1)


def _timespec(seconds: float) -> Any:
    if not 0 <= seconds <= _SECONDS_MAX:
        raise invalid(f"seconds: must be from 0 to {_SECONDS_MAX}, not {seconds}", "seconds")
    whole = int(seconds)
    return ffi.new("uring_timespec *", (whole, int((seconds - whole) * 1e9)))


def _refuse_endless(ring: Any, count: int, submit: bool) -> None:
    coming = lib.uring_in_flight(ring) + (lib.uring_prepared(ring) if submit else 0)
    if count > max(coming, lib.uring_ready(ring)):
        raise invalid(
            f"count: waiting for {count} would never end, {coming} requests are in flight: submit() first, "
            "or give a timeout to wait for messages of other rings",
            "count",
        )


def _failure(errnum: int, message: str) -> EngineError:
    return error_class("os", errnum)(errnum, message)


def _submission(errnum: int) -> EngineError:
    reasons = {
        errno.EEXIST: "this ring is single_issuer: only the thread that made it may use it",
        errno.EBUSY: "completions have overflowed: wait() for some before submitting more",
    }
    cls = Conflict if errnum in reasons else error_class("os", errnum)
    return cls(errnum, reasons.get(errnum, f"io_uring_enter: {os.strerror(errnum)}"))


def _refusal(errnum: int) -> EngineError:
    """Why there is no ring, and what to do."""
    if errnum == errno.EPERM:
        return _failure(
            errnum,
            "io_uring is refused here (EPERM): set sysctl kernel.io_uring_disabled to 0, or allow io_uring "
            "in the container's seccomp profile",
        )
    if errnum in (errno.ENOSYS, errno.EOPNOTSUPP):
        what = "no io_uring" if errnum == errno.ENOSYS else "an io_uring that is too old"
        return Unsupported(
            errnum, f"this kernel, or the container's seccomp profile, has {what}: 5.11 or newer is needed"
        )
    if errnum == errno.ENOMEM:
        return LimitExceeded(
            errnum,
            "no memory for a ring of this size: make it smaller, or raise the limit of locked memory "
            "(ulimit -l)",
        )
    if errnum == errno.EINVAL:
        return Unsupported(
            errnum, "this kernel does not know one of the set-up flags, or does not take these sizes"
        )
    return _failure(errnum, f"io_uring_setup: {os.strerror(errnum)}")
