# SPDX-License-Identifier: Apache-2.0
"""Two monitors that mirror one connection, without a device, a socket or a clock.

Both programs are the ring's own code on real copies; the monitors are real links; between them is a wire that the test
moves on piece by piece, and cuts.  What must hold whatever happens: what one program reads is what the other one wrote,
from the first byte, none missing or doubled; when everybody has been given time, all of it has been read, all is
credited, and nobody sleeps who has something to do.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import segment
from monitor.hosts import frames
from monitor.hosts.auth import Handshake, Refused, Sealer
from monitor.hosts.copy import Copy
from monitor.hosts.frames import BadPeer
from monitor.hosts.link import Link
from monitor.hosts.mirror import Mirror
from sdlib import abi
from sdlib.wire.segment import segment_bytes

RING = 4096
FAR_ID = bytes(range(16))
KEY = b"sixteen bytes and more"


def sealers() -> tuple[Sealer, Sealer]:
    """Of two sides that have shaken hands."""
    a, b = Handshake("a", lambda _: KEY, "b"), Handshake("b", lambda _: KEY, None)
    to_b, to_a = a.begin(), b""
    while a.sealer is None or b.sealer is None:
        to_a, to_b = b.feed(to_b), b""
        to_b = a.feed(to_a)
    return a.sealer, b.sealer


@dataclass
class Pipe:
    """One direction of a queue pair that the test moves: operations in order, lost together."""

    far: Side
    near: Side
    operations: deque[tuple[Mirror, int, bytes] | bytes] = field(default_factory=deque)
    depth: int = 6

    def describe(self) -> frames.Port:
        return frames.Port(1, 2, 3, self.depth, bytes(16))

    def connect(self, far: frames.Port) -> None:
        assert far.depth == self.depth

    def live(self) -> None: ...

    def transport(self) -> Pipe:
        return self

    def region(self, mirror: Mirror) -> tuple[int, int]:
        return mirror.copy.ring_at(False), 77

    def room(self) -> bool:
        return len(self.operations) < self.depth

    def write(self, mirror: Mirror, at: int, base: int, size: int) -> None:
        assert mirror.far_rkey == 77
        self.operations.append((mirror, mirror.far_address + at % RING, mirror.copy.bytes_at(at, base, size)))

    def send(self, record: Any) -> None:
        self.operations.append(frames.encode(record))

    def deliver(self) -> None:
        """The next operation arrives. An RDMA WRITE needs nobody over there to write."""
        link = self.far.link
        if not self.operations or link is None:
            return
        operation = self.operations.popleft()
        if isinstance(operation, bytes):
            link.on_message(operation)
        else:
            mirror, place, data = operation
            self.far.copy.memory[place:place + len(data)] = data
            link.on_written(mirror.far_slot, len(data))

    def flush(self) -> bool:
        return False

    def forget(self, mirror: Mirror) -> None: ...

    def status(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Writes may have put their bytes there all the same; nobody was told."""
        for operation in self.operations:
            if not isinstance(operation, bytes):
                _, place, data = operation
                self.far.copy.memory[place:place + len(data)] = data
        self.operations.clear()


