"""Options of `pytest bench`, and where its JSON is kept: bench/results/COMMIT-TIME.json.
Single-threaded.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

from harness import Settings, commit_name  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("peers")
    group.addoption("--pairs", type=int, help="alternating pairs of each comparison (9)")
    group.addoption("--quick", action="store_true", help="one short pair: to see that it works, not to quote")
    group.addoption(
        "--enforce", action="store_true", help="fail where a mark is missed (never in CI: timings drift)"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.benchmark_json is None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        quick = "-quick" if config.option.quick else ""
        path = HERE / "results" / f"{commit_name()}-{now}{quick}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        config.option.benchmark_json = path


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    return Settings.make(request.config.option.pairs, request.config.option.quick)
