"""Options of block nodes: flattening, and the driver table that they come from."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

import engine
from engine.options import NativeOptions, flatten


@pytest.mark.parametrize(
    ("options", "flat"),
    [
        ({}, {}),
        ({"driver": "raw", "read_only": True}, {"driver": "raw", "read-only": "on"}),
        ({"cache.direct": False, "size": 4096}, {"cache.direct": "off", "size": "4096"}),
        (
            {"file": {"driver": "file", "cache": {"direct": True}}},
            {"file.driver": "file", "file.cache.direct": "on"},
        ),
        ({"file": "node0"}, {"file": "node0"}),
        ({"children": ["a", {"driver": "null"}]}, {"children.0": "a", "children.1.driver": "null"}),
        ({"size": None, "file": {"driver": None}}, {}),
        ({"filename": pathlib.Path("/tmp/a b:c.img")}, {"filename": "/tmp/a b:c.img"}),
        ({"filename": b"\xff.img"}, {"filename": b"\xff.img"}),
        ({"filename": ""}, {"filename": ""}),
    ],
)
def test_flattening(options: dict[str, Any], flat: dict[str, Any]) -> None:
    assert flatten(options) == flat


def test_whole_numbers_of_other_types() -> None:
    class Number:
        def __index__(self) -> int:
            return 7

    assert flatten({"size": Number()}) == {"size": "7"}


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"read_only": True, "read-only": True}, "read-only", "'read-only' is given twice"),
        ({"file": {"driver": "x"}, "file.driver": "x"}, "file.driver", "'file.driver' is given twice"),
        ({"size": 1.5}, "size", "not float"),
        ({"file": {"size": object()}}, "file.size", "not object"),
        ({"": "x"}, "", "a key is a text that is not empty"),
        ({"file": {1: "x"}}, "", "a key is a text"),
    ],
)
def test_what_cannot_be_an_option(options: dict[Any, Any], field: str, message: str) -> None:
    with pytest.raises(engine.InvalidArgument, match=message) as caught:
        flatten(options)
    assert caught.value.field == field
    assert caught.value.operation == "open"


def test_bounded_depth_and_number() -> None:
    deep: dict[str, Any] = {}
    deep["a"] = deep
    with pytest.raises(engine.InvalidArgument, match="nested more than 32 deep"):
        flatten(deep)
    with pytest.raises(engine.InvalidArgument, match="more than 4096 options"):
        flatten({str(i): i for i in range(5000)})


def test_nul_bytes_are_refused() -> None:
    for options in ({"filename": "a\0b"}, {"a\0b": "x"}):
        with pytest.raises(engine.InvalidArgument, match="contains a NUL byte"):
            NativeOptions(flatten(options))


def test_the_driver_table() -> None:
    drivers = engine.drivers()
    assert {"null", "file", "raw"} <= drivers.keys()
    assert list(drivers) == sorted(drivers)
    for name, driver in drivers.items():
        assert driver.name == name
        assert driver.layer in ("protocol", "format", "filter")
        assert driver.text
        keys = [option.key for option in driver.options]
        assert len(keys) == len(set(keys))
        assert {"driver", "node-name", "read-only"} <= set(keys)
        for option in driver.options:
            assert option.type in ("string", "bool", "int", "size", "enum", "time", "node")
            assert option.text
            if option.type == "enum":
                assert option.values
            if option.type == "enum" and option.default is not None:
                assert option.default in (option.values or "").split("|")
    filename = next(option for option in drivers["file"].options if option.key == "filename")
    assert filename.required
    assert filename.default is None
    assert drivers["null"].layer == "protocol"
    assert drivers["raw"].layer == "format"


def test_every_default_is_accepted(eng: engine.Engine) -> None:
    """What the table calls the default can be given."""
    options = {
        option.key: option.default
        for option in engine.drivers()["null"].options
        if option.default is not None
    }
    with eng.open({"driver": "null", **options}) as node:
        assert node.size == engine.parse_size(str(options["size"]))
