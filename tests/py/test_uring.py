"""engine.uring: each operation against a real file or pipe, the names that the probe gives, and waiting."""

from __future__ import annotations

import errno
import math
import os
import re
import select
import threading
import time
from pathlib import Path

import pytest
from conftest import Script

import engine
from engine import uring
from engine.uring import Completion, Message, Ring

try:
    uring.probe()
    REFUSED = ""
except OSError as refusal:
    REFUSED = str(refusal)
pytestmark = pytest.mark.skipif(bool(REFUSED), reason=REFUSED or "io_uring works")

LIMIT_S = 30.0  # for what happens at once, on a machine that is busy


def results(completions: list[Completion]) -> dict[object, int]:
    return {completion.token: completion.result for completion in completions}


# ---- operations ----


def test_reads(ring: Ring, image: Path, content: bytes) -> None:
    first, second = bytearray(4096), bytearray(100)
    with image.open("rb") as file:
        ring.read(file, first, 8192, token="first")
        ring.read(file, second, len(content) - 60, token="short")
        assert (ring.prepared, ring.in_flight) == (2, 0)
        assert ring.submit() == 2
        assert ring.prepared == 0
        assert results(ring.wait(2, LIMIT_S)) == {"first": 4096, "short": 60}
    assert first == content[8192:12288]
    assert second[:60] == content[-60:]
    assert ring.in_flight == 0


def test_writes_and_fsync(ring: Ring, image: Path, content: bytes) -> None:
    with image.open("r+b") as file:
        ring.write(file, b"hello", 4096, token="write")
        ring.write(file, memoryview(b"....world")[4:], 4101, token="view")
        assert results(ring.submit_and_wait(2, LIMIT_S)) == {"write": 5, "view": 5}
        ring.fsync(file, token="fsync")
        ring.fsync(file.fileno(), datasync=True, token="fdatasync")
        assert results(ring.submit_and_wait(2, LIMIT_S)) == {"fsync": 0, "fdatasync": 0}
    assert image.read_bytes() == content[:4096] + b"helloworld" + content[4106:]


def test_the_files_own_position(ring: Ring, image: Path, content: bytes) -> None:
    data = bytearray(10)
    with image.open("rb", buffering=0) as file:
        file.seek(500)
        ring.read(file, data, None)
        assert ring.submit_and_wait(1, LIMIT_S)[0].check() == 10
        assert file.tell() == 510
    assert data == content[500:510]


def test_nop_and_tokens(ring: Ring) -> None:
    token = object()
    ring.nop(token=token)
    ring.nop()
    assert ring.submit_and_wait(2, LIMIT_S) == [Completion(token, 0), Completion(None, 0)]


def test_timeout(ring: Ring) -> None:
    started = time.monotonic()
    ring.timeout(0.02, token="time")
    (completion,) = ring.submit_and_wait(1)
    assert time.monotonic() - started >= 0.02
    assert completion == ("time", -errno.ETIME)
    with pytest.raises(TimeoutError if errno.ETIME == errno.ETIMEDOUT else OSError) as caught:
        completion.check()
    assert caught.value.errno == errno.ETIME


def test_timeout_that_counts(ring: Ring) -> None:
    ring.timeout(1000, count=1, token="time")
    ring.nop(token="nop")
    assert results(ring.submit_and_wait(2, LIMIT_S)) == {"nop": 0, "time": 0}


def test_poll(ring: Ring, pipe: tuple[int, int]) -> None:
    ring.poll(pipe[0], select.POLLIN, token="poll")
    assert ring.submit_and_wait(1, 0.01) == []
    os.write(pipe[1], b"x")
    (completion,) = ring.wait(1, LIMIT_S)
    assert completion.token == "poll"
    assert completion.result & select.POLLIN


def test_messages(ring: Ring) -> None:
    with Ring(4) as other:
        other.msg_ring(ring, 7, 2**63 - 1, token="sent")
        other.msg_ring(ring, 0, 0, token="sent, too")
        assert results(other.submit_and_wait(2, LIMIT_S)) == {"sent": 0, "sent, too": 0}
        ring.nop(token="own")
        found = ring.submit_and_wait(1, LIMIT_S) + ring.wait(0)
    assert found == [(Message(2**63 - 1), 7), (Message(0), 0), ("own", 0)]
    assert ring.in_flight == 0


def test_a_message_wakes_another_thread() -> None:
    found: list[Completion] = []
    ready = threading.Event()
    rings: list[Ring] = []

    def receive() -> None:
        with Ring(4) as own:
            rings.append(own)
            ready.set()
            found.extend(own.wait(1, math.inf))

    receiver = threading.Thread(target=receive)
    receiver.start()
    assert ready.wait(LIMIT_S)
    with Ring(4) as sender:
        sender.msg_ring(rings[0], 5, 6)
        assert sender.submit_and_wait(1, LIMIT_S)[0].check() == 0
    receiver.join(LIMIT_S)
    assert found == [(Message(6), 5)]


def test_what_fails_has_its_errno(ring: Ring, tmp_path: Path) -> None:
    with (tmp_path / "new").open("wb") as file:
        ring.read(file, bytearray(1), token="write-only")
        (completion,) = ring.submit_and_wait(1, LIMIT_S)
    assert completion.result == -errno.EBADF
    with pytest.raises(engine.EngineError, match=r"write-only.*Bad file descriptor") as caught:
        completion.check()
    assert caught.value.errno == errno.EBADF


