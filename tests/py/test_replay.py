"""Recorded operations: what is read of fio's and blkparse's text, what is refused and how it is said, and
replays of them. Real recordings of fio are read in tests/interop/test_replay_fio.py; tracing with blktrace
needs root and a kernel that has it, so blkparse's lines are written here as its manual has them.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import replay
from engine.replay import MAX_DISCARD, Recording

V3 = """\
fio version 3 iolog
0 /dev/sda add
5 /dev/sda open
1005 /dev/sda read 4096 8192
1005 /dev/sda write 0 512
3005 /dev/sda sync 0 0
3006 /dev/sda datasync 0 0
4005 /dev/sda trim 65536 131072
4006 /dev/sda close
"""
V2 = """\
fio version 2 iolog
/dev/sda add
/dev/sda open
/dev/sda read 0 4096
/dev/sda wait 1500 0
/dev/sda write 4096 4096
/dev/sda wait 500 0
/dev/sda write 8192 4096
/dev/sda close
"""
BLKPARSE = """\
  8,0    3        1     0.000000000   697  A   W 223490 + 8 <- (8,1) 223427
  8,0    3        2     0.000000500   697  Q  WS 223490 + 8 [kjournald]
  8,0    3        3     0.000001829   697  G  WS 223490 + 8 [kjournald]
  8,0    3        4     0.000003000   697  D  WS 223490 + 8 [kjournald]
  8,0    1        5     0.001000500   698  Q   R 16 + 256 [Web Content]
  8,0    1        6     0.001100500     0  Q FWFS 4096 + 8 [jbd2/sda1-8]
  8,0    1        7     0.001200500   698  m   N cfq698 slice expired
  8,0    1        8     0.001300500   698  Q FWS [jbd2/sda1-8]
  8,0    1        9     0.002000500   698  Q  DS 1024 + 2048 [fstrim]
  8,0    1       10     0.002100500   698  Q  RA 0 + 8 [x]
  8,0    1       11     0.002200500   698  D   R 36 (12 00 00 00 24 00 ..) [smartd]
  8,0    3       12     0.002300500     0  C  WS 223490 + 8 [0]
CPU1 (8,0):
 Reads Queued:           2,      132KiB\t Writes Queued:           2,        8KiB
Total (8,0):
 Throughput (R/W): 1KiB/s / 2KiB/s
