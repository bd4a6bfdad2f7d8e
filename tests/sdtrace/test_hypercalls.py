# SPDX-License-Identifier: Apache-2.0
"""Requests of the library, made by a guest that knows its number: right ones, and those of a hostile program."""

from __future__ import annotations

import sys

import pytest

from sdlib import abi
from sdlib.wire import Refused
from sdlib.wire.messages import Code
from sdtrace.held import reason_of
from tests.harness import GUESTS, Program, Runner

GUEST = GUESTS / "hypercall.py"


def run(runner: Runner, scenario: str, *options: str) -> Program:
    """Run one scenario without the library, which would use the same areas: policy keeps it out."""
    runner.options = [*options]
    program = runner.run(sys.executable, GUEST, scenario)
    assert program.report().raw["supervisor_errors"] == 0
    return program


@pytest.mark.parametrize("scenario", ["area", "fork", "hostile", "kin", "pair", "withdraw"])
def test_scenario(shm: Runner, scenario: str) -> None:
    assert run(shm, scenario, "--set", "default=kernel").stdout == b"fine\n"


def test_counters_reach_the_report(shm: Runner) -> None:
    program = run(shm, "counters", "--set", "default=kernel")
    report = program.report().raw
    ends = report["connections"]
    assert (ends["total"], ends["shm"], ends["rdma"], ends["tcp"]) == (24, 15, 0, 9)
    assert ends["tcp_reasons"] == {"few-operations": 7, "peer-not-under-sdrun": 1, "closed-before-switch": 1}
    assert sum(ends["tcp_reasons"].values()) == ends["tcp"]
    assert ends["moved_back"] == {"socket-option": 2}
    assert report["bytes"]["shm"] == 2 << 40
    sites = {line["pid"]: line["sites_patched"] for line in report["processes"]}
    assert sites == {program.pid: 100, 4_000_000: 101}


def test_injected_at_birth_when_connections_survive_exec(shm: Runner) -> None:
    program = run(shm, "exec")
    assert b"551000000000" in program.stdout
    injected = {line["exe"] for line in program.report().raw["processes"] if line["injected"]}
    assert any(exe.endswith("/cat") for exe in injected)


@pytest.mark.parametrize(("code", "reason"), [
    (Code.NOT_ESTABLISHED, "closed-before-switch"), (Code.MEMORY, "quota-exhausted"), (Code.QUOTA, "quota-exhausted"),
    (Code.OTHER_USER, "monitor-refused"), (Code.RESOURCES, "monitor-refused"),
])  # fmt: skip
def test_reason_of_a_refusal(code: Code, reason: str) -> None:
    assert abi.REASONS[reason_of(Refused("", code))] == reason
