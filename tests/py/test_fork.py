"""After a fork the child has none of the engine's threads: it gets errors, no hang; the parent goes on."""

from __future__ import annotations

from conftest import Script

PROLOGUE = """
import os, sys, threading, time, engine
eng = engine.Engine(contexts={"io0": None})
node = eng.open(driver="null", node_name="disk", read_zeroes=True)
user = node.user("backup", permissions="read")
disk = eng.virtio_blk(node, ["io0"])
queue = disk.queues[0]
workload = eng.workload(node, rw="randread", runtime=1000)
workload.start()

def in_child(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        work()
        sys.stdout.flush()
        sys.exit(0)  # atexit handlers and finalizers run here
    deadline = time.monotonic() + 30
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return "hung"
        time.sleep(0.01)

def parent_is_well():
    assert node.pread(512, 0) == bytes(512) == queue.pread(512, 0)
    before = workload.result().reads
    limit = time.monotonic() + 30
    while workload.result().reads == before and time.monotonic() < limit:
        time.sleep(0.01)
    assert workload.result().reads > before
    for thing in (workload, disk, user, node, eng):
        thing.close()
"""


def test_every_call_is_refused(script: Script) -> None:
    result = script(
        PROLOGUE
        + """
def work():
    calls = {
        "engine": [lambda: eng.open(driver="null"), lambda: eng.add_context("c"), lambda: eng.locks(),
                   lambda: eng.virtio_blk(node), lambda: eng.workload(node, rw="read", count=1)],
        "context 'io0'": [lambda: eng.contexts["io0"].stats(), lambda: eng.contexts["io0"].info],
        "node 'disk'": [lambda: node.pread(512, 0), lambda: node.pwrite(b"x", 0), lambda: node.flush(),
                        lambda: node.info, lambda: node.stats(), lambda: next(node.extents(0, 512)),
                        lambda: node.user("u")],
        "user 'backup'": [lambda: user.pread(512, 0)],
        "disk on node 'disk'": [lambda: queue.pread(512, 0), lambda: queue.stats(), lambda: disk.queues],
        "randread": [workload.start, workload.wait, workload.stop, workload.result],
    }
    for label, functions in calls.items():
        for number, call in enumerate(functions):
            try:
                call()
            except engine.Closed as error:
                text = str(error)
                assert "cannot be used after fork()" in text and str(os.getppid()) in text, (label, text)
                assert label in text or "engine" in text, (label, text)
            else:
                print("no error:", label, number)

print(in_child(work))
parent_is_well()
"""
    )
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr
    assert "ResourceWarning" not in result.stderr


def test_closing_in_the_child_does_nothing(script: Script) -> None:
    result = script(
        PROLOGUE
        + """
def work():
    for thing in (workload, disk, user, node, eng):
        thing.close()
        thing.close()
        assert thing.closed
    with engine.Engine() as own, own.open(driver="null", node_name="disk", read_zeroes=True) as mine:
        print(mine.pread(8, 0))  # a new engine in the child works

print(in_child(work))
parent_is_well()
"""
    )
    assert (result.returncode, result.stdout) == (0, f"{bytes(8)!r}\n0\n"), result.stderr


def test_dropping_in_the_child_does_nothing(script: Script) -> None:
    result = script(
        PROLOGUE
        + """
import gc
def work():
    global eng, node, user, disk, queue, workload
    eng = node = user = disk = queue = workload = None
    gc.collect()
    print("dropped")

print(in_child(work))
parent_is_well()
"""
    )
    assert (result.returncode, result.stdout) == (0, "dropped\n0\n"), result.stderr
    assert "ResourceWarning" not in result.stderr


def test_a_fork_while_threads_are_in_calls(script: Script) -> None:
    """Their locks are held in the child for ever: nobody there may wait for them."""
    result = script(
        PROLOGUE
        + """
slow = eng.open(driver="null", latency_ns="200ms", node_name="slow")
stop = False
slow_disk = eng.virtio_blk(slow, ["io0"])
slow_queue = slow_disk.queues[0]
def read(target):
    while not stop:
        target.pread(512, 0)
readers = [threading.Thread(target=read, args=[target]) for target in (slow, slow, slow_queue, slow_queue)]
for reader in readers:
    reader.start()
time.sleep(0.1)

def work():
    for target in (slow, slow_queue):
        try:
            target.pread(512, 0)
        except engine.Closed:
            print("closed")
    slow.close()
    eng.close()

print(in_child(work))
stop = True
for reader in readers:
    reader.join()
slow_disk.close()
slow.close()
parent_is_well()
"""
    )
    assert (result.returncode, result.stdout) == (0, "closed\nclosed\n0\n"), result.stderr


def test_subprocesses_are_not_disturbed(script: Script) -> None:
    result = script(
        PROLOGUE
        + """
import subprocess
print(subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout.strip())
parent_is_well()
"""
    )
    assert (result.returncode, result.stdout) == (0, "hello\n"), result.stderr


def test_multiprocessing(script: Script) -> None:
    """Its workers are forks that never return from their function: the engine must not hold up their exit."""
    result = script(
        PROLOGUE
        + """
import multiprocessing
def work(number):
    try:
        node.pread(512, 0)
    except engine.Closed:
        return number
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(work, range(4)))
parent_is_well()
"""
    )
    assert (result.returncode, result.stdout) == (0, "[0, 1, 2, 3]\n"), result.stderr
