# SPDX-License-Identifier: Apache-2.0
"""pidfd_getfd of epoll sets and listeners: who takes one is told what its maker registered, or accepts beside it."""

from __future__ import annotations

from tests.differential.behaviours.descriptors import exchange
from tests.differential.behaviours.handed_sets import both, use
from tests.differential.behaviours.taken import take
from tests.differential.linux import ET, IN, ONESHOT, OUT
from tests.differential.side import Side
from tests.differential.worlds import Stage, behaviour

_KNOWN = ("before", "tight", "cold", "during", "after", "connecting")
"""Worlds in which the supervisor of the one who takes can ask that of the owner, if that has any."""


def taken(stage: Stage, thief: Side) -> None:
    a = stage.a
    for events in (IN, IN | ET, IN | OUT | ONESHOT):
        x, y = stage.connection()
        ep = a.epoll()
        a.ctl(ep, "add", x, events)
        a.wait(ep)
        use(stage, thief, ep, take(thief, a, ep), x, y)


@behaviour("pidfd_getfd of an epoll set", carried=False, only=_KNOWN)
def set_taken(stage: Stage) -> None:
    taken(stage, stage.b.fork("thief"))


@behaviour("pidfd_getfd of an epoll set, by a child", carried=False)
def set_taken_by_child(stage: Stage) -> None:
    taken(stage, stage.a.fork("thief"))


@behaviour("pidfd_getfd of an epoll set in which its owner sleeps", carried=False, only=_KNOWN)
def set_taken_asleep(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    x, y = stage.connection()
    v, w = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    a.ctl(ep, "add", v, IN | ET)
    waits = a.start.wait(ep, timeout=8000).asleep()
    got = take(thief, a, ep)
    waits.asleep()
    b.send(y, b"wake up")
    waits.end()
    thief.wait(got)
    a.recv(x, 10)
    b.send(w, b"an edge")
    thief.wait(got)
    a.recv(v, 10)
    both(a, thief, ep, got)


@behaviour("pidfd_getfd of an epoll set that is filled later", carried=False, only=_KNOWN)
def set_filled_later(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    stage.connection()
    ep = a.epoll()
    got = take(thief, a, ep)
    x, y = stage.connection()
    a.ctl(ep, "add", x, IN)
    use(stage, thief, ep, got, x, y)


@behaviour("pidfd_getfd of an epoll set out of oneself")
def set_of_oneself(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    v, w = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    again = take(a, a, ep)
    b.send(y, b"one")
    both(a, a, ep, again)
    a.recv(x, 10)
    a.ctl(again, "add", v, IN | ET)
    b.send(w, b"two")
    both(a, a, ep, again)
    a.recv(v, 10)
    a.close(ep)
    b.send(y, b"three")
    a.wait(again)
    a.ctl(again, "del", x)
    a.wait(again)
    a.recv(x, 10)


@behaviour("pidfd_getfd of a listener", carried=False)
def listener_taken(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    listener, port = stage.listener()
    waiting = b.socket()
    b.connect(waiting, port)
    got = take(thief, a, listener)
    both_poll = [(thief, got), (a, listener)]
    for side, fd in both_poll:
        side.poll([(fd, IN)])
    exchange(stage, thief, thief.accept(got).value, waiting)
    for side, fd in both_poll:
        side.poll([(fd, IN)])
    for side, fd in both_poll * 2:
        z = b.socket()
        waits = side.start.accept(fd).asleep()
        b.connect(z, port)
        mine = waits.end().value
        exchange(stage, side, mine, z)
    ep = thief.epoll()
    thief.ctl(ep, "add", got, IN)
    a.close(listener)
    last = b.socket()
    b.connect(last, port)
    thief.wait(ep)
    exchange(stage, thief, thief.accept(got).value, last)
    thief.close(got)
    b.connect(b.socket(), port)
