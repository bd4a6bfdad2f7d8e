# SPDX-License-Identifier: Apache-2.0
"""What takes several processes, many connections, other address families or other kinds of descriptors at once."""

from __future__ import annotations

import signal
import struct
from typing import Final

from tests.differential.behaviours.descriptors import exchange
from tests.differential.behaviours.grouped import group
from tests.differential.linux import (
    DONTWAIT,
    ET,
    EXCLUSIVE,
    IN,
    NOSIGNAL,
    OUT,
    RDHUP,
    SHUT_WR,
    SO_ERROR,
    SOL_SOCKET,
)
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour

LOOPBACK6: Final = bytes(15) + b"\1"
MAPPED: Final = bytes(10) + b"\xff\xff\x7f\0\0\1"
IPV6, V6ONLY = 41, 26


def address6(port: int, address: bytes) -> bytes:
    """A struct sockaddr_in6."""
    return struct.pack("=H", 10) + struct.pack("!HI", port, 0) + address + struct.pack("=I", 0)


def call6(side: Side, name: str, fd: int, port: int, address: bytes) -> int:
    """bind or connect."""
    memory = side.link.memory()
    return side.sys(name, fd, memory.put(address6(port, address)), 28, memory=memory, text=f"{fd}, IPv6").value


def connection6(stage: Stage, address: bytes) -> tuple[int, int]:
    """A connection to a listener of all addresses of both families."""
    a, b = stage.a, stage.b
    listener = a.socket(10)
    a.setsockopt(listener, IPV6, V6ONLY, 0)
    call6(a, "bind", listener, 0, bytes(16))
    a.listen(listener)
    theirs = b.socket(10)
    call6(b, "connect", theirs, a.port(listener), address)
    ours = a.accept(listener).value
    a.close(listener)
    stage.talk(ours, theirs)
    return ours, theirs


def names(side: Side, fd: int) -> None:
    """Own and other address, without the ports."""
    for call in ("getsockname", "getpeername"):
        memory = side.link.memory()
        where, size = memory.room(28), memory.both(struct.pack("=I", 28))
        side.sys(call, fd, where, size, memory=memory, text=f"{fd}",
                 shown=lambda _, data: f"{data[0][:2].hex()} {data[0][8:24].hex()}")


