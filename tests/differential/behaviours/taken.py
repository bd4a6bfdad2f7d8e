# SPDX-License-Identifier: Apache-2.0
"""pidfd_getfd: a process takes a connection out of another, in whatever that one is doing with it."""

from __future__ import annotations

import signal
import struct
import time
from collections.abc import Callable

from tests.differential.behaviours.descriptors import exchange
from tests.differential.behaviours.transmit import fill
from tests.differential.linux import (
    DONTWAIT,
    FIONREAD,
    IN,
    OUT,
    PEEK,
    RDHUP,
    SHUT_RD,
    SHUT_WR,
    SO_RCVLOWAT,
    SO_SNDTIMEO,
    SOL_SOCKET,
    WAITALL,
)
from tests.differential.side import Call, Side, settle
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


@behaviour("pidfd_getfd with as much unread as TCP's buffers hold", carried=False,
           only=("before", "after", "accepting"))
def pidfd_getfd_much(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    thief = b.fork("thief")
    data = bytes(range(256)) * 9000
    b.send(y, data)
    a.send(x, data)
    got = take(thief, a, x)
    thief.recv_all(got, 1_000_000)
    a.recv_all(x, len(data) - 1_000_000)
    b.recv_all(y, len(data))
    exchange(stage, thief, got, y)


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


@behaviour("pidfd_getfd while its owner sleeps in recv with MSG_PEEK and MSG_WAITALL behind some", carried=False)
def pidfd_getfd_peeked(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    other = a.thread("t")
    x, y = stage.connection()
    b.send(y, b"a")
    settle()
    waits = other.start.recv(x, 2, PEEK | WAITALL).asleep()
    got = take(thief, a, x)
    settle()
    b.send(y, b"x")
    waits.end()
    thief.recv_all(got, 2)


@behaviour("pidfd_getfd while its owner sleeps for room", carried=False, only=("before", "tight"))
def pidfd_getfd_full(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    ep = a.epoll()
    ways: tuple[Callable[[int], Call], ...] = (
        lambda x: a.start.poll([(x, OUT)], 8000), lambda x: a.start.wait(ep, timeout=8000),
        lambda x: a.start.send(x, b"s"), lambda x: limited(x).start.send(x, b"s"))  # fmt: skip

    def limited(x: int) -> Side:
        a.setsockopt(x, SOL_SOCKET, SO_SNDTIMEO, struct.pack("=qq", 8, 0))
        return a

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


def spend(side: Side, fd: int) -> None:
    """All that there is to be read, and what stands behind it."""
    side.poll([(fd, IN | RDHUP)])
    memory = side.link.memory()
    side.sys("ioctl", fd, FIONREAD, memory.room(4), memory=memory, text=f"{fd}, FIONREAD",
             shown=lambda _, data: str(struct.unpack("=i", data[0])[0]))
    side.recv(fd, 4, PEEK)
    side.recv(fd, 4)
    for _ in range(3):
        side.recv(fd, 100, DONTWAIT)


def gone(stage: Stage, way: str) -> int:
    """A connection whose peer has sent something, and has gone: a's descriptor."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    other = b.fork(way)
    b.close(y)
    other.send(y, b"the last bytes of one that " + way.encode())
    if way == "resets":
        a.send(x, b"never read")
    if way == "dies":
        b.sys("kill", other.link.pid, signal.SIGKILL, text=way)
    else:
        other.close(y)
    time.sleep(0.02)
    return x


@behaviour("pidfd_getfd of what a peer had sent that has closed", "pidfd_getfd of what a peer had sent that has died",
           "pidfd_getfd of what a peer had sent that has reset it", carried=False)
def pidfd_getfd_of_the_gone(stage: Stage) -> None:
    a = stage.a
    thief = stage.b.fork("thief")
    for way in ("closes", "dies", "resets"):
        x = gone(stage, way)
        got = take(thief, a, x)
        spend(thief, got)
        a.recv(x, 100, DONTWAIT)
        thief.shutdown(got, SHUT_WR)
        a.poll([(x, IN | OUT | RDHUP)])
        a.close(x)


@behaviour("pidfd_getfd of what a peer had sent that has shut its sending side", carried=False)
def pidfd_getfd_of_the_silent(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN | RDHUP)
    a.send(x, b"on its way")
    b.send(y, b"the last bytes")
    b.shutdown(y, SHUT_WR)
    time.sleep(0.02)
    got = take(thief, a, x)
    spend(thief, got)
    a.wait(ep)
    b.recv(y, 10)
    for side, fd in ((thief, got), (a, x)):
        side.send(fd, b"an answer")
        b.recv_all(y, 9)
    total = 3_000_000
    waits = thief.start.send(got, bytes(total))
    b.recv_all(y, total)
    waits.end()
    thief.shutdown(got, SHUT_WR)
    b.recv(y, 10)
    b.poll([(y, IN | OUT | RDHUP)])


@behaviour("pidfd_getfd of what a peer had sent that is on TCP again", carried=False)
def pidfd_getfd_of_both(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief, other = b.fork("thief"), a.fork("other")
    x, y = stage.connection()
    for turn in range(2):
        a.send(x, b"to b %d" % turn)
        b.send(y, b"to a %d" % turn)
    theirs = take(other, b, y)
    b.send(y, b" and more")
    got = take(thief, a, x)
    thief.recv_all(got, 21)
    other.recv_all(theirs, 12)
    exchange(stage, a, x, y)
    exchange(stage, thief, got, y)
    thief.send(got, b"last")
    other.recv(theirs, 10)
    other.send(theirs, b"words")
    a.recv(x, 10)
    for side, fd in ((b, y), (other, theirs), (a, x)):
        side.close(fd)
    thief.recv(got, 10)


@behaviour("pidfd_getfd with SO_RCVLOWAT", carried=False)
def pidfd_getfd_lowat(stage: Stage) -> None:
    a, b = stage.a, stage.b
    thief = b.fork("thief")
    x, y = stage.connection()
    a.setsockopt(x, SOL_SOCKET, SO_RCVLOWAT, 5)
    b.send(y, b"few")
    got = take(thief, a, x)
    thief.poll([(got, IN)])
    b.send(y, b"more")
    thief.poll([(got, IN)])
    a.recv(x, 100)
    exchange(stage, thief, got, y, b"a message")
