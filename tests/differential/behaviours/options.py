# SPDX-License-Identifier: Apache-2.0
"""Socket options, ioctls, file status flags, and signals that tell of input."""

from __future__ import annotations

import signal
import struct

from tests.differential.behaviours.transmit import fill
from tests.differential.linux import (
    DONTWAIT,
    F_GETFL,
    F_GETOWN,
    F_SETFL,
    F_SETOWN,
    F_SETSIG,
    FIOASYNC,
    FIONBIO,
    FIONREAD,
    IN,
    O_ASYNC,
    O_NONBLOCK,
    OUT,
    SA_RESTART,
    SHUT_WR,
    SIOCOUTQ,
    SO_KEEPALIVE,
    SO_RCVBUF,
    SO_RCVLOWAT,
    SO_RCVTIMEO,
    SO_RCVTIMEO_NEW,
    SO_SNDBUF,
    SO_SNDTIMEO,
    SO_ZEROCOPY,
    SOL_SOCKET,
    SOL_TCP,
    TCP_CORK,
    TCP_INFO,
    TCP_NODELAY,
    TCP_QUICKACK,
    TCP_ULP,
    WAITALL,
)
from tests.differential.side import settle
from tests.differential.worlds import Stage, behaviour

SHORT = struct.pack("=qq", 0, 30_000)
NONE = struct.pack("=qq", 0, 0)


@behaviour("setsockopt SO_RCVTIMEO", "getsockopt SO_RCVTIMEO")
def rcvtimeo(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO, SHORT)
    a.getsockopt(x, SOL_SOCKET, SO_RCVTIMEO, 16)
    a.recv(x, 10)
    a.read(x, 10)
    b.send(y, b"abc")
    a.recv(x, 10)
    a.recvmsg(x, [10])
    b.send(y, b"abc")
    a.recv(x, 10, WAITALL)
    a.recv(x, 10, 2)
    a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO, NONE)
    waits = a.start.recv(x, 10).asleep()
    b.send(y, b"late")
    waits.end()
    a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO, struct.pack("=qq", 0, 2_000_000))
    a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO, struct.pack("=qq", -1, 0))
    a.getsockopt(x, SOL_SOCKET, SO_RCVTIMEO_NEW, 16)
    a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO_NEW, SHORT)
    a.recv(x, 10)


@behaviour("setsockopt SO_SNDTIMEO", "getsockopt SO_SNDTIMEO", only=("before", "tight", "after", "accepting"))
def sndtimeo(stage: Stage) -> None:
    a = stage.a
    x, _ = stage.connection()
    a.setsockopt(x, SOL_SOCKET, SO_SNDTIMEO, SHORT)
    a.getsockopt(x, SOL_SOCKET, SO_SNDTIMEO, 16)
    a.send(x, b"fits")
    fill(stage, x)
    a.send(x, b"does not fit")


