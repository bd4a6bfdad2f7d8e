# SPDX-License-Identifier: Apache-2.0
"""No stream ends early without an error: what a peer has left in the ring, when its connection goes to another program.

With CAP_NET_ADMIN it goes along, whoever takes it. Without, a message that would lose it resets the connection, and
pidfd_getfd is refused, and the program goes on with all of it. Nor does one if a supervisor dies while it is asked.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.harness import GUESTS, Program, Runner
from tests.sdtrace.support import supervisor_of

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


def test_both_ends_in_one_process(shm: Runner, tmp_path: Path) -> None:
    """It cannot send again what it has sent itself: it stands still."""
    giver = start(shm, "give", tmp_path / "way", BYTES, "keep")
    taker = start(shm, "rob", tmp_path / "way")
    assert taker.ok().stdout == b"%d timeout\n" % BYTES
    giver.ok()


PIDFD_GETFD = 438


def in_call(program: Program, number: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{program.pid}/syscall").read_text().split()[0] == str(number)
    return False


def asks(shm: Runner, tmp_path: Path) -> tuple[Program, int, Program]:
    """A program, its supervisor, which does nothing, and one that takes the program's connection and waits for that."""
    giver = start(shm, "give", tmp_path / "way", BYTES, "stay")
    giver.until((tmp_path / "way").exists, "warm")
    supervisor = supervisor_of(giver)
    os.kill(supervisor, signal.SIGSTOP)
    taker = start(shm, "rob", tmp_path / "way")
    taker.until(lambda: in_call(taker, PIDFD_GETFD), "pidfd_getfd")
    name = f"detach-{supervisor}.sock"
    taker.until(lambda: Path("/proc/net/unix").read_text().count(name) > 1, "its request")  # its listener, and that
    return giver, supervisor, taker


def test_the_supervisor_of_who_has_it_is_killed(shm: Runner, tmp_path: Path) -> None:
    """Its successor does it."""
    giver, supervisor, taker = asks(shm, tmp_path)
    os.kill(supervisor, signal.SIGKILL)
    assert taker.ok().stdout == b"%d timeout\n" % BYTES
    giver.ok()


def test_the_supervisor_of_who_takes_it_is_killed(shm: Runner, tmp_path: Path) -> None:
    """Nobody knows how far that had come."""
    giver, supervisor, taker = asks(shm, tmp_path)
    os.kill(supervisor_of(taker), signal.SIGKILL)
    assert taker.ok().stdout == b"refused EPERM\n"
    os.kill(supervisor, signal.SIGCONT)
    assert giver.ok().stdout == b"%d timeout\n" % BYTES
