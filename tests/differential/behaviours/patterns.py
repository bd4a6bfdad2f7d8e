# SPDX-License-Identifier: Apache-2.0
"""Sequences of calls as well-known programs and libraries make them."""

from __future__ import annotations

import signal
import struct

from tests.differential.behaviours.descriptors import exchange
from tests.differential.linux import (
    DONTWAIT,
    ERR,
    ET,
    FIONREAD,
    HUP,
    IN,
    NOSIGNAL,
    O_NONBLOCK,
    ONESHOT,
    OUT,
    PEEK,
    RDHUP,
    SHUT_WR,
    SO_ERROR,
    SO_LINGER,
    SO_RCVBUF,
    SO_SNDBUF,
    SOL_SOCKET,
    TRUNC,
    WAITALL,
)
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour

MOVE_NONBLOCK_MORE = 1 | 2 | 4
SIGRTMIN = 34


def forward(side: Side, source: int, target: int, pipe: tuple[int, int], total: int) -> None:
    """As proxies do: socket to pipe to socket, as much as there is."""
    done = 0
    for _ in range(4000):
        memory = side.link.memory()
        got, _ = side.link.begin("splice", source, 0, pipe[1], 0, 1 << 16, MOVE_NONBLOCK_MORE, memory=memory).end()
        if got == 0:
            break
        while got > 0:
            memory = side.link.memory()
            sent, _ = side.link.begin("splice", pipe[0], 0, target, 0, got, MOVE_NONBLOCK_MORE, memory=memory).end()
            if sent > 0:
                got -= sent
                done += sent
            elif sent == -11:
                side.link.begin("poll", memory.both(struct.pack("=ihh", target, OUT, 0)), 1, 1000, memory=memory).end()
            else:
                side.say(f"splice = {sent}")
                return
        if done >= total:
            break
        memory = side.link.memory()
        side.link.begin("poll", memory.both(struct.pack("=ihh", source, IN, 0)), 1, 1000, memory=memory).end()
    side.sent += done
    side.say(f"forwarded {done}")


