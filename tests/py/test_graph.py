"""The graph changes while requests run, from Python: filters come and go, nodes replace each other."""

import errno

import pytest

import engine


@pytest.fixture
def eng():
    with engine.Engine(contexts={"io0": None, "io1": None}) as made:
        yield made


def test_a_filter_comes_and_goes_under_load(eng):
    with eng.open(driver="memory", size="8M", node_name="disk") as disk, disk.user("load", "all") as user:
        loads = [
            eng.workload(
                user,
                rw="randrw",
                bs=4096,
                iodepth=16,
                runtime=60.0,
                offset=half << 22,
                length="4M",
                verify=True,
                context=f"io{half}",
            )
            for half in range(2)
        ]
        for load in loads:
            load.start()
        for number in range(20):
            with disk.insert_filter("passthrough", node_name=f"filter{number}") as above:
                assert above.child("file").name == "disk"
                assert "node " + above.name in refusal_of_close(disk)
            assert above.closed
        for load in loads:
            load.stop()
            load.wait()
            result = load.result()
            assert result.errors == result.verify_errors == 0
            assert result.read_latency.count > 0
            load.close()
        pauses = user.pauses()
        assert pauses.count == 2 * 2 * 20  # in and out, on two contexts
        assert 0 < pauses.longest_ns <= pauses.total_ns


def refusal_of_close(node):
    with pytest.raises(engine.Conflict) as refused:
        node.close()
    return str(refused.value)


def test_what_is_read_through_a_filter_is_what_was_written_below(eng):
    with eng.open(driver="memory", size="1M") as disk, disk.user("one", "all") as user:
        user.pwrite(b"below".ljust(512, b"\0"), 512)
        with disk.insert_filter("passthrough") as above:
            assert user.pread(5, 512) == b"below"
            assert above.stats().op["read"].requests == 1
            user.pwrite(b"above".ljust(512, b"\0"), 512)
        assert user.pread(5, 512) == b"above"


def test_replacing_a_node(eng):
    with (
        eng.open(driver="memory", size="1M", node_name="old") as old,
        eng.open(driver="memory", size="1M", node_name="new") as new,
        eng.open(driver="memory", size="512k", node_name="small") as small,
        old.user("one", "read,write") as user,
    ):
        user.pwrite(bytes([1]) * 512, 0)
        with pytest.raises(engine.InvalidArgument, match="resize it first"):
            old.replace_with(small)
        old.replace_with(new)
        assert user.pread(512, 0) == bytes(512)
        new.replace_with(old)
        assert user.pread(512, 0) == bytes([1]) * 512


def test_only_filters_are_inserted(eng):
    with eng.open(driver="null", size="1M", node_name="disk") as disk:
        with pytest.raises(engine.InvalidArgument, match="driver null is no filter") as refused:
            disk.insert_filter("null")
        assert refused.value.field == "driver"
        with pytest.raises(engine.InvalidArgument, match="leave it out"):
            disk.insert_filter("passthrough", file="disk")
        with pytest.raises(engine.InvalidArgument, match="timeout"):
            disk.insert_filter("passthrough", timeout=-1)


def test_a_change_that_takes_too_long_names_the_request_and_changes_nothing(eng):
    with (
        eng.open(driver="null", size="1M", latency_ns="300ms", node_name="slow") as slow,
        slow.user("late", "all") as user,
        eng.workload(user, rw="read", bs=4096, iodepth=1, count=1, context="io0") as load,
    ):
        load.start()
        while not slow.stats().in_flight:
            pass
        with pytest.raises(
            engine.LimitExceeded, match=r"context io0 request \d+ \(read of 4096 bytes"
        ) as late:
            slow.insert_filter("passthrough", timeout="20ms")
        assert late.value.errno == errno.ETIMEDOUT
        assert late.value.node == "slow"
        load.wait()
        assert load.result().errors == 0
        assert slow.info.user_count == 1


def test_an_engine_closes_with_filters_in_place():
    with engine.Engine() as eng:
        disk = eng.open(driver="memory", size="1M")
        disk.pwrite(bytes(512), 0)
        above = disk.insert_filter("passthrough")
        top = above.insert_filter("passthrough")
        assert disk.pread(512, 0) == bytes(512)
    assert disk.closed
    assert above.closed
    assert top.closed


def test_the_home_of_a_node_is_a_context_that_exists(eng):
    with pytest.raises(engine.InvalidArgument, match="there is no context 'nowhere'") as refused:
        eng.open(driver="null", size="1M", context="nowhere")
    assert refused.value.field == "context"
    with eng.open(driver="null", size="1M", context="io0") as node:
        assert node.pread(512, 0) is not None
        eng.contexts["io0"].close()
        assert len(node.pread(512, 0)) == 512