@behaviour("setsockopt SO_RCVLOWAT", "getsockopt SO_RCVLOWAT")
def rcvlowat(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.option(x, SOL_SOCKET, SO_RCVLOWAT)
    a.setsockopt(x, SOL_SOCKET, SO_RCVLOWAT, 5)
    a.option(x, SOL_SOCKET, SO_RCVLOWAT)
    b.send(y, b"abc")
    a.poll([(x, IN | OUT)])
    a.select([x], [x])
    a.recv(x, 10, DONTWAIT)
    waits = a.start.recv(x, 10).asleep()
    b.send(y, b"abcd")
    waits.asleep()
    b.send(y, b"efg")
    waits.end()
    waits = a.start.poll([(x, IN)], 5000).asleep()
    b.send(y, b"123")
    waits.asleep()
    b.send(y, b"456")
    waits.end()
    a.recv(x, 10)
    a.setsockopt(x, SOL_SOCKET, SO_RCVLOWAT, 0)
    a.option(x, SOL_SOCKET, SO_RCVLOWAT)
    a.setsockopt(x, SOL_SOCKET, SO_RCVLOWAT, 8)
    b.send(y, b"end")
    b.shutdown(y, SHUT_WR)
    a.poll([(x, IN)])
    a.recv(x, 10)
    a.recv(x, 10)


@behaviour("setsockopt SO_RCVBUF", "setsockopt SO_SNDBUF", "getsockopt SO_RCVBUF", "getsockopt SO_SNDBUF")
def buffers(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for option in (SO_RCVBUF, SO_SNDBUF):
        for size in (1, 10_000, 100_000):
            a.setsockopt(x, SOL_SOCKET, option, size)
            a.option(x, SOL_SOCKET, option)
    a.send(x, b"still works")
    b.recv(y, 100)


@behaviour("setsockopt TCP_NODELAY", "getsockopt TCP_NODELAY", "getsockopt TCP_CORK", "setsockopt TCP_QUICKACK",
           "getsockopt TCP_QUICKACK")
def tcp_flags(stage: Stage) -> None:
    a = stage.a
    x, _ = stage.connection(nodelay=False)
    for option in (TCP_NODELAY, TCP_CORK):
        a.option(x, SOL_TCP, option)
        for value in (1, 0, 7, 0):
            a.setsockopt(x, SOL_TCP, option, value)
            a.option(x, SOL_TCP, option)
        a.getsockopt(x, SOL_TCP, option, 1)
        a.getsockopt(x, SOL_TCP, option, 2)
        a.getsockopt(x, SOL_TCP, option, 0)
        a.getsockopt(x, SOL_TCP, option, 9)
        a.setsockopt(x, SOL_TCP, option, b"\1")
        a.setsockopt(x, SOL_TCP, option, b"")
    a.setsockopt(x, SOL_TCP, TCP_QUICKACK, 1)
    a.option(x, SOL_TCP, TCP_QUICKACK)
    a.sys("setsockopt", x, SOL_TCP, TCP_NODELAY, 0, 4)
    a.sys("getsockopt", x, SOL_TCP, TCP_NODELAY, 0, 0)


@behaviour("setsockopt SO_KEEPALIVE", "getsockopt unknown (ENOPROTOOPT)")
def other_options(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.setsockopt(x, SOL_SOCKET, SO_KEEPALIVE, 1)
    a.option(x, SOL_SOCKET, SO_KEEPALIVE)
    a.getsockopt(x, SOL_SOCKET, 9999)
    a.setsockopt(x, SOL_SOCKET, 9999, 1)
    a.getsockopt(x, 9999, 1)
    for option in (2, 3, 38, 39, 30):  # REUSEADDR, TYPE, PROTOCOL, DOMAIN, ACCEPTCONN
        a.option(x, SOL_SOCKET, option)
    a.send(x, b"abc")
    b.recv(y, 10)


@behaviour("getsockopt TCP_INFO")
def tcp_info(stage: Stage) -> None:
    a = stage.a
    x, _ = stage.connection()
    call = a.getsockopt(x, SOL_TCP, TCP_INFO, 8, show=False)
    a.say(f"state {call.pieces[0][0]}")


@behaviour("setsockopt TCP_ULP unknown (ENOENT)")
def tcp_ulp_unknown(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.setsockopt(x, SOL_TCP, TCP_ULP, b"nosuch")
    a.getsockopt(x, SOL_TCP, TCP_ULP, 16)
    b.send(y, b"abc")
    a.recv(x, 10)
    a.send(x, b"def")
    b.recv(y, 10)


# Whether it moves back depends on the kernel's modules: no row of the table.
@behaviour("setsockopt TCP_ULP", carried=False, only=("tight", "during", "after", "accepting", "connecting"))
def tcp_ulp(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.setsockopt(x, SOL_TCP, TCP_ULP, b"nosuch")
    a.setsockopt(x, SOL_TCP, TCP_ULP, b"tls")
    a.getsockopt(x, SOL_TCP, TCP_ULP, 16)
    b.send(y, b"abc")
    a.recv(x, 10)
    a.send(x, b"abc")
    b.recv(y, 10)


@behaviour("getsockopt SO_ZEROCOPY")
def so_zerocopy(stage: Stage) -> None:
    a = stage.a
    x, _ = stage.connection()
    a.option(x, SOL_SOCKET, SO_ZEROCOPY)


@behaviour("ioctl FIONREAD", "ioctl SIOCOUTQ")
def queue_lengths(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.ioctl(y, FIONREAD)
    a.send(x, b"abcdef")
    b.ioctl(y, FIONREAD)
    b.recv(y, 2)
    b.ioctl(y, FIONREAD)
    b.recv(y, 10)
    b.ioctl(y, FIONREAD)
    b.ioctl(y, SIOCOUTQ)
    a.send(x, b"s" * 5000)
    b.ioctl(y, FIONREAD)
    a.shutdown(x, SHUT_WR)
    b.ioctl(y, FIONREAD)
    b.recv_all(y, 5000)
    b.recv(y, 10)
    b.ioctl(y, FIONREAD)
    fd = b.socket()
    b.ioctl(fd, FIONREAD)
    b.ioctl(fd, SIOCOUTQ)
    b.listen(fd)
    b.ioctl(fd, FIONREAD)
    b.sys("ioctl", y, FIONREAD, 0)


@behaviour("ioctl FIONBIO", "fcntl O_NONBLOCK", "O_NONBLOCK shared by dup", "O_NONBLOCK shared by fork")
def nonblock_shared(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    twin = a.sys("dup", x).value
    a.ioctl(x, FIONBIO, 1)
    a.fcntl(twin, F_GETFL)
    a.recv(twin, 10)
    a.fcntl(twin, F_SETFL, 2)
    a.fcntl(x, F_GETFL)
    waits = a.start.recv(x, 10).asleep()
    b.send(y, b"abc")
    waits.end()
    child = a.fork("c")
    child.fcntl(x, F_SETFL, O_NONBLOCK)
    a.recv(x, 10)
    a.fcntl(x, F_GETFL)
    a.ioctl(twin, FIONBIO, 0)
    waits = child.start.recv(x, 10).asleep()
    b.send(y, b"def")
    waits.end()
    a.sys("ioctl", x, FIONBIO, 0)


@behaviour("fcntl O_ASYNC", "fcntl F_SETOWN", "fcntl F_SETSIG", "ioctl FIOASYNC", carried=False)
def sigio(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.handle(signal.SIGIO)
    a.fcntl(x, F_GETOWN)
    a.sys("fcntl", x, F_SETOWN, a.link.pid, text=f"{x}, F_SETOWN, self")
    a.fcntl(x, F_SETFL, 2 | O_ASYNC)
    a.fcntl(x, F_GETFL)
    b.send(y, b"abc")
    settle()
    a.signals(signal.SIGIO)
    a.recv(x, 10)
    b.send(y, b"abc")
    settle()
    a.signals(signal.SIGIO)
    a.recv(x, 10)
    a.fcntl(x, F_SETFL, 2)
    b.send(y, b"abc")
    settle()
    a.signals(signal.SIGIO)
    a.ioctl(x, FIOASYNC, 1)
    a.handle(signal.SIGUSR1)
    a.fcntl(x, F_SETSIG, signal.SIGUSR1)
    b.send(y, b"def")
    settle()
    a.signals(signal.SIGUSR1)
    a.recv(x, 10)


@behaviour("recv EINTR", "recv SA_RESTART")
def interrupted(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.handle(signal.SIGUSR1)
    a.handle(signal.SIGUSR2, flags=SA_RESTART)
    for flags in (0, WAITALL):
        waits = a.start.recv(x, 3, flags).asleep()
        b.sys("kill", a.link.pid, signal.SIGUSR1, text="a, SIGUSR1")
        waits.end()
        waits = a.start.recv(x, 3, flags).asleep()
        b.sys("kill", a.link.pid, signal.SIGUSR2, text="a, SIGUSR2")
        waits.asleep()
        b.send(y, b"abc")
        waits.end()
    a.signals(signal.SIGUSR1)
    a.signals(signal.SIGUSR2)
    waits = a.start.recv(x, 10, WAITALL).asleep()
    b.send(y, b"part")
    waits.asleep()
    b.sys("kill", a.link.pid, signal.SIGUSR1, text="a, SIGUSR1")
    waits.end()
    a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO, struct.pack("=qq", 5, 0))
    waits = a.start.recv(x, 3).asleep()
    b.sys("kill", a.link.pid, signal.SIGUSR2, text="a, SIGUSR2")
    waits.end()
