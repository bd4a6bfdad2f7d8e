# SPDX-License-Identifier: Apache-2.0
"""Two monitors that mirror one connection, without a device, a socket or a clock.

Both programs are the ring's own code on real copies; the monitors are real links; between them is a wire that the test
moves on piece by piece, and cuts.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from monitor import segment
from monitor.hosts import frames
from monitor.hosts.auth import Handshake, Sealer
from monitor.hosts.copy import Copy
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

    def queued(self) -> int:
        return 0

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
        self.sleeps = self.on_ring = self.dozing = self.heard = False
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
        if self.arriving:
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

    def hear(self) -> bool:
        """The doorbell stays for others; the next bytes have one of their own. False: there are two already."""
        if not self.on_ring or not abi.lib.sd_py_bell_due(self.program):
            return False
        self.heard = True
        return bool(abi.lib.sd_py_bell_hear(self.program))

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

    def ring(self, number: int, *, lost: bool = False) -> None:
        """The monitor has its supervisor send a doorbell, which the other one's kernel gets, unless it is `lost`."""
        near, far = self.sides[number], self.sides[1 - number]
        if near.link is not None and near.mirror.owes_bell:
            far.arriving += not lost
            near.copy.count_bell()
            near.mirror.rang(near.mirror.next_bell)

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
                side.hear() if size % 4 == 2 else side.sleep()
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
            assert reader.arriving <= 1 + reader.heard, "too many doorbells under way"

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

    def give_time(self, *, idle: bool, lost: bool = False, late: bool = False) -> None:
        """`lost`: doorbells are; `late`: programs come later."""
        quiet = 0
        while quiet < 2:
            busy = False
            for number, side in enumerate(self.sides):
                busy |= side.pump(idle)
                busy |= self.deliver(number, 1 << 20)
                busy |= bool(self.pipes) and self.carry(number)
                self.ring(number, lost=lost)
                before = len(side.read), side.arriving
                if not late:
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
