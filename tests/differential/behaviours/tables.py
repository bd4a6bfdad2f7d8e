# SPDX-License-Identifier: Apache-2.0
"""Tables of descriptors: limits, numbers that are taken, calls that fail half-way, programs that begin in a thread."""

from __future__ import annotations

import struct

from tests.differential.behaviours.descriptors import exchange
from tests.differential.behaviours.handed import NOTE, rights
from tests.differential.linux import (
    CMSG_CLOEXEC,
    DONTWAIT,
    ET,
    F_DUPFD,
    F_DUPFD_CLOEXEC,
    F_GETFD,
    F_SETFD,
    IN,
    NOSIGNAL,
    O_CLOEXEC,
    OUT,
    PEEK,
)
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour


def limit(side: Side, number: int) -> None:
    """RLIMIT_NOFILE; the hard limit stays."""
    memory = side.link.memory()
    side.sys("prlimit64", 0, 7, memory.put(struct.pack("=QQ", number, 4096)), 0, memory=memory, text=f"NOFILE {number}")


def unmoved(stage: Stage) -> tuple[int, int]:
    """One of a program whose tables nobody can follow: it stays on TCP."""
    listener, port = stage.listener()
    theirs = stage.b.socket()
    stage.b.connect(theirs, port)
    ours = stage.a.accept(listener).value
    stage.a.close(listener)
    return ours, theirs


@behaviour("dup2 that is refused, over a connection", "dup3 that is refused, over a connection")
def refused_over(stage: Stage) -> None:
    """Nothing has happened to what is there."""
    a = stage.a
    x, y = stage.connection()
    z, w = stage.connection()
    a.sys("dup3", x, z, 1)
    exchange(stage, a, z, w)
    a.sys("dup3", x, z, O_CLOEXEC | 1)
    a.sys("dup3", x, x, O_CLOEXEC)
    a.sys("dup2", 99, z)
    a.sys("dup3", 99, z, O_CLOEXEC)
    exchange(stage, a, z, w)
    a.sys("dup2", z, 60)
    limit(a, 50)
    a.sys("dup2", x, 60)
    a.sys("dup3", x, 60, 0)
    exchange(stage, a, 60, w)
    exchange(stage, a, z, w)
    exchange(stage, a, x, y)


@behaviour("fcntl F_DUPFD at RLIMIT_NOFILE", "dup at RLIMIT_NOFILE", "accept at RLIMIT_NOFILE",
           "socket at RLIMIT_NOFILE")
