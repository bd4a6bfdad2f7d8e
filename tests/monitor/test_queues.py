# SPDX-License-Identifier: Apache-2.0
"""Queue pairs, without a device: what test_mirror.py shows of the protocol, of the loop in C and of the one in Python.

And what a device may do: bring a request twice, or none; refuse one.
"""

from __future__ import annotations

import pytest

from monitor.hosts.frames import BadPeer
from sdlib.wire.ready import readable
from tests.monitor.pair import RING
from tests.monitor.queues import CPair, PyPair, QueuePair, ready
from tests.monitor.support import descriptors_open
from tests.monitor.test_mirror import (
    anybody_killed,
    in_any_order,
    lost_at_every_moment,
    next_bytes_ring_again,
    the_end_comes_last,
)

pytestmark = [pytest.mark.usefixtures("fake_libibverbs"),
              pytest.mark.parametrize("kind", [CPair, PyPair], ids=["c", "python"])]


def test_any_order(kind: type[QueuePair]) -> None:
    in_any_order(kind=kind)


@anybody_killed
def test_loss_at_every_moment(killed: int | None, kind: type[QueuePair]) -> None:
    lost_at_every_moment(killed, kind=kind)


def test_who_has_heard_is_rung_for_again(kind: type[QueuePair]) -> None:
    next_bytes_ring_again(kind=kind)


def test_the_end_comes_behind_all_bytes(kind: type[QueuePair]) -> None:
    the_end_comes_last(kind=kind)


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_device_does_twice_counts_once(count: int, kind: type[QueuePair]) -> None:
    """The last requests again, in order, as Soft RoCE may: bytes, credits, bells and words."""
    made = ready(kind)
    try:
        a, b = made.sides
        for number in range(40):
            for side in (a, b):
                side.write(1 + number)
                side.pump()
            for wire, side in zip(made.pipes, (b, a), strict=True):
                while wire.operations:
                    assert wire.step() == 1
                    side.poll()
                wire.again(count)
                side.poll()
                side.take(RING)
        made.settle()
        assert b.read == a.wrote and a.read == b.wrote and len(a.read) == 820
        assert a.port.status()["strays"] == b.port.status()["strays"] == 40 * count
    finally:
        made.close()


def test_a_request_that_is_missing_is_the_end_of_the_link(kind: type[QueuePair]) -> None:
    made = ready(kind)
    try:
        a, b = made.sides
        a.write(10)
        a.pump()
        sent = int(a.port.status()["writes"] + a.port.status()["sends"])
        made.pipes[0].stray(b.mirror.slot, sent)
        with pytest.raises(OSError, match="missing"):
            b.device.poll()
    finally:
        made.close()


def test_a_completion_wakes_who_has_armed(kind: type[QueuePair]) -> None:
    made = ready(kind)
    try:
        a, b = made.sides

        def awake() -> bool:
            return readable(b.device, 0)

        a.write(10)
        a.pump()
        made.pipes[0].step()
        assert not awake(), "nobody has asked for it"
        b.device.poll()
        b.device.arm()
        assert not awake()
        a.write(10)
        a.pump()
        made.pipes[0].step()
        assert awake()
        b.device.arm()
        assert not awake(), "the event is taken"
        made.settle()
    finally:
        made.close()


def test_a_completion_wakes_whatever_the_number_of_its_descriptor(kind: type[QueuePair]) -> None:
    """select(2) refuses those above 1023."""
    with descriptors_open(1100):
        test_a_completion_wakes_who_has_armed(kind)


def test_more_than_the_ring_holds_is_a_lie(kind: type[QueuePair]) -> None:
    made = ready(kind)
    try:
        a, b = made.sides
        for _ in range(2):
            a.port.write(a.mirror, 0, 0, RING)
            assert made.pipes[0].step() == 1
        with pytest.raises(BadPeer, match="more bytes"):
            b.device.poll()
        assert b.copy.landed() == RING
    finally:
        made.close()


@pytest.mark.parametrize("by", [-1, -4096, RING])
def test_no_other_memory_can_be_written(by: int, kind: type[QueuePair]) -> None:
    """The words of a copy, the ring that the program there writes, and what is behind."""
    made = ready(kind)
    try:
        a, b = made.sides
        before = bytes(b.copy.memory)
        a.mirror.state.far_address += by
        a.write(100)
        a.pump()
        assert made.pipes[0].step() == -1
        assert bytes(b.copy.memory) == before
        with pytest.raises(OSError):
            a.device.poll()
    finally:
        made.close()
