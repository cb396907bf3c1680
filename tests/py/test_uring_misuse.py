"""engine.uring: every mistake that must not reach the kernel, memory that stays alive, closing, and fork."""

from __future__ import annotations

import errno
import gc
import math
import os
import select
import threading
import time
import weakref
from pathlib import Path

import pytest
from conftest import Script
from test_uring import LIMIT_S, REFUSED

import engine
from engine import uring
from engine.uring import Completion, Ring

pytestmark = pytest.mark.skipif(bool(REFUSED), reason=REFUSED or "io_uring works")


# ---- memory ----


def test_a_buffer_in_flight_cannot_be_resized(ring: Ring, pipe: tuple[int, int]) -> None:
    data = bytearray(8)
    ring.read(pipe[0], data, None)
    with pytest.raises(BufferError):
        data.extend(b"more")
    ring.submit()
    with pytest.raises(BufferError):
        data.clear()
    os.write(pipe[1], b"12345678")
    assert ring.wait(1, LIMIT_S) == [(None, 8)]
    data.extend(b"more")
    assert data == b"12345678more"


def test_an_engine_buffer_in_flight_cannot_be_closed(ring: Ring, pipe: tuple[int, int]) -> None:
    data = engine.Buffer(4096)
    ring.read(pipe[0], data, None)
    ring.submit()
    with pytest.raises(BufferError):
        data.close()
    os.write(pipe[1], b"x")
    ring.wait(1, LIMIT_S)
    data.close()


def test_what_a_request_needs_lives_until_its_completion(ring: Ring, pipe: tuple[int, int]) -> None:
    class Memory(bytearray):
        pass

    class File:
        def fileno(self) -> int:
            return pipe[0]

    data, file, token = Memory(4), File(), Memory()
    dead = [weakref.ref(data), weakref.ref(file), weakref.ref(token)]
    ring.read(file, data, None, token=token)
    ring.submit()
    del data, file, token
    gc.collect()
    assert None not in [reference() for reference in dead]
    os.write(pipe[1], b"1234")
    (completion,) = ring.wait(1, LIMIT_S)
    assert dead[1]() is None
    assert completion.token is dead[2]()


def test_a_refused_request_lets_go_of_its_buffer(ring: Ring, image: Path) -> None:
    data = bytearray(1)
    with image.open("rb") as file:
        for _ in range(ring.entries):
            ring.nop()
        with pytest.raises(engine.LimitExceeded):
            ring.read(file, data)
    data.clear()
    closed = Ring(1)
    closed.close()
    with pytest.raises(engine.Closed):
        closed.write(1, data)
    data.extend(b"x")


# ---- mistakes ----


def test_a_full_queue(ring: Ring) -> None:
    for number in range(8):
        ring.nop(token=number)
    with pytest.raises(engine.LimitExceeded, match=r"8 requests are prepared: submit\(\) first"):
        ring.nop()
    assert ring.submit() == 8
    assert [completion.token for completion in ring.wait(8, LIMIT_S)] == list(range(8))


def test_too_many_in_flight(pipe: tuple[int, int]) -> None:
    with Ring(2, cq_entries=4) as ring:
        for _ in range(2):
            ring.poll(pipe[0], select.POLLIN)
            ring.poll(pipe[0], select.POLLIN)
            ring.submit()
        with pytest.raises(engine.LimitExceeded, match="4 requests are in flight"):
            ring.nop()
        os.write(pipe[1], b"x")
        assert len(ring.wait(4, LIMIT_S)) == 4


def test_messages_beyond_the_completion_queue_are_kept() -> None:
    with Ring(1, cq_entries=1) as ring, Ring(8) as other:
        for number in range(8):
            other.msg_ring(ring, number, number)
        sent = [completion.result for completion in other.submit_and_wait(8, LIMIT_S)]
        assert set(sent) <= {0, -errno.EOVERFLOW}
        found: list[Completion] = []
        while more := ring.wait(1, 0.01):
            found += more
        assert len(found) == sent.count(0) >= 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"entries": 0}, "entries"),
        ({"entries": 32769}, "entries"),
        ({"entries": -1}, "entries"),
        ({"entries": 8, "cq_entries": 4}, "cq_entries"),
        ({"cq_entries": 65537}, "cq_entries"),
        ({"defer_taskrun": True}, "defer_taskrun"),
    ],
)
def test_a_wrong_ring(arguments: dict[str, int], field: str) -> None:
    with pytest.raises(engine.InvalidArgument) as caught:
        Ring(**arguments)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_wrong_arguments(ring: Ring, image: Path) -> None:
    data = bytearray(8)
    with image.open("rb") as file:
        for call, expected in (
            (lambda: ring.read(file, b"read-only"), TypeError),
            (lambda: ring.read(file, "text"), TypeError),  # type: ignore[arg-type]
            (lambda: ring.write(file, memoryview(bytes(8))[::2]), BufferError),
            (lambda: ring.read("name", data), AttributeError),  # type: ignore[arg-type]
            (lambda: ring.read(-1, data), engine.InvalidArgument),
            (lambda: ring.read(2**31, data), engine.InvalidArgument),
            (lambda: ring.read(file, data, -1), engine.InvalidArgument),
            (lambda: ring.read(file, data, 2**63), engine.InvalidArgument),
            (lambda: ring.read(file, data, 1.5), TypeError),  # type: ignore[arg-type]
            (lambda: ring.timeout(-1), engine.InvalidArgument),
            (lambda: ring.timeout(math.nan), engine.InvalidArgument),
            (lambda: ring.timeout(1, count=-1), engine.InvalidArgument),
            (lambda: ring.poll(file, -1), engine.InvalidArgument),
            (lambda: ring.msg_ring(ring, 2**31, 0), engine.InvalidArgument),
            (lambda: ring.msg_ring(ring, 0, 2**63), engine.InvalidArgument),
            (lambda: ring.msg_ring(file, 0, 0), TypeError),  # type: ignore[arg-type]
            (lambda: ring.wait(-1), engine.InvalidArgument),
            (lambda: ring.wait(17, 0), engine.InvalidArgument),
            (lambda: ring.wait(1, -1), engine.InvalidArgument),
        ):
            with pytest.raises(expected):
                call()
    assert (ring.prepared, ring.in_flight) == (0, 0)
    data.clear()  # nobody holds it


