# SPDX-License-Identifier: Apache-2.0
"""What epoll alone has: triggers, sets of sets, sets that share a descriptor, events of the end."""

from __future__ import annotations

from tests.differential.linux import DONTWAIT, ERR, ET, EXCLUSIVE, HUP, IN, ONESHOT, OUT, RDHUP, SHUT_RDWR, SHUT_WR
from tests.differential.side import settle
from tests.differential.worlds import Stage, behaviour


@behaviour("epoll level triggered", "epoll_ctl EPOLL_CTL_MOD", "epoll_ctl EPOLL_CTL_DEL")
def epoll_level(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN | OUT | RDHUP)
    a.wait(ep)
    b.send(y, b"abc")
    a.wait(ep)
    a.wait(ep)
    a.ctl(ep, "mod", x, IN, data=99)
    a.wait(ep)
    a.recv(x, 2)
    a.wait(ep)
    a.recv(x, 2)
    a.wait(ep)
    a.ctl(ep, "mod", x, OUT)
    a.wait(ep)
    a.ctl(ep, "mod", x, 0)
    a.wait(ep)
    a.ctl(ep, "del", x)
    a.wait(ep)
    a.ctl(ep, "add", x, IN)
    b.send(y, b"abc")
    a.wait(ep)


@behaviour("epoll level triggered, of one that has only received")
def epoll_one_way(stage: Stage) -> None:
    """Who only receives is told of room, too, whenever it is told of bytes: its own direction has not moved."""
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    y = b.socket()
    b.connect(y, port)
    x = a.accept(listener).value
    b.setsockopt(y, 6, 1, 1)
    for _ in range(30):
        b.send(y, b"abc")
        settle()
        a.recv(x, 10)
    ep = a.epoll()
    a.ctl(ep, "add", x, IN | OUT)
    for _ in range(3):
        a.wait(ep)
        b.send(y, b"abc")
        settle()
        for _ in range(4):
            a.wait(ep)
        a.recv(x, 10)
    a.ctl(ep, "mod", x, IN | OUT | RDHUP)
    b.send(y, b"abc")
    b.shutdown(y, SHUT_WR)
    settle()
    for _ in range(4):
        a.wait(ep)


@behaviour("epoll level triggered, of one that has only sent")
def epoll_one_way_back(stage: Stage) -> None:
    """The other half: who only sends hears of bytes by TCP, and of room by the ring, at the same time."""
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    y = b.socket()
    b.connect(y, port)
    x = a.accept(listener).value
    a.setsockopt(x, 6, 1, 1)
    for _ in range(30):
        a.send(x, b"abc")
        settle()
        b.recv(y, 10)
    ep, edge = a.epoll(), a.epoll()
    a.ctl(ep, "add", x, IN | OUT)
    a.ctl(edge, "add", x, IN | OUT | ET)
    for _ in range(3):
        a.wait(ep)
        a.wait(edge)
        a.send(x, b"abc")
        b.recv(y, 10)
        b.send(y, b"first")
        for _ in range(3):
            a.wait(ep)
            a.wait(edge)
        a.recv(x, 10)
        a.wait(ep)
        a.wait(edge)
    a.ctl(ep, "mod", x, IN | OUT | RDHUP)
    b.send(y, b"abc")
    b.shutdown(y, SHUT_WR)
    settle()
    for _ in range(3):
        a.wait(ep)
        a.wait(edge)


@behaviour("epoll_wait of several threads on one set")
def epoll_threads(stage: Stage) -> None:
    """One event wakes one of them, who came last; the other one sleeps on."""
    a, b = stage.a, stage.b
    one, two = a.thread("t"), a.thread("u")
    for events in (IN | ET, IN | ONESHOT):
        (x, y), (v, w) = stage.connection(), stage.connection()
        ep = a.epoll()
        for fd in (x, v):
            a.ctl(ep, "add", fd, events)
        for _ in range(2):
            first = one.start.wait(ep, timeout=8000).asleep()
            second = two.start.wait(ep, timeout=8000).asleep()
            b.send(y, b"for one")
            second.end()
            first.asleep()
            b.send(w, b"for the other")
            first.end()
            for fd in (x, v):
                a.recv(fd, 100)
                a.ctl(ep, "mod", fd, events)
            a.wait(ep)


@behaviour("epoll EPOLLET")
def epoll_edge(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN | ET)
    a.wait(ep)
    b.send(y, b"abc")
    a.wait(ep)
    a.wait(ep)
    a.recv(x, 1)
    a.wait(ep)
    b.send(y, b"def")
    a.wait(ep)
    a.wait(ep)
    a.recv(x, 10)
    a.recv(x, 10, DONTWAIT)
    a.wait(ep)
    a.ctl(ep, "mod", x, IN | ET)
    a.wait(ep)
    b.send(y, b"ghi")
    settle()
    a.ctl(ep, "mod", x, IN | ET)
    a.wait(ep)
    a.wait(ep)
    waits = a.start.wait(ep, timeout=5000).asleep()
    b.send(y, b"jkl")
    waits.end()


