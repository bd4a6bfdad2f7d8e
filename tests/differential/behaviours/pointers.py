# SPDX-License-Identifier: Apache-2.0
"""Pointers into memory that is not there, or not writable: EFAULT where the kernel says so, and nothing lost by it."""

from __future__ import annotations

import signal
import struct
from collections.abc import Callable
from typing import Final

from tests.differential.linux import (
    DONTWAIT,
    ET,
    FIONREAD,
    IN,
    OUT,
    SA_RESTART,
    SHUT_WR,
    SO_ERROR,
    SO_RCVTIMEO,
    SOL_SOCKET,
    SOL_TCP,
    TCP_NODELAY,
)
from tests.differential.remote import ARENA, Memory
from tests.differential.side import Call, Side
from tests.differential.worlds import Stage, behaviour

EDGE: Final = ARENA + (256 << 20)
"""Where the agent's arena ends; nothing is mapped behind it."""
NOWHERE: Final = EDGE + (1 << 20)
PROT_READ, MAP_PRIVATE_ANONYMOUS, MAP_SHARED, MAP_FIXED = 1, 0x22, 1, 0x10


def at_edge(memory: Memory, data: bytes) -> int:
    """The address of bytes that end where the arena does."""
    memory.inputs.append((EDGE - ARENA - len(data), data))
    return EDGE - len(data)


def vector(memory: Memory, *parts: tuple[int, int]) -> int:
    """An array of struct iovec."""
    return memory.put(b"".join(struct.pack("=QQ", *part) for part in parts))


def header(memory: Memory, iov: int, count: int) -> int:
    """A struct msghdr."""
    return memory.put(struct.pack("=QIIQQQQQ", 0, 0, 0, iov, count, 0, 0, 0))


def many(iov: int) -> bytes:
    """A struct mmsghdr."""
    return struct.pack("=QIIQQQQQQ", 0, 0, 0, iov, 1, 0, 0, 0, 0)


def read_only(side: Side, pages: int = 1) -> int:
    """Memory that can only be read."""
    memory = side.link.memory()
    return side.sys("mmap", NOWHERE + (1 << 20), pages * 4096, PROT_READ, MAP_PRIVATE_ANONYMOUS | MAP_FIXED,
                    (1 << 64) - 1, 0, memory=memory, text="read-only").value


def still(stage: Stage, x: int, y: int) -> None:
    """Nothing was taken, and nothing stands before what comes."""
    stage.a.recv(x, 100, DONTWAIT)
    stage.b.recv(y, 100, DONTWAIT)
    stage.a.send(x, b"ping")
    stage.b.recv(y, 100)
    stage.b.send(y, b"pong")
    stage.a.recv(x, 100)