def test_a_closed_ring(ring: Ring) -> None:
    ring.close()
    ring.close()
    assert ring.closed
    assert "closed" in repr(ring)
    calls = [ring.nop, ring.submit, ring.wait, ring.submit_and_wait, ring.fileno, ring.operations]
    calls += [lambda: ring.in_flight, lambda: ring.prepared, lambda: ring.timeout(1)]
    for call in calls:
        with pytest.raises(engine.Closed):
            call()
    with Ring(1) as other, pytest.raises(engine.Closed, match="target"):
        other.msg_ring(ring, 0, 0)


def test_two_threads_in_one_ring(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.poll(pipe[0], select.POLLIN)
    ring.submit()
    waiter = threading.Thread(target=ring.wait)
    waiter.start()
    while not ring._core.lock.locked():
        time.sleep(0.001)
    for call in (ring.nop, ring.submit, ring.wait, ring.close, lambda: ring.in_flight):
        with pytest.raises(engine.Conflict, match="give each thread a ring of its own"):
            call()
    os.write(pipe[1], b"x")
    waiter.join(LIMIT_S)
    assert ring.in_flight == 0


def test_a_signal_handler_that_uses_the_ring_it_interrupted(script: Script) -> None:
    run = script("""
import os, signal, threading
import engine
from engine.uring import Ring
ring = Ring(4)
def handle(*_):
    try:
        ring.nop()
    except engine.Conflict as error:
        print("refused")
signal.signal(signal.SIGUSR1, handle)
ring.timeout(0.3)
ring.submit()
threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
print(len(ring.wait()))
ring.close()
""")
    assert (run.returncode, run.stdout) == (0, "refused\n1\n"), run.stderr


def test_another_thread_on_a_single_issuer_ring(pipe: tuple[int, int]) -> None:
    if "single_issuer" not in uring.probe().setup_flags:
        pytest.skip("this kernel does not have it")
    ring = Ring(4, single_issuer=True)
    ring.poll(pipe[0], select.POLLIN)
    ring.submit()
    ring.nop()
    caught: list[engine.EngineError] = []

    def elsewhere() -> None:
        for call in (ring.submit, ring.close):
            try:
                call()
            except engine.Conflict as error:
                caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(LIMIT_S)
    assert [error.errno for error in caught] == [errno.EEXIST, errno.EEXIST]
    assert all("single_issuer" in str(error) for error in caught)
    assert (ring.closed, ring.prepared, ring.in_flight) == (False, 1, 1)  # as it was
    ring.close()
    idle = Ring(4, single_issuer=True)
    thread = threading.Thread(target=idle.close)
    thread.start()
    thread.join(LIMIT_S)
    assert idle.closed  # nothing had to be cancelled


# ---- closing with requests in flight ----


def test_closing_cancels_and_waits(pipe: tuple[int, int]) -> None:
    data = bytearray(8)
    ring = Ring(2, cq_entries=8)
    ring.read(pipe[0], data, None)
    ring.timeout(1000)
    ring.submit()
    ring.poll(pipe[0], select.POLLPRI)
    ring.timeout(2000)
    ring.submit()
    ring.close()
    data.clear()  # let go of
    os.write(pipe[1], b"x")
    assert os.read(pipe[0], 8) == b"x"  # nobody read it in the meantime


def test_what_was_only_prepared_never_runs(pipe: tuple[int, int]) -> None:
    """A write to a pipe would be done at once, before any cancel."""
    data = bytearray(b"wrong")
    os.set_blocking(pipe[0], False)
    with Ring(4) as ring:
        ring.write(pipe[1], data)
        ring.timeout(1000)
    with Ring(4) as full:
        for _ in range(4):
            full.write(pipe[1], data)
    data.clear()
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 8)