class Side:
    """A host: a program, its copy, its monitor."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.memfd = segment.make(RING)
        self.copy = Copy(self.memfd, RING, number)
        self.copy.found(FAR_ID)
        self.program = abi.lib.sd_py_open(self.copy._at, segment_bytes(RING), number)
        self.random = random.Random(seed)
        self.wrote, self.read = bytearray(), bytearray()
        self.arriving = self.eaten = self.naps = 0
        self.sleeps = self.on_ring = self.dozing = False
        self.link: Link | None = None
        self.make_monitor()

    def make_monitor(self) -> None:
        """Also a new one in the place of one that was killed: only what stands in the copy is left."""
        mirror = Mirror(self.copy.far_id(), self.copy, 7 + self.number)
        self.mirrors, self.by_id = {mirror.slot: mirror}, {mirror.far_id: mirror}
        self.mirror = mirror
        mirror.awake()
        mirror.watch(True)
        self.dozing = False

    # ------------------------------------------------------------------ the program

    def write(self, size: int) -> None:
        data = self.random.randbytes(size)
        put = abi.lib.sd_py_put(self.program, data, size)
        assert put >= 0
        self.wrote += data[:put]
        if put and abi.lib.sd_py_data_wanted(self.program):
            self.nudge()

    def take(self, size: int) -> None:
        """As the library receives: it sleeps on TCP at first, then when it has armed, and only a doorbell wakes it."""
        if not self.on_ring:
            if not self.arriving or not abi.lib.sd_py_sw_published(self.program):
                return
            abi.lib.sd_py_sw_arrive(self.program)
            self.on_ring = True
        if self.arriving and abi.lib.sd_py_bell_due(self.program):
            self.arriving -= 1
            self.eaten += 1
            abi.lib.sd_py_bell_eaten(self.program)
            if self.sleeps:
                self.wake()
        if self.sleeps:
            return
        buffer = abi.ffi.new("uint8_t[]", size)
        got = abi.lib.sd_py_take(self.program, buffer, size)
        assert got >= 0
        self.read += bytes(abi.ffi.buffer(buffer, got))
        if got and abi.lib.sd_py_room_wanted(self.program):
            self.nudge()

    def nudge(self) -> None:
        """It has news, and its monitor is armed (sd_far_nudge)."""
        if abi.lib.sd_py_bell_take(self.program):
            self.rouse()

    def sleep(self) -> None:
        """Arms, looks, sleeps."""
        if self.on_ring and not self.sleeps:
            abi.lib.sd_py_rx_arm(self.program)
            if abi.lib.sd_py_readable(self.program) == 0:
                self.sleeps = True
            else:
                abi.lib.sd_py_rx_disarm(self.program)

    def wake(self) -> None:
        self.sleeps = False
        abi.lib.sd_py_rx_disarm(self.program)

    # ------------------------------------------------------------------ the monitor

    def doze(self) -> None:
        """It arms, looks once more, and then sleeps until it is nudged or something arrives."""
        if self.link is None or self.dozing:
            return
        self.mirror.sleep()
        abi.lib.sd_py_membarrier()
        if not self.pump(idle=False) and not self.mirror.behind:
            self.mirror.watch(False)
            self.dozing = True
            self.naps += 1

    def rouse(self) -> None:
        self.dozing = False
        self.mirror.watch(True)

    def pump(self, idle: bool = True) -> bool:
        if self.link is None or self.dozing:
            return False
        busy, broken = self.link.pump([self.mirror], idle=idle)
        assert not broken
        return busy

    def close(self) -> None:
        abi.lib.sd_py_close(self.program)
        self.copy.close()
        os.close(self.memfd)


class Pair:
    """Two sides and what is between them."""

    def __init__(self, *, queue_pairs: bool, seed: int = 1) -> None:
        self.queue_pairs = queue_pairs
        self.sides = self.make_sides(seed)
        self.pipes: Sequence[Any] = []
        for side in self.sides:
            abi.lib.sd_py_attached_say(side.program)
            abi.lib.sd_py_sw_publish(side.program, 100 + side.number)
        self.connect()

    def make_sides(self, seed: int) -> tuple[Side, Side]:
        return Side(0, seed), Side(1, seed + 1)

    def connect(self) -> None:
        a, b = self.sides
        self.pipes = [Pipe(b, a), Pipe(a, b)] if self.queue_pairs else []
        for side, sealer, pipe in zip(self.sides, sealers(), self.pipes or (None, None), strict=True):
            side.link = Link("x", sealer, side.mirrors, side.by_id, pipe, lambda record: None)
            side.rouse()

    def cut(self) -> None:
        """Everything that is under way is lost, on both sides."""
        for side in self.sides:
            if side.link is not None:
                side.link.close()
                side.link = None

    def cut_and_connect(self, killed: Side | None) -> None:
        self.cut()
        if killed is not None:
            killed.make_monitor()
        self.connect()

    def deliver(self, number: int, size: int) -> bool:
        """So many bytes of one side's TCP stream arrive."""
        near, far = self.sides[number], self.sides[1 - number]
        if near.link is None or far.link is None or not near.link.stream.out:
            return False
        data = bytes(near.link.stream.out[:size])
        del near.link.stream.out[:size]
        far.link.feed(data)
        far.rouse()
        return True

    def carry(self, number: int) -> bool:
        """The next request of one side's queue pair is carried out. False: there was none."""
        waiting = bool(self.pipes[number].operations)
        self.pipes[number].deliver()
        if waiting:
            for side in self.sides:  # a completion each
                side.rouse()
        return waiting

    def ring(self, number: int) -> None:
        """The monitor has its supervisor send a doorbell, which the other program's kernel gets."""
        near, far = self.sides[number], self.sides[1 - number]
        if near.link is not None and near.mirror.owes_bell:
            far.arriving += 1
            near.copy.count_bell()
            near.mirror.rang()

    def step(self, action: int, size: int) -> None:
        """One of the things that can happen."""
        number, what = action & 1, action >> 1
        side = self.sides[number]
        match what:
            case 0:
                side.write(size)
            case 1:
                side.take(size)
            case 2:
                side.pump(idle=bool(size & 1))
            case 3:
                self.deliver(number, size)
            case 4 if self.pipes:
                self.carry(number)
            case 5:
                side.sleep()
            case 6:
                self.ring(number)
            case 7 if size % 4 == 0:
                self.cut_and_connect(side if size % 8 == 0 else None)
            case 8:
                side.doze()
        self.check()

    def check(self) -> None:
        """At every moment."""
        a, b = self.sides
        for writer, reader in ((a, b), (b, a)):
            assert writer.wrote.startswith(reader.read)
            assert reader.arriving <= 1, "two doorbells under way"

    def settle(self) -> None:
        """Everybody gets time. Then nothing is left: of bytes and doorbells without anybody's looking unasked."""
        self.give_time(idle=False)
        for writer, reader in (self.sides, self.sides[::-1]):
            assert reader.read == writer.wrote, ("stays behind", writer.dozing, reader.dozing, reader.sleeps)
        for side in self.sides:
            side.rouse()
        self.give_time(idle=True)
        for writer, reader in (self.sides, self.sides[::-1]):
            assert not reader.sleeps or reader.read == writer.wrote, "sleeps on bytes that are there"
            assert reader.read == writer.wrote
            assert writer.copy.credited() == len(writer.wrote)
            assert not reader.arriving or abi.lib.sd_py_bell_due(reader.program)

    def give_time(self, *, idle: bool) -> None:
        quiet = 0
        while quiet < 2:
            busy = False
            for number, side in enumerate(self.sides):
                busy |= side.pump(idle)
                busy |= self.deliver(number, 1 << 20)
                busy |= bool(self.pipes) and self.carry(number)
                self.ring(number)
                before = len(side.read), side.arriving
                side.take(RING)
                busy |= before != (len(side.read), side.arriving)
            quiet = 0 if busy else quiet + 1

    def close(self) -> None:
        self.cut()
        for side in self.sides:
            side.close()


