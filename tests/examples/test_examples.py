# SPDX-License-Identifier: Apache-2.0
"""`make examples`: each runs natively and under sdrun, answers rightly, goes by shared memory, and has its plot."""

from __future__ import annotations

import os

import pytest

from tests.harness import ROOT

pytestmark = pytest.mark.skipif("SDRUN_EXAMPLES" not in os.environ, reason="`make examples` runs them")

# Programs and the least number of their ends of connections on shared memory.
CARRIED = {
    "web": {"wrk": 4, "nginx": 5, "gunicorn": 2, "redis": 1},
    "go-service": {"client": 2, "service": 2},
    "postgres": {"pgbench": 1, "postgres": 1},
}


@pytest.mark.parametrize("name", list(CARRIED))
def test_example(name: str) -> None:
    from tools import examples

    target = ROOT / "build" / "examples" / f"{name}.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    outcome = examples.run(name, rounds=2, seconds=2)
    assert min(*outcome.native, *outcome.sdrun) > 0
    assert set(outcome.reports) == set(CARRIED[name])
    for program, least in CARRIED[name].items():
        report = outcome.reports[program]
        assert report["connections"]["shm"] >= least, (program, report["connections"], report["processes"])
    examples.draw(outcome, target)
    assert target.read_text().count("<path") > 10
    assert (ROOT / "docs" / "examples" / f"{name}.svg").exists(), "the documentation shows one of a quiet machine"


def test_every_example_is_documented() -> None:
    text = (ROOT / "docs" / "examples.md").read_text()
    for folder in (ROOT / "examples").iterdir():
        if folder.is_dir():
            assert f"examples/{folder.name}" in text, folder
            assert [path for path in folder.iterdir() if os.access(path, os.X_OK)], folder

