# SPDX-License-Identifier: Apache-2.0
"""The keeper receives what its tree asks for. While it is stopped, or has a debugger, the supervisor does so."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from sdtrace import procfs
from tests.harness import Program, Runner
from tests.sdtrace.support import supervisor_of

TALKS = """
import socket, time
l = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(l.getsockname()); s = l.accept()[0]
for n in range(200):
    c.sendall(b"%d" % n); assert s.recv(9) == b"%d" % n
    s.sendall(b"x"); assert c.recv(9) == b"x"
    time.sleep(0.01)  # there is time to move, also on a busy machine
"""
SCRIPT = """
for turn in 1 2 3; do
    while ! test -e {folder}/go-$turn; do read -t 0.01 line <> {folder}/fifo; done
    {python} -c '{talks}' || exit 9
    : > {folder}/done-$turn
done
"""


class Turns:
    """A shell that runs a program with sockets whenever it is told to."""

    def __init__(self, shm: Runner, folder: Path) -> None:
        self._folder = folder
        os.mkfifo(folder / "fifo")
        script = SCRIPT.format(folder=folder, python=sys.executable, talks=TALKS)
        self.program: Program = shm.start("bash", "-c", script)

    def take(self, number: int) -> None:
        """One of them, to its end."""
        (self._folder / f"go-{number}").touch()
        self.program.until((self._folder / f"done-{number}").exists, f"turn {number}")


@pytest.mark.parametrize("killed", [False, True], ids=["", "and-supervisor-killed"])
def test_what_comes_while_it_is_stopped(shm: Runner, tmp_path: Path, killed: bool) -> None:
    turns = Turns(shm, tmp_path)
    turns.take(1)
    supervisor = supervisor_of(turns.program)
    keeper = procfs.status(supervisor).ppid
    os.kill(keeper, signal.SIGSTOP)
    try:
        turns.take(2)
        if killed:
            os.kill(supervisor, signal.SIGKILL)
    finally:
        os.kill(keeper, signal.SIGCONT)
    turns.take(3)
    report = turns.program.ok().report()
    told = 2 if killed else 6  # what a supervisor has known goes with it
    assert (report.shm, report.total) == (told, told), report
