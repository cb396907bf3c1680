"""The experiments of bench/: each says what it teaches, has a plan, and runs, short, to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

import engine
import engine.experiment
from engine.experiment.api import to_toml
from engine.experiment.document import Document
from engine.experiment.plan import make_plan
from engine.report.pictures import compose

FOLDER = Path(__file__).parents[2] / "bench" / "experiments"
FILES = sorted(path.stem for path in FOLDER.glob("*.toml"))
SHORT = [name for name in FILES if name not in ("big-lock", "scaling-16")]  # big-lock is run elsewhere


@pytest.mark.parametrize("name", FILES)
def test_each_says_what_it_teaches(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    head = text.split("\n\n")[0]
    assert head.startswith("# ")
    assert f"#   engine run bench/experiments/{name}.toml" in head
    assert len(head.split()) >= 40
    assert make_plan(Document(name, text)).points


@pytest.mark.parametrize("name", SHORT)
def test_each_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").replace('"256M"', '"1M"')
    (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    results = engine.experiment.run(f"{name}.toml", quick=True)
    assert results.data["complete"]
    assert results.data["placement"]
    assert isinstance(results.data["preflight"], list)
    assert all(iops > 0 for iops in results.table("points")["iops"])
    for canvas in compose(results.data):
        assert canvas.collisions() == []
    assert results._repr_html_().count("<svg") >= 2
    assert engine.load_results(results.save(tmp_path / "kept.json")).title == results.title
    assert results.report(tmp_path / "page.html").stat().st_size < 1 << 20


def test_an_experiment_may_be_a_dictionary() -> None:
    results = engine.experiment.run(
        {
            "run": {"repeat": 1, "sample": "50ms"},
            "context": {"io0": {"poll-max-ns": 0}},
            "blockdev": {"null": {"driver": "null", "size": "1G"}},
            "workload": {"w": {"node": "null", "contexts": ["io0"], "runtime": "200ms"}},
            "sweep": {"workload.w.iodepth": [1, 2]},
        }
    )
    assert results.table("points")["workload.w.iodepth"] == [1, 2]
    assert "2 runs of 2 points" in repr(results)


def test_a_mistake_in_a_dictionary_is_one_line() -> None:
    with pytest.raises(engine.experiment.UserError, match=r"workload: a \[workload.NAME\] table is missing"):
        engine.experiment.run({"context": {"io0": {}}})


def test_dictionaries_are_written_as_they_are_read() -> None:
    tree = {"a": {"b.c": [1, 'x\n"y"', True], "d": {"e": 0.5}}, "empty": {"t": {}}, "l": {"m": [{"n": 1}]}}
    assert parsed(to_toml(tree)) == tree


def parsed(text: str) -> object:
    import tomllib

    return tomllib.loads(text)
