# SPDX-License-Identifier: Apache-2.0
"""pidfd_getfd: a process takes a connection out of another, in whatever that one is doing with it."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

from tests.differential.behaviours.descriptors import exchange
from tests.differential.behaviours.transmit import fill
from tests.differential.linux import DONTWAIT, IN, OUT, SHUT_RD, SHUT_WR
from tests.differential.side import Call, Side
from tests.differential.worlds import Stage, behaviour


def take(thief: Side, victim: Side, fd: int) -> int:
    """The thief's descriptor."""
    pidfd = thief.sys("pidfd_open", victim.link.pid, 0, text="victim").value
    got = thief.sys("pidfd_getfd", pidfd, fd, 0).value
    thief.close(pidfd)
    return got


@behaviour("pidfd_getfd", carried=False)
def pidfd_getfd(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    thief = b.fork("thief")
    exchange(stage, a, x, y)
    got = take(thief, a, x)
    exchange(stage, thief, got, y)
    exchange(stage, a, x, y)
    thief.close(got)
    exchange(stage, a, x, y)
    a.close(x)
    b.recv(y, 10)


@behaviour("pidfd_getfd with bytes unread in both directions", carried=False)
def pidfd_getfd_unread(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    thief = b.fork("thief")
    for turn in range(3):
        b.send(y, b"unread %d" % turn)
        a.send(x, b"on its way %d" % turn)
        got = take(thief, a, x)
        thief.recv(got, 4)
        a.recv(x, 100)
        thief.send(got, b" behind it")
        b.recv_all(y, 22)
    a.close(x)
    thief.shutdown(got, SHUT_WR)
    b.recv(y, 10)


@behaviour("pidfd_getfd of unread bytes whose sender has shut its reading side", carried=False)
def pidfd_getfd_of_the_deaf(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    x, y = stage.connection()
    b.send(y, b"ab")
    b.shutdown(y, SHUT_RD)
    time.sleep(0.05)  # then a sender asks whether its peer is there
    b.send(y, b"cd")
    got = take(thief, a, x)
    thief.recv_all(got, 4)
    b.send(y, b"ef")
    thief.recv_all(got, 2)
    b.close(y)
    thief.recv(got, 2)


@behaviour("pidfd_getfd while its owner sleeps in recv, poll, select, epoll", carried=False)
def pidfd_getfd_asleep(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    ep = a.epoll()
    ways: tuple[Callable[[int], Call], ...] = (
        lambda x: a.start.recv(x, 100), lambda x: a.start.poll([(x, IN)], 8000),
        lambda x: a.start.select([x], seconds=8), lambda x: a.start.wait(ep, timeout=8000))  # fmt: skip
    for way in ways:
        x, y = stage.connection()
        a.ctl(ep, "add", x, IN)
        waits = way(x).asleep()
        got = take(thief, a, x)
        waits.asleep()
        b.send(y, b"wake up")
        waits.end()
        a.recv(x, 100, DONTWAIT)
        thief.send(got, b"I have it, too")
        b.recv(y, 100)
        a.close(x)


@behaviour("pidfd_getfd while its owner sleeps for room", carried=False, only=("before", "tight"))
def pidfd_getfd_full(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    ep = a.epoll()
    ways: tuple[Callable[[int], Call], ...] = (
        lambda x: a.start.poll([(x, OUT)], 8000), lambda x: a.start.wait(ep, timeout=8000),
        lambda x: a.start.send(x, b"s"))  # fmt: skip
    for way in ways:
        x, y = stage.connection()
        a.ctl(ep, "add", x, OUT)
        total = fill(stage, x)
        waits = way(x).asleep()
        take(thief, a, x)
        b.recv_all_quietly(y, total)
        waits.end()
        a.ctl(ep, "del", x)
        a.poll([(x, OUT)])


@behaviour("pidfd_getfd of a connection before it moves up", carried=False)
def pidfd_getfd_early(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    thief = b.fork("thief")
    y = b.socket()
    b.connect(y, port)
    x = a.accept(listener).value
    got = take(thief, a, x)
    for _ in range(4):
        exchange(stage, a, x, y)
        exchange(stage, thief, got, y)
    other = take(thief, a, listener)
    z = b.socket()
    b.connect(z, port)
    w = thief.accept(other).value
    exchange(stage, thief, w, z)


@behaviour("pidfd_getfd out of oneself", "pidfd_getfd refused (EBADF, EINVAL)")
def pidfd_getfd_self(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    got = take(a, a, x)
    exchange(stage, a, got, y)
    exchange(stage, a, x, y)
    a.close(x)
    exchange(stage, a, got, y)
    pidfd = a.sys("pidfd_open", a.link.pid, 0, text="itself").value
    a.sys("pidfd_getfd", pidfd, 99, 0)
    a.sys("pidfd_getfd", pidfd, got, 1)
    a.sys("pidfd_getfd", got, got, 0)
    a.sys("pidfd_getfd", 99, got, 0)
    exchange(stage, a, got, y)


@behaviour("pidfd_getfd between a parent and its child", carried=False)
def pidfd_getfd_family(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for born_before in (True, False):
        child = a.fork("c") if born_before else None
        x, y = stage.connection()
        child = child or a.fork("d")
        b.send(y, b"unread")
        got = take(child, a, x)
        child.recv(got, 3)
        a.recv(x, 100)
        exchange(stage, child, got, y)
        exchange(stage, a, x, y)
        memory = child.link.memory()
        child.sys("fstat", got, memory.room(144), memory=memory, text="",
                  shown=lambda _, data: hex(struct.unpack_from("=I", data[0], 24)[0]))
