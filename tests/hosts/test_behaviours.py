# SPDX-License-Identifier: Apache-2.0
"""Behaviours of tests/differential, between two hosts: the same calls natively, and on mirrored rings."""

from __future__ import annotations

import difflib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.differential import side
from tests.differential.behaviours.corked import empty, promptly
from tests.differential.linux import DONTWAIT, F_SETFL, F_SETOWN, MORE, O_ASYNC, TCP_CORK
from tests.differential.worlds import BEHAVIOURS, Behaviour, Outcome, Stage
from tests.guestbuild import Guests
from tests.hosts.stage import FarPlace
from tests.hosts.test_again import come_back, lose
from tests.hosts.test_back import BACK_S
from tests.hosts.world import VERBS, World, wait_for

pytestmark = pytest.mark.skipif(VERBS, reason="the same without RDMA shows it, in a hundredth of the time")

ENDS = ("nothing", "half_close", "half_close_killed", "answered_and_gone", "shut_rd", "shut_rdwr", "shutdown_in_two",
        "send_to_shut", "close_fin", "reset_after_fin", "send_after_own_shutdown", "recv_after_own_shutdown")
HELD_UP_S = 0.3
SETTLES_S = (0.02, 0.02, 0.2, 0.5)
BELLS = ("edge_in_company", "edge_back", "peek_offset", "oob_inline", "sigio")
CORKS = ("cork", "cork_long", "cork_pushed", "cork_closed")


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """A FIN overtakes the words of two monitors, and theirs are what a program is told by."""
    before, side.Pace.settle_s = side.Pace.settle_s, SETTLES_S[0]
    yield
    side.Pace.settle_s = before


def same(native: FarPlace, far: FarPlace, name: str) -> Outcome:
    """What differs is tried again: how much fits where depends on the moment, natively as well; and how long two
    monitors take for a word depends on what else the machine does, so each time they get more of it."""
    for settle_s in SETTLES_S:
        side.Pace.settle_s = settle_s
        wanted = native.run(BEHAVIOURS[name]).transcript
        got = far.run(BEHAVIOURS[name])
        assert wanted and not wanted[-1].startswith("failed"), wanted[-1:]
        if got.transcript == wanted:
            return got
        lines = "\n".join(difflib.unified_diff(wanted, got.transcript, "native", "far", lineterm="", n=4))
    raise AssertionError(lines)


@pytest.mark.parametrize("names", [ENDS, BELLS], ids=["ends", "bells"])
def test_same_as_natively(world: World, guests: Guests, names: tuple[str, ...]) -> None:
    world.start()
    agent = guests("agent")
    native, far = FarPlace(world, agent, native=True), FarPlace(world, agent)
    outcomes = [same(native, far, name) for name in names]
    assert far.rdma(outcomes[-1]) >= 2 * len(names)


def test_a_signal_comes_for_the_first_byte_however_late_the_other_host_hears(world: World, guests: Guests) -> None:
    """O_ASYNC: the connection has to be on TCP before fcntl returns."""
    world.start()
    agent, monitor = guests("agent"), world.a.monitor_pid()

    def held_up() -> None:
        os.kill(monitor, signal.SIGSTOP)
        threading.Timer(HELD_UP_S, os.kill, (monitor, signal.SIGCONT)).start()

    native, far = FarPlace(world, agent, native=True), FarPlace(world, agent)
    wanted = native.run(of(lambda stage: signalled(stage, lambda: None)))
    got = far.run(of(lambda stage: signalled(stage, held_up)))
    assert got.transcript == wanted.transcript
    assert far.rdma(got) >= 2


