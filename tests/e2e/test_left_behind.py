# SPDX-License-Identifier: Apache-2.0
"""No stream ends early without an error: what a peer has left in the ring, when its connection goes to another program.

With CAP_NET_ADMIN it goes along, whoever takes it. Without, a message that would lose it resets the connection, and
pidfd_getfd is refused, and the program goes on with all of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import GUESTS, Program, Runner

SCRIPT = GUESTS / "left_behind.py"
BYTES = 40_000
ALL = {"close": b"%d end\n" % BYTES, "shut": b"%d end\n" % BYTES, "back": b"%d timeout\n" % (BYTES + 7)}
WEAK = ["setpriv", "--bounding-set", "-net_admin", "--"]


def start(runner: Runner, *words: object) -> Program:
    return runner.start(sys.executable, "-I", SCRIPT, *map(str, words))


@pytest.mark.parametrize("where", ["outside", "another-tree"])
@pytest.mark.parametrize("how", ["close", "shut", "back"])
def test_goes_along_in_a_message(how: str, where: str, shm: Runner, native: Runner, tmp_path: Path) -> None:
    giver = start(shm, "give", tmp_path / "way", BYTES, how)
    taker = start(native if where == "outside" else shm, "take", tmp_path / "way")
    assert taker.ok().stdout == ALL[how]
    giver.ok()


@pytest.mark.parametrize("how", ["close", "shut", "back"])
def test_goes_along_with_pidfd_getfd(how: str, shm: Runner, tmp_path: Path) -> None:
    giver = start(shm, "give", tmp_path / "way", BYTES, how)
    taker = start(shm, "rob", tmp_path / "way")
    assert taker.ok().stdout == ALL[how]
    giver.ok()


@pytest.mark.parametrize("where", ["outside", "another-tree"])
def test_is_reset_where_it_cannot(where: str, shm: Runner, native: Runner, tmp_path: Path) -> None:
    shm.before = list(WEAK)
    giver = start(shm, "give", tmp_path / "way", BYTES, "close")
    taker = start(native if where == "outside" else shm, "take", tmp_path / "way")
    said = taker.ok().stdout.split()
    assert said[1] in (b"ECONNRESET", b"ENOTCONN"), said
    assert giver.ok().report().raw["connections"]["moved_back"]["unread-lost"] == 1


def test_is_refused_where_it_cannot(shm: Runner, tmp_path: Path) -> None:
    shm.before = list(WEAK)
    giver = start(shm, "give", tmp_path / "way", BYTES, "close")
    taker = start(shm, "rob", tmp_path / "way")
    assert taker.ok().stdout == b"refused EPERM\n"
    assert giver.ok().stdout == b"%d end\n" % BYTES
