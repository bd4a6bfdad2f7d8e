# SPDX-License-Identifier: Apache-2.0
"""Programs of gcc's sanitizers, which have much of the address space for themselves: what is there first ends them.

The library is there before them where a connection survives an exec, and where Yama is (each program gets it at its
birth).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.guestbuild import Guests
from tests.harness import Runner

SANITIZERS = ["asan", "tsan", "ubsan"]


def built(guests: Guests, name: str, flavour: str) -> Path:
    """Skips where the compiler has no such run-time library."""
    try:
        return guests(name, flavour)
    except subprocess.CalledProcessError:
        pytest.skip(f"gcc has nothing for {flavour} here")


@pytest.mark.parametrize("flavour", SANITIZERS)
@pytest.mark.parametrize("name", ["blocking", "threads"])
def test_program(name: str, flavour: str, runner: Runner, guests: Guests) -> None:
    """It has started when the library comes."""
    program = runner.run(built(guests, name, flavour))
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2)


@pytest.mark.parametrize("flavour", SANITIZERS)
def test_born_with_a_connection(flavour: str, runner: Runner, guests: Guests) -> None:
    """A plain program executes it."""
    program = runner.run(guests("exec_again"), built(guests, "exec_again", flavour))
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2)
