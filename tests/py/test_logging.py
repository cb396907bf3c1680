"""What the native core says, in `logging`: from contexts that fall back to a failed driver, in order, to the
end.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import pytest
from conftest import Script

import engine
from engine import _logging
from engine._native import ffi, lib


class Records(logging.Handler):
    """Keeps what comes; `wait(text)` returns the record that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[logging.LogRecord] = []
        self.threads: set[str] = set()
        self._changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._changed:
            self.seen.append(record)
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def wait(self, text: str) -> logging.LogRecord:
        def found() -> logging.LogRecord | None:
            return next((record for record in self.seen if text in record.getMessage()), None)

        with self._changed:
            record = self._changed.wait_for(found, 30)
        assert record, f"no record says {text!r}: {[r.getMessage() for r in self.seen]}"
        return record


@pytest.fixture
def records() -> Records:
    handler = Records()
    logger = logging.getLogger("engine")
    logger.addHandler(handler)
    before, logger.level = logger.level, logging.DEBUG
    yield handler  # type: ignore[misc]
    logger.removeHandler(handler)
    logger.setLevel(before)


def time_out(eng: engine.Engine) -> None:
    """Makes the core say something: a request that no program takes."""
    node = eng.open(driver="external", size="1M", node_name="deaf", timeout="1ms")
    out, error = ffi.new("engine_external_t **"), ffi.new("engine_error *")
    assert lib.engine_external_attach(node._handle.pointer, b"nobody", out, error) == 0
    with pytest.raises(TimeoutError, match="nobody: it did not take the request within 1 ms"):
        node.pread(512, 0)
    node.close()
    lib.engine_external_close(out[0])


def test_a_record_arrives_while_the_program_does_something_else(eng: engine.Engine, records: Records) -> None:
    time_out(eng)
    record = records.wait("node deaf: read timed out: nobody")
    assert (record.name, record.levelno) == ("engine", logging.WARNING)
    assert records.threads == {"engine-log"}  # no context's
    assert "\n" not in record.getMessage()


def test_levels_are_the_loggers(
    eng: engine.Engine, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered, emit = threading.Event(), _logging._emit

    def tell(*record: Any) -> None:
        emit(*record)
        delivered.set()

    monkeypatch.setattr(_logging, "_emit", tell)
    logging.getLogger("engine").setLevel(logging.ERROR)
    time_out(eng)
    assert delivered.wait(30)
    logging.getLogger("engine").setLevel(logging.WARNING)
    time_out(eng)
    records.wait("timed out")
    assert len(records.seen) == 1


def test_nothing_is_lost_when_the_engine_closes(records: Records) -> None:
    """All but the first record wait when the thread is told to end."""

    def wait(record: logging.LogRecord) -> bool:
        return _logging._delivery.stopping.wait(30)

    logging.getLogger("engine").addFilter(wait)
    with engine.Engine() as eng:
        for _ in range(10):
            time_out(eng)
    logging.getLogger("engine").removeFilter(wait)
    assert len([r for r in records.seen if "timed out" in r.getMessage()]) == 10  # delivered by now


def test_a_handler_that_fails_does_not_end_it(eng: engine.Engine, records: Records) -> None:
    def fail(record: logging.LogRecord) -> bool:
        logging.getLogger("engine").removeFilter(fail)
        raise ZeroDivisionError

    logging.getLogger("engine").addFilter(fail)
    time_out(eng)
    time_out(eng)
    records.wait("timed out")


def test_the_thread_comes_and_goes_with_the_engines() -> None:
    def running() -> bool:
        return any(thread.name == "engine-log" for thread in threading.enumerate())

    assert not running()
    with engine.Engine(), engine.Engine():
        assert running()
        thread = _logging._delivery.thread
        with engine.Engine():
            assert _logging._delivery.thread is thread
        assert running()
    assert not running()


def test_logging_is_not_imported_before_there_is_something_to_say(script: Script) -> None:
    result = script("""
import sys, engine
with engine.Engine(contexts={"io0": None}) as eng:
    eng.open(driver="null").close()
print("logging" in sys.modules)
""")
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr


def test_errors_reach_stderr_without_any_set_up(script: Script) -> None:
    result = script("""
import engine
from engine._native import ffi, lib
with engine.Engine() as eng:
    with eng.open(driver="external", size="1M", node_name="deaf", timeout="1ms") as node:
        out = ffi.new("engine_external_t **")
        assert lib.engine_external_attach(node._handle.pointer, b"nobody", out, ffi.NULL) == 0
        try:
            node.pread(512, 0)
        except TimeoutError:
            print("timed out")
    lib.engine_external_close(out[0])
""")
    assert (result.returncode, result.stdout) == (0, "timed out\n"), result.stderr
    assert "node deaf: read timed out" in result.stderr


def test_a_fallback_is_told(script: Script) -> None:
    result = script("""
import errno, ctypes, logging, struct, sys, engine
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
libc = ctypes.CDLL(None)
rules = ((0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x50000 | errno.EPERM), (0x06, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(code))) == 0
with engine.Engine(contexts={"io0": None}):
    pass
""")
    assert result.returncode == 0, result.stderr
    assert "INFO engine context io0: backend threads, because io_uring is refused here" in result.stdout


def test_after_a_fork(script: Script) -> None:
    result = script("""
import os, sys, threading, engine
eng = engine.Engine()
pid = os.fork()
if pid == 0:
    eng.close()
    with engine.Engine():
        print([t.name for t in threading.enumerate() if t.name == "engine-log"], flush=True)
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
eng.close()
""")
    assert (result.returncode, result.stdout) == (0, "['engine-log']\n0\n"), result.stderr


def test_the_native_queue_by_hand(eng: engine.Engine) -> None:
    """A program in C has it without Python's thread; counted opens keep it for both."""
    lib.engine_log_open()
    lib.engine_log_close()
    assert os.getpid()  # and the engine's own delivery goes on
    handler = Records()
    logging.getLogger("engine").addHandler(handler)
    time_out(eng)
    handler.wait("timed out")
    logging.getLogger("engine").removeHandler(handler)