@behaviour("epoll EPOLLET with EPOLLOUT")
def epoll_edge_out(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN | OUT | ET)
    a.wait(ep)
    a.wait(ep)
    b.send(y, b"abc")
    a.wait(ep)
    a.wait(ep)
    a.recv(x, 10)
    a.wait(ep)


@behaviour("epoll EPOLLONESHOT")
def epoll_oneshot(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN | ONESHOT)
    b.send(y, b"abc")
    a.wait(ep)
    a.wait(ep)
    b.send(y, b"def")
    a.wait(ep)
    a.ctl(ep, "mod", x, IN | ONESHOT)
    a.wait(ep)
    a.wait(ep)
    a.recv(x, 10)
    a.ctl(ep, "mod", x, IN | ONESHOT | ET)
    a.wait(ep)
    b.send(y, b"ghi")
    a.wait(ep)
    a.wait(ep)


@behaviour("epoll EPOLLEXCLUSIVE")
def epoll_exclusive(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN | EXCLUSIVE)
    b.send(y, b"abc")
    a.wait(ep)
    a.ctl(ep, "mod", x, IN | EXCLUSIVE)
    a.ctl(ep, "mod", x, IN)
    a.recv(x, 10)
    a.wait(ep)
    other = a.epoll()
    a.ctl(other, "add", x, IN | EXCLUSIVE | ONESHOT)
    a.ctl(other, "add", x, IN | EXCLUSIVE | RDHUP)
    a.ctl(other, "add", x, IN | EXCLUSIVE | ET)
    b.send(y, b"abc")
    a.wait(other)
    a.wait(ep)


@behaviour("epoll of an epoll set")
def epoll_nested(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    inner, outer = a.epoll(), a.epoll()
    a.ctl(inner, "add", x, IN)
    a.ctl(outer, "add", inner, IN)
    a.wait(outer)
    b.send(y, b"abc")
    a.wait(outer)
    a.poll([(outer, IN), (inner, IN)])
    a.wait(inner)
    a.recv(x, 10)
    a.wait(inner)
    a.wait(outer)
    waits = a.start.wait(outer, timeout=5000).asleep()
    b.send(y, b"abc")
    waits.end()


@behaviour("epoll sets that share a descriptor", "epoll of a dup in the same set")
def epoll_shared(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    one, two = a.epoll(), a.epoll()
    twin = a.sys("dup", x).value
    a.ctl(one, "add", x, IN)
    a.ctl(two, "add", x, IN | ET)
    a.ctl(one, "add", twin, IN | OUT)
    a.wait(one)
    a.wait(two)
    b.send(y, b"abc")
    a.wait(one)
    a.wait(two)
    a.wait(two)
    a.recv(twin, 10)
    a.wait(one)
    a.close(x)
    b.send(y, b"def")
    a.wait(one)
    a.wait(two)
    a.ctl(one, "del", x)
    a.recv(twin, 10)


@behaviour("epoll EPOLLHUP", "epoll EPOLLERR", carried=False)
def epoll_ends(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep, edge = a.epoll(), a.epoll()
    a.ctl(ep, "add", x, IN | RDHUP)
    a.ctl(edge, "add", x, IN | RDHUP | ET)
    b.send(y, b"last")
    b.shutdown(y, SHUT_WR)
    a.wait(ep)
    a.wait(edge)
    a.wait(edge)
    a.recv(x, 10)
    a.wait(ep)
    a.shutdown(x, SHUT_RDWR)
    a.wait(ep)
    x, y = stage.connection()
    a.ctl(ep, "add", x, 0)
    a.send(x, b"unread")
    b.close(y)
    settle()
    a.wait(ep)
    a.poll([(x, ERR | HUP | IN)])
    a.recv(x, 10)
    a.wait(ep)


@behaviour("epoll EPOLLET after an own shutdown", carried=False)
def epoll_edge_shutdown(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    edge = a.epoll()
    a.ctl(edge, "add", x, IN | RDHUP | ET)
    b.shutdown(y, SHUT_WR)
    a.wait(edge)
    a.shutdown(x, SHUT_RDWR)
    a.wait(edge)
    a.wait(edge)
    x, y = stage.connection()
    a.ctl(edge, "add", x, IN | OUT | ET)
    a.wait(edge)
    a.shutdown(x, SHUT_WR)
    a.wait(edge)
    a.wait(edge)


@behaviour("epoll_wait maxevents")
def epoll_maxevents(stage: Stage) -> None:
    a, b = stage.a, stage.b
    pairs = [stage.connection() for _ in range(3)]
    ep = a.epoll()
    for x, y in pairs:
        a.ctl(ep, "add", x, IN)
        b.send(y, b"abc")
    counts = [a.link.begin("epoll_wait", ep, a_memory.room(24), 2, 0, memory=a_memory).end()[0]
              for a_memory in (a.link.memory() for _ in range(3))]
    a.say(f"counts {counts}")
    a.wait(ep)
