# SPDX-License-Identifier: Apache-2.0
"""One connection that two monitors mirror (pair.py).

What must hold whatever happens: what one program reads is what the other one wrote, from the first byte, none missing
or doubled; when everybody has been given time, all of it has been read, all is credited, and nobody sleeps who has
something to do.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.hosts.mirror import AGAIN_S
from sdlib import abi
from tests.monitor.pair import RING, Pair, pair

steps = st.lists(st.tuples(st.integers(0, 17), st.integers(1, 1500)), max_size=120)


def in_any_order(**how: Any) -> None:
    @settings(max_examples=150, deadline=None)
    @given(steps)
    def run(actions: list[tuple[int, int]]) -> None:
        with pair(**how) as made:
            for action, size in actions:
                made.step(action, size)
            made.settle()

    run()


@pytest.mark.parametrize("queue_pairs", [False, True], ids=["tcp", "rdma"])
def test_any_order(queue_pairs: bool) -> None:
    in_any_order(queue_pairs=queue_pairs)


def lost_at_every_moment(killed: int | None, **how: Any) -> None:
    """The same exchange, cut once after each of its moves: bytes both ways, a full ring, credits, doorbells."""
    script = [(0, 900), (10, 1), (11, 1), (1, 700), (0, 4000), (3, 2000), (2, 3000), (1, 4000), (0, 3000), (2, 1000)]
    moves = [4, 5, 6, 7, 8, 9, 8, 9, 12, 13, 16, 4, 5, 6, 7, 8, 9, 8, 9, 17, 12, 13, 10, 11]

    def play(made: Pair, until: int) -> int:
        done = 0
        for action, size in script:
            for one in ((action, size), *((move, 1 << 16) for move in moves)):
                if done == until:
                    return done
                made.step(*one)
                done += 1
        return done

    with pair(**how) as whole:
        count = play(whole, -1)
        whole.settle()
    for until in range(count):
        with pair(**how) as made:
            play(made, until)
            made.cut()
            if killed is not None:
                made.sides[killed].make_monitor()
            made.connect()
            made.settle()


anybody_killed = pytest.mark.parametrize("killed", [None, 0, 1], ids=["link", "a-killed", "b-killed"])


@anybody_killed
@pytest.mark.parametrize("queue_pairs", [False, True], ids=["tcp", "rdma"])
def test_loss_at_every_moment(queue_pairs: bool, killed: int | None) -> None:
    lost_at_every_moment(killed, queue_pairs=queue_pairs)


def next_bytes_ring_again(**how: Any) -> None:
    """[B3] of ring/bell.h: who has heard of a doorbell leaves it, and the bytes, to others, and sleeps on."""
    def arrives(made: Pair) -> None:
        for _, number in itertools.product(range(20), (0, 1)):
            made.sides[number].pump()
            made.deliver(number, 1 << 16)
            if made.pipes:
                made.carry(number)

    def ring(made: Pair) -> None:
        for _, number in itertools.product(range(3), (0, 1)):
            made.ring(number)
            arrives(made)

    with pair(**how) as made:
        a, b = made.sides
        a.write(1)
        made.settle()
        b.sleep()
        for unread in (1, 2, 2):
            assert b.arriving < unread
            a.write(1)
            arrives(made)
            ring(made)
            assert b.arriving == unread, "nobody rings for what has come since"
            if not b.hear():  # one of two is eaten
                b.arriving -= 1
                abi.lib.sd_py_bell_eaten(b.program)
                assert b.hear()
        made.settle()
        b.sleep()
        a.write(1)
        arrives(made)
        assert b.hear()
        a.write(1)
        arrives(made)
        ring(made)
        assert b.arriving == 2, "the word says that two are unread: each has to be a byte of its own"
        made.settle()


@pytest.mark.parametrize("queue_pairs", [False, True], ids=["tcp", "rdma"])
def test_who_has_heard_is_rung_for_again(queue_pairs: bool) -> None:
    next_bytes_ring_again(queue_pairs=queue_pairs)


def the_end_comes_last(**how: Any) -> None:
    """What one program is told of the end is told behind all that the other one has written."""
    with pair(**how) as made:
        a, b = made.sides
        made.settle()
        a.write(RING)
        b.copy._seg.settle_ask = 1
        for _, number in itertools.product(range(200), (0, 1)):
            a.pump()
            b.pump()
            made.deliver(number, 1 << 16)
            made.pipes[number].deliver()
            if b.copy._seg.settled:
                assert b.copy.landed() == RING, "said before the bytes were there"
        assert b.copy._seg.settled == 1


def test_the_end_comes_behind_all_bytes() -> None:
    the_end_comes_last(queue_pairs=True)


def test_what_program_or_supervisor_have_taken_is_theirs() -> None:
    """[H4]: after a mark no tail is published, and no head while the supervisor takes the ring's bytes to TCP."""
    with pair(queue_pairs=False) as made:
        a, b = made.sides
        a.write(100)
        b.write(100)
        made.settle()
        a.copy._seg.frozen, b.copy._seg.pumped = 1, abi.const.SD_PUMPED_BYTES
        a.write(50)
        b.write(70)
        for _, number in itertools.product(range(20), (0, 1)):
            a.pump()
            b.pump()
            made.deliver(number, 1 << 16)
            a.take(RING)
            b.take(RING)
        assert a.copy.landed() == 100, "a tail behind the mark"
        assert b.read == a.wrote and a.copy.credited() == 150
        assert b.copy.credited() == 100, "a head that is the supervisor's"
        assert a.copy.frozen and b.copy.pumped_for


