# SPDX-License-Identifier: Apache-2.0
"""Signals where there is little room, or many of them: a small stack, a run time that interrupts itself."""

from __future__ import annotations

import pytest

from tests.guestbuild import Guests
from tests.harness import Runner


def test_go_interrupts_itself(runner: Runner, guests: Guests) -> None:
    """See tests/guests/preempt.go."""
    program = runner.run(guests("preempt", "go"))
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2, of_bytes=100_000)


@pytest.mark.parametrize("what", ["library", "bare"])
def test_a_ticking_timer_does_not_keep_a_program_from_ending(what: str, runner: Runner, guests: Guests) -> None:
    """Go's scheduler is such a timer, for who ends. The report is made meanwhile, which takes longer than a tick."""
    program = runner.start(guests("exit_ticking"), what)
    assert program.wait(30) == 7
    assert program.stdout == b"ends\n"


@pytest.mark.parametrize("flavour", ["glibc", "glibc-static", "musl-static"])
def test_small_alternate_stack(flavour: str, runner: Runner, guests: Guests) -> None:
    """See tests/guests/small_stack.c."""
    program = runner.run(guests("small_stack", flavour))
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2, of_bytes=400)
