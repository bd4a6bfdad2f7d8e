# SPDX-License-Identifier: Apache-2.0
"""The C loop (sdlib/src/verbs, monitor/hosts/loop.py) without a device: what test_mirror.py shows of the Python one.

Below it is a libibverbs that is memory of this process (tests/hosted/fakeverbs.c), whose requests the test carries out
one after the other.  Queues are short, so that they are full most of the time.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from monitor.hosts import discover, frames, loop
from monitor.hosts.frames import BadPeer
from monitor.hosts.link import Link
from monitor.hosts.mirror import BELLS_MOST
from sdlib import abi
from sdtrace.segments import cookie_of
from tests.guestbuild import C_FLAGS
from tests.harness import ROOT
from tests.monitor.pair import RING, Pair, Side, sealers
from tests.monitor.test_mirror import (
    anybody_killed,
    in_any_order,
    lost_at_every_moment,
    next_bytes_ring_again,
    the_end_comes_last,
)

FOUND = discover.Found("fake", 1, 0, bytes(16), 3, 64, 8, 14, 6)
"""Inline size and depth matter."""


@pytest.fixture(scope="module", autouse=True)
def _fake(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In the place of libibverbs: whoever opens one of that name in this process gets it."""
    path = tmp_path_factory.mktemp("fake") / "libibverbs.so.1"
    source = ROOT / "tests" / "hosted" / "fakeverbs.c"
    subprocess.run(["gcc", *C_FLAGS, "-shared", "-fPIC", "-Wl,-soname,libibverbs.so.1", "-o", path, source], check=True)
    Fake.library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


class Fake:
    """The library."""

    library: ctypes.CDLL


GREETING = abi.ffi.sizeof("struct sd_mark")


class Contact:
    """What a queue pair knows of its conversation."""

    def __init__(self, side: CSide) -> None:
        self._side = side
        self.peer = SimpleNamespace(name="x")

    def guard(self, step: Callable[[Link], None]) -> None:
        if self._side.link is not None:
            step(self._side.link)


class CSide(Side):
    """A host whose monitor has the C loop."""

    def __init__(self, number: int, seed: int) -> None:
        self.device = loop.Device(FOUND)
        self.port: loop.QueuePair | None = None
        self.woken: list[int] = []
        self.peer: CSide
        self.own, self.kernel = socket.socketpair()
        self.kernel.setblocking(False)
        super().__init__(number, seed)

    def pump(self, idle: bool = True) -> bool:
        return not self.dozing and self.poll() | super().pump(idle)

    def poll(self) -> bool:
        """Its loop looks. The doorbells that it sends are at the other program's kernel."""
        found = self.device.poll()
        with suppress(BlockingIOError):
            data = self.kernel.recv(4096)
            self.peer.arriving += len(data) if not data[0] else len(data) + 1 - GREETING
        return found

    def tell_place(self) -> None:
        """Its monitor hears where the program's socket is."""
        self.mirror.place(os.getpid(), self.own.fileno(), cookie_of(self.own))

    def close(self) -> None:
        super().close()
        self.own.close()
        self.kernel.close()
        abi.lib.sd_device_close(self.device.handle)


class Wire:
    """One direction of a queue pair."""

    def __init__(self, near: CSide, far: CSide) -> None:
        self._sides = (near, far)
        assert near.port is not None
        self._number = near.port.number

    @property
    def operations(self) -> int:
        return int(Fake.library.fake_waiting(self._number))

    def step(self) -> int:
        return int(Fake.library.fake_step(self._number))

    def deliver(self) -> None:
        self.step()
        for side in self._sides:
            side.poll()