def test_both_know_that_the_other_has_heard_of_the_switch() -> None:
    with pair(queue_pairs=False) as made:
        a, b = made.sides
        for number in (0, 1):  # RESUME
            made.deliver(number, 1 << 16)
        assert a.copy.may_leave, "nothing was said yet, so nobody waits for a mark"
        a.pump()
        assert not a.copy.may_leave
        made.deliver(0, 1 << 16)
        assert not a.copy.may_leave
        b.pump()
        made.deliver(1, 1 << 16)
        a.pump()
        b.pump()
        made.deliver(1, 1 << 16)
        assert a.copy.may_leave


def test_a_lost_doorbell_is_asked_for_again() -> None:
    """It counts as rung over there and never comes: its program sleeps for a second, and not for ever."""
    with pair(queue_pairs=False) as made:
        a, b = made.sides
        made.settle()
        a.write(1)
        made.settle()
        b.sleep()
        assert b.sleeps and not b.mirror.ring_again(0.0)
        a.write(100)
        made.give_time(idle=False, lost=True)
        asked = b.mirror.asked
        assert b.sleeps and b.copy.unheard and not a.mirror.owes_bell and a.copy.bells()[1] == asked
        assert not b.mirror.ring_again(10.0) and not b.mirror.ring_again(10.0 + AGAIN_S / 2)
        assert b.mirror.ring_again(10.0 + AGAIN_S)
        made.give_time(idle=False, lost=True)
        assert not b.mirror.ring_again(10.0 + 2 * AGAIN_S), "the next one after twice as long"
        assert b.mirror.ring_again(10.0 + 3 * AGAIN_S) and b.mirror.asked == asked + 2
        b.mirror.ends = True
        assert not b.mirror.ring_again(10.0 + 100 * AGAIN_S), "behind the end nothing may be said"
        b.mirror.ends = False
        made.settle()
        assert not b.sleeps and b.read == a.wrote and not b.mirror.ring_again(100.0)


def test_a_doorbell_too_many_is_eaten_as_any() -> None:
    with pair(queue_pairs=False) as made:
        a, b = made.sides
        made.settle()
        a.write(1)
        made.settle()
        for _ in range(3):
            b.sleep()
            a.write(10)
            made.give_time(idle=False, late=True)
            assert b.arriving == 1 and b.mirror.ring_again(0.0) is b.mirror.ring_again(0.0) is False
            assert b.mirror.ring_again(AGAIN_S)
            made.give_time(idle=False, late=True)
            assert b.arriving == 2
            made.settle()
            assert b.read == a.wrote
