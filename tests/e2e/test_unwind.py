# SPDX-License-Identifier: Apache-2.0
"""Whoever unwinds from a call on a connection finds the program: exceptions, cancellation, crash handlers, gdb."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.guestbuild import Guests
from tests.harness import Runner


@pytest.mark.parametrize("what", ["throw", "cancel", "trace"])
def test_unwinding_out_of_a_call(what: str, runner: Runner, guests: Guests) -> None:
    """See tests/guests/unwind.cpp; the connection goes on afterwards."""
    program = runner.run(guests("unwind", "c++"), what)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2)


def frames_of_the_dead(runner: Runner, guest: Path, folder: Path) -> list[str]:
    """Functions, from the innermost, that gdb finds in the core dump of a program that aborts."""
    folder.mkdir()
    program = runner.start("sh", "-c", f"ulimit -c unlimited; exec {guest} core", cwd=folder)
    assert program.wait(30) == -6, program.describe()
    (core,) = folder.glob("core*")
    found = subprocess.run(["gdb", "-q", "-nx", "-batch", "-ex", "backtrace", guest, core], capture_output=True,
                           text=True, check=True)  # fmt: skip
    return re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?([\w?]+)", found.stdout, re.MULTILINE)


@pytest.mark.skipif(Path("/proc/sys/kernel/core_pattern").read_text()[0] in "|/", reason="core dumps go elsewhere")
def test_a_core_dump_shows_the_program(shm: Runner, native: Runner, guests: Guests, tmp_path: Path) -> None:
    guest = guests("unwind", "c++")
    natively = frames_of_the_dead(native, guest, tmp_path / "natively")
    assert {"gives_up", "main"} <= set(natively)
    assert frames_of_the_dead(shm, guest, tmp_path / "shm") == natively