class CPair(Pair):
    """Two of them."""

    sides: tuple[CSide, CSide]
    pipes: list[Wire]

    def __init__(self, seed: int = 1) -> None:
        super().__init__(queue_pairs=True, seed=seed)

    def make_sides(self, seed: int) -> tuple[CSide, CSide]:
        return CSide(0, seed), CSide(1, seed + 1)

    def connect(self) -> None:
        a, b = self.sides
        for side, sealer in zip(self.sides, sealers(), strict=True):
            contact: Any = Contact(side)
            side.port = side.device.port(contact)
            side.link = Link("x", sealer, side.mirrors, side.by_id, side.port, lambda record: None, side.woken.append)
        self.pipes = [Wire(a, b), Wire(b, a)]
        a.peer, b.peer = b, a

    def ring(self, number: int, *, lost: bool = False) -> None:
        super().ring(number, lost=lost)
        self.sides[number].tell_place()


def ready() -> CPair:
    """Both directions go by RDMA, and everything is said."""
    made = CPair()
    made.settle()
    return made


def test_any_order() -> None:
    in_any_order(kind=CPair)


@anybody_killed
def test_loss_at_every_moment(killed: int | None) -> None:
    lost_at_every_moment(killed, kind=CPair)


def test_who_has_heard_is_rung_for_again() -> None:
    next_bytes_ring_again(kind=CPair)


def test_the_end_comes_behind_all_bytes() -> None:
    the_end_comes_last(kind=CPair)


def test_bytes_are_carried_by_c_and_not_posted_without_room() -> None:
    made = ready()
    try:
        a, b = made.sides
        assert a.port is not None
        for _ in range(100):
            a.write(30)
            a.device.poll()
        status = a.port.status()
        assert status["under_way"] == status["depth"] - 4, "four are left for what has to be said"
        assert not made.pipes[1].operations
        made.settle()
        assert a.mirror.bytes_out == b.mirror.bytes_in == 3000
        assert a.port.status()["writes"] < 100, "what is adjacent goes together"
    finally:
        made.close()


def test_a_turn_looks_at_active_connections_only() -> None:
    """A thousand that nobody watches cost none; one of them is watched from its first byte on."""
    made = ready()
    try:
        a, b = made.sides
        assert b.port is not None
        idle: list[Any] = []
        for slot in range(100, 1100):
            state: Any = abi.ffi.new("struct sd_mirrored *")
            state.copy, state.ring_bytes, state.slot, state.live = b.copy.pointer, RING, slot, 1
            assert abi.lib.sd_queue_carry(b.port._queue, state) == 0
            idle.append(state)
        b.mirror.watch(False)

        def looks() -> int:
            return int(b.device.status()["looks"])

        b.woken.clear()
        before = looks()
        for _ in range(50):
            b.device.poll()
        assert looks() == before
        b.write(5)
        b.device.poll()
        assert not made.pipes[1].operations, "its program would have said so"
        a.write(10)
        a.device.poll()
        made.pipes[0].step()
        b.device.poll()
        assert looks() == before + 1 and b.woken == [b.mirror.slot]
        made.settle()
        for state in idle:
            abi.lib.sd_queue_drop(b.port._queue, state.slot)
    finally:
        made.close()


def test_c_asks_for_doorbells_by_itself() -> None:
    made = ready()
    try:
        a, b = made.sides
        assert b.port is not None
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
    assert side.port is not None
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
        assert a.port is not None
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
        assert b.port is not None
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
        assert b.port is not None
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
        assert b.port is not None
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
        assert b.port is not None
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
        assert a.port is not None and b.port is not None
        before, number = rings(a), int(b.port.status()["writes"] + b.port.status()["sends"]) - 1
        assert Fake.library.fake_stray(b.port.number, a.mirror.slot << 8 | number) == 0
        a.poll()
        assert rings(a) == before and not a.mirror.owes_bell and b.arriving == 0
        assert a.port.status()["strays"] == 1
        asks_with_words(made)
    finally:
        made.close()


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_device_does_twice_counts_once(count: int) -> None:
    """The last requests again, in order, as Soft RoCE may: bytes, credits, bells and words."""
    made = ready()
    try:
        a, b = made.sides
        assert a.port is not None and b.port is not None
        for number in range(40):
            for side in (a, b):
                side.write(1 + number)
                side.pump()
            for wire, side in zip(made.pipes, (b, a), strict=True):
                while wire.operations:
                    assert wire.step() == 1
                    side.poll()
                assert Fake.library.fake_again(wire._number, count) == 0
                side.poll()
                side.take(RING)
        made.settle()
        assert b.read == a.wrote and a.read == b.wrote and len(a.read) == 820
        assert a.port.status()["strays"] == b.port.status()["strays"] == 40 * count
    finally:
        made.close()


