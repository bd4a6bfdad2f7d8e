# SPDX-License-Identifier: Apache-2.0
"""The C loop without a device: doorbells and credits, which it asks for, says and sends by itself."""

from __future__ import annotations

import os

import pytest

from monitor.hosts import frames
from monitor.hosts.frames import BadPeer
from monitor.hosts.mirror import BELLS_MOST
from sdlib import abi
from sdtrace.segments import cookie_of
from tests.monitor.pair import RING
from tests.monitor.queues import CPair, CSide, ready

pytestmark = pytest.mark.usefixtures("fake_libibverbs")


def test_c_asks_for_doorbells_by_itself() -> None:
    made = ready()
    try:
        a, b = made.sides
        a.write(1)  # the first doorbell is due with the first byte
        made.settle()
        b.sleep()
        assert b.sleeps
        a.mirror.place(0, 0, 0)
        before, bells = int(b.port.status()["sends"]), int(b.port.status()["bells"])
        a.write(10)
        a.device.poll()
        made.pipes[0].deliver()
        assert int(b.port.status()["bells"]) == bells + 1 and int(b.port.status()["sends"]) == before + 1
        assert not a.mirror.owes_bell
        made.pipes[1].deliver()
        assert a.mirror.owes_bell
        asked = a.mirror.wanted
        b.mirror.pump(b.port, idle=True)
        made.settle()
        assert a.mirror.wanted == asked and b.read == a.wrote, "the next words say the same"
    finally:
        made.close()


def rings(side: CSide) -> int:
    return int(side.port.status()["rings"])


def sleeper(made: CPair) -> tuple[CSide, CSide]:
    """The program of the second sleeps, and the first one's monitor knows where its own program's socket is."""
    a, b = made.sides
    a.write(1)
    made.settle()
    a.tell_place()
    b.sleep()
    assert b.sleeps
    return a, b


def test_who_is_asked_for_a_doorbell_rings_itself() -> None:
    """No supervisor is asked, and no record is said."""
    made = ready()
    try:
        a, b = sleeper(made)
        before, sends = rings(a), int(a.port.status()["sends"])
        a.write(10)
        a.poll()
        made.pipes[0].deliver()
        made.pipes[1].deliver()
        assert rings(a) == before + 1 and not a.mirror.owes_bell and b.arriving == 1
        assert int(a.port.status()["sends"]) == sends
        assert a.copy.bells()[1] == a.mirror.wanted == b.mirror.asked
        b.take(100)
        assert b.read == a.wrote
    finally:
        made.close()


@pytest.mark.parametrize("why", ["unknown", "other socket", "nobody", "supervisor at it", "leaving"])
def test_a_doorbell_that_cannot_be_rung_here_is_the_supervisors(why: str) -> None:
    """But for a program that leaves: then none is due."""
    made = ready()
    try:
        a, b = sleeper(made)
        match why:
            case "unknown":
                a.mirror.place(0, 0, 0)
            case "other socket":
                a.mirror.place(os.getpid(), a.kernel.fileno(), cookie_of(a.own))
            case "nobody":
                a.mirror.place((1 << 22) + 1, a.own.fileno(), cookie_of(a.own))
            case "supervisor at it":
                a.mirror.ringing = 1
            case "leaving":
                a.copy._seg.dir[0].prod_hint |= abi.const.SD_HINT_LEAVING
        a.write(10)
        a.poll()
        made.pipes[0].deliver()
        made.pipes[1].deliver()
        assert b.arriving == 0 and not a.copy._seg.ringing
        assert a.mirror.owes_bell is (why != "leaving")
    finally:
        made.close()


def test_a_doorbell_does_not_wait_for_words_that_python_has_not_heard() -> None:
    """They say that there were fewer, which is old by then."""
    made = ready()
    try:
        a, b = sleeper(made)
        b.port.send(frames.Words(a.mirror.slot, 0, 0, 1, 0, 0, b.mirror.asked, b.copy.head(), 101, 1))
        b.port.flush()
        a.write(10)
        a.poll()
        made.pipes[0].deliver()
        for _ in range(3):
            made.pipes[1].step()
        before = rings(a)
        a.poll()
        assert rings(a) == before + 1 and b.arriving == 1
        assert not a.mirror.owes_bell and a.mirror.wanted == b.mirror.asked
    finally:
        made.close()


def test_credits_of_much_are_said_and_heard_by_c() -> None:
    """And what the words say later is not taken for news, nor for less."""
    made = ready()
    try:
        a, b = made.sides
        a.write(1)
        made.settle()
        a.write(RING // 2)
        a.poll()
        made.pipes[0].deliver()
        b.take(RING)
        b.poll()
        assert int(b.port.status()["credits"]) == 1
        made.pipes[1].deliver()
        assert a.copy.credited() == b.copy.head()
        made.settle()
        assert b.read == a.wrote and a.copy.credited() == b.copy.head()
    finally:
        made.close()


def test_a_credit_for_what_was_never_sent_is_a_lie() -> None:
    made = ready()
    try:
        a, b = made.sides
        b.port.send(frames.Credit(a.mirror.slot, 1))
        b.port.flush()
        made.pipes[1].step()
        with pytest.raises(BadPeer, match="never sent"):
            a.device.poll()
        assert a.copy.credited() == 0
    finally:
        made.close()


def asks_with_words(made: CPair) -> None:
    """The second one sleeps, and its queue is full when bytes come: it asks by words, and reads them."""
    a, b = made.sides
    assert b.port is not None
    for _ in range(30):
        b.write(30)
        b.device.poll()
    assert not b.port.room()
    a.write(10)
    a.device.poll()
    made.pipes[0].deliver()
    assert b.mirror.asked != int(b.mirror.state.asked_said)
    made.settle()
    assert b.read == a.wrote


def test_a_bell_that_has_no_room_is_asked_for_with_words() -> None:
    made = ready()
    try:
        a, b = made.sides
        a.write(1)
        made.settle()
        b.sleep()
        asks_with_words(made)
    finally:
        made.close()


def test_a_write_that_nobody_has_posted_asks_for_nothing() -> None:
    """Nor is the next doorbell, which is asked for with words, taken for one that was rung already."""
    made = ready()
    try:
        a, b = sleeper(made)
        before, number = rings(a), int(b.port.status()["writes"] + b.port.status()["sends"]) - 1
        made.pipes[1].stray(a.mirror.slot, number)
        a.poll()
        assert rings(a) == before and not a.mirror.owes_bell and b.arriving == 0
        assert a.port.status()["strays"] == 1
        asks_with_words(made)
    finally:
        made.close()


def test_a_program_that_has_bells_rung_without_end_harms_itself_only() -> None:
    """It puts back the word that says that one is under way; its side is the C loop's."""
    made = ready()
    try:
        a, b = made.sides
        a.write(1)
        made.settle()
        a.mirror.place(0, 0, 0)  # else each is sent, as it is asked for
        for _ in range(6):
            b.copy._seg.dir[0].bell, b.copy._seg.dir[0].rx_armed = 0, 1
            a.write(1)
            a.device.poll()
            made.pipes[0].deliver()
            made.pipes[1].deliver()
        assert a.link is not None and a.mirror.wanted == b.mirror.asked
        for _ in range(10):
            made.ring(0)
        assert b.arriving == BELLS_MOST and not a.mirror.owes_bell
    finally:
        made.close()