@behaviour("splice from connection to connection")
def proxied(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    z, w = stage.connection()
    for fd in (x, z):
        a.nonblock(fd)
    pipe = a.pipe(O_NONBLOCK)
    data = bytes(range(250)) * 100
    sends = b.start.write(y, data)
    forward(a, x, z, pipe, len(data))
    sends.end()
    b.recv_all(w, len(data))
    b.send(w, b"answer")
    settle()
    forward(a, z, x, pipe, 6)
    b.recv(y, 100)


@behaviour("recv MSG_TRUNC into nothing")
def drained(stage: Stage) -> None:
    """A proxy that does not want the rest."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.send(y, b"w" * 5000)
    a.sys("recvfrom", x, 0, 100, TRUNC | DONTWAIT | NOSIGNAL, 0, 0)
    a.sys("recvfrom", x, 0, 1 << 30, TRUNC | DONTWAIT | NOSIGNAL, 0, 0)
    a.sys("recvfrom", x, 0, 1 << 30, TRUNC | DONTWAIT | NOSIGNAL, 0, 0)
    b.send(y, b"abc")
    a.sys("recvfrom", x, 0, 100, TRUNC | PEEK | DONTWAIT, 0, 0)
    a.recv(x, 10)
    exchange(stage, a, x, y)


@behaviour(carried=False)
def pooled(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.nonblock(x)
    for _ in range(2):
        a.recv(x, 1, PEEK)
        a.poll([(x, IN)])
        a.send(x, b"GET")
        b.recv(y, 10)
        b.send(y, b"200")
        a.poll([(x, IN)], 5000)
        a.recv(x, 10)
    b.close(y)
    a.poll([(x, IN | RDHUP)], 5000)
    a.recv(x, 1, PEEK)
    a.option(x, SOL_SOCKET, SO_ERROR)
    a.send(x, b"GET", NOSIGNAL)
    a.poll([(x, IN | OUT)], 5000)
    a.recv(x, 1, PEEK)
    a.recv(x, 1)
    a.send(x, b"GET", NOSIGNAL)


@behaviour("ioctl FIONREAD, then readv of that")
def asked_first(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.nonblock(x)
    a.ctl(ep, "add", x, IN | ET | RDHUP)
    for size in (1, 100, 4096, 10_000):
        b.send(y, b"r" * size)
        a.wait(ep, timeout=5000)
        there = a.ioctl(x, FIONREAD)
        a.readv(x, [there // 2, there - there // 2])
        a.readv(x, [10])
        a.wait(ep)


# nginx goes by it: what it reads beyond FIONREAD has come since it was told, so it will be told of the rest.
# A ring holds all of it from the beginning, so there nothing comes later.
@behaviour("epoll EPOLLET of bytes that come while those before them are read", carried=False,
           only=("cold", "during", "after", "accepting", "connecting"))
def read_across(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.setsockopt(x, SOL_SOCKET, SO_RCVBUF, 20_000)
    b.setsockopt(y, SOL_SOCKET, SO_SNDBUF, 500_000)
    a.ctl(ep, "add", x, IN | ET | RDHUP)
    b.send(y, b"w" * 200_000)
    for _ in range(4):
        a.recv(x, 1)
        settle()
        b.send(y, b"r")
    settle()
    b.send(y, b"s" * 1000)
    a.wait(ep, timeout=5000)
    a.recv(x, 200_000 + 500, WAITALL)
    settle()
    a.wait(ep, timeout=5000)
    a.recv(x, 500, WAITALL)
    a.wait(ep)


@behaviour("epoll EPOLLONESHOT, armed anew by another thread")
def handed_round(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    thread = a.thread("t")
    ep = a.epoll()
    a.ctl(ep, "add", x, IN | ONESHOT | ET)
    for count, side, other in ((0, a, thread), (1, thread, a), (2, a, thread)):
        waits = side.start.wait(ep, timeout=5000).asleep()
        b.send(y, b"job %d" % count)
        waits.end()
        other.wait(ep)
        other.recv(x, 3)
        other.ctl(ep, "mod", x, IN | ONESHOT | ET)
        side.wait(ep, timeout=5000)
        side.recv(x, 100)
        side.wait(ep)
        side.ctl(ep, "mod", x, IN | ONESHOT | ET)


@behaviour(carried=False)
def preclosed(stage: Stage) -> None:
    """How a runtime closes what its threads use."""
    a, b = stage.a, stage.b
    one, two = a.pair()
    a.shutdown(one, 2)
    a.handle(SIGRTMIN, "count")
    thread = a.thread("t")
    for call in ("recv", "poll"):
        x, y = stage.connection()
        waits = (thread.start.recv(x, 10) if call == "recv" else thread.start.poll([(x, IN)], 8000)).asleep()
        a.sys("dup2", one, x)
        a.sys("tgkill", a.link.pid, thread.link.tid, SIGRTMIN, text="the sleeper")
        waits.end()
        thread.recv(x, 10)
        thread.send(x, b"x", NOSIGNAL)
        b.poll([(y, IN)], 5000)
        b.recv(y, 10)
        a.close(x)
        b.close(y)
    a.close(two)


@behaviour(carried=False)
def lingering(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.nonblock(x)
    a.ctl(ep, "add", x, IN | RDHUP | ET)
    a.send(x, b"the answer")
    a.shutdown(x, SHUT_WR)
    a.wait(ep)
    b.send(y, b"more that nobody wants")
    a.wait(ep, timeout=5000)
    a.recv(x, 100)
    a.recv(x, 100)
    b.recv_all(y, 100)
    b.close(y)
    a.wait(ep, timeout=5000)
    a.recv(x, 100)
    a.close(x)


@behaviour("epoll of a connection that moves from one thread's set to another's",
           only=("before", "tight", "after", "accepting"))
def migrated(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    thread = a.thread("t")
    sets = a.epoll(), a.epoll()
    sides = a, thread
    for count in range(4):
        here, there = sets[count % 2], sets[(count + 1) % 2]
        side = sides[count % 2]
        a.ctl(here, "add", x, IN | OUT | RDHUP | ET)
        side.wait(here)
        b.send(y, b"unread %d" % count)
        side.wait(here, timeout=5000)
        a.ctl(here, "del", x)
        a.ctl(there, "add", x, IN | ET)
        waits = sides[(count + 1) % 2].start.wait(there, timeout=5000)
        waits.end()
        sides[(count + 1) % 2].recv(x, 100)
        a.wait(here)
        a.ctl(there, "del", x)


@behaviour(carried=False)
def aborted(stage: Stage) -> None:
    a, b = stage.a, stage.b
    pairs = [stage.connection() for _ in range(4)]
    ep = a.epoll()
    for x, y in pairs:
        a.ctl(ep, "add", x, IN | RDHUP)
        b.setsockopt(y, SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 0))
    b.sys("close_range", min(y for _, y in pairs), max(y for _, y in pairs), 0)
    settle()
    a.wait(ep)
    for x, _ in pairs:
        a.poll([(x, IN | ERR | HUP)])
        a.recv(x, 10)
        a.recv(x, 10)
        a.ctl(ep, "del", x)
    a.wait(ep)


@behaviour("recv interrupted by a signal between two parts of MSG_WAITALL")
def interrupted_waitall(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.handle(signal.SIGUSR1, "count")
    waits = a.start.recv(x, 10, 0x100).asleep()
    b.send(y, b"half.")
    waits.asleep()
    b.sys("tgkill", a.link.pid, a.link.tid, int(signal.SIGUSR1), text="the sleeper")
    waits.end()
    a.signals(signal.SIGUSR1)
    b.send(y, b"rest.")
    a.recv(x, 10)