def test_a_request_that_is_missing_is_the_end_of_the_link() -> None:
    made = ready()
    try:
        a, b = made.sides
        assert a.port is not None
        a.write(10)
        a.device.poll()
        sent = int(a.port.status()["writes"] + a.port.status()["sends"])
        assert Fake.library.fake_stray(a.port.number, b.mirror.slot << 8 | sent) == 0
        with pytest.raises(loop.VerbsError, match="missing"):
            b.device.poll()
    finally:
        made.close()


def test_a_completion_wakes_who_has_armed() -> None:
    made = ready()
    try:
        a, b = made.sides

        def awake() -> bool:
            return bool(select.select([b.device], [], [], 0)[0])

        a.write(10)
        a.device.poll()
        made.pipes[0].step()
        assert not awake(), "nobody has asked for it"
        b.device.poll()
        b.device.arm()
        assert not awake()
        a.write(10)
        a.device.poll()
        made.pipes[0].step()
        assert awake()
        b.device.arm()
        assert not awake(), "the event is taken"
        made.settle()
    finally:
        made.close()


def test_more_than_the_ring_holds_is_a_lie() -> None:
    made = ready()
    try:
        a, b = made.sides
        assert a.port is not None
        for _ in range(2):
            assert abi.lib.sd_queue_write(a.port._queue, a.mirror.state, 0, 0, RING) == 0
            assert made.pipes[0].step() == 1
        with pytest.raises(BadPeer, match="more bytes"):
            b.device.poll()
        assert b.copy.landed() == RING
    finally:
        made.close()


@pytest.mark.parametrize("by", [-1, -4096, RING])
def test_no_other_memory_can_be_written(by: int) -> None:
    """The words of a copy, the ring that the program there writes, and what is behind."""
    made = ready()
    try:
        a, b = made.sides
        before = bytes(b.copy.memory)
        a.mirror.state.far_address += by
        a.write(100)
        a.device.poll()
        assert made.pipes[0].step() == -1
        assert bytes(b.copy.memory) == before
        with pytest.raises(loop.VerbsError):
            a.device.poll()
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


def test_a_program_that_writes_nonsense_harms_itself_only() -> None:
    made = ready()
    try:
        a, b = made.sides
        a.copy._seg.dir[0].tail = RING + 1
        a.device.poll()
        assert a.mirror.broken and not made.pipes[0].operations
        b.write(50)
        for _ in range(5):
            b.pump()
            made.pipes[1].deliver()
        assert a.copy.landed() == 50, "the link lives"
    finally:
        made.close()


def test_a_program_that_lingers_does_not_hold_the_loop_up(tmp_path: Path) -> None:
    """Its last descriptor may be the one that a doorbell was sent on."""
    program = tmp_path / "linger"
    copy = ROOT / "sdlib" / "src" / "py" / "copy.c"
    options = ["-DSD_HOSTED=1", f"-I{ROOT / 'sdlib/include'}", f"-I{ROOT / 'sdlib/src'}"]
    subprocess.run(["gcc", "-std=gnu11", "-O1", *options, "-o", program, ROOT / "tests/hosted/linger.c", copy,
                    ROOT / "sdlib/src/ring/bell.c", ROOT / "sdlib/src/ring/switch.c"], check=True)
    waited = int(subprocess.run([program], check=True, stdout=subprocess.PIPE, timeout=60).stdout)
    assert 10 <= waited < 5000, waited
