# SPDX-License-Identifier: Apache-2.0
"""What programs could notice of system calls that go through the library: signals, stacks, children, filters."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize("flavour", ["glibc", "musl-static"])
@pytest.mark.parametrize("when", [[], ["before"]], ids=["afterwards", "before"])
def test_threads_with_one_alternate_stack(when: list[str], flavour: str, runner: Runner, guests: Guests) -> None:
    """They set it when the library is there, or had it when it came."""
    assert runner.run(guests("one_altstack", flavour), *when).stdout == b"ok\n"


@pytest.mark.parametrize("how", ["strict", "list"])
def test_sandbox(how: str, runner: Runner, guests: Guests) -> None:
    program = runner.run(guests("sandbox"), how)
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2)


def test_ends_in_strict_mode(runner: Runner, guests: Guests) -> None:
    """See tests/guests/strict_end.c."""
    lines = runner.run(guests("strict_end")).stdout.decode().splitlines()
    assert lines == ["asks: a 9", "opens:  9", "leaves: a 500", "kills:  9", "kills another:  9", "int80:  9",
                     "beside: ac 700", "first: ac 300", "first of a whole: ac 700",
                     "last: a 9", "two: 0 of 100 wrong", "four: 0 of 25 wrong", "two and exit: 0 of 25 wrong",
                     "main by exit: 0 of 100 wrong", "beside exit: 0 of 100 wrong", "vfork child: 9"]


def test_calls_of_the_vdso_do_not_keep_trapping(shm: Runner, guests: Guests) -> None:
    """Unless the kernel has sealed it (Linux 6.15, CONFIG_MSEAL_SYSTEM_MAPPINGS), which `sl` in smaps tells."""
    program = shm.run(guests("vdso"))
    assert program.stdout == b"ok\n"
    smaps = Path("/proc/self/smaps").read_text().partition("[vdso]")[2].partition("VmFlags:")[2].partition("\n")[0]
    traps = program.report().raw["counters"]["traps"]
    assert traps < 100 if "sl" not in smaps.split() else traps > 30_000


@pytest.mark.parametrize("flavour", ["glibc", "musl-static"])
def test_registers_vectors_and_generated_code(flavour: str, runner: Runner, guests: Guests) -> None:
    """See tests/guests/hard.c."""
    program = runner.run(guests("hard", flavour))
    assert program.stdout == b"ok\n"
    runner.check(program, at_least=2, of_bytes=1000)
