"""Experiment files: what is accepted, and that each mistake names the file, the line and the key."""

from __future__ import annotations

import pytest

from engine.experiment.document import Document, Override
from engine.experiment.errors import DocumentError
from engine.experiment.model import Setup
from engine.experiment.positions import key_lines

GOOD = """\
[run]
repeat = 3
[engine]
locking = "per-node"
[context.io0]
cpus = [0]
poll-max-ns = 32000
[context.io1]
cpus = [1]
[context.unused]
[blockdev.disk]
driver = "raw"
file.driver = "file"
file.filename = "disk.img"
[blockdev.empty]
driver = "null"
size = "1G"
[device.vda]
node = "disk"
queues = ["io0", "io1"]
queue-size = 128
write-cache = false
[workload.rand]
device = "vda"
rw = "randread"
bs = "4k"
iodepth = 32
runtime = "5s"
"""


def refuse(text: str) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        Document("a.toml", text).setup()
    return caught.value


def with_line(number: int, line: str) -> str:
    lines = GOOD.splitlines()
    lines[number - 1] = line
    return "\n".join(lines) + "\n"


def test_a_good_file_becomes_a_setup() -> None:
    setup = Document("a.toml", GOOD).setup()
    assert [(c.name, c.cpus, c.poll_max_ns) for c in setup.contexts] == [
        ("io0", (0,), 32000),
        ("io1", (1,), None),
    ]
    (device,) = setup.devices
    assert (device.node, device.queues, device.queue_size, device.write_cache) == (
        "disk",
        ("io0", "io1"),
        128,
        False,
    )
    (workload,) = setup.workloads
    assert (workload.bs, workload.iodepth, workload.runtime) == (4096, 32, 5.0)
    assert setup.engine.locking == "per-node"


def test_what_no_workload_needs_is_left_out() -> None:
    setup = Document("a.toml", GOOD).setup()
    assert [node.name for node in setup.nodes] == ["disk"]
    assert "unused" not in [context.name for context in setup.contexts]


def test_a_node_that_is_only_read_is_opened_read_only() -> None:
    assert Document("a.toml", GOOD).setup().nodes[0].options["read-only"] is True
    written = Document("a.toml", with_line(25, 'rw = "randwrite"')).setup()
    assert written.nodes[0].options["read-only"] is False


def test_nested_and_dotted_options_are_the_same() -> None:
    nested = GOOD.replace(
        'file.driver = "file"\nfile.filename = "disk.img"\n',
        '[blockdev.disk.file]\ndriver = "file"\nfilename = "disk.img"\n',
    )
    assert Document("a.toml", nested).setup() == Document("a.toml", GOOD).setup()


@pytest.mark.parametrize(
    ("line", "text", "key", "words"),
    [
        (1, "[runs]", "runs", "did you mean 'run'"),
        (2, "repeat = 0", "run.repeat", "at least 1"),
        (2, 'repeat = "3"', "run.repeat", "whole number"),
        (4, 'locking = "none"', "engine.locking", "per-node or global"),
        (4, "lock = true", "engine.lock", "no key 'lock'"),
        (6, "cpus = 0", "context.io0.cpus", "list of CPU numbers"),
        (6, "cpus = [-1]", "context.io0.cpus", "-1 is not a CPU number"),
        (7, "poll_max_ns = 1", "context.io0.poll_max_ns", "did you mean 'poll-max-ns'"),
        (12, 'driver = "qcow9"', "blockdev.disk.driver", "no driver 'qcow9'"),
        (13, 'file.drivers = "file"', "blockdev.disk.file.drivers", "no option 'drivers'"),
        (14, "file.filename = [1]", "blockdev.disk.file.filename", "must be a text"),
        (19, 'node = "disc"', "device.vda.node", "did you mean 'disk'"),
        (20, 'queues = ["io0", "io9"]', "device.vda.queues", "no context 'io9' in this file"),
        (20, "queues = []", "device.vda.queues", "list of names"),
        (22, "write-cache = 1", "device.vda.write-cache", "true or false"),
        (24, 'device = "vdb"', "workload.rand.device", "no device 'vdb' in this file"),
        (25, 'rw = "random"', "workload.rand.rw", "randread"),
        (26, 'bs = "4q"', "workload.rand.bs", "4q"),
        (26, 'bs = "1"', "workload.rand.bs", "at least 512"),
        (27, "iodepth = true", "workload.rand.iodepth", "whole number"),
        (28, "runtime = 5", "workload.rand.runtime", "unit"),
    ],
)
def test_a_mistake_names_line_and_key(line: int, text: str, key: str, words: str) -> None:
    error = refuse(with_line(line, text))
    assert (error.line, error.key) == (line, key), str(error)
    assert words in str(error)
    assert str(error).startswith(f"a.toml:{line}: {key}: ")
    assert "\n" not in str(error)


