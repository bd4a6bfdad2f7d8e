# SPDX-License-Identifier: Apache-2.0
"""Random sequences of socket, readiness and descriptor calls on both ends of two connections: the kernel is the model.

A sequence runs on native agents and on agents under sdrun; the transcripts must be equal.  Hypothesis shrinks what
differs to the few calls that matter.  `make test` runs the same sequences each time; `make model` runs new ones.

What is asked is kept to what TCP decides by itself: at most some ten thousand bytes are under way (beyond that buffers
decide), and every call that may wait ends after a few milliseconds (SO_RCVTIMEO).
"""

from __future__ import annotations

import difflib
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.differential.behaviours.handed import NOTE, receive_fd, rights
from tests.differential.behaviours.taken import take
from tests.differential.linux import (
    DONTWAIT,
    ET,
    EXCLUSIVE,
    F_GETFL,
    F_SETFL,
    FIONREAD,
    IN,
    NOSIGNAL,
    O_ASYNC,
    O_NONBLOCK,
    ONESHOT,
    OUT,
    PEEK,
    PRI,
    RDHUP,
    SO_ERROR,
    SO_LINGER,
    SO_RCVLOWAT,
    SO_RCVTIMEO,
    SOL_SOCKET,
    TRUNC,
    WAITALL,
)
from tests.differential.side import Side
from tests.differential.worlds import BEFORE, NATIVE, WORLDS, Behaviour, Place, Stage
from tests.guestbuild import Guests

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "80"))
LATE = next(world for world in WORLDS if world.name == "during")
NATIVELY = 5
"""A busy machine hands packets over late, natively as well: what differs has to be something that is not seen there."""
SOON = struct.pack("=qq", 0, 4000)
SPLICE_F_NONBLOCK = 2
SLOTS = 4
"""Descriptors of each side: two connections, and places for duplicates."""

Sequence = tuple[bool, list[tuple[str, tuple[object, ...]]]]

slots = st.integers(0, SLOTS - 1)
sizes = st.sampled_from([1, 2, 3, 7, 8, 9, 100, 256, 257, 900])
receive_flags = st.sampled_from([0, DONTWAIT, PEEK, PEEK | DONTWAIT, WAITALL, WAITALL | DONTWAIT, TRUNC | DONTWAIT])
masks = st.sampled_from([IN, OUT, IN | OUT, IN | RDHUP, IN | OUT | PRI | RDHUP])
interests = st.sampled_from([IN, OUT, IN | OUT, IN | RDHUP, IN | ONESHOT, IN | ET, IN | OUT | RDHUP, IN | EXCLUSIVE,
                             IN | OUT | ET, OUT | ET, IN | RDHUP | ET])

everywhere = (
    st.tuples(st.just("send"), slots, sizes, st.sampled_from([0, DONTWAIT])),
    st.tuples(st.just("writev"), slots, st.lists(sizes, min_size=1, max_size=3).map(tuple)),
    st.tuples(st.just("recv"), slots, sizes, receive_flags),
    st.tuples(st.just("read"), slots, sizes),
    st.tuples(st.just("readv"), slots, st.lists(sizes, min_size=1, max_size=3).map(tuple)),
    st.tuples(st.just("recvmsg"), slots, sizes, receive_flags),
    st.tuples(st.just("poll"), masks),
    st.tuples(st.just("select")),
    st.tuples(st.just("ctl"), st.sampled_from(["add", "mod", "del"]), slots, interests),
    st.tuples(st.just("wait")),
    st.tuples(st.just("fionread"), slots),
    st.tuples(st.just("error"), slots),
    st.tuples(st.just("nonblock"), slots, st.booleans()),
    st.tuples(st.just("dup"), slots, slots),
    st.tuples(st.just("shutdown"), slots, st.integers(0, 2)),
    st.tuples(st.just("close"), slots),
    st.tuples(st.just("abort"), slots),
    st.tuples(st.just("lowat"), slots, st.sampled_from([1, 4, 300])),
    st.tuples(st.just("sendfile"), slots, sizes),
    st.tuples(st.just("recvmmsg"), slots, st.lists(sizes, min_size=1, max_size=3).map(tuple)),
    st.tuples(st.just("splice_in"), slots, sizes),
    st.tuples(st.just("splice_out"), slots, sizes, st.sampled_from([0, SPLICE_F_NONBLOCK])),
    st.tuples(st.just("hand"), slots, slots),
    st.tuples(st.just("asynchronous"), slots),
)
taking = st.tuples(st.just("take"), slots, slots)