@behaviour("read EFAULT", "recv EFAULT", "readv EFAULT", "recvmsg EFAULT")
def fault_receive(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    wall = read_only(a)
    for size in (1, 8, 8, 40, 1000, 8000):
        b.send(y, b"x" * size)
        for where in (NOWHERE, wall):
            a.sys("read", x, where, size)
            a.sys("recvfrom", x, where, size, 0, 0, 0)
        a.recv_all(x, size)
    b.send(y, b"abcdefgh")
    for calls in range(2):
        memory = a.link.memory()
        iov = vector(memory, (memory.room(4), 4), (NOWHERE, 4))
        if calls:
            a.sys("recvmsg", x, header(memory, iov, 2), 0, memory=memory, text="good and bad")
        else:
            a.sys("readv", x, iov, 2, memory=memory, text="good and bad")
    a.sys("readv", x, NOWHERE, 2)
    a.sys("recvmsg", x, NOWHERE, 0)
    memory = a.link.memory()
    a.sys("recvmsg", x, header(memory, NOWHERE, 1), 0, memory=memory, text="iov")
    a.recv(x, 100)
    still(stage, x, y)


@behaviour("recv EFAULT behind the end of a mapping")
def fault_edge(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    memory = a.link.memory()
    edge = at_edge(memory, b"12345678")
    a.sys("write", x, edge, 8, memory=memory, text="all there")
    b.recv(y, 100)
    b.send(y, b"abcdefgh")
    a.sys("read", x, EDGE - 4, 8)
    a.sys("read", x, EDGE - 4, 4)
    a.sys("read", x, EDGE - 4, 100)
    for size in (8, 100, 300, 9000):
        a.sys("write", x, EDGE - 4, size)
        a.sys("sendto", x, EDGE - 4, size, 0, 0, 0)
    still(stage, x, y)


@behaviour("write EFAULT", "send EFAULT", "writev EFAULT", "sendmsg EFAULT")
def fault_send(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for size in (1, 8, 40, 1000, 8000):
        a.sys("write", x, NOWHERE, size)
        a.sys("sendto", x, NOWHERE, size, 0, 0, 0)
    for calls in range(2):
        memory = a.link.memory()
        iov = vector(memory, (memory.put(b"good"), 4), (NOWHERE, 4))
        if calls:
            a.sys("sendmsg", x, header(memory, iov, 2), 0, memory=memory, text="good and bad")
        else:
            a.sys("writev", x, iov, 2, memory=memory, text="good and bad")
    a.sys("writev", x, NOWHERE, 2)
    a.sys("sendmsg", x, NOWHERE, 0)
    memory = a.link.memory()
    a.sys("sendmsg", x, header(memory, NOWHERE, 1), 0, memory=memory, text="iov")
    b.recv(y, 100, DONTWAIT)
    still(stage, x, y)


@behaviour("SIGBUS: a file that is shorter than its mapping")
def fault_bus(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    file = a.file(b"short")
    where = a.sys("mmap", NOWHERE + (2 << 20), 3 * 4096, 3, MAP_SHARED | MAP_FIXED, file, 0, text="the file").value
    b.send(y, b"abcdefgh")
    for size in (8, 100):
        a.sys("read", x, where + 4096, size)
        a.sys("write", x, where + 4096, size)
    a.sys("read", x, where, 100)
    a.sys("write", x, where, 5)
    b.recv(y, 100)
    a.sent += 5 - len(b"short")
    still(stage, x, y)


@behaviour("recvmmsg EFAULT", "sendmmsg EFAULT")
def fault_many(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.send(y, b"abcdefgh")
    a.sys("recvmmsg", x, NOWHERE, 2, 0, 0)
    a.sys("sendmmsg", x, NOWHERE, 2, 0)
    for name, order in (("sendmmsg", "good bad good"), ("recvmmsg", "bad good")):
        memory = a.link.memory()
        iovs = {"good": vector(memory, (memory.put(b"good"), 4)), "bad": vector(memory, (NOWHERE, 4))}
        messages = memory.put(b"".join(many(iovs[each]) for each in order.split()))
        call = a.sys(name, x, messages, len(order.split()), 0, 0, memory=memory, text=order)
        a.sent += 4 * max(call.value, 0)
    memory = a.link.memory()
    iov = vector(memory, (memory.put(b"edge"), 4))
    edge = at_edge(memory, many(iov))
    a.sys("sendmmsg", x, edge, 2, 0, memory=memory, text="one at the edge")
    a.sent += 4
    a.recv(x, 100)
    b.recv(y, 100)
    still(stage, x, y)


@behaviour("recvfrom EFAULT in the address length")
def fault_name(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.send(y, b"abcdefgh")
    memory = a.link.memory()
    a.sys("recvfrom", x, memory.room(4), 4, 0, memory.room(16), NOWHERE, memory=memory, text="taken all the same")
    a.recv(x, 100)
    still(stage, x, y)


@behaviour("poll EFAULT", "select EFAULT", "epoll_wait EFAULT")
def fault_readiness(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    wall = read_only(a)
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    a.sys("epoll_ctl", ep, 3, x, NOWHERE)
    a.sys("epoll_wait", ep, NOWHERE, 4, 0)
    b.send(y, b"abc")
    waits: list[Callable[[], object]] = [
        lambda: a.sys("poll", NOWHERE, 1, 0),
        lambda: a.sys("ppoll", NOWHERE, 1, 0, 0, 8),
        lambda: a.sys("select", x + 1, NOWHERE, 0, 0, 0),
        lambda: a.sys("pselect6", x + 1, NOWHERE, 0, 0, 0, 0),
        lambda: a.sys("epoll_wait", ep, NOWHERE, 4, 0),
        lambda: a.sys("epoll_wait", ep, wall, 4, 0),
    ]
    for wait in waits:
        wait()
    for name in ("poll", "select"):
        memory = a.link.memory()
        where = memory.put(bytes(128))
        if name == "poll":
            entry = memory.put(struct.pack("=ihh", x, IN | OUT, 0))
            a.sys("ppoll", entry, 1, NOWHERE, 0, 8, memory=memory, text="time-out")
            a.sys("ppoll", entry, 1, 0, NOWHERE, 8, memory=memory, text="mask")
        else:
            a.sys("select", x + 1, where, 0, 0, NOWHERE, memory=memory, text="time-out")
    a.wait(ep)
    a.recv(x, 10)
    still(stage, x, y)


@behaviour("select of more descriptors than there are")
def select_too_many(stage: Stage) -> None:
    """The kernel looks no further than its table reaches: sets need not be as long as the program says."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for count in (1025, 60_000, 1_000_000):
        b.send(y, b"abc")
        memory = a.link.memory()
        where = at_edge(memory, (1 << x).to_bytes(128, "little"))
        memory.outputs.append((where - ARENA, 128))
        zero = memory.put(bytes(16))
        a.sys("select", count, where, 0, 0, zero, memory=memory, text=f"{count}", shown=lambda _, data: data[0].hex())
        memory = a.link.memory()
        where = at_edge(memory, (1 << x).to_bytes(128, "little"))
        a.sys("pselect6", count, 0, where, 0, memory.put(bytes(16)), 0, memory=memory, text=f"{count}")
        a.recv(x, 10)


@behaviour("getsockopt EFAULT", "setsockopt EFAULT", "ioctl EFAULT", "sendfile EFAULT")
def fault_options(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    wall = read_only(a)
    a.sys("setsockopt", x, SOL_TCP, TCP_NODELAY, NOWHERE, 4)
    memory = a.link.memory()
    a.sys("getsockopt", x, SOL_TCP, TCP_NODELAY, NOWHERE, memory.put(struct.pack("=I", 4)), memory=memory, text="value")
    a.sys("getsockopt", x, SOL_TCP, TCP_NODELAY, NOWHERE, NOWHERE)
    a.sys("ioctl", x, FIONREAD, NOWHERE)
    a.sys("ioctl", x, FIONREAD, wall)
    file = a.file(b"some bytes")
    a.sys("sendfile", x, file, NOWHERE, 4)
    still(stage, x, y)


@behaviour("EFAULT in a thread")
def fault_thread(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    thread = a.thread("t")
    ep = a.epoll()
    a.ctl(ep, "add", x, IN)
    b.send(y, b"abcdefgh")
    for side in (thread, a):
        side.sys("read", x, NOWHERE, 8)
        side.sys("write", x, NOWHERE, 8)
        side.sys("epoll_wait", ep, NOWHERE, 4, 0)
        side.sys("poll", NOWHERE, 1, 0)
        side.wait(ep)
    thread.recv(x, 10)
    still(stage, x, y)


@behaviour("SIGSEGV handler: not called for EFAULT")
def fault_handler(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for number in (11, 7):
        a.handle(number, "count", 0x80000000)  # SA_RESETHAND
    b.send(y, b"abcdefgh")
    for _ in range(2):
        a.sys("read", x, NOWHERE, 8)
        a.sys("write", x, NOWHERE, 300)
    a.signals(11)
    a.sys("kill", a.link.pid, 11, text="itself, SIGSEGV")
    a.signals(11)
    a.handle(11, "ignore")
    a.sys("kill", a.link.pid, 11, text="itself, SIGSEGV")
    a.sys("read", x, NOWHERE, 8)
    a.signals(11)
    a.recv(x, 100)
    still(stage, x, y)


def two(side: Side, fd: int, *, bad: bool, flags: int = 0) -> Call:
    """recvmmsg of two small messages, the second one without a buffer, or one that has to wait; not ended."""
    memory = side.link.memory()
    good = vector(memory, (memory.room(4), 4))
    other = vector(memory, (NOWHERE, 4)) if bad else good
    messages = memory.both(many(good) + many(other))
    return side.sys("recvmmsg", fd, messages, 2, flags, 0, memory=memory, text="good, bad" if bad else "two")


THEN: Final = ("recv", "send", "error", "again", "end", "sets")


@behaviour("recvmmsg EFAULT behind the first message: the next call says so", carried=False)
def fault_later(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for then in THEN:
        x, y = stage.connection()
        ep = a.epoll()
        a.ctl(ep, "add", x, IN | OUT | ET)
        a.wait(ep)
        b.send(y, b"abcdefghij")
        two(a, x, bad=True)
        a.poll([(x, IN | OUT)])
        a.select([x], [x])
        a.wait(ep)
        if then == "recv":
            a.recv(x, 100)
            a.recv(x, 100)
        elif then == "send":
            a.send(x, b"x")
            a.send(x, b"x")
        elif then == "error":
            a.option(x, SOL_SOCKET, SO_ERROR)
        elif then == "again":
            for _ in range(3):
                two(a, x, bad=True)
        elif then == "end":
            b.shutdown(y, SHUT_WR)
            a.poll([(x, IN | OUT)])
            a.recv(x, 100)
        else:
            level = a.epoll()
            a.ctl(level, "add", x, IN)
            a.wait(level)
            b.send(y, b"more")
            a.wait(ep)
        a.poll([(x, IN | OUT)])
        a.wait(ep)
        for _ in range(3):
            a.recv(x, 100, DONTWAIT)
        a.poll([(x, IN | OUT)])
        a.option(x, SOL_SOCKET, SO_ERROR)
        a.send(x, b"still")
        b.recv(y, 100)


@behaviour("recvmmsg EINTR behind the first message: the next call says so", carried=False)
def interrupted_later(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for flags in (0, SA_RESTART):
        for seconds in (0, 5):
            x, y = stage.connection()
            a.handle(signal.SIGUSR1, flags=flags)
            a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO, struct.pack("=qq", seconds, 0))
            b.send(y, b"abcd")
            waits = two(a.start, x, bad=False).asleep()
            b.sys("kill", a.link.pid, signal.SIGUSR1, text="a")
            waits.end()
            a.poll([(x, IN | OUT)])
            for _ in range(2):
                a.recv(x, 100, DONTWAIT)
            b.send(y, b"ping")
            a.recv(x, 100)