@contextmanager
def pair(kind: type[Pair] = Pair, **how: Any) -> Iterator[Pair]:
    made = kind(**how)
    try:
        yield made
    finally:
        made.close()


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
        assert a.copy.taken and b.copy.taken


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


# ------------------------------------------------------------------------ hostile monitors


def linked() -> Pair:
    made = Pair(queue_pairs=False)
    made.settle()
    return made


def words(made: Pair, **other: int) -> frames.Words:
    said = made.sides[0].mirror.theirs
    assert said is not None
    return said._replace(**other)


@pytest.mark.parametrize("record", [
    lambda made: words(made, head=5),
    lambda made: words(made, head=1 << 63),
    lambda made: words(made, slot=99),
    lambda made: frames.Ready(),
    lambda made: frames.Switch(),
], ids=["unwritten head", "head of the future", "slot", "ready twice", "switch twice"])  # fmt: skip
def test_a_lie_ends_the_link(record: Any) -> None:
    made = linked()
    try:
        a, b = made.sides
        assert a.link is not None and b.link is not None
        with pytest.raises(BadPeer):
            a.link.feed(b.link._sealer.seal(frames.encode(record(made))))
    finally:
        made.close()


def test_a_peal_of_bells_harms_its_own_connection_only() -> None:
    """A program can write the word that says whether a doorbell is due."""
    made = linked()
    try:
        a, b = made.sides
        assert a.link is not None and b.link is not None
        wanted = a.mirror.wanted
        a.link.feed(b.link._sealer.seal(frames.encode(words(made, bells_asked=wanted + 3))))
        assert a.mirror.peals and a.mirror.wanted == wanted
        a.write(10)
        made.settle()
    finally:
        made.close()