def sequences_in(world: str) -> st.SearchStrategy[Sequence]:
    """Side c is a child of a with the same descriptors.

    Who takes a connection that is about to move is not waited for (docs/limits.md).
    """
    operations = st.one_of(*everywhere, *([taking] if world == BEFORE.name else []))
    calls = st.tuples(st.sampled_from("abc"), operations)
    return st.tuples(st.booleans(), st.lists(calls, min_size=1, max_size=22))




@dataclass
class End:
    """One side, its descriptors and its epoll set."""

    side: Side
    ep: int
    fds: list[int]
    way: tuple[int, int]
    """A socketpair."""
    marked: list[int]
    """Connections that SO_RCVLOWAT was set on, of all sides: those cannot be taken."""
    sent: int = field(default=0)
    peer: End = field(init=False)
    """Who can be robbed."""
    heir: End = field(init=False)
    """Who receives what is sent through the socketpair: oneself, or the child."""

    def bytes(self, size: int) -> bytes:
        """The next bytes to send: each place of the stream has its own."""
        self.sent += size
        return bytes((self.sent * 7 + i) & 0xFF for i in range(size))

    def live(self) -> list[int]:
        """Descriptors that are open."""
        return sorted({fd for fd in self.fds if fd >= 0})

    # ------------------------------------------------------------- operations

    def send(self, slot: int, size: int, flags: int) -> None:
        self.side.send(self.fds[slot], self.bytes(size), flags | NOSIGNAL)

    def writev(self, slot: int, parts: tuple[int, ...]) -> None:
        self.side.writev(self.fds[slot], [self.bytes(size) for size in parts])

    def recv(self, slot: int, size: int, flags: int) -> None:
        self.side.recv(self.fds[slot], size, flags)

    def read(self, slot: int, size: int) -> None:
        self.side.read(self.fds[slot], size)

    def readv(self, slot: int, parts: tuple[int, ...]) -> None:
        self.side.readv(self.fds[slot], parts)

    def recvmsg(self, slot: int, size: int, flags: int) -> None:
        self.side.recvmsg(self.fds[slot], [size], flags)

    def poll(self, events: int) -> None:
        self.side.poll([(fd, events) for fd in self.live()])

    def select(self) -> None:
        self.side.select(self.live(), self.live())

    def ctl(self, op: str, slot: int, events: int) -> None:
        self.side.ctl(self.ep, op, self.fds[slot], events)

    def wait(self) -> None:
        self.side.wait(self.ep)

    def fionread(self, slot: int) -> None:
        self.side.ioctl(self.fds[slot], FIONREAD)

    def error(self, slot: int) -> None:
        self.side.option(self.fds[slot], SOL_SOCKET, SO_ERROR)

    def nonblock(self, slot: int, on: bool) -> None:
        self.side.ioctl(self.fds[slot], 0x5421, int(on))

    def dup(self, slot: int, to: int) -> None:
        if self.fds[slot] >= 0 and self.fds[to] < 0:
            self.fds[to] = self.side.sys("dup", self.fds[slot]).value

    def shutdown(self, slot: int, how: int) -> None:
        self.side.shutdown(self.fds[slot], how)

    def abort(self, slot: int) -> None:
        self.side.setsockopt(self.fds[slot], SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 0))

    def lowat(self, slot: int, size: int) -> None:
        self.marked.append(slot)
        self.side.setsockopt(self.fds[slot], SOL_SOCKET, SO_RCVLOWAT, size)

    def sendfile(self, slot: int, size: int) -> None:
        file = self.side.file(self.bytes(size))
        self.side.sendfile(self.fds[slot], file, size)
        self.side.close(file)

    def recvmmsg(self, slot: int, parts: tuple[int, ...]) -> None:
        self.side.recvmmsg(self.fds[slot], parts, DONTWAIT)

    def splice_in(self, slot: int, size: int) -> None:
        out, into = self.side.pipe()
        self.side.write(into, self.bytes(size))
        self.side.splice(out, self.fds[slot], size)
        for fd in (out, into):
            self.side.close(fd)

    def splice_out(self, slot: int, size: int, flags: int) -> None:
        out, into = self.side.pipe(O_NONBLOCK)
        self.side.splice(self.fds[slot], into, size, flags)
        self.side.read(out, size)
        for fd in (out, into):
            self.side.close(fd)

    def hand(self, slot: int, to: int) -> None:
        if self.fds[slot] >= 0 and self.heir.fds[to] < 0:
            self.side.sendmsg(self.way[0], [NOTE], control=rights(self.fds[slot]))
            self.heir.fds[to] = receive_fd(self.heir.side, self.way[1])

    def take(self, slot: int, to: int) -> None:
        if self.peer.fds[slot] >= 0 and self.fds[to] < 0 and not self.marked:
            self.fds[to] = take(self.side, self.peer.side, self.peer.fds[slot])

    def asynchronous(self, slot: int) -> None:
        """Which goes on by TCP; nobody is told by signals."""
        flags = self.side.fcntl(self.fds[slot], F_GETFL).value
        if flags >= 0:
            self.side.fcntl(self.fds[slot], F_SETFL, flags | O_ASYNC)

    def close(self, slot: int) -> None:
        if self.fds[slot] >= 0:
            fd, self.fds[slot] = self.fds[slot], -1
            self.side.close(fd)


