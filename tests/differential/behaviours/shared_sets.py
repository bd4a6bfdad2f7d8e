# SPDX-License-Identifier: Apache-2.0
"""Epoll sets that a fork has shared: what one process registers in one later the other one is told of, too."""

from __future__ import annotations

import os
import signal

from tests.differential.behaviours.handed_sets import both
from tests.differential.linux import ET, IN, ONESHOT, OUT
from tests.differential.side import Side
from tests.differential.worlds import Stage, behaviour


def pinged(side: Side, b: Side, ep: int, x: int, y: int) -> None:
    """What waits is told of each, and receives it."""
    for _ in range(8):
        b.send(y, b"ping")
        side.wait(ep)
        side.recv(x, 10)


def ponged(side: Side, b: Side, ep: int, y: int) -> None:
    """The same of one that sleeps."""
    waits = side.start.wait(ep, timeout=5000).asleep()
    b.send(y, b"pong")
    waits.end()


def told_of_news(stage: Stage, who: tuple[Side, Side], ep: int, x: int, y: int) -> None:
    """The first has `x`; each sleeps in the set once."""
    first, other = who
    stage.b.send(y, b"news")
    both(first, other, ep, ep)
    first.recv(x, 10)
    for each in who:
        waits = each.start.wait(ep, timeout=5000).asleep()
        stage.b.send(y, b"more")
        waits.end()
        both(first, other, ep, ep)
        first.recv(x, 10)


@behaviour("epoll_ctl in a set that a fork has shared, of which the child is told", carried=False)
def later_in_shared_set(stage: Stage) -> None:
    a, b = stage.a, stage.b
    stage.connection()
    for events in (IN, IN | ET, IN | OUT | ONESHOT):
        ep = a.epoll()
        child = a.fork("c")
        x, y = stage.connection()
        a.ctl(ep, "add", x, events)
        both(a, child, ep, ep)
        b.send(y, b"news")
        both(a, child, ep, ep)
        a.recv(x, 10)
        waits = child.start.wait(ep, timeout=5000).asleep()
        a.ctl(ep, "mod", x, events)
        if not events & OUT:
            b.send(y, b"more")
        waits.end()
        a.ctl(ep, "del", x)


@behaviour("epoll_wait of a child in a set in which its parent registers something meanwhile", carried=False)
def waits_in_shared_set(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    child = a.fork("c")
    waits = child.start.wait(ep, timeout=5000).asleep()
    a.ctl(ep, "add", x, IN, data=0x123456789)
    b.send(y, b"first")
    waits.end()
    a.recv(x, 10)
    told_of_news(stage, (a, child), ep, x, y)
    v, w = stage.connection()
    a.ctl(ep, "add", v, IN)
    told_of_news(stage, (a, child), ep, v, w)
    child.ctl(ep, "mod", x, IN, data=77)
    b.send(y, b"of the child")
    both(a, child, ep, ep)
    child.recv(x, 20)
    child.ctl(ep, "del", x)
    b.send(y, b"of nobody")
    both(a, child, ep, ep)


@behaviour("epoll_ctl of parent and child in a set that a fork has shared", carried=False)
def each_in_shared_set(stage: Stage) -> None:
    a, b = stage.a, stage.b
    old, old_peer = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", old, IN, data=1)
    child, idle = a.fork("c"), a.fork("idle")
    x, y = stage.connection()
    v, w = stage.with_a(child).connection()
    a.ctl(ep, "add", x, IN, data=2)
    b.send(y, b"parent's")
    a.wait(ep)
    child.ctl(ep, "add", v, IN, data=3)
    b.send(w, b"child's")
    b.send(old_peer, b"of both")
    for each in (a, child, idle):
        each.wait(ep)
    a.recv(old, 10)
    a.recv(x, 10)
    child.recv(v, 10)
    for each in (a, child, idle):
        each.wait(ep)


@behaviour("epoll_wait of several processes in a set that a fork has shared")
def all_wait_in_shared_set(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    child = a.fork("c")
    both(a, child, ep, ep)
    told_of_news(stage, (a, child), ep, x, y)
    for _ in range(8):
        b.send(y, b"ping")
        both(a, child, ep, ep)
        child.recv(x, 10)


@behaviour("epoll_ctl in a set whose maker was killed")
def alone_in_shared_set(stage: Stage) -> None:
    a, b = stage.a, stage.b
    stage.connection()
    child = a.fork("c")
    ep = child.epoll()
    heir = child.fork("h")
    both(child, heir, ep, ep)
    a.sys("kill", child.link.pid, signal.SIGKILL, text="child")
    a.sys("waitid", os.P_PID, child.link.pid, 0, os.WEXITED, 0, text="child")
    x, y = stage.with_a(heir).connection()
    heir.ctl(ep, "add", x, IN)
    pinged(heir, b, ep, x, y)
    ponged(heir, b, ep, y)


@behaviour("epoll_ctl in a set of which a child has a copy, and does not use it")
def idle_in_shared_set(stage: Stage) -> None:
    a, b = stage.a, stage.b
    stage.connection()
    ep = a.epoll()
    child = a.fork("c")
    x, y = stage.connection()
    a.ctl(ep, "add", x, IN)
    pinged(a, b, ep, x, y)
    child.close(ep)
    ponged(a, b, ep, y)
