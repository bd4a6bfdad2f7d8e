# SPDX-License-Identifier: Apache-2.0
"""Making connections, and descriptors: duplicates, children, threads, programs that follow, what is handed over."""

from __future__ import annotations

import signal
import struct

from tests.differential.linux import (
    DONTWAIT,
    F_DUPFD,
    F_DUPFD_CLOEXEC,
    F_GETFD,
    F_GETFL,
    F_SETFD,
    HUP,
    IN,
    O_CLOEXEC,
    O_NONBLOCK,
    OUT,
    SHUT_WR,
    SO_ERROR,
    SO_REUSEPORT,
    SOL_SOCKET,
)
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour


def exchange(stage: Stage, side: Side, x: int, y: int, text: bytes = b"hello") -> None:
    """Both directions work, a's by descriptor x of `side`."""
    side.send(x, text)
    stage.b.recv(y, 100)
    stage.b.send(y, text + b" back")
    side.recv(x, 100)


@behaviour("connect", "accept", "getsockname", "getpeername")
def connect_accept(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    fd = b.socket()
    b.recv(fd, 10)
    b.send(fd, b"x", 0x4000)
    b.signals(signal.SIGPIPE)
    b.connect(fd, port)
    memory = a.link.memory()
    call = a.sys("accept", listener, memory.room(16), memory.both(struct.pack("=I", 16)), memory=memory, text="name",
                 shown=lambda _, data: f"{data[0][:2]!r} {data[0][4:8]!r} {data[1]!r}")
    x = call.value
    stage.talk(x, fd)
    for side, which in ((a, x), (b, fd)):
        for name in ("getsockname", "getpeername"):
            memory = side.link.memory()
            side.sys(name, which, memory.room(16), memory.both(struct.pack("=I", 16)), memory=memory, text="",
                     shown=lambda _, data: f"{data[0][:2]!r} {data[0][4:8]!r} {data[1]!r}")
    exchange(stage, a, x, fd)


@behaviour("accept4 SOCK_NONBLOCK", "accept4 SOCK_CLOEXEC", "accept inherits nothing")
def accept4(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    for flags in (None, 0, O_NONBLOCK, O_CLOEXEC, O_NONBLOCK | O_CLOEXEC, 1):
        fd = b.socket()
        b.connect(fd, port)
        settle()
        x = a.accept(listener, flags).value
        if x < 0:
            x = a.accept(listener).value
        stage.talk(x, fd) if not (flags or 0) & O_NONBLOCK else None
        a.fcntl(x, F_GETFL)
        a.fcntl(x, F_GETFD)
        a.recv(x, 10, DONTWAIT)
        a.send(x, b"abc")
        b.recv(fd, 10)


@behaviour("connect O_NONBLOCK (EINPROGRESS)", "getsockopt SO_ERROR after connect")
def connect_nonblocking(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    fd = b.socket(2, 1 | O_NONBLOCK)
    b.connect(fd, port)
    b.poll([(fd, OUT)], 5000)
    b.option(fd, SOL_SOCKET, SO_ERROR)
    b.connect(fd, port)
    b.connect(fd, port)
    x = a.accept(listener).value
    b.nonblock(fd, False)
    stage.talk(x, fd)
    exchange(stage, a, x, fd)


@behaviour("connect refused (ECONNREFUSED)")
def connect_refused(stage: Stage) -> None:
    b = stage.b
    taken = b.socket()
    b.bind(taken)
    port = b.port(taken)
    fd = b.socket()
    b.connect(fd, port)
    b.option(fd, SOL_SOCKET, SO_ERROR)
    b.send(fd, b"x", 0x4000)
    fd = b.socket(2, 1 | O_NONBLOCK)
    b.connect(fd, port)
    b.poll([(fd, IN | OUT)], 5000)
    b.option(fd, SOL_SOCKET, SO_ERROR)
    b.option(fd, SOL_SOCKET, SO_ERROR)
    b.poll([(fd, IN | OUT)])
    b.recv(fd, 10)
    listener, port = stage.listener()
    fd = b.socket()
    b.connect(fd, b.port(taken))
    b.connect(fd, port)
    x = stage.a.accept(listener).value
    stage.talk(x, fd)
    exchange(stage, stage.a, x, fd)


@behaviour("connect with a full backlog (timed out)", carried=False)
def connect_timeout(stage: Stage) -> None:
    b = stage.b
    _, port = stage.listener(0)
    for _ in range(3):
        fd = b.socket()
        b.setsockopt(fd, SOL_SOCKET, 21, struct.pack("=qq", 0, 50_000))
        b.connect(fd, port)
    b.connect(fd, port)
    b.poll([(fd, OUT)], 10)


@behaviour("close of a listener with a backlog (RST)", carried=False)
def listener_closed(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    fds = [b.socket() for _ in range(3)]
    for fd in fds:
        b.connect(fd, port)
    b.send(fds[0], b"sent before")
    settle()
    a.close(listener)
    settle()
    for fd in fds:
        b.poll([(fd, IN | OUT | HUP)], 1000)
        b.recv(fd, 10)
        b.send(fd, b"x", 0x4000)
    fd = b.socket()
    b.connect(fd, port)


@behaviour("setsockopt SO_REUSEPORT")
def reuseport(stage: Stage) -> None:
    a, b = stage.a, stage.b
    first = a.socket()
    a.setsockopt(first, SOL_SOCKET, SO_REUSEPORT, 1)
    a.bind(first)
    a.listen(first)
    port = a.port(first)
    second = a.socket()
    a.bind(second, port)
    a.setsockopt(second, SOL_SOCKET, SO_REUSEPORT, 1)
    a.bind(second, port)
    a.listen(second)
    served = 0
    for _ in range(8):
        fd = b.link.begin("socket", 2, 1, 0).end()[0]
        b.connect(fd, port)
        settle()
        memory = a.link.memory()
        entries = memory.both(struct.pack("=ihhihh", first, IN, 0, second, IN, 0))
        _, data = a.link.begin("poll", entries, 2, 5000, memory=memory).end()
        ready = first if struct.unpack_from("=h", data[0], 6)[0] else second
        x = a.link.begin("accept", ready, 0, 0).end()[0]
        stage.talk(x, fd)
        served += x >= 0
        a.link.begin("close", x).end()
        b.close(fd)
    a.say(f"served {served}")


@behaviour("accept in several processes")
def accept_forked(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    child = a.fork("c")
    for side in (a, child, a, child):
        fd = b.socket()
        waits = side.start.accept(listener).asleep()
        b.connect(fd, port)
        x = waits.value
        pending = side.link.talk(x, False, 40), b.link.talk(fd, True, 40)
        assert [each.end()[0] for each in pending] == [0, 0]
        exchange(stage, side, x, fd)
        side.close(x)
        b.recv(fd, 10)


@behaviour("dup", "dup2", "dup3", "fcntl F_DUPFD", "fcntl F_DUPFD_CLOEXEC")
def dup(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    copies = [a.sys("dup", x).value, a.sys("dup2", x, 50).value, a.sys("dup3", x, 51, O_CLOEXEC).value,
              a.fcntl(x, F_DUPFD, 60).value, a.fcntl(x, F_DUPFD_CLOEXEC, 60).value]
    for fd in copies:
        a.fcntl(fd, F_GETFD)
        exchange(stage, a, fd, y)
    a.sys("dup2", x, x)
    a.sys("dup3", x, x, 0)
    a.sys("dup2", 99, x)
    a.sys("dup2", x, -1)
    a.sys("dup3", x, 70, 1)
    a.sys("dup", 99)
    a.fcntl(x, F_DUPFD, 1 << 30)
    a.fcntl(x, F_SETFD, 1)
    a.fcntl(x, F_GETFD)
    a.close(x)
    for fd in copies:
        exchange(stage, a, fd, y)
        a.close(fd)
        a.send(fd, b"x")
    stage.b.recv(y, 10)


@behaviour("dup2 over a connection", carried=False)
def dup2_over(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    z, w = stage.connection()
    null = a.sys("dup", 0).value
    b.send(w, b"lost")
    a.send(z, b"last")
    a.sys("dup2", x, z)
    b.recv(w, 10)
    b.recv(w, 10)
    exchange(stage, a, z, y)
    a.sys("dup2", null, x)
    exchange(stage, a, z, y)
    a.sys("dup3", null, z, 0)
    b.recv(y, 10)


@behaviour("close_range", "close_range CLOSE_RANGE_CLOEXEC")
def close_range(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.sys("dup2", x, 100)
    a.sys("dup2", x, 101)
    a.sys("close_range", 100, 100, 0)
    a.send(100, b"x")
    exchange(stage, a, 101, y)
    a.sys("close_range", 101, 50, 0)
    a.sys("close_range", 100, 200, 4)
    a.fcntl(101, F_GETFD)
    a.sys("close_range", x, x, 8)
    a.sys("close_range", x, 899, 0)
    a.send(101, b"x")
    b.recv(y, 10)


@behaviour("lowest descriptor", "descriptors 0 to 2 as sockets")
def lowest(stage: Stage) -> None:
    a, b = stage.a, stage.b
    a.sys("close_range", 0, 2, 0)
    listener, port = stage.listener()
    fd = b.socket()
    b.connect(fd, port)
    x = a.accept(listener).value
    stage.talk(x, fd)
    a.close(listener)
    exchange(stage, a, x, fd)
    a.sys("dup", x)
    a.sys("dup", x)
    exchange(stage, a, 0, fd)
    a.socket()


@behaviour("fork shares a connection", carried=False)
def fork_shares(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    child = a.fork("c")
    exchange(stage, child, x, y, b"from the child")
    exchange(stage, a, x, y, b"from the parent")
    b.send(y, b"abcdef")
    a.recv(x, 3)
    child.recv(x, 3)
    child.close(x)
    exchange(stage, a, x, y)
    a.close(x)
    b.recv(y, 10)


@behaviour("fork, parent closes")
def fork_handover(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    child = a.fork("c")
    a.close(x)
    exchange(stage, child, x, y)
    child.shutdown(x, SHUT_WR)
    b.recv(y, 10)


@behaviour("exec keeps a connection", "FD_CLOEXEC")
def exec_keeps(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    z, w = stage.connection()
    a.fcntl(z, F_SETFD, 1)
    b.send(y, b"sent before")
    a.exec()
    a.recv(x, 100)
    exchange(stage, a, x, y)
    a.fcntl(z, F_GETFD)
    b.recv(w, 10)


@behaviour("threads share a connection", carried=False)
def threads(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    thread = a.thread("t")
    exchange(stage, thread, x, y, b"from the thread")
    exchange(stage, a, x, y)
    waits = thread.start.recv(x, 10).asleep()
    b.send(y, b"abc")
    waits.end()
    waits = thread.start.recv(x, 10).asleep()
    a.close(x)
    b.send(y, b"after close")
    waits.end()
    b.close(y)


@behaviour("RLIMIT_NOFILE lowered")
def rlimit(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    memory = a.link.memory()
    a.sys("prlimit64", 0, 7, memory.put(struct.pack("=QQ", 5, 5)), 0, memory=memory, text="NOFILE 5")
    a.socket()
    a.sys("dup", x)
    a.sys("dup2", x, 10)
    exchange(stage, a, x, y)
    a.poll([(x, IN), (x, OUT)])


@behaviour(carried=False)  # no row: what carries it depends on how many descriptors the machine allows
def high_numbers(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    memory = a.link.memory()
    raised = a.sys("prlimit64", 0, 7, memory.put(struct.pack("=QQ", 80_000, 80_000)), 0, memory=memory, text="NOFILE")
    least, most = (70_000, 79_999) if raised.value == 0 else (70, 79)  # as far as this machine lets us
    b.send(y, b"unread")
    high = a.fcntl(x, F_DUPFD, least).value
    a.recv(high, 3)
    a.recv(x, 10)
    exchange(stage, a, high, y)
    a.sys("dup2", high, most)
    a.close(x)
    exchange(stage, a, most, y)
    a.poll([(high, IN), (most, OUT)])
    b.shutdown(y, SHUT_WR)
    a.recv(high, 10)


@behaviour("readlink /proc/self/fd", "fstat")
def proc_fd(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    memory = a.link.memory()
    a.sys("readlink", memory.put(f"/proc/self/fd/{x}\0".encode()), memory.room(32), 32, memory=memory, text="own",
          shown=lambda _, data: repr(data[0][:8]))
    memory = a.link.memory()
    a.sys("open", memory.put(f"/proc/self/fd/{x}\0".encode()), 2, memory=memory, text="own")
    memory = a.link.memory()
    a.sys("fstat", x, memory.room(144), memory=memory, text="",
          shown=lambda _, data: hex(struct.unpack_from("=I", data[0], 24)[0]))
    memory = a.link.memory()
    a.sys("access", memory.put(b"/proc/self/fd/99\0"), 0, memory=memory, text="/proc/self/fd/99")
    a.sys("lseek", x, 0, 1)
    exchange(stage, a, x, y)


@behaviour("io_uring_setup", carried=False, only=("before", "uring"),
           broken={"before": "denied by policy, ENOSYS; `io_uring=allow` keeps all sockets of the tree on TCP"})
def io_uring(stage: Stage) -> None:
    a = stage.a
    memory = a.link.memory()
    a.sys("io_uring_setup", 0, memory.put(bytes(120)), memory=memory, text="no entries")
    exchange(stage, a, *stage.connection())