Events (8,0): 12 entries
Skips: 0 forward (0 -   0.0%)
"""


def written(folder: Path, text: str | bytes, name: str = "a.log") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def replayed(eng: engine.Engine, target: Any, recording: Any, **options: Any) -> engine.WorkloadResult:
    with eng.workload(target, replay=recording, **options) as workload:
        workload.start()
        assert workload.wait(60)
        return workload.result()


# ---- what is read


def test_version_3_of_an_iolog(tmp_path: Path) -> None:
    recording = Recording.read(written(tmp_path, V3))
    assert list(recording.operations()) == [
        ("read", 4096, 8192, 0.0),
        ("write", 0, 512, 0.0),
        ("flush", 0, 0, 0.002),
        ("flush", 0, 0, 0.002001),
        ("discard", 65536, 131072, 0.003),
    ]
    assert recording.counts == {"read": 1, "write": 1, "flush": 2, "discard": 1}
    assert recording.nbytes == {"read": 8192, "write": 512, "discard": 131072}
    assert (len(recording), recording.seconds, recording.timed) == (5, 0.003, True)
    assert recording.files == ("/dev/sda",)
    assert recording.end == 65536 + 131072
    assert "1 read, 1 write, 2 flush, 1 discard" in repr(recording)


def test_version_2_has_times_where_it_waits(tmp_path: Path) -> None:
    recording = Recording.read(written(tmp_path, V2))
    assert [(kind, seconds) for kind, _, _, seconds in recording.operations()] == [
        ("read", 0.0),
        ("write", 0.0015),
        ("write", 0.002),
    ]
    assert recording.timed
    without = "".join(line for line in V2.splitlines(keepends=True) if "wait" not in line)
    assert not Recording.read(written(tmp_path, without)).timed


def test_blkparse(tmp_path: Path) -> None:
    recording = Recording.read(written(tmp_path, BLKPARSE))
    assert [(kind, offset, length) for kind, offset, length, _ in recording.operations()] == [
        ("write", 223490 * 512, 4096),
        ("read", 16 * 512, 131072),
        ("flush", 0, 0),  # what goes before a FUA write, and what makes it one
        ("write", 4096 * 512, 4096),
        ("flush", 0, 0),
        ("flush", 0, 0),
        ("discard", 1024 * 512, 1 << 20),
        ("read", 0, 4096),
    ]
    assert recording.seconds == pytest.approx(0.0021)
    assert recording.files == ("8,0",)


def test_an_event_is_chosen(tmp_path: Path) -> None:
    path = written(tmp_path, BLKPARSE)
    assert list(Recording.read(path, event="D").operations()) == [("write", 223490 * 512, 4096, 0.0)]
    only = "".join(line for line in BLKPARSE.splitlines(keepends=True) if "  Q" not in line)
    assert len(Recording.read(written(tmp_path, only))) == 1  # D, where there are no Q
    with pytest.raises(engine.InvalidArgument, match="no line is an operation"):
        Recording.read(path, event="Q").read(written(tmp_path, only), event="Q")
    with pytest.raises(engine.InvalidArgument, match="event: 'X' is not one of Q, D"):
        Recording.read(path, event="X")


def test_of_several_files_one_is_chosen(tmp_path: Path) -> None:
    text = V3.replace("1005 /dev/sda write", "1005 /dev/sdb write")
    path = written(tmp_path, text)
    with pytest.raises(engine.InvalidArgument) as caught:
        Recording.read(path)
    assert str(caught.value).endswith(
        f"{path}:5: file: '/dev/sdb' is a second file beside '/dev/sda': choose one, or all by \"*\""
    )
    assert Recording.read(path, file="/dev/sdb").counts["write"] == 1
    first = Recording.read(path, file="/dev/sda")
    assert first.counts == {"read": 1, "write": 0, "flush": 2, "discard": 1}
    assert len(Recording.read(path, file="*")) == 5
    with pytest.raises(
        engine.InvalidArgument, match="no operation on '/dev/sdc'; there are some on '/dev/sda'"
    ):
        Recording.read(path, file="/dev/sdc")
    later = text.replace("1005 /dev/sda read", "9 /dev/sda read")  # times stay those of the whole
    assert next(Recording.read(written(tmp_path, later), file="/dev/sdb").operations())[3] == 0.000996


def test_times_never_go_back(tmp_path: Path) -> None:
    text = V3.replace("3005 ", "99 ")
    times = [seconds for *_, seconds in Recording.read(written(tmp_path, text)).operations()]
    assert times == sorted(times)


def test_line_ends_and_the_last_line(tmp_path: Path) -> None:
    text = V3.replace("\n", "\r\n") + "\r\n\r\n"
    assert len(Recording.read(written(tmp_path, text))) == 5
    assert len(Recording.read(written(tmp_path, V3.rpartition("\n4006")[0]))) == 5  # without a line end


def test_operations_from_python() -> None:
    recording = Recording.of([("write", 512, 1024), ("flush", 7, 7, 0.5), ("read", 0, 512, 1.0)])
    assert list(recording.operations()) == [
        ("write", 512, 1024, 0.0),
        ("flush", 0, 0, 0.5),
        ("read", 0, 512, 1.0),
    ]
    for wrong, text in (
        (("erase", 0, 1), "operations:1: kind: 'erase' is not one of"),
        (("read", -1, 1), "offset: must be from 0"),
        (("read", 0, -1), "length: must be from 1"),
        (("read", 0, 1, float("nan")), "seconds: must be from 0"),
    ):
        with pytest.raises(engine.InvalidArgument, match=text):
            Recording.of([wrong])


# ---- what is refused

HEAD3 = "fio version 3 iolog\n"
EVENT = "8,0 1 1 0.000000000 1 Q R "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ": no line is an operation of fio's iolog"),
        ("hello\nworld\n", ": no line is an operation"),
        (HEAD3, ": no line is an operation"),
        ("fio version 1 iolog\n", ":1: version: 1 is not read here"),
        ("fio version 4 iolog\n", ":1: version: 4 is not read here"),
        (b"\x07ta\x65\x00\x00\x00\x01", ": is not text; of blktrace's binary files read what"),
        (HEAD3 + "0 f read 0\n", ":2: 3 fields of file, action, offset, length (or file and"),
        (HEAD3 + "0 f read 0 1 2\n", ":2: 5 fields of"),
        (HEAD3 + "f read 0 4096\n", ":2: timestamp: must be a whole number from 0 to 10000000000000"),
        (HEAD3 + "-1 f read 0 4096\n", ":2: timestamp: must be"),
        (HEAD3 + "1000000000000001 f read 0 4096\n", ":2: timestamp: must be"),
        (HEAD3 + "0 f read -512 4096\n", ":2: offset: must be a whole number"),
        (HEAD3 + "0 f read 0x10 4096\n", ":2: offset: must be a whole number"),
        (HEAD3 + "0 f read 1_0 4096\n", ":2: offset: must be a whole number"),
        (HEAD3 + "0 f read 9223372036854775807 4096\n", ":2: offset: must be from 0 to 2^63 - 1"),
        (HEAD3 + "0 f read 9223372036854775808 4096\n", ":2: offset: must be a whole number"),
        (HEAD3 + f"0 f read {'9' * 5000} 4096\n", ":2: offset: must be a whole number"),
        (HEAD3 + "0 f read 0 0\n", ":2: length: must be from 1 to 1073741824 bytes, not 0"),
        (HEAD3 + "0 f read 0 1073741825\n", ":2: length: must be from 1 to 1073741824"),
        (HEAD3 + f"0 f trim 0 {MAX_DISCARD + 1}\n", ":2: length: must be from 1 to 4294967295"),
        (HEAD3 + "0 f wait 0 4096\n", ":2: action: 'wait' is none of"),
        (HEAD3 + "0 f erase 0 4096\n", ":2: action: 'erase' is none of read, write, sync, datasync, trim"),
        (HEAD3 + "0 f erase\n", ":2: 2 fields of"),
        (HEAD3 + "0 f read 0 512\n" + HEAD3, ":3: a second header: two logs"),
        (HEAD3 + "0 " + "f" * 9000, ":2: is longer than 8192 bytes"),
        ("8,0 1 1\n", ":1: an event has at least 6 fields, not 3"),
        ("8,0 1 1 0.0 1 Q R 0 + 8 [x]\n", ":1: time: must be seconds.nanoseconds, not '0.0'"),
        ("8,0 1 1 -1.000000000 1 Q R 0 + 8 [x]\n", ":1: time: must be a whole number"),
        ("8,0 1 1 1000000000.000000000 1 Q R 0 + 8 [x]\n", ":1: time: must be a whole number"),
        ("8,0 1 1 0.000000000 1 Q Y 0 + 8 [x]\n", ":1: rwbs: 'Y' is no RWBS"),
        ("8,0 1 1 0.000000000 1 Q\n", ":1: rwbs: '' is no RWBS"),
        (EVENT + "18014398509481984 + 8 [x]\n", ":1: sector: must be a whole number"),
        (EVENT + "18014398509481983 + 8 [x]\n", ":1: offset: must be from 0"),
        (EVENT + "0 + 8388608 [x]\n", ":1: sectors: must be a whole number"),
        (EVENT + "0 + 8388607 [x]\n", ":1: length: must be from 1 to 1073741824"),
        (EVENT + "0 + -8 [x]\n", ":1: sectors: must be"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(engine.InvalidArgument) as caught:
        Recording.read(path)
    message = str(caught.value.strerror)
    assert f"{path}{says}" in message
    assert "\n" not in message
    assert len(message) < 400


def test_too_many_files(tmp_path: Path) -> None:
    lines = "".join(f"0 f{n} read 0 512\n" for n in range(1001))
    with pytest.raises(engine.InvalidArgument, match="more than 1000 files"):
        Recording.read(written(tmp_path, HEAD3 + lines), file="*")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Recording.read(tmp_path / "none.log")
    with pytest.raises(TypeError, match="a Recording or a path"), engine.Engine() as eng:
        eng.workload(eng.open(driver="null", size="1M"), replay=7)


@pytest.mark.parametrize("seed", range(6))
def test_random_bytes_and_spoilt_lines(tmp_path: Path, seed: int) -> None:
    """Any text is read or refused by one line; what is read keeps to what may be replayed."""
    chance = random.Random(seed)
    refusals = []
    pieces = [
        *V3.split(),
        *V2.split(),
        *BLKPARSE.split(),
        "\n",
        "\n",
        "-1",
        "9" * 25,
        "+",
        "\x00",
        "é",
        "1e9",
        "",
    ]
    for number in range(150):
        if number % 3 == 0:
            data = chance.randbytes(chance.randrange(3000))
        elif number % 3 == 1:
            data = " ".join(chance.choice(pieces) for _ in range(chance.randrange(200))).encode()
        else:
            spoilt = bytearray(chance.choice((V3, V2, BLKPARSE)).encode())
            for _ in range(chance.randrange(1, 6)):
                at = chance.randrange(len(spoilt))
                spoilt[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
            data = bytes(spoilt)
        if chance.random() < 0.5:
            data = chance.choice((b"fio version 3 iolog\n", b"fio version 2 iolog\n")) + data
        try:
            recording = Recording.read(written(tmp_path, data), file=chance.choice((None, "*")))
        except engine.InvalidArgument as error:
            refusals.append(str(error.strerror))
            continue
        last = 0.0
        for kind, offset, length, seconds in recording.operations():
            assert kind in ("read", "write", "flush", "discard")
            assert 0 <= offset <= offset + length <= recording.end <= 2**63 - 1
            assert last <= seconds <= 1e9
            last = seconds
    assert refusals
    assert max(map(len, refusals)) < 500
    assert not any("\n" in text for text in refusals)


# ---- replays


@pytest.mark.parametrize("through", ["node", "user", "queue"])
@pytest.mark.parametrize("speed", [None, 1.0, 1000, 0.5, "max"])
def test_everything_is_done(eng: engine.Engine, tmp_path: Path, through: str, speed: Any) -> None:
    recording = Recording.read(written(tmp_path, V3))
    with eng.open(driver="memory", size="1M", discard="unmap") as disk:
        target: Any = disk
        if through == "user":
            target = disk.user("generator")
        elif through == "queue":
            vda = eng.virtio_blk(disk, ["io0"])
            target = vda.queues[0]
        result = replayed(eng, target, recording, replay_speed=speed, iodepth=4)
        assert (result.reads, result.writes, result.flushes, result.discards) == (1, 1, 2, 1)
        assert (result.bytes_read, result.bytes_written, result.bytes_discarded) == (8192, 512, 131072)
        assert (result.errors, result.open_loop) == (0, speed != "max")
        assert result.flush_latency.count == 2
        assert result.discard_latency.count == result.read_latency.count == 1
        if speed != "max":
            assert result.seconds >= 0.003 / (speed or 1)
        assert disk.stats().op["discard"].bytes == 131072
        if through != "node":
            (target if through == "user" else vda).close()


def test_queues_share_a_recording(eng: engine.Engine) -> None:
    recording = Recording.of([("write", 4096 * n, 4096) for n in range(1001)])
    with eng.open(driver="null", size="1G") as disk, eng.virtio_blk(disk, ["io0", "io0", "io0"]) as vda:
        loads = [
            eng.workload(queue, replay=recording, replay_share=(queue.index, 3), iodepth=8)
            for queue in vda.queues
        ]
        del recording  # workloads keep it
        for load in loads:
            load.start()
        for load in loads:
            assert load.wait(60)
        assert [load.result().writes for load in loads] == [334, 334, 333]
        for load in loads:
            load.close()


def test_beyond_the_end_names_the_line(eng: engine.Engine, null: engine.BlockNode, tmp_path: Path) -> None:
    text = HEAD3 + "0 f read 0 512\n0 f read 1099511627776 512\n0 f read 0 513\n"
    path = written(tmp_path, text)
    with pytest.raises(engine.InvalidArgument) as caught:
        eng.workload(null, replay=path)
    assert f"{path}:3: offset: ends at 1099511628288, beyond the disk's {null.size} bytes" in str(
        caught.value
    )
    assert replayed(eng, null, path, replay_wrap=True).reads == 3
    vda = eng.virtio_blk(null, ["io0"])
    with pytest.raises(engine.InvalidArgument, match=r"a.log:4: offset, length: a queue takes whole sectors"):
        eng.workload(vda.queues[0], replay=path, replay_wrap=True)
    with (
        eng.open(driver="null", size="512") as small,
        pytest.raises(
            engine.InvalidArgument, match=r"a.log:4: length: 513 bytes are more than the disk's 512 bytes"
        ),
    ):
        eng.workload(small, replay=path, replay_wrap=True)


def test_what_does_not_go_with_it(eng: engine.Engine, null: engine.BlockNode) -> None:
    recording = Recording.of([("read", 0, 512)])
    for options, text in (
        ({"rw": "read"}, "rw: does not go with replay"),
        ({"rate_iops": 5}, "rate_iops: does not go with replay"),
        ({"flush_every": 5}, "flush_every: does not go with replay"),
        ({"verify": True}, "verify: does not go with replay"),
        ({"replay_speed": 1.0}, 'has no times, so replay_speed can only be "max"'),
        ({"replay_speed": "slow"}, 'replay_speed: must be "max" or a factor'),
        ({"replay_speed": float("nan")}, "replay_speed: must be"),
        ({"replay_speed": 0}, "replay_speed: must be"),
        ({"replay_share": (1, 1)}, "replay_share: must be"),
        ({"replay_share": (1, 2)}, "no more than 1 operations"),
        ({"replay_share": (0, 0)}, "replay_share: must be"),
        ({"offset": 2**62}, "does not fit"),
    ):
        with pytest.raises(engine.InvalidArgument, match=text):
            eng.workload(null, replay=recording, **options)
    with pytest.raises(engine.InvalidArgument, match="rw: None is not one of"):
        eng.workload(null, count=1)


def test_a_recording_that_only_reads_needs_no_right_to_write(eng: engine.Engine) -> None:
    with eng.open(driver="null", size="1M", read_only=True) as disk:
        reads = Recording.of([("read", 0, 512), ("flush", 0, 0)])
        assert replayed(eng, disk, reads).flushes == 1
        with pytest.raises(engine.EngineError):
            replayed(eng, disk, Recording.of([("write", 0, 512)]))


def test_a_recording_travels_between_processes() -> None:
    recording = Recording.of([("write", 512, 1024, 1.0), ("read", 0, 512, 2.0)], "some.log")
    before = list(recording.operations())
    descriptor, facts = recording.export()
    try:
        other = Recording.imported(descriptor, facts)
    finally:
        os.close(descriptor)
    assert list(other.operations()) == list(recording.operations()) == before
    assert (other.counts, other.nbytes, other.end) == (recording.counts, recording.nbytes, recording.end)
    assert (other.name, other.seconds, len(other)) == ("some.log", 1.0, 2)


def test_the_number_of_operations_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MAX_OPERATIONS", 5)
    assert len(Recording.read(written(tmp_path, V3))) == 5
    with pytest.raises(engine.InvalidArgument, match=r"a.log:10: more than 5 operations"):
        Recording.read(written(tmp_path, V3 + "4006 /dev/sda sync 0 0\n"))
