# SPDX-License-Identifier: Apache-2.0
"""Which of several connections epoll_wait names first."""

from __future__ import annotations

from collections.abc import Iterable

from tests.differential.linux import DONTWAIT, ET, IN, ONESHOT, RDHUP, SHUT_WR, SO_TIMESTAMP, SOL_SOCKET
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour

MOVED = ("before", "tight", "after", "uring", "accepting", "connecting")
"""Not where a connection is just moving: TCP and the ring have no order between them (docs/limits.md)."""
COUNT = 6


class Several:
    """Connections in one set of a, numbered."""

    def __init__(self, stage: Stage, flags: int) -> None:
        self.a, self.b = stage.a, stage.b
        self.pairs = [stage.connection() for _ in range(COUNT)]
        self.flags = flags
        self.ep = self.a.epoll()
        for number in range(COUNT):
            self.ctl("add", number)
        self.turns()

    def ctl(self, op: str, number: int) -> None:
        """epoll_ctl."""
        self.a.ctl(self.ep, op, self.pairs[number][0], self.flags, data=number)

    def send(self, *numbers: int) -> None:
        """One small message on each, in this order."""
        for number in numbers:
            self.b.send(self.pairs[number][1], b"word")
            settle()

    def read(self, numbers: Iterable[int], side: Side | None = None) -> None:
        """All that there is."""
        for number in numbers:
            (side or self.a).recv(self.pairs[number][0], 1000, DONTWAIT)

    def turns(self, most: int = 16) -> None:
        """What epoll_wait says without waiting."""
        self.a.wait(self.ep, most, as_reported=True)

    def slept(self, *numbers: int) -> None:
        """Messages for a sleeper."""
        waits = self.a.start.wait(self.ep, timeout=8000, as_reported=True).asleep()
        self.send(*numbers)
        waits.end()
        self.turns()


@behaviour("epoll_wait order of events (level)", only=MOVED)
def order_level(stage: Stage) -> None:
    all_ = Several(stage, IN)
    for order in ((3, 1, 4, 0, 5, 2), (5, 4, 3, 2, 1, 0), (0, 2, 4, 1, 3, 5)):
        all_.send(*order)
        all_.turns()
        all_.send(*reversed(order))
        all_.turns()
        all_.read((1, 4))
        all_.turns()
        all_.read(range(COUNT))
        all_.turns()
    all_.send(5, 2)
    all_.turns()
    all_.send(0)
    all_.read((5,))
    all_.turns()
    all_.read(range(COUNT))
    all_.turns()
    all_.send(4, 0)
    all_.turns()
    all_.read(range(COUNT))
    all_.turns()
    for number in (3, 5, 3):
        all_.slept(number)
        all_.send(2, 0, 1)
        all_.turns()
        all_.read(range(COUNT))
        all_.turns()


@behaviour("epoll_wait order of events (EPOLLET)", only=MOVED)
def order_edge(stage: Stage) -> None:
    all_ = Several(stage, IN | ET)
    for order in ((3, 1, 4, 0, 5, 2), (5, 4, 3, 2, 1, 0), (0, 2, 4, 1, 3, 5)):
        all_.send(*order)
        all_.turns()
        all_.send(*reversed(order))
        all_.send(*order)
        all_.turns()
        all_.read((1, 4))
        all_.send(4, 0, 1)
        all_.turns()
        all_.read(range(COUNT))
        all_.turns()


@behaviour("epoll_wait order of events (EPOLLONESHOT)", only=MOVED)
def order_oneshot(stage: Stage) -> None:
    all_ = Several(stage, IN | ONESHOT)
    all_.send(3, 1, 4, 0, 5, 2)
    all_.turns()
    for number in (5, 0, 3):
        all_.ctl("mod", number)
    all_.turns()
    all_.read(range(COUNT))
    for number in range(COUNT):
        all_.ctl("mod", number)
    all_.send(4, 2, 3)
    all_.turns()


@behaviour("epoll_wait order of events (maxevents)", only=MOVED)
def order_maxevents(stage: Stage) -> None:
    all_ = Several(stage, IN)
    all_.send(3, 1, 4, 0, 5, 2)
    for _ in range(5):
        all_.turns(2)
    all_.read((1, 5))
    for _ in range(3):
        all_.turns(3)
    all_.send(5, 1)
    for _ in range(8):
        all_.turns(1)


@behaviour("epoll_wait order of events (EPOLL_CTL_MOD)", only=MOVED)
def order_ctl(stage: Stage) -> None:
    all_ = Several(stage, IN)
    all_.send(4, 2, 0)
    all_.ctl("del", 2)
    all_.ctl("del", 4)
    all_.send(1)
    all_.ctl("add", 4)
    all_.ctl("mod", 0)
    all_.ctl("add", 2)
    all_.turns()
    all_.ctl("mod", 4)
    all_.turns()


@behaviour("epoll_wait order of events and ends", only=MOVED, carried=False)
def order_ends(stage: Stage) -> None:
    all_ = Several(stage, IN | RDHUP)
    all_.send(4)
    stage.b.shutdown(all_.pairs[2][1], SHUT_WR)
    settle()
    all_.send(0)
    stage.b.close(all_.pairs[1][1])
    settle()
    all_.send(5)
    all_.turns()
    all_.turns()


@behaviour("epoll_wait order of events beside TCP (EPOLLET)", only=MOVED, carried=False)
def order_beside_tcp(stage: Stage) -> None:
    """First one that an option keeps on TCP. What the poll before leaves on the stack is no registration."""
    all_ = Several(stage, IN | ET)
    listener, port = stage.listener()
    theirs = stage.b.socket()
    stage.b.connect(theirs, port)
    ours = stage.a.accept(listener).value
    stage.a.setsockopt(ours, SOL_SOCKET, SO_TIMESTAMP, 1)
    stage.b.send(theirs, b"word")
    stage.a.recv(ours, 1000)
    stage.a.ctl(all_.ep, "add", ours, IN | ET, data=COUNT)
    all_.turns()
    for order in ((3, 1, 4), (5, 4, 2), (0, 2, 1)):
        stage.a.poll([(each, IN) for each, _ in all_.pairs] * 5)
        stage.b.send(theirs, b"word")
        settle()
        all_.send(*order)
        all_.turns()
        all_.read(order)
        stage.a.recv(ours, 1000, DONTWAIT)
