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
