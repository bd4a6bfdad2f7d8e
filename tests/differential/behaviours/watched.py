# SPDX-License-Identifier: Apache-2.0
"""Readiness where it is asked for in odd ways: masks that nobody needs, ends of streams, sets that are armed anew."""

from __future__ import annotations

import signal
import struct
from typing import Final

from tests.differential.behaviours.descriptors import exchange
from tests.differential.linux import (
    DONTWAIT,
    ERR,
    ET,
    EXCLUSIVE,
    HUP,
    IN,
    NOSIGNAL,
    ONESHOT,
    OUT,
    PRI,
    RDBAND,
    RDHUP,
    RDNORM,
    SHUT_RD,
    SHUT_WR,
    SO_LINGER,
    SOL_SOCKET,
    WRBAND,
    WRNORM,
)
from tests.differential.remote import ARENA
from tests.differential.side import MINUS_ONE, Side, settle
from tests.differential.worlds import Stage, behaviour

BITS: Final = (0, IN, PRI, OUT, ERR, HUP, 0x20, RDNORM, RDBAND, WRNORM, WRBAND, 0x400, 0x1000, RDHUP, 0x3FDF)
"""0x20: POLLNVAL, 0x400: POLLMSG, 0x1000: POLLREMOVE."""


def end(stage: Stage, how: str, x: int, y: int) -> None:
    """One of the ways in which a connection comes to what poll has to say of it."""
    a, b = stage.a, stage.b
    if how == "data":
        b.send(y, b"abc")
    elif how == "their end":
        b.shutdown(y, SHUT_WR)
    elif how == "data and their end":
        b.send(y, b"abc")
        b.shutdown(y, SHUT_WR)
    elif how == "own end":
        a.shutdown(x, SHUT_WR)
    elif how == "deaf":
        a.shutdown(x, SHUT_RD)
    elif how == "both ends":
        b.shutdown(y, SHUT_WR)
        a.shutdown(x, SHUT_WR)
    elif how == "reset":
        b.setsockopt(y, SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 0))
        b.close(y)
    settle()


WAYS: Final = ("nothing", "data", "their end", "data and their end", "own end", "deaf", "both ends", "reset")


@behaviour("poll each bit, in each state", "epoll each bit, in each state", carried=False)
def each_bit(stage: Stage) -> None:
    a = stage.a
    for how in WAYS:
        x, y = stage.connection()
        ep = a.epoll()
        end(stage, how, x, y)
        a.say(how)
        for bits in BITS:
            a.poll([(x, bits)])
            a.ctl(ep, "add", x, bits)
            a.wait(ep)
            a.wait(ep)
            a.ctl(ep, "mod", x, bits | ET)
            a.wait(ep)
            a.wait(ep)
            a.ctl(ep, "mod", x, bits | ET | ONESHOT)
            a.wait(ep)
            a.wait(ep)
            a.ctl(ep, "del", x)
        a.select([x])
        a.select([], [x])
        a.select([], [], [x])
        a.close(x)
        a.close(ep)


@behaviour("epoll EPOLL_CTL_MOD arms an edge anew", carried=False)
def armed_anew(stage: Stage) -> None:
    a = stage.a
    for how in WAYS:
        x, y = stage.connection()
        ep = a.epoll()
        a.say(how)
        a.ctl(ep, "add", x, IN | OUT | RDHUP | ET)
        a.wait(ep)
        end(stage, how, x, y)
        for events in (IN | OUT | RDHUP | ET, IN | ET, OUT | ET, RDHUP | ET, IN | ET | ONESHOT, IN | ONESHOT, IN, ET):
            a.wait(ep)
            a.wait(ep)
            a.ctl(ep, "mod", x, events)
            a.wait(ep)
        a.close(x)
        a.close(ep)


@behaviour("epoll EPOLLET of bytes that come while others are unread, of the end behind them", carried=False)
def edge_after_edge(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN | RDHUP | ET)
    a.wait(ep)
    for size in (1, 10, 1000, 3):
        b.send(y, b"x" * size)
        settle()
        a.wait(ep)
        a.wait(ep)
    a.recv(x, 5)
    a.wait(ep)
    b.send(y, b"more")
    settle()
    a.wait(ep)
    b.shutdown(y, SHUT_WR)
    settle()
    a.wait(ep)
    a.wait(ep)
    a.recv(x, 2000)
    a.wait(ep)
    a.recv(x, 10)
    a.wait(ep)
    a.send(x, b"still")
    a.wait(ep)
    b.recv(y, 10)
    a.shutdown(x, SHUT_WR)
    a.wait(ep)
    a.wait(ep)


