# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells beside the bytes, and options that choose which bytes are given."""

from __future__ import annotations

import struct

from tests.differential.behaviours.descriptors import exchange
from tests.differential.linux import DONTWAIT, IN, PEEK, SHUT_WR, SOL_SOCKET, SOL_TCP, TRUNC, WAITALL
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour

TCP_INQ = 36
SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_PEEK_OFF = 26, 27, 42
SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPNS_NEW = 29, 35, 64
ACCEPT_ALL = struct.pack("=HBBI", 6, 0, 0, 0xFFFFFFFF)
"""BPF_RET | BPF_K: the whole packet."""


def left(side: Side, fd: int, size: int, flags: int = 0, control: int = 64) -> None:
    """recvmsg, with all that it says beside the bytes."""
    call = side.recvmsg(fd, [size], flags, control=control)
    if call.value >= 0 and control:
        side.say(repr(call.pieces[1][:24]))


@behaviour("setsockopt TCP_INQ", "recvmsg TCP_CM_INQ", "recvmmsg TCP_CM_INQ")
def inq(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.getsockopt(x, SOL_TCP, TCP_INQ)
    a.setsockopt(x, SOL_TCP, TCP_INQ, 2)
    a.setsockopt(x, SOL_TCP, TCP_INQ, 1)
    a.getsockopt(x, SOL_TCP, TCP_INQ)
    b.send(y, b"twenty bytes of text")
    left(a, x, 4)
    left(a, x, 4, PEEK)
    left(a, x, 4, TRUNC)
    for control in (0, 8, 16, 18, 20, 23, 24):
        left(a, x, 1, control=control)
    a.recv(x, 1)
    left(a, x, 100)
    left(a, x, 100, DONTWAIT)
    b.send(y, b"more")
    a.recvmmsg(x, [1, 2, 1], DONTWAIT)
    a.setsockopt(x, SOL_TCP, TCP_INQ, 0)
    b.send(y, b"last")
    left(a, x, 4)
    exchange(stage, a, x, y)


@behaviour("recvmsg TCP_CM_INQ at the end of the stream", carried=False)
def inq_at_the_end(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.setsockopt(x, SOL_TCP, TCP_INQ, 1)
    b.send(y, b"last words")
    b.shutdown(y, SHUT_WR)
    settle()
    left(a, x, 4)
    left(a, x, 6)
    left(a, x, 6)


@behaviour("TCP_INQ before the connection moves", carried=False)
def inq_before(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    a.setsockopt(listener, SOL_TCP, TCP_INQ, 1)
    y = b.socket()
    b.setsockopt(y, SOL_TCP, TCP_INQ, 1)
    b.connect(y, port)
    x = a.accept(listener).value
    stage.talk(x, y)
    for side, fd, other, to in ((a, x, b, y), (b, y, a, x)):
        other.send(to, b"abcdef")
        left(side, fd, 2)
        left(side, fd, 100)
    exchange(stage, a, x, y)


@behaviour("setsockopt SO_TIMESTAMP", "setsockopt SO_TIMESTAMPNS", carried=False)
def timestamps(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for option in (SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPNS_NEW):
        x, y = stage.connection()
        b.send(y, b"before")
        a.recv(x, 100)
        a.setsockopt(x, SOL_SOCKET, option, 1)
        a.getsockopt(x, SOL_SOCKET, option)
        exchange(stage, a, x, y)
        for _ in range(3):
            b.send(y, b"stamped")
            call = a.recvmsg(x, [100], control=64)
            a.say(repr(call.pieces[1][:16]))
        a.setsockopt(x, SOL_SOCKET, option, 0)
        exchange(stage, a, x, y)


@behaviour("setsockopt SO_TIMESTAMP before connect", carried=False)
def timestamps_before(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    a.setsockopt(listener, SOL_SOCKET, SO_TIMESTAMP, 1)
    y = b.socket()
    b.connect(y, port)
    x = a.accept(listener).value
    for _ in range(20):
        exchange(stage, a, x, y)
    b.send(y, b"stamped")
    call = a.recvmsg(x, [100], control=64)
    a.say(repr(call.pieces[1][:16]))


@behaviour("setsockopt SO_PEEK_OFF", carried=False)
def peek_offset(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.getsockopt(x, SOL_SOCKET, SO_PEEK_OFF)
    b.send(y, b"0123456789")
    a.recv(x, 2, PEEK)
    a.setsockopt(x, SOL_SOCKET, SO_PEEK_OFF, 0)
    for _ in range(3):
        a.recv(x, 3, PEEK)
    a.recv(x, 4)
    a.recv(x, 3, PEEK | DONTWAIT)
    b.send(y, b"abcdef")
    a.poll([(x, IN)])
    a.recv(x, 100, PEEK | DONTWAIT)
    a.setsockopt(x, SOL_SOCKET, SO_PEEK_OFF, 1)
    a.recv(x, 3, PEEK)
    a.recv(x, 100)
    exchange(stage, a, x, y)
    a.setsockopt(x, SOL_SOCKET, SO_PEEK_OFF, -1)
    exchange(stage, a, x, y)


@behaviour("setsockopt SO_ATTACH_FILTER", carried=False)
def filtered(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for early in (False, True):
        if early:
            listener, port = stage.listener()
            attach(a, listener)
            y = b.socket()
            b.connect(y, port)
            x = a.accept(listener).value
        else:
            x, y = stage.connection()
            b.send(y, b"unread")
            attach(a, x)
            a.recv(x, 100)
        for _ in range(10):
            exchange(stage, a, x, y)
        waits = a.start.recv(x, 100).asleep()
        b.send(y, b"wake up")
        waits.end()
        a.setsockopt(x, SOL_SOCKET, SO_DETACH_FILTER, 0)
        exchange(stage, a, x, y)


def attach(side: Side, fd: int) -> None:
    """A filter that lets everything pass."""
    memory = side.link.memory()
    program = memory.put(struct.pack("=H6xQ", 1, memory.put(ACCEPT_ALL)))
    side.sys("setsockopt", fd, SOL_SOCKET, SO_ATTACH_FILTER, program, 16, memory=memory, text="a filter")


@behaviour("connect to oneself (one socket, both ends)", carried=False)
def self_connected(stage: Stage) -> None:
    a = stage.a
    fd = a.socket()
    a.bind(fd)
    a.connect(fd, a.port(fd))
    for count in range(30):
        a.send(fd, b"to myself %d" % count)
        a.recv(fd, 100)
    a.poll([(fd, IN)])
    a.send(fd, b"0123456789")
    a.recv(fd, 4, PEEK)
    a.recv(fd, 10, WAITALL)
    a.shutdown(fd, SHUT_WR)
    a.recv(fd, 10)
    a.poll([(fd, IN)])
    a.close(fd)


@behaviour("listen again after shutdown of the listener", carried=False)
def listener_shut(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    early = b.socket()
    b.connect(early, port)
    settle()
    ep = a.epoll()
    a.ctl(ep, "add", listener, IN)
    a.wait(ep)
    a.shutdown(listener, 0)
    a.wait(ep)
    a.accept(listener)
    b.poll([(early, IN)])
    b.recv(early, 10)
    y = b.socket()
    b.connect(y, port)
    a.bind(listener, port)
    a.listen(listener)
    y = b.socket()
    b.connect(y, port)
    x = a.accept(listener).value
    stage.talk(x, y)
    exchange(stage, a, x, y)


@behaviour("accept after the peer has reset", carried=False)
def accept_after_reset(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    y = b.socket()
    b.connect(y, port)
    b.send(y, b"never mind")
    b.setsockopt(y, SOL_SOCKET, 13, struct.pack("=ii", 1, 0))
    b.close(y)
    settle()
    x = a.accept(listener).value
    a.poll([(x, IN)])
    a.recv(x, 100)
    a.recv(x, 100)
    a.send(x, b"gone", 0x4000)


@behaviour("send of nothing", "writev of nothing", "recv of nothing at the end of the stream", carried=False)
def nothing(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"")
    a.writev(x, [b"", b"", b""])
    a.writev(x, [])
    a.sendmsg(x, [])
    a.write(x, b"")
    b.recv(y, 10, DONTWAIT)
    a.writev(x, [b"", b"some", b""])
    b.readv(y, [0, 0])
    b.readv(y, [0, 2, 0, 2])
    b.recvmsg(y, [], DONTWAIT)
    a.shutdown(x, SHUT_WR)
    b.recv(y, 0)
    b.recv(y, 0, DONTWAIT)
    b.read(y, 0)
    b.recvmsg(y, [], DONTWAIT)
    a.send(x, b"", 0x4000)
    a.recv(x, 0, DONTWAIT)