def test_many_in_flight(image: Path, content: bytes) -> None:
    """More than the queue holds at once, and more than once around the ring."""
    buffers = [bytearray(512) for _ in range(1000)]
    found: list[Completion] = []
    with image.open("rb") as file, Ring(32, cq_entries=64) as ring:
        for number, buffer in enumerate(buffers):
            if ring.prepared == ring.entries:
                ring.submit()
            if ring.prepared + ring.in_flight == ring.cq_entries:
                found += ring.submit_and_wait(16, LIMIT_S)
            ring.read(file, buffer, number * 512, token=number)
        ring.submit()
        while ring.in_flight:
            found += ring.wait(1, LIMIT_S)
    assert sorted(completion.token for completion in found) == list(range(1000))
    assert {completion.result for completion in found} == {512}
    assert b"".join(buffers) == content[: 1000 * 512]


@pytest.mark.parametrize(
    "flags",
    [{"coop_taskrun": True}, {"single_issuer": True}, {"single_issuer": True, "defer_taskrun": True}],
    ids=["coop_taskrun", "single_issuer", "defer_taskrun"],
)
def test_set_up_flags(flags: dict[str, bool], image: Path, content: bytes, pipe: tuple[int, int]) -> None:
    if not set(flags) <= set(uring.probe().setup_flags):
        pytest.skip("this kernel does not have them")
    data = bytearray(4096)
    with image.open("rb") as file, Ring(4, **flags) as ring:
        ring.read(file, data)
        ring.poll(pipe[0], select.POLLIN)
        assert ring.submit_and_wait(1, LIMIT_S) == [(None, 4096)]
        os.write(pipe[1], b"x")
        limit = time.monotonic() + LIMIT_S
        while not (found := ring.wait(0)) and time.monotonic() < limit:
            time.sleep(0.001)
        assert len(found) == 1  # delivered by a look alone, deferred or not
    assert data == content[:4096]


def test_probe() -> None:
    found = uring.probe()
    assert {"nodrop", "ext_arg"} <= set(found.features)
    assert {"nop", "read", "write", "fsync", "timeout", "poll_add", "async_cancel"} <= set(found.operations)
    with Ring(4) as ring:
        assert ring.features == found.features
        assert ring.operations() == found.operations


def test_names_are_numbered_as_the_kernel_numbers_them() -> None:
    """Against the headers that are installed, as far as they go."""
    header = next(
        (
            path
            for path in map(Path, ("/usr/include/liburing/io_uring.h", "/usr/include/linux/io_uring.h"))
            if path.exists()
        ),
        None,
    )
    if header is None:
        pytest.skip("no header of io_uring here")
    text = header.read_text(encoding="utf-8")
    enum = re.findall(r"^\s*IORING_OP_(\w+),", text, re.MULTILINE)
    operations = tuple(name.lower() for name in enum if name != "LAST")
    assert len(operations) > 40
    assert uring.OPERATIONS[: len(operations)] == operations
    features = re.findall(r"IORING_FEAT_(\w+)\s+\(1U << (\d+)\)", text)
    assert len(features) > 10
    assert {int(bit): name.lower() for name, bit in features}.items() <= dict(
        enumerate(uring.FEATURES)
    ).items()


def test_what_has_no_name_yet_has_a_number() -> None:
    assert uring._name(uring.OPERATIONS, 200, "operation") == "operation 200"


def test_fileno_is_readable_when_something_is_there(ring: Ring) -> None:
    poller = select.poll()
    poller.register(ring, select.POLLIN)
    assert poller.poll(0) == []
    ring.nop()
    ring.submit()
    assert poller.poll(LIMIT_S * 1000) == [(ring.fileno(), select.POLLIN)]
    assert ring.wait() == [(None, 0)]


# ---- waiting ----


def test_waiting_for_nothing_is_refused(ring: Ring) -> None:
    with pytest.raises(engine.InvalidArgument, match="would never end, 0 requests are in flight"):
        ring.wait()
    ring.nop()
    with pytest.raises(engine.InvalidArgument, match=r"submit\(\) first"):
        ring.wait()
    with pytest.raises(engine.InvalidArgument, match="waiting for 2 would never end"):
        ring.submit_and_wait(2)
    assert ring.submit_and_wait() == [(None, 0)]


def test_a_wait_with_a_time_limit(ring: Ring) -> None:
    started = time.monotonic()
    assert ring.wait(1, 0.02) == []
    assert time.monotonic() - started >= 0.02
    assert ring.wait(0) == ring.wait(0, 0.0) == []
    ring.nop(token=1)
    ring.submit()
    assert ring.wait(3, 0.02) == [(1, 0)]  # what is there is not lost


def test_the_gil_is_released_while_waiting(ring: Ring) -> None:
    """Another thread sets off the pipe that this one waits for: with the GIL held it never could."""
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as end:
        ring.poll(reading, select.POLLIN)
        ring.submit()
        threading.Timer(0.01, lambda: (end.write("x"), end.flush())).start()
        assert len(ring.wait(1, LIMIT_S)) == 1


def test_signal_handlers_run_while_waiting(script: Script) -> None:
    run = script("""
import os, signal, threading, time
from engine.uring import Ring
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
with Ring(4) as ring:
    ring.timeout(0.3)
    ring.submit()
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    print(len(ring.wait()))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reading, _ = os.pipe()
    ring.poll(reading, 1)
    ring.submit()
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        ring.wait()
    except KeyboardInterrupt:
        print("stopped,", ring.in_flight, "in flight")
""")
    assert (run.returncode, run.stdout) == (0, "handled\n1\nstopped, 1 in flight\n"), run.stderr
