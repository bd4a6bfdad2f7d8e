# SPDX-License-Identifier: Apache-2.0
"""What programs could notice of system calls that go through the library: signals, stacks, children, filters."""

from __future__ import annotations

import pytest

from tests.guestbuild import Guests
from tests.harness import Runner


@pytest.mark.parametrize("flavour", ["glibc", "glibc-static"])  # musl comes without the kernel's headers
def test_nobody_notices_the_gate(flavour: str, runner: Runner, guests: Guests) -> None:
    program = runner.run(guests("gate", flavour))
    assert program.stdout == b"ok\n"


@pytest.mark.parametrize("flavour", ["glibc", "musl-static"])
@pytest.mark.parametrize("what", ["context", "restart", "timer", "cancel"])
def test_handlers_that_come_in_between(what: str, flavour: str, runner: Runner, guests: Guests) -> None:
    program = runner.run(guests("handlers", flavour), what)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2)


@pytest.mark.parametrize("how", ["strict", "list"])
def test_sandbox(how: str, runner: Runner, guests: Guests) -> None:
    program = runner.run(guests("sandbox"), how)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2)