@behaviour("IPv6", "IPv6, an IPv4 address in it")
def ipv6(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for address in (LOOPBACK6, MAPPED):
        x, y = connection6(stage, address)
        names(a, x)
        names(b, y)
        exchange(stage, a, x, y)
        a.poll([(x, IN | OUT | RDHUP)])
        a.shutdown(x, SHUT_WR)
        b.recv(y, 10)
        b.close(y)
        a.recv(x, 10)


@behaviour("SO_REUSEPORT across processes")
def reuseport_processes(stage: Stage) -> None:
    a, b = stage.a, stage.b
    child = a.fork("c")
    first, second, port = group(a, child)
    served = 0
    for _ in range(6):
        fd = b.link.begin("socket", 2, 1, 0).end()[0]
        b.connect(fd, port)
        settle()
        # whose it is the kernel decides by the ports
        for side, listener in ((a, first), (child, second)):
            memory = side.link.memory()
            entry = memory.both(struct.pack("=ihh", listener, IN, 0))
            ready = side.link.begin("poll", entry, 1, 0, memory=memory).end()[0]
            if ready == 1:
                x = side.link.begin("accept", listener, 0, 0).end()[0]
                pending = side.link.talk(x, False, 30), b.link.talk(fd, True, 30)
                served += [each.end()[0] for each in pending] == [0, 0]
                side.link.begin("close", x).end()
        b.recv(fd, 10)
        b.close(fd)
    a.say(f"served {served}")
    a.close(first)
    child.close(second)


@behaviour("accept in several processes at once", carried=False)
def accept_race(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    children = [a.fork(f"c{i}") for i in range(3)]
    waits = [(side, side.start.accept(listener).asleep()) for side in (a, *children)]
    for _ in waits:
        fd = b.socket()
        b.connect(fd, port)
        b.send(fd, b"hello")
    for side, wait in waits:  # each gets one, and which does not matter
        x = wait.value
        side.recv(x, 10)
        side.close(x)


def both(stage: Stage, calls: tuple[tuple[Side, str, tuple[int, ...]], ...]) -> None:
    """Calls that begin together."""
    pending = [(side, name, side.link.begin(name, *arguments)) for side, name, arguments in calls]
    for side, name, each in pending:
        side.say(f"{name}, at once = {each.end()[0]}")
    settle()


@behaviour("close at both ends at the same moment", "shutdown at both ends at the same moment", carried=False)
def simultaneous(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    both(stage, ((a, "shutdown", (x, SHUT_WR)), (b, "shutdown", (y, SHUT_WR))))
    for side, fd in ((a, x), (b, y)):
        side.recv(fd, 10)
        side.poll([(fd, IN | OUT | RDHUP)])
        side.send(fd, b"x", NOSIGNAL)
        side.option(fd, SOL_SOCKET, SO_ERROR)
    x, y = stage.connection()
    both(stage, ((a, "close", (x,)), (b, "close", (y,))))
    exchange(stage, a, *stage.connection())


@behaviour("epoll EPOLLEXCLUSIVE in two processes", "epoll EPOLLEXCLUSIVE in two sets", carried=False,
           only=("before", "tight", "after"))
def exclusive(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for forked in (True, False):
        x, y = stage.connection()
        other = a.fork("c") if forked else a.thread("t")
        sides = (a, other)
        sets = [side.epoll() for side in sides]
        for side, ep in zip(sides, sets, strict=True):
            side.ctl(ep, "add", x, IN | EXCLUSIVE)
        for _ in range(3):
            waits = [side.start.wait(ep, timeout=2000).asleep() for side, ep in zip(sides, sets, strict=True)]
            b.send(y, b"for one of you")
            waits[0].end()
            waits[1].asleep()
            b.send(y, b"more")
            a.recv(x, 100)
            b.send(y, b"and for the other")
            waits[1].end()
            a.recv(x, 100)


@behaviour("epoll EPOLLEXCLUSIVE of several messages in processes", "epoll EPOLLEXCLUSIVE of several messages in sets",
           carried=False, only=("before", "tight", "after"))
def exclusive_burst(stage: Stage) -> None:
    """Each message wakes one more, though the first that was woken has not run yet."""
    a, b = stage.a, stage.b
    for forked in (True, False):
        connections = [stage.connection() for _ in range(4)]
        others = [a.fork(f"c{i}") if forked else a.thread(f"t{i}") for i in range(3)]
        for waiters, events, (x, y) in zip((2, 3, 4, 3), (IN, IN, IN, IN | ET), connections, strict=True):
            sides = (a, *others)[:waiters]
            sets = [side.epoll() for side in sides]
            for side, ep in zip(sides, sets, strict=True):
                side.ctl(ep, "add", x, events | EXCLUSIVE)
            for messages in range(1, 6):
                waits = [side.start.wait(ep, timeout=8000).asleep() for side, ep in zip(sides, sets, strict=True)]
                b.sendmmsg(y, [(b"for one of you",)] * messages)
                woken = min(messages, waiters)
                for each in waits[:woken]:
                    each.end()
                settle()
                for each in waits[woken:]:
                    each.asleep()
                    b.send(y, b"more")
                    each.end()
                a.recv(x, 1000)
                a.recv(x, 1, DONTWAIT)


@behaviour("epoll with signalfd, inotify, timerfd, eventfd, UDP, unix and pipes",
           "poll with signalfd, inotify, timerfd, eventfd, UDP, unix and pipes")
def all_kinds(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = a.pipe()
    event = a.sys("eventfd2", 0, 0).value
    timer = a.sys("timerfd_create", 1, 0).value
    one, two = a.pair()
    udp = a.socket(2, 2)
    a.bind(udp)
    port = a.port(udp)
    sender = a.socket(2, 2)
    a.connect(sender, port)
    memory = a.link.memory()
    mask = memory.put(struct.pack("=Q", 1 << (signal.SIGUSR1 - 1)))
    a.sys("rt_sigprocmask", 0, mask, 0, 8, memory=memory, text="block USR1")
    signals = a.sys("signalfd4", -1 & 0xFFFFFFFF, mask, 8, 0, memory=memory, text="USR1").value
    notify = a.sys("inotify_init1", 0).value
    memory = a.link.memory()
    a.sys("inotify_add_watch", notify, memory.put(b"/tmp\0"), 0x400, memory=memory, text="/tmp, nothing that happens")
    memory = a.link.memory()
    watched = memory.put(b"/proc/self/fd/%d\0" % into)
    a.sys("inotify_add_watch", notify, watched, 2, memory=memory, text="the pipe, IN_MODIFY")
    thread = a.thread("t")
    kinds = (x, out, event, timer, one, udp, signals, notify)
    ep = a.epoll()
    edge = a.epoll()
    for fd in kinds:
        a.ctl(ep, "add", fd, IN)
        a.ctl(edge, "add", fd, IN | ET)
    inner = a.epoll()
    a.ctl(inner, "add", ep, IN)

    def look() -> None:
        a.poll([(fd, IN) for fd in (*kinds, ep, inner)])
        a.select([*kinds, ep, inner])
        a.wait(ep)
        a.wait(edge)
        a.wait(inner)

    look()
    memory = a.link.memory()
    b.send(y, b"stream")
    look()
    a.write(into, b"p")
    a.write(event, struct.pack("=Q", 3))
    a.sys("timerfd_settime", timer, 0, memory.put(struct.pack("=qqqq", 0, 0, 0, 1)), 0, memory=memory, text="now")
    a.write(two, b"unix")
    a.write(sender, b"datagram")
    a.sys("kill", a.link.pid, int(signal.SIGUSR1), text="itself, USR1")
    settle()
    look()
    a.recv(x, 100)
    look()
    for fd, size in ((out, 1), (event, 8), (timer, 8), (one, 10), (udp, 10)):
        a.read(fd, size)
    a.link.begin("read", signals, memory.put(bytes(128)), 128, memory=memory).end()
    look()
    for fd, data in ((into, b"q"), (two, b"unix"), (sender, b"datagram"), (event, struct.pack("=Q", 1))):
        waits = a.start.wait(ep, timeout=5000).asleep()
        thread.write(fd, data)
        waits.end()
        b.send(y, b"more")
        look()
    a.sent = 0


@behaviour("epoll: ready connections do not starve the kernel's descriptors, nor these those")
def no_starving(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    event = a.sys("eventfd2", 0, 0).value
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    a.ctl(ep, "add", event, IN)
    b.send(y, b"never read here")
    a.wait(ep, most=1)
    a.write(event, struct.pack("=Q", 1))
    a.sent -= 8
    seen: set[int] = set()
    memory = a.link.memory()
    for _ in range(64):  # both are ready all the time; with room for one they take turns
        memory = a.link.memory()
        count, data = a.link.begin("epoll_wait", ep, memory.room(12), 1, 0, memory=memory).end()
        assert count == 1
        seen.add(struct.unpack("=IQ", data[0])[1])
    a.say(f"reported: {sorted(seen)}")


@behaviour("epoll_pwait2 nanoseconds", "ppoll nanoseconds", "pselect6 nanoseconds")
def nanoseconds(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    for sec, nsec in ((0, 0), (0, 1), (0, 999_999), (0, 999_999_999 + 1), (-1, 0), (0, -1), (1 << 62, 0)):
        if sec > 1:
            b.send(y, b"now")
        memory = a.link.memory()
        until = memory.put(struct.pack("=qq", sec, nsec))
        a.sys("epoll_pwait2", ep, memory.room(48), 4, until, 0, 8, memory=memory, text=f"{sec}, {nsec}")
        memory = a.link.memory()
        until = memory.put(struct.pack("=qq", sec, nsec))
        a.sys("ppoll", memory.put(struct.pack("=ihh", x, IN, 0)), 1, until, 0, 8, memory=memory, text=f"{sec}, {nsec}")
        memory = a.link.memory()
        until = memory.put(struct.pack("=qq", sec, nsec))
        a.sys("pselect6", x + 1, memory.put((1 << x).to_bytes(128, "little")), 0, 0, until, 0, memory=memory,
              text=f"{sec}, {nsec}")


@behaviour("epoll of 120 connections of which few are active", "poll of 120 connections", "select of 120 connections",
           only=("before", "during", "accepting"))
def many(stage: Stage) -> None:
    a, b = stage.a, stage.b
    pairs = [stage.connection() for _ in range(3)]
    listener, port = stage.listener(128)
    for _ in range(117):
        fd = b.link.begin("socket", 2, 1, 0).end()[0]
        memory = b.link.memory()
        where = memory.put(struct.pack("=H", 2) + struct.pack("!H", port) + b"\x7f\0\0\1" + bytes(8))
        b.link.begin("connect", fd, where, 16, memory=memory).end()
        pairs.append((a.link.begin("accept4", listener, 0, 0, 0).end()[0], fd))
    ep = a.epoll()
    log = a.log[:]
    for x, _ in pairs:
        a.ctl(ep, "add", x, IN)
    a.log[:] = log
    for active in (0, 1, 60, 119, 2, 60):
        x, y = pairs[active]
        waits = a.start.wait(ep, timeout=5000).asleep()
        b.send(y, b"one of many")
        waits.end()
        a.poll([(fd, IN) for fd, _ in pairs[active - 1:active + 2]])
        a.select([fd for fd, _ in pairs])
        a.wait(ep)
        a.recv(x, 100)
        a.wait(ep)
        a.recv(x, 100, DONTWAIT)


@behaviour("socket, bind and listen with bad arguments", "accept and connect with bad arguments")
def bad_arguments(stage: Stage) -> None:
    a = stage.a
    for arguments in ((2, 1, 17), (2, 1, 6), (2, 99, 0), (99, 1, 0), (10, 1, 0), (2, 0o2004001, 0)):
        a.sys("socket", *arguments)
    fd = a.socket()
    a.sys("bind", fd, 0, 16)
    a.sys("bind", fd, 4096 << 30, 16, text="nowhere")
    a.sys("accept", fd, 0, 0)
    a.sys("connect", fd, 0, 16)
    a.sys("getpeername", fd, 0, 0)
    listener, _ = stage.listener()
    a.sys("accept4", listener, 0, 0, 0x7)
    a.sys("accept", 999, 0, 0)
    a.sys("listen", 999, 1)
    a.sys("shutdown", listener, 9)
    a.send(listener, b"x", NOSIGNAL)
    a.recv(listener, 1, DONTWAIT)
    a.send(fd, b"x", NOSIGNAL)
    a.recv(fd, 1, DONTWAIT)
    a.poll([(fd, IN | OUT), (listener, IN | OUT)])
    x, y = stage.connection()
    a.listen(x)
    a.sys("accept", x, 0, 0)
    a.bind(x)
    a.connect(x, 1)
    exchange(stage, a, x, y)
