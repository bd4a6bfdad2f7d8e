# SPDX-License-Identifier: Apache-2.0
"""Behaviours of tests/differential, between two hosts: the same calls natively, and on mirrored rings."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import pytest

import tests.differential.behaviours  # noqa: F401  registers them
from tests.differential import side
from tests.differential.worlds import BEHAVIOURS
from tests.guestbuild import Guests
from tests.hosts.stage import FarPlace
from tests.hosts.test_again import come_back, lose
from tests.hosts.test_back import BACK_S
from tests.hosts.world import VERBS, World, wait_for

pytestmark = pytest.mark.skipif(VERBS, reason="the same without RDMA shows it, in a hundredth of the time")

ENDS = ("nothing", "half_close", "half_close_killed", "answered_and_gone", "shut_rdwr", "send_to_shut", "close_fin",
        "reset_after_fin", "send_after_own_shutdown")


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """A FIN overtakes the words of two monitors, and theirs are what a program is told by."""
    before, side.Pace.settle_s = side.Pace.settle_s, 0.02
    yield
    side.Pace.settle_s = before


def same(native: FarPlace, far: FarPlace, name: str) -> None:
    """What differs is tried once more: how much fits where depends on the moment, natively as well."""
    for last in (False, True):
        wanted = native.run(BEHAVIOURS[name]).transcript
        got = far.run(BEHAVIOURS[name])
        assert wanted and not wanted[-1].startswith("failed"), wanted[-1:]
        if got.transcript == wanted:
            assert far.rdma(got) >= 2
            return
        lines = "\n".join(difflib.unified_diff(wanted, got.transcript, "native", "far", lineterm="", n=4))
        assert not last, lines


@pytest.mark.parametrize("name", ENDS)
def test_same_as_natively(world: World, guests: Guests, name: str) -> None:
    world.start()
    agent = guests("agent")
    same(FarPlace(world, agent, native=True), FarPlace(world, agent), name)


@pytest.mark.parametrize("name", ["nothing", "close_fin"])
def test_same_after_a_way_back_and_up_again(world: World, guests: Guests, name: str) -> None:
    world.start(back_s=BACK_S, lost_s=300)
    agent = guests("agent")

    def again() -> None:
        known = lose(world)
        wait_for(lambda: not world.a.status()["hosts"]["connections"], "the old rings are forgotten")
        come_back(world, known)

    same(FarPlace(world, agent, native=True), FarPlace(world, agent, again=again), name)
