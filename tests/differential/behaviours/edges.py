# SPDX-License-Identifier: Apache-2.0
"""Edge-triggered sets while a connection moves to shared memory, and back: nothing is told twice, nothing is missed."""

from __future__ import annotations

from collections.abc import Sequence

from tests.differential.linux import DONTWAIT, ET, F_GETFL, F_SETFL, IN, O_ASYNC, OUT, PRI, RDHUP, SHUT_WR
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour

ROUNDS = 12
INTERESTS = (IN | ET, OUT | ET, IN | OUT | ET, IN | RDHUP | ET, IN | OUT | RDHUP | PRI | ET)


def sets(side: Side, fd: int) -> list[int]:
    """A set for each kind of interest; what they say at first is read."""
    made = [side.epoll() for _ in INTERESTS]
    for ep, events in zip(made, INTERESTS, strict=True):
        side.ctl(ep, "add", fd, events)
    look(side, made)
    return made


def look(side: Side, made: Sequence[int]) -> None:
    """What each says, and what it says then."""
    for ep in made:
        for _ in range(2):
            side.wait(ep)


def answer(stage: Stage, x: int, y: int, mine: Sequence[int], theirs: Sequence[int]) -> None:
    """From x to y, which reads it."""
    stage.a.send(x, b"answer")
    look(stage.b, theirs)
    look(stage.a, mine)
    stage.b.recv(y, 100, DONTWAIT)
    look(stage.b, theirs)


@behaviour("epoll EPOLLET, of a connection that moves between messages")
def edge_moving(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    mine, theirs = sets(a, x), sets(b, y)
    for number in range(ROUNDS):
        b.send(y, b"abc")
        look(a, mine)
        if number % 3:
            a.recv(x, 2 if number % 3 == 1 else 100)
            look(a, mine)
        look(b, theirs)
        if number % 2:
            answer(stage, x, y, mine, theirs)


@behaviour("epoll EPOLLET, of a connection that moves with unread bytes")
def edge_moving_unread(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"unread there")
    b.send(y, b"unread here")
    mine, theirs = sets(a, x), sets(b, y)
    for _ in range(ROUNDS // 2):
        b.send(y, b"abc")
        look(a, mine)
        a.send(x, b"answer")
        look(b, theirs)
        look(a, mine)
    for _ in range(ROUNDS // 2):
        a.recv(x, 5, DONTWAIT)
        look(a, mine)
        b.recv(y, 5, DONTWAIT)
        look(b, theirs)
    b.send(y, b"more")
    look(a, mine)


@behaviour("epoll EPOLLET, of a connection that goes back to TCP", carried=False)
def edge_back(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    mine, theirs = sets(a, x), sets(b, y)
    for number in range(ROUNDS):
        b.send(y, b"abc")
        look(a, mine)
        if number == ROUNDS // 3:
            a.fcntl(x, F_SETFL, a.fcntl(x, F_GETFL).value | O_ASYNC)
            settle()
            look(a, mine)
            look(b, theirs)
        if number % 3:
            a.recv_all(x, 2 if number % 3 == 1 else 7)
            look(a, mine)
        look(b, theirs)
        if number % 2:
            answer(stage, x, y, mine, theirs)


@behaviour("epoll EPOLLET, of bytes that were read before anybody asked")
def edge_read_before(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    mine = sets(a, x)
    for _ in range(ROUNDS // 2):
        b.send(y, b"abc")
        a.recv(x, 100)
        look(a, mine)
        a.send(x, b"answer")
        b.recv(y, 100)
        look(a, mine)


@behaviour("epoll EPOLLET wakes while a connection moves, and goes back with unread bytes", carried=False)
def edge_sleepers(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    mine, theirs = sets(a, x), sets(b, y)
    back = ROUNDS // 2
    for number in range(ROUNDS):
        waits = a.start.wait(mine[2 + number % 3], timeout=5000).asleep()
        b.send(y, b"abc")
        waits.end()
        look(a, mine)
        if number == back:
            b.fcntl(y, F_SETFL, b.fcntl(y, F_GETFL).value | O_ASYNC)
            settle()
            look(a, mine)
            look(b, theirs)
        waits = b.start.wait(theirs[2 + number % 3], timeout=5000).asleep()
        a.send(x, b"answer")
        waits.end()
        look(b, theirs)
        if number < back:
            a.recv(x, 1000)
            b.recv(y, 1000)
        look(a, mine)
    a.recv_all(x, (ROUNDS - back) * len(b"abc"))
    b.recv_all(y, (ROUNDS - back) * len(b"answer"))
    look(a, mine)
    look(b, theirs)


@behaviour("epoll EPOLLET, of a connection that ends when it has just moved, or while it does", carried=False)
def edge_end_moving(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for messages in range(ROUNDS):
        x, y = stage.connection()
        mine, theirs = sets(a, x), sets(b, y)
        for number in range(messages):
            b.send(y, b"abc")
            look(a, mine)
            if messages % 2 and number < messages - 2:
                a.recv(x, 100)
                answer(stage, x, y, mine, theirs)
        if messages % 3:
            b.shutdown(y, SHUT_WR)
            look(a, mine)
            look(b, theirs)
            a.recv(x, 4)
            look(a, mine)
            a.recv(x, 100)
            look(a, mine)
            a.recv(x, 100)
            look(a, mine)
            a.send(x, b"still")
            look(b, theirs)
            b.recv(y, 100)
        b.close(y)
        look(a, mine)
        a.recv(x, 100)
        look(a, mine)
        for fd in (x, *mine):
            a.close(fd)
        for fd in theirs:
            b.close(fd)
