# SPDX-License-Identifier: Apache-2.0
"""A process ends while one of its threads sends all the time (tests/guests/ending.c)."""

from __future__ import annotations

import pytest

from tests.guestbuild import Guests
from tests.harness import Runner, assert_shm


@pytest.mark.parametrize("how", ["shutdown", "exit", "exec", "kill", "fork"])
def test_what_was_sent_arrives(native: Runner, shm: Runner, guests: Guests, how: str) -> None:
    """Every byte whose send has returned, in order, then the end, however the sender went."""
    guest = guests("ending")
    assert native.run(guest, how).ok().stdout == b"done\n"
    program = shm.run(guest, how).ok()
    assert program.stdout == b"done\n"
    assert_shm(program.report(), at_least=100, of_bytes=5000)
