# SPDX-License-Identifier: Apache-2.0
"""Receiving calls and their flags."""

from __future__ import annotations

import struct

from tests.differential.linux import (
    CMSG_CLOEXEC,
    DONTWAIT,
    ERRQUEUE,
    OOB,
    PEEK,
    SHUT_WR,
    SO_OOBINLINE,
    SO_RCVTIMEO,
    SO_TIMESTAMP,
    SOL_SOCKET,
    TRUNC,
    WAITALL,
    WAITFORONE,
)
from tests.differential.side import MINUS_ONE, settle
from tests.differential.worlds import Stage, behaviour


@behaviour("read", "write")
def read_and_write(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for size in (1, 2, 100, 4095, 4096, 4097, 20_000):
        a.write(x, bytes(range(256)) * (size // 256) + b"x" * (size % 256))
        b.recv_all(y, size)
    b.write(y, b"hello")
    a.read(x, 3)
    a.read(x, 0)
    a.read(x, 30)
    waits = a.start.read(x, 30).asleep()
    b.write(y, b"late")
    waits.end()
    b.write(y, b"")
    a.recv(x, 10, DONTWAIT)


@behaviour("recv of what was sent before and after the sender has set SO_TIMESTAMP", carried=False)
def before_and_after(stage: Stage) -> None:
    """The second part comes by TCP, and nothing shows that."""
    a, b = stage.a, stage.b
    for threads in (False, True):
        if threads:
            a.thread("t")
        for way in (a.recv, a.read, lambda fd, size: a.readv(fd, [size])):
            x, y = stage.connection()
            b.send(y, b"before")
            b.setsockopt(y, SOL_SOCKET, SO_TIMESTAMP, 1)
            b.send(y, b"after")
            settle()
            way(x, 100)
            a.recv(x, 100, DONTWAIT)


@behaviour("recv MSG_PEEK of what was sent before and after the sender has set SO_TIMESTAMP", carried=False)
def peek_before_and_after(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for company in (None, a.thread, a.fork):
        if company:
            company("c")
        x, y = stage.connection()
        b.send(y, b"before")
        b.setsockopt(y, SOL_SOCKET, SO_TIMESTAMP, 1)
        for flags in (0, DONTWAIT):
            a.recv(x, 100, PEEK | flags)
        b.send(y, b"after")
        settle()
        for size in (100, 3, 6, 7, 11, 12):
            a.recv(x, size, PEEK)
        a.recv(x, 11, PEEK | WAITALL)
        a.recv(x, 8, PEEK | TRUNC)
        a.recvmsg(x, [4, 1, 3, 100], PEEK)
        a.recvmsg(x, [1] * 40, PEEK)
        waits = a.start.recv(x, 13, PEEK | WAITALL).asleep()
        b.send(y, b"!")
        settle()
        b.send(y, b"?")
        waits.end()
        a.recv(x, 2)
        a.recv(x, 100, PEEK)
        b.send(y, b"30 bytes, one to each buffer..")
        settle()
        a.recvmsg(x, [1] * 50, PEEK)
        a.recvmsg(x, [1] * 41, PEEK | WAITALL)
        a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO, struct.pack("=qq", 0, 200_000))
        a.recv(x, 100, PEEK | WAITALL)
        a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO, struct.pack("=qq", 0, 0))
        waits = a.start.recv(x, 100, PEEK | WAITALL).asleep()
        b.shutdown(y, SHUT_WR)
        waits.end()
        a.recv(x, 100)
        a.recv(x, 100, PEEK)


@behaviour("recv MSG_PEEK of what was sent before urgent data", carried=False)
def peek_before_urgent(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.setsockopt(x, SOL_SOCKET, SO_OOBINLINE, 1)
    b.send(y, b"before")
    b.send(y, b"!", OOB)
    b.send(y, b"after")
    settle()
    for size in (3, 6, 100):
        a.recv(x, size, PEEK)
    a.recv(x, 100)
    a.recv(x, 100, PEEK)
    a.recv(x, 100)


@behaviour("recv", "send")
def recv_and_send(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abc")
    b.recv(y, 2)
    b.recv(y, 2)
    waits = b.start.recv(y, 100).asleep()
    a.send(x, b"later")
    waits.end()
    a.send(x, b"")
    b.recv(y, 10, DONTWAIT)
    b.recv(y, 0, DONTWAIT)
    waits = b.start.recv(y, 0).asleep()
    a.send(x, b"now")
    waits.end()
    b.recv(y, 0)
    b.recv(y, 0, DONTWAIT)
    b.recv(y, 0, PEEK)
    b.recv(y, 10)


@behaviour("recv MSG_PEEK")
def peek(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.recv(y, 8, PEEK | DONTWAIT)
    a.send(x, b"abcdef")
    b.recv(y, 4, PEEK)
    b.recv(y, 8, PEEK)
    b.recv(y, 3)
    b.recv(y, 8, PEEK)
    waits = b.start.recv(y, 6, PEEK | WAITALL).asleep()
    a.send(x, b"ghijk")
    waits.end()
    b.recv(y, 100)
    waits = b.start.recv(y, 6, PEEK).asleep()
    a.send(x, b"z")
    waits.end()
    a.shutdown(x, SHUT_WR)
    b.recv(y, 5, PEEK | WAITALL)
    b.recv(y, 5)
    b.recv(y, 5, PEEK)
    b.recv(y, 5, PEEK | DONTWAIT)


@behaviour("recv MSG_DONTWAIT")
def dontwait(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for _ in range(5):
        b.recv(y, 8, DONTWAIT)
        a.send(x, b"abcd")
        b.recv(y, 3, DONTWAIT)
        b.recv(y, 3, DONTWAIT)
        b.recv(y, 3, DONTWAIT)


@behaviour("recv MSG_WAITALL")
def waitall(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    waits = b.start.recv(y, 10, WAITALL).asleep()
    a.send(x, b"abcd")
    waits.asleep()
    a.send(x, b"efghijkl")
    waits.end()
    b.recv(y, 10, WAITALL | DONTWAIT)
    waits = b.start.recv(y, 10, WAITALL).asleep()
    a.send(x, b"last")
    waits.asleep()
    a.shutdown(x, SHUT_WR)
    waits.end()
    b.recv(y, 10, WAITALL)


@behaviour("recv MSG_WAITALL more than a buffer")
def waitall_large(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    size = 3_000_000
    waits = b.start.recv(y, size, WAITALL)
    a.send(x, bytes(range(250)) * (size // 250))
    waits.end()
    b.recv(y, 1, DONTWAIT)


@behaviour("recv MSG_TRUNC")
def trunc(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.recv(y, 100, TRUNC | DONTWAIT)
    a.send(x, b"abcdefgh")
    b.recv(y, 3, TRUNC)
    b.recv(y, 2)
    b.recv(y, 2, TRUNC | PEEK)
    b.recv(y, 100, TRUNC)
    a.send(x, b"q" * 3000)
    b.recv(y, 2000, TRUNC)
    b.recv(y, 2000, TRUNC)
    waits = b.start.recv(y, 5, TRUNC).asleep()
    a.send(x, b"0123456789")
    waits.end()
    b.recv(y, 100)
    waits = b.start.recv(y, 5, TRUNC | WAITALL).asleep()
    a.send(x, b"012")
    waits.asleep()
    a.send(x, b"3456789")
    waits.end()
    b.recv(y, 100)


@behaviour("recv MSG_ERRQUEUE")
def errqueue(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abc")
    b.recv(y, 10, ERRQUEUE)
    b.recv(y, 10, ERRQUEUE | DONTWAIT)
    b.recvmsg(y, [10], ERRQUEUE, control=100, name=20)
    b.recv(y, 10)


@behaviour("recv MSG_OOB without urgent data")
def oob_none(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abc")
    b.recv(y, 10, OOB)
    b.recv(y, 10, OOB | PEEK)
    b.recv(y, 10)
    b.recv(y, 10, OOB | DONTWAIT)


@behaviour("recvfrom name")
def recvfrom_name(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for given in (16, 4, 0, 128):
        a.send(x, b"abc")
        memory = b.link.memory()
        room, name, size = memory.room(8), memory.room(16), memory.both(given.to_bytes(4, "little"))
        b.sys("recvfrom", y, room, 8, 0, name, size, memory=memory, text=f"{given}", shown=lambda _, data: repr(data))
    memory = b.link.memory()
    room, name, size = memory.room(8), memory.room(16), memory.both((16).to_bytes(4, "little"))
    b.sys("recvfrom", y, room, 8, DONTWAIT, name, size, memory=memory, text="none", shown=lambda _, data: repr(data))
    a.send(x, b"abc")
    memory = b.link.memory()
    b.sys("recvfrom", y, memory.room(8), 8, 0, memory.room(16), 0, memory=memory, text="no length",
          shown=lambda _, data: repr(data))
    b.recv(y, 8, DONTWAIT)


@behaviour("recvmsg")
def recvmsg(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abcdefghij")
    b.recvmsg(y, [2, 3])
    b.recvmsg(y, [2, 3], PEEK, control=64, name=32)
    b.recvmsg(y, [2, 30], control=64, name=32)
    b.recvmsg(y, [8], DONTWAIT, control=64, name=32)
    waits = b.start.recvmsg(y, [2, 2, 2]).asleep()
    a.send(x, b"xyz")
    waits.end()
    a.send(x, b"xyz")
    b.recvmsg(y, [8], TRUNC)
    b.recvmsg(y, [], DONTWAIT)
    a.shutdown(x, SHUT_WR)
    b.recvmsg(y, [8], control=64)


@behaviour("recvmsg MSG_CMSG_CLOEXEC")
def recvmsg_cloexec(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abcdef")
    b.recvmsg(y, [3], CMSG_CLOEXEC)
    b.recvmsg(y, [3], CMSG_CLOEXEC | DONTWAIT, control=64)
    b.recvmsg(y, [3], CMSG_CLOEXEC | DONTWAIT, control=64)


@behaviour("readv")
def readv(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.write(x, b"abcdefghij")
    b.readv(y, [1, 0, 3])
    b.readv(y, [0, 0])
    b.readv(y, [100, 100])
    waits = b.start.readv(y, [2, 2]).asleep()
    a.write(x, b"xyz")
    waits.end()
    b.sys("readv", y, 0, 0)
    b.sys("readv", y, 0, 1025)
    b.sys("readv", y, 0, -1)
    a.shutdown(x, SHUT_WR)
    b.readv(y, [2, 2])


RWF_HIPRI, RWF_DSYNC, RWF_SYNC, RWF_NOWAIT, RWF_APPEND = 1, 2, 4, 8, 16


@behaviour("preadv2", "preadv2 RWF_NOWAIT", "pread64 (ESPIPE)")
def preadv2(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.write(x, b"abcdefghij")
    b.readv(y, [2, 2], offset=MINUS_ONE)
    b.readv(y, [2], offset=0)
    b.readv(y, [2], offset=MINUS_ONE, flags=RWF_NOWAIT)
    b.readv(y, [2], offset=MINUS_ONE, flags=RWF_HIPRI)
    b.readv(y, [2], offset=MINUS_ONE, flags=RWF_SYNC)
    b.readv(y, [2], offset=MINUS_ONE, flags=1 << 20)
    a.write(x, b"klmn")
    b.readv(y, [2], offset=MINUS_ONE, flags=RWF_APPEND)
    b.recv(y, 100, DONTWAIT)
    b.readv(y, [2], offset=MINUS_ONE, flags=RWF_NOWAIT)
    memory = b.link.memory()
    b.sys("pread64", y, memory.room(4), 4, 0, memory=memory, text="")
    waits = b.start.readv(y, [8], offset=MINUS_ONE).asleep()
    a.write(x, b"end")
    waits.end()


@behaviour("recvmmsg", "recvmmsg MSG_WAITFORONE", "recvmmsg timeout")
def recvmmsg(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abcdefghij")
    b.recvmmsg(y, [3, 3, 4])
    b.recvmmsg(y, [3, 3], DONTWAIT)
    a.send(x, b"abcdef")
    b.recvmmsg(y, [4, 4, 4], WAITFORONE)
    waits = b.start.recvmmsg(y, [2, 2]).asleep()
    a.send(x, b"xy")
    waits.asleep()
    a.send(x, b"z")
    waits.end()
    a.send(x, b"abcdef")
    b.recvmmsg(y, [2, 2], 0, timeout=1.0)
    b.recvmmsg(y, [2], 0, timeout=0.0)
    b.recvmmsg(y, [2, 2], DONTWAIT, timeout=1.0)
    waits = b.start.recvmmsg(y, [2, 2], WAITFORONE, timeout=5.0).asleep()
    a.send(x, b"x")
    waits.end()
    a.send(x, b"end")
    a.shutdown(x, SHUT_WR)
    b.recvmmsg(y, [2, 2, 2, 2])


@behaviour("recv bad pointers (EFAULT)")
def receive_faults(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abcdefgh")
    for address in (0, 64, 1 << 63, (1 << 47) - 2):
        b.sys("read", y, address, 4)
        b.sys("recvfrom", y, address, 4, 0)
        b.sys("recvmsg", y, address, 0)
        b.sys("readv", y, address, 1)
    b.sys("recvfrom", y, 0, 4, DONTWAIT)
    b.recv(y, 100, DONTWAIT)
