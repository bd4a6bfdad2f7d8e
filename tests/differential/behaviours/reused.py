# SPDX-License-Identifier: Apache-2.0
"""One socket for several connections, and states that sockets get into: disconnected, refused, shut."""

from __future__ import annotations

import struct

from tests.differential.behaviours.descriptors import exchange
from tests.differential.behaviours.ends import look, use
from tests.differential.linux import (
    DONTWAIT,
    ERR,
    ET,
    FIONREAD,
    HUP,
    IN,
    NOSIGNAL,
    OUT,
    PEEK,
    RDHUP,
    SHUT_RD,
    SHUT_RDWR,
    SHUT_WR,
    SO_ERROR,
    SO_LINGER,
    SOL_SOCKET,
)
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour

ALL = IN | OUT | ERR | HUP | RDHUP


def unspec(side: Side, fd: int, size: int = 16) -> None:
    """connect to no address."""
    memory = side.link.memory()
    side.sys("connect", fd, memory.put(bytes(16)), size, memory=memory, text=f"{fd}, AF_UNSPEC {size}")


def named(side: Side, fd: int) -> None:
    """Whether it has addresses."""
    for name in ("getsockname", "getpeername"):
        memory = side.link.memory()
        side.sys(name, fd, memory.room(16), memory.both(struct.pack("=I", 16)), memory=memory, text=name,
                 shown=lambda value, data: f"{data[0][4:8]!r}" if value == 0 else "")


def again(stage: Stage, company: str) -> None:
    """Three connections, one after another. With threads the second stays on TCP: one might be inside of the first."""
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    thread = b.thread("t") if company == "thread" else None
    fd = b.socket()
    ep = b.epoll()
    b.ctl(ep, "add", fd, IN | OUT | RDHUP | (ET if company == "edge" else 0))
    for count in range(3):
        b.connect(fd, port)
        x = a.accept(listener).value
        if not (thread and count):
            stage.talk(x, fd)
        b.wait(ep)
        a.send(x, b"question %d" % count)
        b.poll([(fd, IN)], 1000)
        b.wait(ep)
        b.recv(fd, 3)
        if thread:
            thread.recv(fd, 100)
            thread.send(fd, b"from the thread")
            a.recv(x, 100)
        else:
            b.recv(fd, 100)
        b.send(fd, b"answer")
        a.recv(x, 100)
        if count == 1:
            a.send(x, b"never read")
            settle()
        unspec(b, fd)
        settle()
        named(b, fd)
        a.recv(x, 10, DONTWAIT)
        a.poll([(x, ALL)])
        b.poll([(fd, ALL)])
        b.wait(ep)
        b.recv(fd, 10, DONTWAIT)
        b.send(fd, b"x", NOSIGNAL)
        b.option(fd, SOL_SOCKET, SO_ERROR)
        a.close(x)
    unspec(b, fd)
    b.connect(fd, port)
    x = a.accept(listener).value
    if not thread:
        stage.talk(x, fd)
    exchange(stage, a, x, fd)
    a.close(x)
    b.recv(fd, 10)


@behaviour("connect AF_UNSPEC, then to another, several times", carried=False)
def again_alone(stage: Stage) -> None:
    again(stage, "")


@behaviour("connect AF_UNSPEC, then to another, in a program with threads", carried=False)
def again_threads(stage: Stage) -> None:
    again(stage, "thread")


@behaviour("connect AF_UNSPEC, then to another, in an EPOLLET set", carried=False)
def again_edge(stage: Stage) -> None:
    again(stage, "edge")


@behaviour("connect AF_UNSPEC of a socket that two processes have", carried=False)
def again_shared(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    fd = b.socket()
    b.connect(fd, port)
    x = a.accept(listener).value
    stage.talk(x, fd)
    child = b.fork("c")
    child.send(fd, b"from the child")
    a.recv(x, 100)
    unspec(b, fd)
    settle()
    a.recv(x, 10, DONTWAIT)
    child.recv(fd, 10, DONTWAIT)
    child.send(fd, b"x", NOSIGNAL)
    b.connect(fd, port)
    x = a.accept(listener).value
    for side in (child, b, child):
        side.send(fd, b"again")
        a.recv(x, 100)
        a.send(x, b"and back")
        side.recv(fd, 100)
    a.close(x)
    child.recv(fd, 10)
    b.recv(fd, 10)


@behaviour("connect AF_UNSPEC in all states", "connect AF_UNSPEC, then listen", carried=False)
def unspec_states(stage: Stage) -> None:
    a, b = stage.a, stage.b
    fd = b.socket()
    for size in (0, 1, 2, 8, 16):
        unspec(b, fd, size)
    listener, port = stage.listener()
    b.connect(fd, port)
    x = a.accept(listener).value
    stage.talk(x, fd)
    unspec(b, fd, 2)
    unspec(b, fd)
    b.bind(fd)
    b.listen(fd)
    theirs = a.socket()
    a.connect(theirs, b.port(fd))
    ours = b.accept(fd).value
    a.send(theirs, b"the other way round")
    b.recv(ours, 100)
    b.send(ours, b"back")
    a.recv(theirs, 100)
    for how in ("shut", "half", "reset", "closed"):
        fd = b.socket()
        b.connect(fd, port)
        x = a.accept(listener).value
        stage.talk(x, fd)
        if how == "reset":
            a.setsockopt(x, SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 0))
        if how in ("reset", "closed"):
            a.close(x)
        if how in ("shut", "half"):
            b.shutdown(fd, SHUT_WR)
        if how == "shut":
            a.shutdown(x, SHUT_WR)
            a.recv(x, 10)
        settle()
        unspec(b, fd)
        b.poll([(fd, ALL)])
        b.option(fd, SOL_SOCKET, SO_ERROR)
        b.connect(fd, port)
        x = a.accept(listener).value
        stage.talk(x, fd)
        exchange(stage, a, x, fd)


