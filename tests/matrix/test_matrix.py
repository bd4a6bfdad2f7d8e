# SPDX-License-Identifier: Apache-2.0
"""A part of the matrix on every change: every row, every state, every column; `make matrix` has all combinations."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.harness import ROOT, Runner
from tests.matrix import cells
from tests.matrix.table import PAGE
from tests.once import reachable, shared

PART = [("glibc", state) for state in cells.STATES] + [
    ("glibc-static", "unread"), ("musl-static", "unread"), ("musl-static", "switching"), ("Python", "unread"),
    ("Python", "half-closed"), ("Go", "full"), ("node", "unread"), ("node", "offered"), ("Java", "unread"),
]  # fmt: skip


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> cells.Programs:
    """Compiled once. Where anybody may execute them: rows give up root."""
    folder = shared(tmp_path_factory, "matrix")
    reachable(folder)
    return cells.Programs(folder)


@pytest.mark.parametrize(("column", "state"), PART)
def test_cells(column: str, state: str, native: Runner, shm: Runner, programs: cells.Programs) -> None:
    expected = cells.run(native, programs, column, state)
    found = cells.run(shm, programs, column, state)
    if state in cells.ON_RING and not cells.on_ring(found):  # a busy machine: rows began before their ends had met
        found = cells.run(shm, programs, column, state, pause_ms=200)
    assert expected, "no cell"
    assert all(cell.right for cell in expected.values() if cell.possible), expected
    assert {name: (cell.holder, cell.peer) for name, cell in found.items()} == {
        name: (cell.holder, cell.peer) for name, cell in expected.items()}
    if state in cells.ON_RING:
        assert cells.on_ring(found), {name: cell.path for name, cell in found.items()}
    if state == "tcp":
        assert not any(cell.path.startswith("shm") for cell in found.values())


def test_page_has_every_row(native: Runner, programs: cells.Programs) -> None:
    text = (ROOT / PAGE).read_text()
    names = native.run(programs.c("glibc"), "rows").stdout.decode().splitlines()
    missing = [name for name in (*names, *cells.COLUMNS, *cells.STATES) if name.replace("|", "\\|") not in text]
    assert not missing, "make matrix"


def test_soak_for_a_moment() -> None:
    """`make soak` takes half an hour: here only that it works, with one run in which nobody is killed."""
    argv = [sys.executable, "-m", "tests.matrix.soak", "--minutes", "0.001", "--seed", "17"]
    done = subprocess.run(argv, cwd=ROOT, timeout=200, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all right: {'killed: nobody': 1" in done.stdout
