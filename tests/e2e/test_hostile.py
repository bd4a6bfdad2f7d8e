# SPDX-License-Identifier: Apache-2.0
"""A peer that writes garbage into the ring's header loses its connection, and takes nobody with it."""

from __future__ import annotations

import pytest

from sdlib import abi
from tests.guestbuild import Guests
from tests.harness import Runner


@pytest.mark.parametrize("word", ["tail", "head"])
def test_impossible_position(word: str, shm: Runner, guests: Guests) -> None:
    """In both directions, of which one is the peer's to write; of its own words the victim keeps copies."""
    offsets = [str(abi.offsetof("struct sd_seg", "dir", direction, word)) for direction in (0, 1)]
    program = shm.run(guests("hostile"), "word", *offsets)
    assert program.stdout == b"ok\n"
    assert program.report().raw["counters"]["hostile_drops"] >= 1


@pytest.mark.parametrize("seed", range(8))
def test_garbage_everywhere(seed: int, shm: Runner, guests: Guests) -> None:
    program = shm.run(guests("hostile"), "all", str(seed))
    assert program.stdout == b"ok\n"