@behaviour("connect to oneself, and what follows", carried=False)
def oneself(stage: Stage) -> None:
    a = stage.a
    fd = a.socket()
    a.bind(fd)
    a.connect(fd, a.port(fd))
    for _ in range(40):
        a.link.begin("write", fd, 0, 0).end()
    for count in range(20):
        a.send(fd, b"to myself %d" % count)
        a.recv(fd, 100)
    a.send(fd, b"waits")
    a.ioctl(fd, FIONREAD)
    a.poll([(fd, ALL)])
    a.recv(fd, 3, PEEK)
    a.shutdown(fd, SHUT_WR)
    settle()
    look(a, fd)
    a.recv(fd, 100)
    use(a, fd)


@behaviour("connect while connecting (EALREADY)", "connect after refusal", carried=False)
def connecting(stage: Stage) -> None:
    a, b = stage.a, stage.b
    full, port = stage.listener(0)
    keep = b.socket()
    b.connect(keep, port)
    fds = []
    for _ in range(2):
        fd = b.socket(2, 1 | 0o4000)
        b.connect(fd, port)
        fds.append(fd)
    fd = fds[-1]
    b.connect(fd, port)
    b.poll([(fd, ALL)])
    b.recv(fd, 10)
    b.send(fd, b"x", NOSIGNAL)
    b.recv(fd, 10, PEEK)
    named(b, fd)
    b.option(fd, SOL_SOCKET, SO_ERROR)
    b.shutdown(fd, SHUT_RD)
    b.listen(fd)
    unspec(b, fd)
    b.poll([(fd, ALL)])
    b.recv(fd, 10)
    x = a.accept(full).value
    a.close(full)
    exchange(stage, a, x, keep)


ENDS = ("their FIN", "own FIN", "both", "reset", "unread", "own reading side")


def come_to(stage: Stage, how: str, x: int, y: int) -> None:
    """The ways in which a connection may be over."""
    a, b = stage.a, stage.b
    if how == "reset":
        b.setsockopt(y, SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 0))
    if how == "unread":
        a.send(x, b"never read")
    if how in ("their FIN", "both"):
        b.shutdown(y, SHUT_WR)
    if how in ("own FIN", "both"):
        a.shutdown(x, SHUT_WR)
    if how == "own reading side":
        a.shutdown(x, SHUT_RD)
    if how in ("reset", "unread"):
        b.close(y)
    settle()


@behaviour("getpeername after each end", "getsockname after each end", "setsockopt after each end", carried=False)
def names_in_states(stage: Stage) -> None:
    a = stage.a
    for how in ENDS:
        x, y = stage.connection()
        come_to(stage, how, x, y)
        a.say(how)
        for _ in range(2):
            named(a, x)
            a.poll([(x, 0)])
            settle()
            a.poll([(x, 0x3FFF)])
            a.setsockopt(x, 6, 1, 0)
            a.setsockopt(x, 6, 3, 1)
            a.setsockopt(x, 6, 3, 0)
            a.setsockopt(x, 6, 1, 1)
            a.getsockopt(x, 6, 1)
            a.listen(x)
            a.connect(x, 1)
            a.recv(x, 10, DONTWAIT)
            for side in (SHUT_RD, SHUT_WR, SHUT_RDWR):
                if how in ("reset", "unread"):
                    a.shutdown(x, side)
        a.close(x)


@behaviour("recv of each kind after an own SHUT_RD, with bytes unread", carried=False)
def deaf(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep, edge = a.epoll(), a.epoll()
    a.ctl(ep, "add", x, IN | RDHUP)
    a.ctl(edge, "add", x, IN | RDHUP | ET)
    b.send(y, b"0123456789")
    settle()
    a.wait(ep)
    a.wait(edge)
    a.shutdown(x, SHUT_RD)
    for _ in range(2):
        a.wait(ep)
        a.wait(edge)
        a.poll([(x, ALL)])
        a.ioctl(x, FIONREAD)
        a.recv(x, 1)
        a.recv(x, 1, PEEK)
        a.read(x, 1)
        a.readv(x, [1, 1])
        a.recvmsg(x, [1])
        a.recvmmsg(x, [1, 1])
        b.send(y, b"more", NOSIGNAL)
        settle()
    a.recv(x, 100, 0x100)
    a.recv(x, 100)
    a.wait(ep)
    a.wait(edge)
    a.send(x, b"still")
    b.recv(y, 10)
    a.close(x)
    settle()
    b.recv(y, 10, DONTWAIT)
    use(b, y)