def test_a_missing_key_names_its_table() -> None:
    error = refuse(with_line(19, ""))
    assert (error.line, error.key) == (18, "device.vda")
    assert "node is missing" in str(error)


def test_a_workload_needs_an_end() -> None:
    error = refuse(with_line(28, ""))
    assert (error.line, error.key) == (23, "workload.rand")
    assert "runtime" in str(error)


def test_a_file_without_workload_is_refused() -> None:
    assert "nothing to run" in str(refuse("[run]\nrepeat = 1\n"))


def test_broken_toml_names_the_line() -> None:
    error = refuse("[run]\nrepeat = = 3\n")
    assert error.line == 2
    assert "not valid TOML" in str(error)


def test_more_processes_than_queues_are_refused() -> None:
    with pytest.raises(DocumentError) as caught:
        Document("a.toml", GOOD).setup([Override("run.processes", 3, 99)])
    assert caught.value.line == 99
    assert "3 processes need as many queues" in str(caught.value)


def test_an_override_is_blamed_where_it_stands() -> None:
    document = Document("a.toml", GOOD + '[sweep]\n"device.vda.queues" = [["io0"], ["io7"]]\n')
    override = document.override(("sweep",), "device.vda.queues", ["io7"])
    assert override.line == 30
    with pytest.raises(DocumentError) as caught:
        document.setup([override])
    assert (caught.value.line, caught.value.key) == (30, "device.vda.queues")


def test_a_whole_table_can_be_overridden() -> None:
    document = Document("a.toml", GOOD)
    override = document.override(("sweep",), "blockdev.disk", {"driver": "null", "size": "2G"})
    setup = document.setup([override])
    assert setup.nodes[0].options["size"] == "2G"
    assert "file.driver" not in setup.nodes[0].options


def test_key_lines_sees_through_comments_strings_and_arrays() -> None:
    text = """\
# a = 1
a = "x # not a comment"   # b = 2

list = [
  1, # [c]
  2,
]
text = '''
d = 1
\"quoted\" ]
'''
[t."with.dot"] # comment
"k.x" = { e = 1, f = [1,
   2] }
g.h = 3
[[many]]
i = 4
"""
    assert key_lines(text) == {
        ("a",): 2,
        ("list",): 4,
        ("text",): 8,
        ("t", "with.dot"): 12,
        ("t", "with.dot", "k.x"): 13,
        ("t", "with.dot", "g"): 15,
        ("t", "with.dot", "g", "h"): 15,
        ("many",): 16,
        ("many", "i"): 17,
    }


def test_key_lines_survives_any_valid_escape() -> None:
    text = 'a = "\\"#"\nb = """\\\n  x"""""\nc = \'\\\'\nd = 1\n'
    assert key_lines(text) == {("a",): 1, ("b",): 2, ("c",): 4, ("d",): 5}


LAYERED = """\
[context.io0]
[blockdev.base]
driver = "null"
[blockdev.scratch]
driver = "memory"
[blockdev.slow]
driver = "delay"
read = "20us"
file = "base"
[blockdev.unused]
driver = "null"
[blockdev.top]
driver = "overlay"
backing = "slow"
file.driver = "passthrough"
file.file = "scratch"
[workload.w]
node = "top"
contexts = ["io0"]
rw = "randrw"
count = 1
"""


def test_nodes_may_stand_on_others_by_their_names() -> None:
    setup = Document("a.toml", LAYERED).setup()
    assert [node.name for node in setup.nodes] == ["base", "slow", "scratch", "top"]
    assert setup.nodes[-1].below == ("slow", "scratch")
    assert [node.name for node in setup.nodes_for(["slow"])] == ["base", "slow"]
    assert Setup.from_json(setup.to_json()) == setup


@pytest.mark.parametrize(
    ("line", "text", "key", "words"),
    [
        (9, 'file = "bass"', "blockdev.slow.file", "did you mean 'base'"),
        (9, 'file = "top"', "blockdev.slow.file", "node 'top' would stand on itself"),
        (14, 'backing.driver = "nul"', "blockdev.top.backing.driver", "no driver 'nul'"),
        (14, 'base = "slow"', "blockdev.top.base", "no option 'base'"),
        (16, 'file.files = "scratch"', "blockdev.top.file.files", "no option 'files'"),
    ],
)
def test_what_nodes_stand_on_is_looked_at(line: int, text: str, key: str, words: str) -> None:
    lines = LAYERED.splitlines()
    lines[line - 1] = text
    error = refuse("\n".join(lines))
    assert key in str(error)
    assert words in str(error)


def test_a_trace_of_too_few_names_its_key() -> None:
    error = refuse(GOOD.replace("repeat = 3", "trace = 3000000000"))
    assert "a.toml:2: run.trace" in str(error)
    assert "at most 2147483648" in str(error)
