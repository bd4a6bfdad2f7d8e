# SPDX-License-Identifier: Apache-2.0
"""Sending calls and their flags."""

from __future__ import annotations

import signal
import struct
import time

from tests.differential.linux import (
    CONFIRM,
    DONTWAIT,
    EOR,
    F_SETFL,
    FASTOPEN,
    IN,
    MORE,
    NOSIGNAL,
    O_ASYNC,
    OOB,
    OUT,
    PEEK,
    PRI,
    RDBAND,
    SHUT_WR,
    SIOCATMARK,
    SO_OOBINLINE,
    SO_RCVBUF,
    SO_SNDTIMEO,
    SO_ZEROCOPY,
    SOL_SOCKET,
    TCP_NOTSENT_LOWAT,
    ZEROCOPY,
)
from tests.differential.side import MINUS_ONE, Side, settle
from tests.differential.worlds import Stage, behaviour

CHUNK = 1000


def fill(stage: Stage, x: int, sizes: tuple[int, ...] = (60_000, CHUNK, CHUNK, 1, 1)) -> int:
    """Send from a until it would block, the receiver's kernel has dealt with all of it, and it would still block.

    The count depends on buffers, so it is not in the transcript.
    """
    total, value, more = 0, 0, 1
    while more:
        more, value = _fill_once(stage.a, x, sizes)
        total += more
        time.sleep(0.1)
    stage.a.say(f"filled, then {value}")
    return total


def _fill_once(a: Side, x: int, sizes: tuple[int, ...]) -> tuple[int, int]:
    """How much was sent, and what the last call said."""
    total, step, value = 0, 0, 0
    while step < len(sizes):
        time.sleep(0.01)  # what is on its way arrives, and the receiver's window grows
        size = sizes[step]
        step += 1
        for _ in range(100):
            memory = a.link.memory()
            value, _ = a.link.begin("sendto", x, memory.put(b"f" * size), size, DONTWAIT, memory=memory).end()
            if value < 0:
                break
            total += value
        else:
            step = 0  # it has grown by much: not with single bytes
    return total, value


@behaviour("setsockopt TCP_NOTSENT_LOWAT", "getsockopt TCP_NOTSENT_LOWAT", only=("before", "after", "accepting"))
def notsent_lowat(stage: Stage) -> None:
    """How much the peer's window holds depends on the moment; what may wait behind it is asked for."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.setsockopt(y, SOL_SOCKET, SO_RCVBUF, 4096)
    a.setsockopt(x, 6, TCP_NOTSENT_LOWAT, 8192)
    a.option(x, 6, TCP_NOTSENT_LOWAT)
    total = fill(stage, x)
    a.say("little" if total < 300_000 else "much")
    a.poll([(x, OUT)])
    a.sent += total
    b.recv_all_quietly(y, total)
    a.poll([(x, OUT)])
    a.setsockopt(x, 6, TCP_NOTSENT_LOWAT, 0)
    a.send(x, b"more")
    b.recv(y, 10)


# A switch in the middle finds an empty ring behind a full TCP: not "during".
@behaviour("send MSG_DONTWAIT", "send to a full stream (EAGAIN)", only=("before", "tight", "after", "accepting"))
def send_dontwait(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abc", DONTWAIT)
    b.recv(y, 10)
    total = fill(stage, x)
    a.poll([(x, OUT)])
    a.send(x, b"abc", DONTWAIT)
    b.recv_all_quietly(y, total)
    settle()
    a.poll([(x, OUT)])
    a.send(x, b"end", DONTWAIT)
    b.recv(y, 10)


@behaviour("send whose connection moves back in the middle", "writev whose connection moves back in the middle",
           "sendfile whose connection moves back in the middle", carried=False)
def send_moves_back(stage: Stage) -> None:
    a, b = stage.a, stage.b
    data = bytes(range(256)) * 30_000
    for call in ("send", "writev", "sendfile"):
        x, y = stage.connection()
        if call == "send":
            begun = a.start.send(x, data).asleep()
        elif call == "writev":
            begun = a.start.writev(x, [data[:5000], data[5000:7000], data[7000:]]).asleep()
        else:
            file = a.file(data)
            begun = a.start.sendfile(x, file, len(data)).asleep()
        b.fcntl(y, F_SETFL, 2 | O_ASYNC)  # which wants its bytes from the kernel
        b.recv_all(y, len(data))
        begun.end()
        b.close(y)
        a.recv(x, 10)


@behaviour("send waits for room")
def send_waits(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    total = fill(stage, x)
    more = b"w" * 100_000
    waits = a.start.send(x, more).asleep()
    b.recv_all_quietly(y, total)
    b.recv_all(y, len(more))
    waits.end()
    b.recv(y, 10, DONTWAIT)


@behaviour("send of a few bytes where a larger one has found no room")
def send_few_when_full(stage: Stage) -> None:
    """A buffer that is full for one message is full for any, until the reader has made room."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    total = fill(stage, x, (60_000,))
    for size in (1, 100, 500, 1):
        a.send(x, b"f" * size, DONTWAIT)
    a.poll([(x, OUT)])
    a.setsockopt(x, SOL_SOCKET, SO_SNDTIMEO, struct.pack("qq", 0, 20_000))
    a.send(x, b"g")
    a.write(x, b"h" * 200)
    b.recv_all_quietly(y, total)
    settle()
    a.send(x, b"end", DONTWAIT)
    b.recv(y, 10)


