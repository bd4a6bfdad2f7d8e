# SPDX-License-Identifier: Apache-2.0
"""A connection on shared memory goes to a program of another family: by TCP first, then its bytes are in a ring again.

Unless somebody else might hold its socket who could not see that ring.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import GUESTS, Mode, Program, Runner

SCRIPT = GUESTS / "handed_on.py"
MOST = 1000 * 12
"""Of what a taker receives, and sends, a good part."""


def start(runner: Runner, *words: object) -> Program:
    return runner.start(sys.executable, "-I", SCRIPT, *map(str, words))


def shm_bytes(program: Program) -> int:
    return program.report().shm_bytes


@pytest.mark.parametrize("unread", [0, 1, 5000])
def test_moves_up_with_its_new_program(unread: int, runner: Runner, tmp_path: Path) -> None:
    giver = start(runner, "give", tmp_path / "way", 1, unread)
    taker = start(runner, "take", tmp_path / "way")
    assert giver.ok().stdout == b"ok\n"
    taker.ok()
    if runner.mode is Mode.SHM:
        assert shm_bytes(taker) >= MOST, str(taker.report())
        assert giver.report().raw["connections"]["moved_back"] == {"descriptor-passed": 2}


def test_one_tree(runner: Runner, tmp_path: Path) -> None:
    line = f"{sys.executable} -I {SCRIPT}"
    both = runner.run("/bin/sh", "-c", f"{line} take {tmp_path}/way & {line} give {tmp_path}/way 1 9; wait")
    assert both.stdout == b"ok\n"
    if runner.mode is Mode.SHM:
        carried = sorted(line["bytes"]["shm"] for line in both.report().raw["processes"])
        assert carried[-2] >= MOST, str(both.report())


def test_from_program_to_program(runner: Runner, tmp_path: Path) -> None:
    giver = start(runner, "give", tmp_path / "way", 1, 3)
    relay = start(runner, "relay", tmp_path / "way", tmp_path / "on")
    taker = start(runner, "take", tmp_path / "on")
    assert giver.ok().stdout == b"ok\n"
    for program in (taker, relay):
        program.ok()
    if runner.mode is Mode.SHM:
        assert shm_bytes(taker) >= MOST, str(taker.report())


def test_stays_where_two_have_it(runner: Runner, tmp_path: Path) -> None:
    """Either could read what is sent; in this case they share it out."""
    giver = start(runner, "give", tmp_path / "way", 2, 3)
    takers = [start(runner, "take", tmp_path / "way") for _ in range(2)]
    assert giver.ok().stdout == b"ok\n"
    for taker in takers:
        taker.ok()
        if runner.mode is Mode.SHM:
            assert shm_bytes(taker) == 0, str(taker.report())


def test_stays_with_a_program_outside(runner: Runner, native: Runner, tmp_path: Path) -> None:
    giver = start(runner, "give", tmp_path / "way", 1, 3)
    taker = start(native, "take", tmp_path / "way")
    assert giver.ok().stdout == b"ok\n"
    taker.ok()


def test_stays_behind_a_program_outside(runner: Runner, native: Runner, tmp_path: Path) -> None:
    """Nobody knows what that one does with it."""
    giver = start(runner, "give", tmp_path / "way", 1, 3)
    start(native, "relay", tmp_path / "way", tmp_path / "on")
    taker = start(runner, "take", tmp_path / "on")
    assert giver.ok().stdout == b"ok\n"
    taker.ok()
    if runner.mode is Mode.SHM:
        assert shm_bytes(taker) == 0, str(taker.report())