@behaviour("epoll of sets in sets, three deep, with edges", carried=False)
def deep(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for outer in (IN, IN | ET, IN | ONESHOT):
        x, y = stage.connection()
        low, middle, high = a.epoll(), a.epoll(), a.epoll()
        a.ctl(low, "add", x, IN | RDHUP)
        a.ctl(middle, "add", low, outer)
        a.ctl(high, "add", middle, IN)
        for _ in range(2):
            a.wait(high)
            b.send(y, b"abc")
            settle()
            for each in (high, high, middle, middle, low):
                a.wait(each)
            a.poll([(high, IN), (middle, IN), (low, IN)])
            a.recv(x, 10)
            for each in (low, middle, high):
                a.wait(each)
            a.poll([(high, IN), (middle, IN), (low, IN)])
        if outer == IN:
            waits = a.start.wait(high, timeout=5000).asleep()
            b.send(y, b"abc")
            waits.end()
        a.ctl(low, "add", high, IN)
        a.ctl(low, "add", low, IN)
        a.close(low)
        a.wait(high)
        a.wait(middle)
        a.close(x)


@behaviour("epoll EPOLLONESHOT of a connection in two sets",
           "epoll_ctl EPOLL_CTL_MOD while another thread waits", carried=False)
def oneshot_twice(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    one, two = a.epoll(), a.epoll()
    thread = a.thread("t")
    a.ctl(one, "add", x, IN | ONESHOT)
    a.ctl(two, "add", x, OUT | ONESHOT)
    a.wait(two)
    a.wait(two)
    waits = thread.start.wait(two, timeout=5000).asleep()
    a.ctl(two, "mod", x, OUT | ONESHOT)
    waits.end()
    waits = thread.start.wait(one, timeout=5000).asleep()
    b.send(y, b"abc")
    waits.end()
    waits = thread.start.wait(one, timeout=5000).asleep()
    a.ctl(one, "mod", x, IN | ONESHOT | ET)
    waits.end()
    a.recv(x, 10)
    waits = thread.start.wait(one, timeout=5000).asleep()
    a.ctl(one, "mod", x, IN)
    a.ctl(one, "mod", x, OUT)
    waits.end()
    a.ctl(one, "mod", x, IN)
    waits = thread.start.wait(one, timeout=5000).asleep()
    a.ctl(one, "del", x)
    a.ctl(one, "add", x, IN | OUT)
    waits.end()


@behaviour("epoll data, kept as it is given", "epoll_wait events are written no further than there are")
def payloads(stage: Stage) -> None:
    a, b = stage.a, stage.b
    pairs = [stage.connection() for _ in range(3)]
    ep = a.epoll()
    for (x, _), data in zip(pairs, (MINUS_ONE, 0, 0x123456789ABCDEF0), strict=True):
        a.ctl(ep, "add", x, IN, data)
    for _, y in pairs:
        b.send(y, b"abc")
    settle()
    for most in (1, 2, 3, 10):
        memory = a.link.memory()
        a.sys("epoll_wait", ep, memory.room(12 * 5), most, 0, memory=memory, text=f"{most}",
              shown=lambda value, data: data[0][12 * value:].hex())
        a.wait(ep, 10)
    a.ctl(ep, "mod", pairs[0][0], IN, 5)
    a.wait(ep)
    for x, _ in pairs:
        a.recv(x, 10)
    for x, y in pairs:
        exchange(stage, a, x, y)


@behaviour("epoll_ctl with bad arguments", "epoll_wait with bad arguments", "epoll_pwait2 with bad arguments",
           "ppoll with bad arguments", "pselect6 with bad arguments")
def bad_waits(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    b.send(y, b"abc")
    settle()
    memory = a.link.memory()
    event = memory.put(struct.pack("=IQ", IN, 7))
    nowhere = ARENA + (257 << 20)
    for arguments in ((ep, 0, x, event), (ep, 4, x, event), (ep, 99, x, event), (ep, 1, x, 0), (ep, 3, x, nowhere),
                      (x, 1, ep, event), (ep, 1, ep, event), (999, 1, x, event), (ep, 1, 999, event), (ep, 2, 999, 0),
                      (0, 1, x, event)):
        a.sys("epoll_ctl", *arguments, memory=memory, text=f"{arguments[:3]}")
    for fd in (0, 1):
        a.ctl(ep, "add", fd, IN)
    file = a.file(b"file")
    a.ctl(ep, "add", file, IN)
    for most in (0, MINUS_ONE, 1 << 31, (1 << 31) // 12 + 1, 0x7FFFFFFF):
        memory = a.link.memory()
        a.sys("epoll_wait", ep, memory.room(12), most, 0, memory=memory, text=f"{most:#x}")
        memory = a.link.memory()
        a.sys("epoll_pwait", ep, memory.room(12), most, 0, 0, 8, memory=memory, text=f"{most:#x}")
    for seconds, nanos in ((-1, 0), (0, -1), (0, 10**9), (1 << 62, 0)):
        memory = a.link.memory()
        until = memory.put(struct.pack("=qq", seconds, nanos))
        a.sys("epoll_pwait2", ep, memory.room(24), 2, until, 0, 8, memory=memory, text=f"{seconds} {nanos}")
        memory = a.link.memory()
        until, entry = memory.put(struct.pack("=qq", seconds, nanos)), memory.both(struct.pack("=ihh", x, IN, 0))
        a.sys("ppoll", entry, 1, until, 0, 8, memory=memory, text=f"{seconds} {nanos}")
        memory = a.link.memory()
        until, bits = memory.put(struct.pack("=qq", seconds, nanos)), memory.both((1 << x).to_bytes(128, "little"))
        a.sys("pselect6", x + 1, bits, 0, 0, until, 0, memory=memory, text=f"{seconds} {nanos}")
        memory = a.link.memory()
        until, bits = memory.put(struct.pack("=qq", seconds, nanos)), memory.both((1 << x).to_bytes(128, "little"))
        a.sys("select", x + 1, bits, 0, 0, until, memory=memory, text=f"{seconds} {nanos}")
    for size in (0, 4, 7, 9, 16, 128):
        memory = a.link.memory()
        mask, events = memory.put(bytes(128)), memory.room(24)
        a.sys("epoll_pwait", ep, events, 2, 0, mask, size, memory=memory, text=f"{size}")
        a.sys("epoll_pwait2", ep, events, 2, 0, mask, size, memory=memory, text=f"{size}")
        memory = a.link.memory()
        a.sys("ppoll", memory.put(struct.pack("=ihh", x, IN, 0)), 1, memory.put(bytes(16)), memory.put(bytes(128)),
              size, memory=memory, text=f"{size}")
        memory = a.link.memory()
        pair = memory.put(struct.pack("=QQ", memory.put(bytes(128)), size))
        a.sys("pselect6", x + 1, memory.put((1 << x).to_bytes(128, "little")), 0, 0, memory.put(bytes(16)), pair,
              memory=memory, text=f"{size}")
    for count in (0, MINUS_ONE, 1 << 20, 1 << 32):
        memory = a.link.memory()
        a.sys("poll", memory.put(struct.pack("=ihh", x, IN, 0)), count, 0, memory=memory, text=f"{count:#x}")
    for count in (MINUS_ONE, 1 << 31, 1 << 32, x, 0):
        memory = a.link.memory()
        a.sys("select", count, memory.put((1 << x).to_bytes(128, "little")), 0, 0, memory.put(bytes(16)), memory=memory,
              text=f"{count:#x}")
    a.recv(x, 10)
    exchange(stage, a, x, y)


@behaviour("poll of one descriptor many times", "select of one descriptor in all sets")
def repeated(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    twin = a.sys("dup", x).value
    for _ in range(2):
        a.poll([(x, IN), (twin, IN), (x, OUT), (-1, IN), (x, 0), (-x, OUT), (twin, IN | OUT)] * 8)
        a.select([x, twin], [x], [x, twin])
        b.send(y, b"abc")
        settle()
    a.recv(x, 10)
    a.close(x)
    a.poll([(x, IN), (twin, OUT)])
    a.select([twin], [twin])
    exchange(stage, a, twin, y)


@behaviour("poll at the very moment of a signal", "epoll_pwait of a signal that is pending")
def pending_signal(stage: Stage) -> None:
    """A signal that is blocked outside: it is told of where nothing is ready, and only there."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    a.handle(signal.SIGUSR1)
    blocked = 1 << (signal.SIGUSR1 - 1)
    memory = a.link.memory()
    a.sys("rt_sigprocmask", 0, memory.put(struct.pack("=Q", blocked)), 0, 8, memory=memory, text="block")
    for ready in (False, True):
        for call in ("ppoll", "pselect6", "epoll_pwait", "epoll_pwait2"):
            if ready:
                b.send(y, b"abc")
                settle()
            a.sys("tgkill", a.link.pid, a.link.tid, int(signal.SIGUSR1), text="itself")
            if call == "ppoll":
                a.ppoll([(x, IN)], 0.01, 0)
            elif call == "pselect6":
                a.pselect([x], [], 0.01, 0)
            else:
                memory = a.link.memory()
                events, mask = memory.room(24), memory.put(bytes(8))
                until = 10 if call == "epoll_pwait" else memory.put(struct.pack("=qq", 0, 10_000_000))
                a.sys(call, ep, events, 2, until, mask, 8, memory=memory, text=call)
            a.signals(signal.SIGUSR1)
            a.poll([(x, IN)])
            if ready:
                a.recv(x, 10, DONTWAIT)


@behaviour("epoll EPOLLEXCLUSIVE of four processes that share one connection", only=("before", "after", "accepting"))
def exclusive_many(stage: Stage) -> None:
    """One message wakes one of them; who reads it all leaves the others asleep."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    sides: list[Side] = [a, *(a.fork(f"c{i}") for i in range(3))]
    sets = []
    for side in sides:
        ep = side.epoll()
        side.ctl(ep, "add", x, IN | EXCLUSIVE)
        sets.append(ep)
    for _ in range(3):
        waits = [side.start.wait(ep, timeout=300) for side, ep in zip(sides, sets, strict=True)]
        lines = len(a.log)
        for each in waits:
            each.asleep()
        b.send(y, b"job")
        woken = [each.value for each in waits]
        del a.log[lines:]
        a.say(f"woken at least one: {sum(woken) >= 1}")
        a.recv(x, 10, DONTWAIT)
    b.shutdown(y, SHUT_WR)
    settle()
    for side, ep in zip(sides, sets, strict=True):
        side.wait(ep)
        side.recv(x, 10, DONTWAIT)
    b.recv(y, 1, DONTWAIT)
    a.send(x, b"bye", NOSIGNAL)