@behaviour("send of what TCP's buffers hold, by both ends before either receives",
           only=("before", "after", "accepting"))
def send_before_receiving(stage: Stage) -> None:
    """Natively neither waits. Who asks for room before each part, as event loops do, is told of less."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for data in (bytes(range(256)) * 8000, b"again, " * 300_000):
        a.send(x, data)
        b.send(y, data)
        a.recv_all(x, len(data))
        b.recv_all(y, len(data))
    part = b"parts, " * 8000
    for _ in range(30):
        a.poll([(x, OUT)])
        a.send(x, part, DONTWAIT)
        b.poll([(y, OUT)])
        b.send(y, part, DONTWAIT)
    a.recv_all(x, 30 * len(part))
    b.recv_all(y, 30 * len(part))


@behaviour("send MSG_MORE", "sendmsg MSG_MORE", "splice SPLICE_F_MORE")
def send_more(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = b.epoll()
    b.ctl(ep, "add", y, IN)
    a.send(x, b"abc", MORE)
    settle()
    b.recv(y, 10, DONTWAIT)
    b.poll([(y, IN)])
    b.wait(ep)
    a.send(x, b"def")
    b.recv_all(y, 6)
    a.sendmsg(x, [b"gh", b"i"], MORE)
    b.recv(y, 10, DONTWAIT)
    a.write(x, b"jkl")
    b.wait(ep)
    b.recv_all(y, 6)
    out, into = a.pipe()
    a.write(into, b"piped")
    a.sent -= 5
    a.splice(out, x, 100, 4)
    b.recv(y, 10, DONTWAIT)
    waits = b.start.recv(y, 10).asleep()
    a.write(x, b" and more")
    waits.end()
    b.recv(y, 10)
    a.send(x, b"no more comes", MORE)
    b.recv_all(y, 13)  # after 200 ms


@behaviour("send MSG_EOR", "send MSG_CONFIRM", carried=False)
def send_flags_without_effect(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"ghi", EOR)
    a.send(x, b"jkl", CONFIRM)
    b.recv_all(y, 6)
    b.recv(y, 10, DONTWAIT)


@behaviour("send MSG_NOSIGNAL", "send after shutdown (SIGPIPE)", "write after shutdown (SIGPIPE)",
           "sendmsg after shutdown (SIGPIPE)", carried=False)
def sigpipe_after_shutdown(stage: Stage) -> None:
    a = stage.a
    x, _ = stage.connection()
    a.shutdown(x, SHUT_WR)
    a.send(x, b"a", NOSIGNAL)
    a.signals(signal.SIGPIPE)
    a.send(x, b"a")
    a.signals(signal.SIGPIPE)
    a.write(x, b"a")
    a.writev(x, [b"a", b"b"])
    a.sendmsg(x, [b"a"])
    a.signals(signal.SIGPIPE)
    a.sendmsg(x, [b"a"], NOSIGNAL)
    a.sendmmsg(x, [[b"a"], [b"b"]])
    a.signals(signal.SIGPIPE)
    a.handle(signal.SIGPIPE, "ignore")
    a.send(x, b"a")
    a.send(x, b"")
    a.write(x, b"")


@behaviour("send SIGPIPE kills", carried=False)
def sigpipe_kills(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    a.handle(signal.SIGPIPE, "default")
    a.send(x, b"hello")
    a.shutdown(x, SHUT_WR)
    child = a.fork("c")
    child.send(x, b"a")
    stage.b.recv(y, 10)
    stage.b.recv(y, 10)


@behaviour("sendto address")
def sendto_address(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for address, size in ((b"\x02\0\0\1\x7f\0\0\1" + bytes(8), 16), (bytes(16), 16), (b"\x02", 1), (b"\x02", 0)):
        memory = a.link.memory()
        a.sys("sendto", x, memory.put(b"abc"), 3, 0, memory.put(address), size, memory=memory, text=f"{address!r}")
        settle()
        b.recv(y, 10)
    memory = a.link.memory()
    a.sys("sendto", x, memory.put(b"abc"), 3, 0, memory.put(bytes(200)), 200, memory=memory, text="too long")
    a.sys("sendto", x, memory.put(b"abc"), 3, 0, memory.put(bytes(200)), -1, memory=memory, text="negative")
    a.sys("sendto", x, memory.put(b"abc"), 3, 0, 1 << 63, 16, memory=memory, text="bad pointer")
    b.recv(y, 10, DONTWAIT)


@behaviour("sendmsg", "writev", "pwritev2", "pwrite64 (ESPIPE)")
def sendmsg_and_vectors(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.sendmsg(x, [b"abc", b"", b"defgh"])
    b.recv(y, 100)
    a.sendmsg(x, [])
    a.sendmsg(x, [b"", b""])
    a.sendmsg(x, [b"a" * 3000, b"b" * 5000])
    b.recv_all(y, 8000)
    a.writev(x, [b"xyz", b"", b"12"])
    a.writev(x, [])
    a.writev(x, [b""])
    a.writev(x, [b"pw"], offset=MINUS_ONE)
    a.writev(x, [b"pw"], offset=0)
    a.writev(x, [b"nw"], offset=MINUS_ONE, flags=8)
    a.writev(x, [b"ap"], offset=MINUS_ONE, flags=16)
    a.writev(x, [b"sy"], offset=MINUS_ONE, flags=6)
    a.writev(x, [b"no"], offset=MINUS_ONE, flags=1 << 20)
    a.sys("writev", x, 0, 0)
    a.sys("writev", x, 0, 1025)
    memory = a.link.memory()
    a.sys("pwrite64", x, memory.put(b"abcd"), 4, 0, memory=memory, text="")
    b.recv(y, 100)
    b.recv(y, 100, DONTWAIT)


@behaviour("sendmsg control messages", carried=False)
def sendmsg_control(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.sendmsg(x, [b"abc"], control=struct.pack("=QiiI4x", 20, 99, 1, 0))  # no such level
    b.recv(y, 10)
    a.sendmsg(x, [b"abc"], control=struct.pack("=QiiI4x", 20, SOL_SOCKET, 999, 0))  # no such type: EINVAL
    a.sendmsg(x, [b"abc"], control=struct.pack("=QiiI4x", 2000, SOL_SOCKET, 1, 0))  # longer than it is: EINVAL
    b.recv(y, 10, DONTWAIT)


@behaviour("sendmmsg")
def sendmmsg(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.sendmmsg(x, [[b"abc"], [b"de", b"fg"], [b""], [b"h"]])
    b.recv(y, 100)
    a.sendmmsg(x, [[b"abc"]], DONTWAIT)
    a.sendmmsg(x, [])
    a.sys("sendmmsg", x, 0, 1, 0)
    b.recv(y, 100)
    b.recv(y, 100, DONTWAIT)


@behaviour("send MSG_ZEROCOPY", carried=False)
def send_zerocopy(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"plain")
    b.recv(y, 10)
    a.send(x, b"asked", ZEROCOPY)  # without SO_ZEROCOPY the flag is ignored
    b.recv(y, 10)
    a.setsockopt(x, SOL_SOCKET, SO_ZEROCOPY, 1)
    a.option(x, SOL_SOCKET, SO_ZEROCOPY)
    a.send(x, b"z" * 20_000, ZEROCOPY)
    b.recv_all(y, 20_000)
    settle()
    a.poll([(x, OUT)])
    a.recvmsg(x, [16], 0x2000, control=100)
    a.recvmsg(x, [16], 0x2000, control=100)
    b.send(y, b"back")
    a.recv(x, 10)
    a.send(x, b"after")
    b.recv(y, 10)


@behaviour("send MSG_FASTOPEN", carried=False)
def send_fastopen(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abc", FASTOPEN)
    settle()
    b.recv(y, 10, DONTWAIT)
    fd = a.socket()
    a.send(fd, b"abc", FASTOPEN)
    a.send(fd, b"abc")


@behaviour("send MSG_OOB", "recv MSG_OOB", "ioctl SIOCATMARK", carried=False)
def oob(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"before")
    b.poll([(y, PRI | RDBAND | 1)])
    a.send(x, b"urgent!", OOB)
    b.poll([(y, PRI | RDBAND | 1)], 1000)
    b.ioctl(y, SIOCATMARK)
    b.recv(y, 10, OOB | PEEK)
    b.recv(y, 10, OOB)
    b.recv(y, 10, OOB)
    b.recv(y, 6)
    b.recv(y, 6)
    b.recv(y, 100, DONTWAIT)
    b.ioctl(y, SIOCATMARK)
    a.send(x, b"after")
    b.recv(y, 100)
    b.recv(y, 100, DONTWAIT)
    b.send(y, b"other way")
    a.recv(x, 100)


@behaviour("recv of what was sent before and behind urgent data", carried=False)
def oob_between(stage: Stage) -> None:
    """No call goes on behind the mark."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abc")
    a.send(x, b"!", OOB)
    a.send(x, b"ef")
    b.poll([(y, PRI)], 1000)
    b.recv(y, 100)
    b.ioctl(y, SIOCATMARK)
    b.recv(y, 100)
    b.recv(y, 10, OOB)
    b.recv(y, 100, DONTWAIT)