def signalled(stage: Stage, first: Callable[[], None]) -> None:
    """One message, for which nobody sleeps: a doorbell would do."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.handle(signal.SIGIO)
    a.sys("fcntl", x, F_SETOWN, a.link.pid, text=f"{x}, F_SETOWN, self")
    first()
    a.fcntl(x, F_SETFL, 2 | O_ASYNC)
    b.send(y, b"abc")
    time.sleep(HELD_UP_S + 0.1)
    a.signals(signal.SIGIO)
    a.recv(x, 10)


@pytest.mark.parametrize("world", ["device", "tcp"], indirect=True)
def test_corks_hold_back_what_they_do_natively(world: World, guests: Guests) -> None:
    world.start()
    agent = guests("agent")
    native, far = FarPlace(world, agent, native=True), FarPlace(world, agent)
    outcomes = [same(native, far, name) for name in CORKS]
    said = far.run(of(more)).transcript
    assert said[-6:] == [
        "a: sendto(4, b'abc', 0x8000) = 3", "b: recvfrom(3, 10, 0x40) = EAGAIN", "a: sendto(4, b'def', 0x0) = 3",
        "b: read in all b'abcdef'",
        "a: sendto(4, b'no more comes', 0x8000) = 13", "b: recvfrom(3, 100, 0x0) = 13 b'no more comes'",
    ]  # fmt: skip
    assert all(far.rdma(got) >= 2 for got in outcomes)


def more(stage: Stage) -> None:
    """MSG_MORE: with what follows, or when that has not come for a while. Natively any ACK that comes lets it go."""
    a, b = stage.a, stage.b
    x, y = stage.connection(nodelay=False)

    def look() -> None:
        a.send(x, b"abc", MORE)
        side.settle()
        b.recv(y, 10, DONTWAIT)
        a.send(x, b"def")

    promptly(stage, look, lambda _: empty(b, y))
    b.recv_all(y, 6)
    waits = b.start.recv(y, 100).asleep()
    a.send(x, b"no more comes", MORE)
    waits.end()


def held(stage: Stage, happens: Callable[[], None]) -> None:
    """A sender that says nothing more: what it holds back arrives all the same, once."""
    a, b = stage.a, stage.b
    x, y = stage.connection(nodelay=False)
    a.setsockopt(x, 6, TCP_CORK, 1)
    for data in (b"held", b"and held"):
        waits = b.start.recv(y, 100).asleep()
        a.send(x, data)
        happens()
        waits.end()
    a.send(x, b"the last")
    a.setsockopt(x, 6, TCP_CORK, 0)
    b.recv_all(y, 8)


@pytest.mark.parametrize("what", ["monitor", "link", "lost"])
def test_held_bytes_arrive_whatever_happens(world: World, guests: Guests, what: str) -> None:
    world.start(back_s=BACK_S if what == "lost" else 60, lost_s=300, dead_s=1.5 if what == "link" else 60)
    agent = guests("agent")

    def happens() -> None:
        if what == "link":
            world.cut(world.a, True)
            wait_for(lambda: not world.a.peer("b")["up"] and not world.b.peer("a")["up"], "both have noticed")
            world.cut(world.a, False)
        elif what == "lost":
            lose(world)
        else:
            os.kill(world.a.monitor_pid(), signal.SIGKILL)

    native, far = FarPlace(world, agent, native=True), FarPlace(world, agent)
    wanted = native.run(of(lambda stage: held(stage, lambda: None)))
    got = far.run(of(lambda stage: held(stage, happens)))
    assert got.transcript == wanted.transcript
    assert far.rdma(got) >= 2


def of(run: Callable[[Stage], None]) -> Behaviour:
    """One that is of this file only."""
    return Behaviour("", run, (), False, {}, ())


@pytest.mark.parametrize("name", ["nothing", "close_fin"])
def test_same_after_a_way_back_and_up_again(world: World, guests: Guests, name: str) -> None:
    world.start(back_s=BACK_S, lost_s=300)
    agent = guests("agent")

    def again() -> None:
        known = lose(world)
        world.forgotten()
        come_back(world, known)

    far = FarPlace(world, agent, again=again)
    assert far.rdma(same(FarPlace(world, agent, native=True), far, name)) >= 2
