# SPDX-License-Identifier: Apache-2.0
"""A container refuses what the supervisor needs: the program does what it does natively, and the report says why.

Yama, or a missing CAP_SYS_PTRACE, answers ptrace with the same EPERM.
"""

from __future__ import annotations

import sys

import pytest

from tests.guestbuild import Guests
from tests.harness import GUESTS, Runner

PTRACE, PIDFD_GETFD, PROCESS_VM_READV = "101", "438", "310"


def refusing(shm: Runner, guests: Guests, calls: str) -> dict[str, object]:
    shm.before = [sys.executable, "-I", GUESTS / "refusing.py", calls]
    program = shm.run(guests("blocking"))
    assert program.stdout == b"ok\n"
    return program.report().raw


@pytest.mark.parametrize("calls", [PTRACE, f"{PTRACE},{PIDFD_GETFD},{PROCESS_VM_READV}"])
def test_no_ptrace(calls: str, shm: Runner, guests: Guests) -> None:
    report = refusing(shm, guests, calls)
    processes = report["processes"]
    assert isinstance(processes, list) and len(processes) == 2
    assert {(process["injected"], process["reason"]) for process in processes} == {(False, "ptrace-refused")}


def test_no_pidfd_getfd(shm: Runner, guests: Guests) -> None:
    """No socket can be offered: all stay on TCP, under one reason."""
    connections = refusing(shm, guests, PIDFD_GETFD)["connections"]
    assert isinstance(connections, dict)
    assert connections["shm"] == 0 and connections["tcp_reasons"] == {"monitor-refused": 2}


def test_no_reading_of_memory(shm: Runner, guests: Guests) -> None:
    connections = refusing(shm, guests, PROCESS_VM_READV)["connections"]
    assert isinstance(connections, dict) and connections["shm"] == 2
