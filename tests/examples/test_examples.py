# SPDX-License-Identifier: Apache-2.0
"""`make examples`: each runs natively and under sdrun, answers rightly, goes by shared memory, and has its plot."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.harness import ROOT, SDRUN
from tests.packaging.documented import of_section

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


@pytest.mark.skipif(os.geteuid() != 0, reason="containers of the host's monitor need root")
def test_the_page_of_the_examples(tmp_path: Path) -> None:
    """Its commands as they are written."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = "\n".join(command for _, command in of_section("docs/examples.md"))
    env = {**os.environ, "PATH": f"{SDRUN.parent}:{os.environ['PATH']}", "SECONDS_EACH": "1"}
    done = subprocess.run(["bash", "-exc", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("result: ") == 2, done.stdout
    assert json.loads((tmp_path / "pod" / "client.json").read_text())["connections"]["shm"] >= 4


def test_every_example_is_documented() -> None:
    text = (ROOT / "docs" / "examples.md").read_text()
    for folder in (ROOT / "examples").iterdir():
        if folder.is_dir():
            assert f"examples/{folder.name}" in text, folder
            assert [path for path in folder.iterdir() if os.access(path, os.X_OK)], folder