def test_a_dropped_ring_warns_and_is_closed(pipe: tuple[int, int]) -> None:
    data = bytearray(8)
    ring = Ring(2)
    ring.read(pipe[0], data, None)
    ring.submit()
    descriptor = ring.fileno()
    rings = [ring]
    del ring
    with pytest.warns(ResourceWarning, match=r"unclosed ring of io_uring \(closed\)"):
        rings.clear()
    data.clear()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_single_issuer_ring_dropped_elsewhere_keeps_its_buffers(script: Script) -> None:
    """The kernel may still write to them, and only their thread can stop it."""
    run = script("""
import gc, os, threading, warnings
from engine import uring
reading, writing = os.pipe()
data = bytearray(4)
rings = [uring.Ring(2, single_issuer=True, defer_taskrun=True)]
rings[0].read(reading, data, None)
rings[0].submit()
def drop():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rings.clear()
        gc.collect()
    told = [warning for warning in caught if "kept, with its buffers" in str(warning.message)]
    print([warning.category.__name__ for warning in told])
thread = threading.Thread(target=drop)
thread.start()
thread.join()
try:
    data.clear()
except BufferError:
    print("kept")
print(len(uring._abandoned))
""")
    assert (run.returncode, run.stdout) == (0, "['ResourceWarning']\nkept\n1\n"), run.stderr


def test_a_ring_left_open_at_exit(script: Script) -> None:
    run = script("""
import os
from engine.uring import Ring
reading, writing = os.pipe()
ring = Ring(2)
ring.read(reading, bytearray(8), None, token=ring)
ring.submit()
print("leaving")
""")
    assert (run.returncode, run.stdout) == (0, "leaving\n")
    assert "ResourceWarning: unclosed ring" in run.stderr


def test_a_daemon_thread_that_waits_at_exit(script: Script) -> None:
    run = script("""
import threading, time
from engine.uring import Ring
ring = Ring(2)
ring.timeout(1000)
ring.submit()
threading.Thread(target=ring.wait, daemon=True).start()
while not ring._core.lock.locked():
    time.sleep(0.001)
print("leaving")
""")
    assert (run.returncode, run.stdout) == (0, "leaving\n"), run.stderr


# ---- fork ----


def test_the_child_of_a_fork_cannot_use_it(script: Script) -> None:
    run = script("""
import gc, os, warnings
warnings.simplefilter("error")
import engine
from engine.uring import Ring
reading, writing = os.pipe()
data = bytearray(4)
ring, dropped = Ring(4), Ring(4)
ring.read(reading, data, None, token="read")
ring.submit()
pid = os.fork()
if pid == 0:
    for call in (ring.nop, ring.submit, ring.wait, lambda: ring.in_flight, ring.fileno):
        try:
            call()
        except engine.Closed as error:
            assert "cannot be used after fork()" in str(error)
        else:
            os._exit(3)
    ring.close()
    ring.close()
    del dropped
    gc.collect()
    data.clear()
    with Ring(2) as own:
        own.nop()
        assert own.submit_and_wait() == [(None, 0)]
        try:
            own.msg_ring(ring, 0, 0)
        except engine.Closed:
            os._exit(0)
    os._exit(4)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
os.write(writing, b"1234")
print(ring.wait(1, 30), bytes(data))
ring.close()
dropped.close()
""")
    assert (run.returncode, run.stdout) == (0, "0\n[Completion(token='read', result=4)] b'1234'\n"), (
        run.stderr
    )


# ---- where there is none ----

REFUSE = """
import ctypes, struct, errno
libc = ctypes.CDLL(None, use_errno=True)
def refuse(number, answer):
    # Load the number of the system call; where it is `number`, answer; else allow.
    allow, refused = (0x06, 0, 0, 0x7fff0000), (0x06, 0, 0, 0x00050000 | answer)
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), refused, allow]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(program)))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
"""


@pytest.mark.parametrize(
    ("answer", "cls", "text"),
    [
        (errno.EPERM, "PermissionError", "kernel.io_uring_disabled"),
        (errno.ENOSYS, "Unsupported", "no io_uring"),
        (errno.ENOMEM, "LimitExceeded", "ulimit -l"),
    ],
)
def test_a_host_that_refuses(script: Script, answer: int, cls: str, text: str) -> None:
    run = script(
        REFUSE
        + f"""
import engine
from engine import uring
from engine.doctor import check_uring
refuse(425, {answer})
for call in (uring.probe, uring.Ring):
    try:
        call()
    except (PermissionError if {cls!r} == "PermissionError" else getattr(engine, {cls!r})) as error:
        print(error.errno, {text!r} in str(error))
(check,) = check_uring()
print(check.status, {text!r} in check.text)
"""
    )
    assert (run.returncode, run.stdout) == (0, f"{answer} True\n" * 2 + "warn True\n"), run.stderr
