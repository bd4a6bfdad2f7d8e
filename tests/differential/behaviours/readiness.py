# SPDX-License-Identifier: Apache-2.0
"""select, poll and ppoll, and epoll where it is asked the same, with descriptors of the kernel among the others."""

from __future__ import annotations

import signal
import struct

from tests.differential.behaviours.transmit import fill
from tests.differential.linux import IN, OUT, PRI, RDHUP, SHUT_WR
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour

USR1 = 1 << (signal.SIGUSR1 - 1)


@behaviour("poll", "ppoll", "select", "pselect6")
def levels(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for _ in range(2):
        a.poll([(x, IN)])
        a.poll([(x, OUT)])
        a.poll([(x, IN | OUT | PRI | RDHUP)])
        a.poll([(x, 0)])
        a.select([x])
        a.select([x], [x], [x])
        a.ppoll([(x, IN)], 0.0)
        a.pselect([x], [x], 0.0)
        b.send(y, b"abc")
        a.poll([(x, IN)])
        a.poll([(x, IN | OUT | PRI | RDHUP)])
        a.poll([(x, 0)])
        a.select([x], [x], [x])
        a.ppoll([(x, IN)], None)
        a.pselect([x], [x], None)
        a.recv(x, 2)
        a.poll([(x, IN)], 1000)
        a.recv(x, 10)


@behaviour("poll timeout", "ppoll timeout", "select timeout", "pselect6 timeout")
def timeouts(stage: Stage) -> None:
    a = stage.a
    x, _ = stage.connection()
    a.poll([(x, IN)], 1)
    a.poll([(x, IN)], 15)
    a.ppoll([(x, IN)], 0.000_001)
    a.ppoll([(x, IN)], 0.005)
    a.select([x], seconds=0.003)
    a.pselect([x], seconds=0.000_05)
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    a.wait(ep, timeout=1)
    a.wait(ep, timeout=15)
    memory = a.link.memory()
    a.sys("ppoll", 0, 0, memory.put(struct.pack("=qq", 0, 10**9)), 0, 8, memory=memory, text="ns too many")
    memory = a.link.memory()
    where = memory.both(struct.pack("=ihh", x, IN, 0))
    a.sys("ppoll", where, 1, memory.put(struct.pack("=qq", 0, 10**9)), 0, 8, memory=memory, text="ns too many")
    memory = a.link.memory()
    where = memory.both(struct.pack("=ihh", x, IN, 0))
    a.sys("ppoll", where, 1, memory.put(struct.pack("=qq", -1, 0)), 0, 8, memory=memory, text="negative")


def waiters(side: Side, fd: int) -> list[object]:
    """Ways to wait for input, as functions that begin it."""
    ep = side.epoll()
    side.ctl(ep, "add", fd, IN)
    return [lambda: side.start.poll([(fd, IN)], 5000), lambda: side.start.ppoll([(fd, IN)], 5.0),
            lambda: side.start.select([fd], seconds=5), lambda: side.start.pselect([fd], seconds=None),
            lambda: side.start.wait(ep, timeout=5000), lambda: side.start.poll([(ep, IN)], 5000)]


@behaviour("poll wakes", "select wakes", "epoll_wait wakes", "poll of an epoll set")
def wake(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for begin in waiters(a, x):
        waits = begin().asleep()  # type: ignore[operator]
        b.send(y, b"abc")
        waits.end()
        a.recv(x, 10)


@behaviour("poll wakes at the end of the stream", "epoll EPOLLRDHUP", carried=False)
def wake_end(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for count in range(6):
        x, y = stage.connection()
        begin = waiters(a, x)[count]
        waits = begin().asleep()  # type: ignore[operator]
        b.shutdown(y, SHUT_WR) if count % 2 else b.close(y)
        waits.end()
        a.recv(x, 10)


@behaviour("ppoll signal mask", "pselect6 signal mask", "epoll_pwait signal mask")
def masks(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.handle(signal.SIGUSR1)
    memory = a.link.memory()
    a.sys("rt_sigprocmask", 0, memory.put(struct.pack("=Q", USR1)), 0, 8, memory=memory, text="block USR1")
    a.sys("kill", a.link.pid, signal.SIGUSR1, text="self")
    a.signals(signal.SIGUSR1)
    a.ppoll([(x, IN)], 5.0, mask=0)
    a.signals(signal.SIGUSR1)
    a.sys("kill", a.link.pid, signal.SIGUSR1, text="self")
    a.ppoll([(x, IN)], 0.01, mask=USR1)
    a.signals(signal.SIGUSR1)
    a.pselect([x], seconds=5, mask=0)
    a.signals(signal.SIGUSR1)
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    waits = a.start.ppoll([(x, IN)], None, mask=0).asleep()
    a_pid = a.link.pid
    b.sys("kill", a_pid, signal.SIGUSR1, text="a")
    waits.end()
    memory = a.link.memory()
    pending = a.start.sys("epoll_pwait", ep, memory.room(24), 2, 5000, memory.put(struct.pack("=Q", 0)), 8,
                          memory=memory, text="mask 0").asleep()
    b.sys("kill", a_pid, signal.SIGUSR1, text="a")
    pending.end()
    a.signals(signal.SIGUSR1)
    b.send(y, b"abc")
    memory = a.link.memory()
    a.sys("epoll_pwait2", ep, memory.room(24), 2, memory.put(struct.pack("=qq", 1, 0)), 0, 8, memory=memory, text="")


@behaviour("poll OUT of a full stream", only=("before", "tight", "after", "accepting"))
def writable(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    a.ctl(ep, "add", x, OUT)
    a.wait(ep)
    total = fill(stage, x)
    a.poll([(x, OUT)])
    a.select(write=[x])
    a.wait(ep)
    waits = a.start.poll([(x, OUT)], 5000).asleep()
    b.recv_all_quietly(y, total)
    waits.end()
    a.wait(ep)
    a.select(write=[x])


@behaviour("poll with kernel descriptors", "select with kernel descriptors", "epoll with kernel descriptors")
def mixed(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = a.pipe()
    event = a.sys("eventfd2", 0, 0).value
    timer = a.sys("timerfd_create", 1, 0).value
    one, two = a.pair()
    udp = a.socket(2, 2)
    ep = a.epoll()
    for fd in (x, out, event, timer, one, udp):
        a.ctl(ep, "add", fd, IN)
    entries = [(fd, IN) for fd in (x, out, event, timer, one, udp, -1)]

    def look() -> None:
        a.poll(entries)
        a.select([fd for fd, _ in entries[:-1]])
        a.wait(ep)

    look()
    a.write(into, b"p")
    look()
    b.send(y, b"abc")
    look()
    a.read(out, 10)
    look()
    a.write(event, struct.pack("=Q", 3))
    a.write(two, b"u")
    memory = a.link.memory()
    a.sys("timerfd_settime", timer, 0, memory.put(struct.pack("=qqqq", 0, 0, 0, 1)), 0, memory=memory, text="now")
    settle()
    look()
    a.recv(x, 10)
    a.read(event, 8)
    a.read(timer, 8)
    a.read(one, 8)
    look()
    waits = a.start.wait(ep, timeout=5000).asleep()
    b.send(y, b"wake")
    waits.end()
    a.sent -= 10


@behaviour("poll bad descriptors (POLLNVAL)", "select bad descriptors (EBADF)")
def bad_descriptors(stage: Stage) -> None:
    a = stage.a
    x, _ = stage.connection()
    a.poll([(x, IN), (77, IN), (-1, IN), (-5, OUT)])
    a.select([x, 77])
    a.select([x], [77])
    a.poll([(x, OUT), (x, IN), (x, OUT | IN)])
    a.sys("poll", 0, 1, 0)
    a.sys("select", -1, 0, 0, 0, 0)
    ep = a.epoll()
    a.ctl(ep, "add", 77, IN)
    a.ctl(ep, "add", ep, IN)
    a.ctl(x, "add", x, IN)
    a.ctl(ep, "mod", x, IN)
    a.ctl(ep, "del", x)
    a.ctl(ep, "add", x, IN)
    a.ctl(ep, "add", x, IN)
    a.sys("epoll_wait", ep, 0, 0, 0)
    a.sys("epoll_wait", x, 0, 1, 0)
    memory = a.link.memory()
    a.sys("epoll_wait", ep, memory.room(12), -1, 0, memory=memory, text="-1")


@behaviour("listen readiness", "accept O_NONBLOCK (EAGAIN)")
def listener_ready(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    ep = a.epoll()
    a.ctl(ep, "add", listener, IN)
    a.poll([(listener, IN | OUT)])
    a.nonblock(listener)
    a.accept(listener)
    fd = b.socket()
    b.poll([(fd, IN | OUT)])
    b.connect(fd, port)
    settle()
    a.poll([(listener, IN | OUT)])
    a.wait(ep)
    a.select([listener])
    x = a.accept(listener).value
    a.wait(ep)
    a.recv(listener, 10)
    a.send(listener, b"x", 0x4000)
    stage.talk(x, fd)
    a.send(x, b"abc")
    b.recv(fd, 10)
