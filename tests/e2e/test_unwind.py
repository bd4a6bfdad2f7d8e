# SPDX-License-Identifier: Apache-2.0
"""Whoever unwinds from a call on a connection finds the program: exceptions, cancellation, crash handlers, gdb."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.guestbuild import Guests
from tests.harness import ROOT, Runner

SYMBOLS = ["-ex", f"add-symbol-file {ROOT}/sdlib/_image/sdlib.elf", "-ex", "thread apply all backtrace"]


@pytest.mark.parametrize("what", ["throw", "cancel", "trace"])
def test_unwinding_out_of_a_call(what: str, runner: Runner, guests: Guests) -> None:
    """See tests/guests/unwind.cpp; the connection goes on afterwards."""
    program = runner.run(guests("unwind", "c++"), what)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2)


def stacks(said: str) -> list[list[str]]:
    """The functions of each thread, from the innermost, of what gdb says."""
    return [re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?([\w?]+)", thread, re.MULTILINE)
            for thread in re.split(r"^Thread ", said, flags=re.MULTILINE)[1:]]


def test_gdb_finds_the_program_behind_the_library(shm: Runner, guests: Guests) -> None:
    """Threads that sleep in calls of every kind: see tests/guests/asleep.c."""
    program = shm.start(guests("asleep"))
    program.until(lambda: b"asleep\n" in program.stdout, "asleep")
    said = subprocess.run(["gdb", "-q", "-nx", "-batch", "-p", str(program.pid), *SYMBOLS], capture_output=True,
                          text=True, check=True).stdout  # fmt: skip
    found = {name: stack for stack in stacks(said) for name in stack if name.startswith("in_")}
    assert found.keys() == {"in_recv", "in_poll", "in_epoll", "in_wait", "in_read", "in_pause"}, said
    for name, stack in found.items():
        assert stack[-1] in ("clone3", "main") and stack[0] in ("sd_sys_ret", "sd_slots"), said
        assert ("sd_entry" in stack) == (name in ("in_recv", "in_poll", "in_epoll")), said
    assert program.stop(signal.SIGTERM) == -signal.SIGTERM
    shm.check(program)


def stacks_of_the_dead(runner: Runner, guest: Path, folder: Path) -> list[list[str]]:
    """What gdb finds in the core dump of a program that aborts: the thread that did, and the one that waits, if any."""
    folder.mkdir()
    program = runner.start("sh", "-c", f"ulimit -c unlimited; exec {guest} core", cwd=folder)
    assert program.wait(30) == -6, program.describe()
    (core,) = folder.glob("core*")
    said = subprocess.run(["gdb", "-q", "-nx", "-batch", guest, core, *SYMBOLS], capture_output=True, text=True,
                          check=True).stdout  # fmt: skip
    return sorted(stacks(said), key=lambda stack: "waits" in stack)


NO_CORES = Path("/proc/sys/kernel/core_pattern").read_text()[0] in "|/"


@pytest.mark.skipif(NO_CORES, reason="core dumps go elsewhere")
def test_a_core_dump_shows_the_program(shm: Runner, native: Runner, guests: Guests, tmp_path: Path) -> None:
    guest = guests("unwind", "c++")
    natively = stacks_of_the_dead(native, guest, tmp_path / "natively")
    found = stacks_of_the_dead(shm, guest, tmp_path / "shm")
    assert {"gives_up", "main"} <= set(natively[0])
    assert found[0] == natively[0]
    assert natively[1][-3:] == ["waits", "start_thread", "clone3"]
    assert found[1][0] == "sd_sys_ret" and found[1][-len(natively[1]):] == natively[1]


@pytest.mark.skipif(NO_CORES, reason="core dumps go elsewhere")
def test_a_core_dump_of_musl(shm: Runner, native: Runner, guests: Guests, tmp_path: Path) -> None:
    """It blocks all signals while it raises one, and has no tables for unwinding: two frames are all there is."""
    guest = guests("aborts", "musl-static")
    (natively,) = stacks_of_the_dead(native, guest, tmp_path / "natively")
    (found,) = stacks_of_the_dead(shm, guest, tmp_path / "shm")
    assert found[:2] == natively[:2] == ["__restore_sigs", "raise"]