def at_the_limit(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    listener, port = stage.listener()
    fd = b.socket()
    b.connect(fd, port)
    limit(a, 12)
    for number in (0, 5, 11, 12, 13, 4095, 4096, 1 << 31, (1 << 32) + 5):
        for command in (F_DUPFD, F_DUPFD_CLOEXEC):
            twin = a.fcntl(x, command, number).value
            if twin >= 0:
                a.fcntl(twin, F_GETFD)
                exchange(stage, a, twin, y)
                a.close(twin)
    while a.sys("dup", x).value >= 0:
        pass
    a.socket()
    a.accept(listener)
    a.accept(listener, 0)
    a.epoll()
    a.close(11)
    z = a.accept(listener).value
    a.send(z, b"hello")
    b.recv(fd, 10)
    exchange(stage, a, 10, y)


@behaviour("close_range CLOSE_RANGE_UNSHARE", "close_range of everything else")
def close_ranges(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    z, w = stage.connection()
    a.sys("dup2", z, 200)
    a.sys("close_range", 200, 300, 2)
    a.fcntl(200, F_GETFD)
    exchange(stage, a, z, w)
    a.sys("close_range", z, z, 6)
    a.fcntl(z, F_GETFD)
    exchange(stage, a, z, w)
    a.sys("close_range", z, z, 2)
    a.send(z, b"x")
    b.recv(w, 10)
    a.sys("close_range", x + 1, 500, 0)
    a.sys("close_range", x + 1, 500, 1 << 32)
    exchange(stage, a, x, y)


@behaviour("execve from a thread")
def exec_in_thread(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    z, w = stage.connection()
    a.fcntl(z, F_SETFD, 1)
    b.send(y, b"unread")
    thread = a.thread("t")
    exchange_of = (thread, a)
    for side in exchange_of:
        side.recv(x, 3)
    thread.exec()
    exchange(stage, thread, x, y)
    thread.fcntl(z, F_GETFD)
    b.recv(w, 10)


@behaviour("sendmsg SCM_RIGHTS of several, with too little room (MSG_CTRUNC)", "recvmsg MSG_CTRUNC of SCM_RIGHTS",
           "recvmsg MSG_CMSG_CLOEXEC of SCM_RIGHTS", carried=False)
def rights_cut(stage: Stage) -> None:
    a, b = stage.a, stage.b
    one, two = a.pair()
    pairs = [stage.connection() for _ in range(3)]
    fds = [x for x, _ in pairs]
    for room, flags in ((24, 0), (20, 0), (16, 0), (0, 0), (28, CMSG_CLOEXEC), (12, 0), (64, CMSG_CLOEXEC), (64, PEEK)):
        a.sendmsg(one, [NOTE], control=rights(*fds))
        a.sent -= len(NOTE)
        call = a.recvmsg(two, [8], flags, control=room)
        control = call.pieces[1] if room else b""
        got = [each for each in struct.unpack_from("=3i", control.ljust(32, b"\xee"), 16) if 0 <= each < 1000]
        a.say(f"{got}")
        for fd, (_, y) in zip(got, pairs, strict=False):
            a.fcntl(fd, F_GETFD)
            exchange(stage, a, fd, y)
            a.close(fd)
        if flags & PEEK:
            a.recv(two, 10)
    for x, y in pairs:
        exchange(stage, a, x, y)
        a.close(x)
        b.recv(y, 10)


@behaviour("a descriptor that is closed by somebody else in a table that two processes share", carried=False)
def one_table(stage: Stage) -> None:
    """clone with CLONE_FILES and without CLONE_VM."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    z, w = stage.connection()
    b.send(y, b"unread")
    child = a.sharer("s")
    child.recv(x, 3)
    a.recv(x, 3)
    for side in (child, a, child):
        exchange(stage, side, x, y)
        exchange(stage, side, z, w)
    child.close(z)
    a.send(z, b"x", NOSIGNAL)
    b.recv(w, 10)
    fresh, theirs = unmoved(stage)
    for side in (child, a, child, a):
        exchange(stage, side, fresh, theirs)
    listener, port = stage.listener()
    fd = b.socket()
    b.connect(fd, port)
    v = child.accept(listener).value
    for side in (a, child) * 10:
        exchange(stage, side, v, fd)
    a.close(v)
    child.recv(v, 10)
    b.recv(fd, 10)
    ep = a.epoll()
    child.ctl(ep, "add", x, IN | ET)
    b.send(y, b"edge")
    settle()
    a.wait(ep)
    child.wait(ep)
    child.recv(x, 10)


@behaviour("unshare CLONE_FILES of a thread", carried=False)
def own_table(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    z, w = stage.connection()
    thread = a.thread("t")
    exchange(stage, thread, x, y)
    thread.sys("unshare", 0x400)
    thread.close(x)
    exchange(stage, a, x, y)
    exchange(stage, thread, z, w)
    thread.sys("dup2", z, x)
    exchange(stage, thread, x, w)
    exchange(stage, a, x, y)
    a.close(z)
    exchange(stage, thread, z, w)
    a.poll([(x, IN | OUT)])
    thread.poll([(x, IN | OUT), (z, IN | OUT)])
    fresh, theirs = unmoved(stage)
    exchange(stage, a, fresh, theirs)
    thread.send(fresh, b"x", NOSIGNAL)
    thread.close(x)
    exchange(stage, a, x, y)
    thread.close(z)
    b.recv(w, 10, DONTWAIT)
