# SPDX-License-Identifier: Apache-2.0
"""Epoll sets in SCM_RIGHTS: who receives one is told what its maker has registered, with the maker's own data."""

from __future__ import annotations

from tests.differential.behaviours.handed import hand, receive_fd
from tests.differential.linux import ET, IN, ONESHOT, OUT, RDHUP, SHUT_WR
from tests.differential.side import Side
from tests.differential.worlds import Stage, behaviour


def both(side: Side, other: Side, ours: int, theirs: int) -> None:
    """What each of them is told."""
    other.wait(theirs)
    side.wait(ours)


def use(stage: Stage, other: Side, ours: int, theirs: int, x: int, y: int) -> None:
    """Both processes have the set; `other` has no connection that is in it."""
    a, b = stage.a, stage.b
    both(a, other, ours, theirs)
    b.send(y, b"news")
    both(a, other, ours, theirs)
    a.recv(x, 10)
    both(a, other, ours, theirs)
    a.ctl(ours, "mod", x, IN | RDHUP)
    waits = other.start.wait(theirs, timeout=5000).asleep()
    b.send(y, b"more")
    waits.end()
    a.wait(ours)
    a.recv(x, 10)
    a.ctl(ours, "del", x)
    a.ctl(ours, "add", x, IN | OUT | ET)
    both(a, other, ours, theirs)
    b.send(y, b"last")
    b.shutdown(y, SHUT_WR)
    both(a, other, ours, theirs)
    a.recv(x, 10)
    a.send(x, b"end")
    b.recv(y, 10)


@behaviour("sendmsg SCM_RIGHTS of an epoll set", carried=False)
def set_to_child(stage: Stage) -> None:
    a = stage.a
    for events in (IN, IN | ET, IN | OUT | ONESHOT):
        one, two = a.pair()
        child = a.fork("c")
        x, y = stage.connection()
        ep = a.epoll()
        a.ctl(ep, "add", x, events)
        a.wait(ep)
        hand(a, one, ep)
        use(stage, child, ep, receive_fd(child, two), x, y)


@behaviour("sendmsg SCM_RIGHTS of an epoll set to oneself", carried=False)
def set_to_oneself(stage: Stage) -> None:
    a, b = stage.a, stage.b
    one, two = a.pair()
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    hand(a, one, ep)
    again = receive_fd(a, two)
    use(stage, a, ep, again, x, y)
    v, w = stage.connection()
    a.ctl(again, "add", v, IN | ET)
    b.send(w, b"new")
    both(a, a, ep, again)
    a.recv(v, 10)
    a.close(ep)
    b.send(w, b"newer")
    a.wait(again)


@behaviour("sendmsg SCM_RIGHTS of an epoll set that is empty, and is filled later", carried=False)
def empty_set(stage: Stage) -> None:
    a = stage.a
    one, two = a.pair()
    child = a.fork("c")
    stage.listener()
    stage.connection()
    ep = a.epoll()
    hand(a, one, ep)
    theirs = receive_fd(child, two)
    x, y = stage.connection()
    a.ctl(ep, "add", x, IN)
    use(stage, child, ep, theirs, x, y)