def play(sequence: Sequence) -> Callable[[Stage], None]:
    """The sequence as a behaviour."""

    def run(stage: Stage) -> None:
        pairs = [stage.connection() for _ in range(2)]
        ends, marked = dict[str, End](), list[int]()
        for side, fds in zip((stage.a, stage.b), zip(*pairs, strict=True), strict=True):
            for fd in fds:
                side.setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, SOON)
            ends[side.name] = End(side, side.epoll(), [*fds, *[-1] * (SLOTS - 2)], side.pair(), marked)
        shared, steps = sequence
        if shared:
            child = stage.a.fork("c")
            ends["c"] = End(child, child.epoll(), list(ends["a"].fds), ends["a"].way, marked)
        for end in ends.values():
            end.peer = ends["a" if end is ends["b"] else "b"]
            end.heir = end if end is ends["b"] else ends.get("c", end)
        for name, (operation, *arguments) in steps:
            getattr(ends.get(name, ends["a"]), str(operation))(*arguments)

    return run


@pytest.fixture(scope="module")
def places(guests: Guests, tmp_path_factory: pytest.TempPathFactory,
           sd_env: dict[str, str]) -> Iterator[dict[str, Place]]:
    """Agents that live as long as this module's tests."""
    folder: Path = tmp_path_factory.mktemp("model")
    made = {world.name: Place(world, guests("agent"), folder / world.name, sd_env) for world in (NATIVE, BEFORE, LATE)}
    yield made
    for place in made.values():
        place.close()


@pytest.mark.timeout(0)
@pytest.mark.parametrize("world", [BEFORE.name, LATE.name])
def test_random_calls_are_as_natively(world: str, places: dict[str, Place]) -> None:
    @settings(max_examples=EXAMPLES, derandomize="MODEL_EXAMPLES" not in os.environ, database=None, deadline=None,
              suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink))
    @given(sequences_in(world))
    def check(sequence: Sequence) -> None:
        behaviour = Behaviour("model", play(sequence), (), carried=False, broken={}, only=())
        wanted = places[NATIVE.name].run(behaviour).transcript
        got = places[world].run(behaviour).transcript
        if got == wanted or any(places[NATIVE.name].run(behaviour).transcript == got for _ in range(NATIVELY)):
            return
        assert got == wanted, "\n".join(difflib.unified_diff(wanted, got, "native", world, lineterm=""))

    check()