@behaviour("setsockopt SO_OOBINLINE", carried=False)
def oob_inline(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.setsockopt(y, SOL_SOCKET, SO_OOBINLINE, 1)
    a.send(x, b"abc")
    a.send(x, b"!", OOB)
    a.send(x, b"def")
    b.recv(y, 10, OOB)
    b.recv(y, 100)
    b.ioctl(y, SIOCATMARK)
    b.recv(y, 100)
    b.recv(y, 100, DONTWAIT)


@behaviour("send bad pointers (EFAULT)")
def send_faults(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for address in (0, 64, 1 << 63, (1 << 47) - 2):
        a.sys("write", x, address, 4)
        a.sys("sendto", x, address, 4, 0)
        a.sys("sendmsg", x, address, 0)
        a.sys("writev", x, address, 1)
        a.sys("sendmmsg", x, address, 1, 0)
    b.recv(y, 10, DONTWAIT)
    a.send(x, b"fine")
    b.recv(y, 10)


@behaviour("send large")
def send_large(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    data = bytes(range(256)) * 16_000
    waits = a.start.write(x, data)
    b.recv_all(y, len(data))
    waits.end()
    waits = b.start.send(y, data)
    a.recv_all(x, len(data))
    waits.end()
    a.recv(x, 1, DONTWAIT)