@pytest.mark.parametrize("at, size", [(0, RING + 1), (1, 10), (1 << 40, 1)])
def test_bytes_for_another_place_end_the_link(at: int, size: int) -> None:
    made = linked()
    try:
        a, b = made.sides
        assert a.link is not None and b.link is not None
        body = frames.encode(frames.Data(a.mirror.slot, size, at)) + bytes(size)
        with pytest.raises(BadPeer):
            a.link.feed(b.link._sealer.seal(body))
        assert a.copy.landed() == 0
    finally:
        made.close()


def test_a_write_beyond_the_ring_ends_the_link() -> None:
    with pair(queue_pairs=True) as made:
        made.settle()
        a = made.sides[0]
        assert a.link is not None
        a.link.on_written(a.mirror.slot, RING)
        with pytest.raises(BadPeer):
            a.link.on_written(a.mirror.slot, 1)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_an_error(data: bytes) -> None:
    start = 0
    try:
        while (found := frames.decode(data, start)) is not None:
            record, end = found
            assert frames.encode(record) == data[start:end]
            start = end
    except BadPeer as error:
        assert str(error).isprintable()


# ----------------------------------------------------------------------- making sure of each other


def converse(near: Handshake, far: Handshake) -> None:
    to_far = near.begin()
    for _ in range(4):
        to_near = far.feed(to_far)
        to_far = near.feed(to_near)


def test_another_key_is_refused_by_both() -> None:
    near, far = Handshake("a", lambda _: KEY, "b"), Handshake("b", lambda _: KEY + b"!", None)
    with pytest.raises(Refused, match="another key"):
        converse(near, far)
    assert near.sealer is None and far.sealer is None
    # And a caller without the key that does not care what the listener proves:
    listener = Handshake("b", lambda _: KEY, None)
    caller = Handshake("a", lambda _: b"x" * 20, "b")
    listener.feed(caller.begin())
    with pytest.raises(Refused, match="another key"):
        listener.feed(bytes(32))


def test_unknown_names_other_versions_and_mirrors_are_refused() -> None:
    with pytest.raises(Refused, match="no peer"):
        converse(Handshake("z", lambda _: KEY, "b"), Handshake("b", lambda name: KEY if name == "a" else None, None))
    with pytest.raises(Refused, match="calls itself"):
        converse(Handshake("a", lambda _: KEY, "c"), Handshake("b", lambda _: KEY, None))
    hello = bytearray(Handshake("a", lambda _: KEY, "b").begin())
    hello[8] += 1
    with pytest.raises(Refused, match="version"):
        Handshake("b", lambda _: KEY, None).feed(bytes(hello))
    # What a listener says is of no use as the dialler's proof.
    dialler, listener = Handshake("a", lambda _: KEY, "b"), Handshake("b", lambda _: KEY, None)
    answer = listener.feed(dialler.begin())
    with pytest.raises(Refused, match="another key"):
        listener.feed(answer[-32:])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_frame_is_noticed(place: int, flip: int) -> None:
    near, far = sealers()
    sealed = bytearray(near.seal(b"first") + near.seal(b"second"))
    sealed[place % len(sealed)] ^= flip
    got = []
    with pytest.raises(BadPeer):
        got += list(far.open(bytes(sealed)))
        list(far.open(bytes(1 << 21)))
    assert all(body in (b"first", b"second") for body in got)


def test_frames_cannot_be_repeated_left_out_or_sent_back() -> None:
    near, far = sealers()
    one, two = near.seal(b"one"), near.seal(b"two")
    with pytest.raises(BadPeer):
        list(far.open(two))
    near, far = sealers()
    one = near.seal(b"one")
    assert list(far.open(one)) == [b"one"]
    with pytest.raises(BadPeer):
        list(far.open(one))
    with pytest.raises(BadPeer):
        list(near.open(one))
