# SPDX-License-Identifier: Apache-2.0
"""What one thread does to a connection while another one sends and a third one receives (tests/guests/disturbed.c)."""

from __future__ import annotations

import pytest

from tests.guestbuild import Guests
from tests.harness import Runner

SEEDS = range(1, 9)


@pytest.mark.parametrize("kinds", [("0", "8"), ("0", "11"), ("0", "12")], ids="-".join)
def test_the_stream_stays_as_it_is(native: Runner, shm: Runner, guests: Guests, kinds: tuple[str, str]) -> None:
    """Names, flags, options, limits, questions, sets, forks, messages, signals and thieves: every byte at both ends."""
    guest = guests("disturbed")
    carried = 0
    for seed in SEEDS:
        words = (str(seed), "2", *kinds)
        assert native.run(guest, *words).ok().stdout == b"done\n"
        program = shm.run(guest, *words).ok()
        assert program.stdout == b"done\n"
        carried += program.report().shm_bytes
    assert carried > 4 << 20  # of 64 MiB: some of that moves a connection back, or keeps it on TCP
