# SPDX-License-Identifier: Apache-2.0
"""A set that others look at, by epoll, poll or select: it is ready as long as one in it is, and no longer."""

from __future__ import annotations

from collections.abc import Callable

from tests.differential.linux import DONTWAIT, ET, IN, ONESHOT, OUT, RDHUP, SHUT_WR
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour


def look(side: Side, inner: int, outer: int) -> None:
    """From the outside, without asking the set itself."""
    side.wait(outer)
    side.poll([(inner, IN), (outer, IN)])
    side.select([inner, outer])


def sleeps(stage: Stage, ep: int, y: int) -> None:
    """Until bytes come."""
    waits = stage.a.start.wait(ep, timeout=5000).asleep()
    stage.b.send(y, b"abcdef")
    waits.end()


@behaviour("epoll of an epoll set whose bytes were read without asking it",
           "poll of an epoll set whose bytes were read without asking it",
           "select of an epoll set whose bytes were read without asking it")
def inner_read(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for events in (IN, IN | ET, IN | RDHUP | OUT | ET):
        x, y = stage.connection()
        inner, outer = a.epoll(), a.epoll()
        a.ctl(inner, "add", x, events)
        a.wait(inner)
        a.ctl(outer, "add", inner, IN)
        for _ in range(3):
            look(a, inner, outer)
            b.send(y, b"abcdef")
            look(a, inner, outer)
            a.recv(x, 3)
            look(a, inner, outer)
            a.recv(x, 3)
            look(a, inner, outer)
            sleeps(stage, outer, y)
            a.recv(x, 10)
            look(a, inner, outer)
            sleeps(stage, outer, y)
            a.wait(inner)
            a.recv(x, 10)
            look(a, inner, outer)
        b.shutdown(y, SHUT_WR)
        look(a, inner, outer)
        a.recv(x, 10)
        look(a, inner, outer)
        a.close(x)
        look(a, inner, outer)


@behaviour("epoll of an epoll set with EPOLLET, whose bytes were read without asking it",
           "epoll of an epoll set with EPOLLONESHOT, whose bytes were read without asking it")
def inner_read_edges(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for outer_events in (IN | ET, IN | ONESHOT):
        x, y = stage.connection()
        inner, outer = a.epoll(), a.epoll()
        a.ctl(inner, "add", x, IN)
        a.ctl(outer, "add", inner, outer_events)
        for _ in range(3):
            a.wait(outer)
            b.send(y, b"abcdef")
            a.wait(outer)
            a.wait(outer)
            a.recv(x, 10)
            a.wait(outer)
            a.ctl(outer, "mod", inner, outer_events)
            a.wait(outer)
            b.send(y, b"abcdef")
            a.recv(x, 10)
            a.wait(outer)


def recvs(side: Side, x: int) -> None:
    """recv."""
    side.recv(x, 10, DONTWAIT)


def reads(side: Side, x: int) -> None:
    """read."""
    side.read(x, 10)


def splices(side: Side, x: int) -> None:
    """Into a pipe."""
    read, write = side.pipe()
    side.splice(x, write, 10)
    side.close(read)
    side.close(write)


def receives_many(side: Side, x: int) -> None:
    """recvmmsg."""
    side.recvmmsg(x, (6, 4), DONTWAIT)


READERS: tuple[Callable[[Side, int], None], ...] = recvs, reads, splices, receives_many


@behaviour("epoll of an epoll set that was waited on before", "poll of an epoll set that was waited on before")
def inner_first(stage: Stage) -> None:
    a = stage.a
    for number, reader in enumerate(READERS):
        x, y = stage.connection()
        inner, outer = a.epoll(), a.epoll()
        a.ctl(inner, "add", x, IN)
        sleeps(stage, inner, y)
        reader(a, x)
        if number % 2:
            a.ctl(outer, "add", inner, IN)
        a.poll([(inner, IN)])
        a.select([inner])
        if not number % 2:
            a.ctl(outer, "add", inner, IN)
        a.wait(outer)
        sleeps(stage, outer, y)
        reader(a, x)
        look(a, inner, outer)
        a.close(outer)
        sleeps(stage, inner, y)
        reader(a, x)
        a.poll([(inner, IN)])


@behaviour("epoll of an epoll set with several connections")
def inner_several(stage: Stage) -> None:
    a, b = stage.a, stage.b
    pairs = [stage.connection() for _ in range(3)]
    inner, outer = a.epoll(), a.epoll()
    for x, _ in pairs:
        a.ctl(inner, "add", x, IN)
    a.ctl(outer, "add", inner, IN)
    for number, (x, y) in enumerate(pairs * 2):
        z, w = pairs[(number + 1) % 3]
        sleeps(stage, outer, y)
        b.send(w, b"second")
        a.recv(x, 10)
        look(a, inner, outer)
        a.wait(inner)
        a.recv(z, 10)
        look(a, inner, outer)
        settle()
    a.ctl(inner, "del", pairs[0][0])
    b.send(pairs[0][1], b"abc")
    look(a, inner, outer)
    a.recv(pairs[0][0], 10)
    a.ctl(inner, "add", pairs[0][0], IN)
    look(a, inner, outer)
    sleeps(stage, outer, pairs[0][1])
    a.recv(pairs[0][0], 10)
    look(a, inner, outer)
