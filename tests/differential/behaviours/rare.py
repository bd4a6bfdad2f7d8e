# SPDX-License-Identifier: Apache-2.0
"""Options of TCP by which a connection begins in another way, or by which somebody takes it apart."""

from __future__ import annotations

import struct

from tests.differential.behaviours.descriptors import exchange
from tests.differential.linux import DONTWAIT, IN, NOSIGNAL, OUT, PEEK, SO_ERROR, SOL_SOCKET, SOL_TCP, TCP_DEFER_ACCEPT
from tests.differential.side import settle
from tests.differential.worlds import Stage, behaviour


@behaviour("setsockopt TCP_REPAIR, and its queues", carried=False)
def repair(stage: Stage) -> None:
    """The kernel shows and takes the bytes of its own queues."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.send(y, b"unread")
    settle()
    if a.setsockopt(x, SOL_TCP, 19, 1).value < 0:
        a.recv(x, 10)
        return
    a.getsockopt(x, SOL_TCP, 19)
    a.recv(x, 10)
    for queue in (1, 2, 0):
        a.setsockopt(x, SOL_TCP, 20, queue)
        a.getsockopt(x, SOL_TCP, 20)
        a.recv(x, 10, PEEK | DONTWAIT)
    a.setsockopt(x, SOL_TCP, 19, -1)  # off, and no probe
    a.recv(x, 10)
    exchange(stage, a, x, y)
    a.setsockopt(x, SOL_TCP, 19, 1)
    a.close(x)
    settle()
    b.recv(y, 10, DONTWAIT)
    b.send(y, b"into the void", NOSIGNAL)
    settle()
    b.recv(y, 10, DONTWAIT)


@behaviour("setsockopt TCP_DEFER_ACCEPT", carried=False)
def deferred(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    a.setsockopt(listener, SOL_TCP, TCP_DEFER_ACCEPT, 5)
    a.option(listener, SOL_TCP, TCP_DEFER_ACCEPT)
    fd = b.socket()
    b.connect(fd, port)
    a.poll([(listener, IN)])
    b.send(fd, b"first")
    a.poll([(listener, IN)], 1000)
    x = a.accept(listener).value
    a.recv(x, 10)
    stage.talk(x, fd)
    exchange(stage, a, x, fd)
    a.option(x, SOL_TCP, TCP_DEFER_ACCEPT)


@behaviour("setsockopt TCP_FASTOPEN", "setsockopt TCP_FASTOPEN_CONNECT", carried=False)
def fast_open(stage: Stage) -> None:
    """connect says that it is done, and nothing was sent."""
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    a.setsockopt(listener, SOL_TCP, 23, 5)
    a.option(listener, SOL_TCP, 23)
    for first in ("send", "recv", "poll"):
        fd = b.socket()
        b.setsockopt(fd, SOL_TCP, 34, 1)
        b.setsockopt(fd, SOL_TCP, 30, 1)
        b.connect(fd, port)
        b.option(fd, SOL_SOCKET, SO_ERROR)
        a.poll([(listener, IN)], 20)
        b.sys("getpeername", fd, 0, 0)
        if first == "recv":
            b.recv(fd, 10, DONTWAIT)
        elif first == "poll":
            b.poll([(fd, IN | OUT)])
        b.send(fd, b"first")
        x = a.accept(listener).value
        a.recv(x, 10)
        stage.talk(x, fd)
        exchange(stage, a, x, fd)


@behaviour("setsockopt TCP_MD5SIG", carried=False)
def signed(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    key = struct.pack("=H", 2) + bytes(126) + struct.pack("=BBHi", 0, 0, 3, 0) + b"key" + bytes(77)
    a.setsockopt(x, SOL_TCP, 14, key[:-1])
    fd = a.socket()
    a.setsockopt(fd, SOL_TCP, 14, key)
    a.setsockopt(fd, SOL_TCP, 14, key[:100])
    exchange(stage, a, x, y)
