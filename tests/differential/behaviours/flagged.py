# SPDX-License-Identifier: Apache-2.0
"""Each flag that a call may be given, known or not, and calls of no bytes, or of more than there can be."""

from __future__ import annotations

import signal
import struct
from typing import Final

from tests.differential.behaviours.descriptors import exchange
from tests.differential.behaviours.pointers import EDGE, NOWHERE, at_edge, header, many, vector
from tests.differential.linux import (
    DONTWAIT,
    ERRQUEUE,
    FASTOPEN,
    FIONREAD,
    MORE,
    NOSIGNAL,
    OOB,
    PEEK,
    SHUT_WR,
    TRUNC,
    WAITALL,
    ZEROCOPY,
)
from tests.differential.side import MINUS_ONE, settle
from tests.differential.worlds import Stage, behaviour

COMPAT: Final = 1 << 31
"""MSG_CMSG_COMPAT: no program of 64 bit may say it."""
SEND_BITS: Final = [1 << bit for bit in range(32) if 1 << bit not in {OOB, MORE, ZEROCOPY, FASTOPEN, COMPAT}]
RECEIVE_BITS: Final = [1 << bit for bit in range(32) if 1 << bit not in {OOB, ERRQUEUE, WAITALL, COMPAT}]


@behaviour("send each flag", "sendmsg each flag", "sendmmsg each flag")
def send_bits(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for flag in SEND_BITS:
        a.send(x, b"one", flag)
        a.sendmsg(x, [b"two", b"2"], flag)
        a.sendmmsg(x, [[b"three"], [b"3"]], flag)
        b.recv(y, 100)
    exchange(stage, a, x, y)


@behaviour("recv each flag", "recvmsg each flag", "recvmmsg each flag")
def receive_bits(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for flag in RECEIVE_BITS:
        a.send(x, b"abcdefghijkl")
        b.recv(y, 2, flag | DONTWAIT)
        b.recvmsg(y, [1, 2], flag | DONTWAIT, control=64, name=32)
        b.recvmmsg(y, [1, 2], flag | DONTWAIT)
        b.recv(y, 100, DONTWAIT)
        b.recv(y, 100, flag | DONTWAIT)
        b.recvmsg(y, [1, 2], flag | DONTWAIT)
        b.recvmmsg(y, [1, 2], flag | DONTWAIT)
    exchange(stage, a, x, y)


@behaviour("sendmsg MSG_CMSG_COMPAT (EINVAL)", "recvmsg MSG_CMSG_COMPAT (EINVAL)", "sendmmsg MSG_CMSG_COMPAT (EINVAL)",
           "recvmmsg MSG_CMSG_COMPAT (EINVAL)")
def compat_bit(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"one", COMPAT)
    a.sendmsg(x, [b"two"], COMPAT)
    a.sendmmsg(x, [[b"three"]], COMPAT)
    b.recvmsg(y, [2], COMPAT | DONTWAIT)
    b.recvmmsg(y, [2], COMPAT | DONTWAIT)
    b.recv(y, 2, COMPAT | DONTWAIT)
    b.recv(y, 100, DONTWAIT)
    exchange(stage, a, x, y)


@behaviour("recv MSG_PEEK, MSG_TRUNC and MSG_WAITALL together")
def receive_pairs(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for flags in (PEEK | TRUNC, PEEK | WAITALL, TRUNC | WAITALL, PEEK | TRUNC | WAITALL):
        a.send(x, b"abcdef")
        b.recv(y, 4, flags)
        b.recv(y, 6, flags | DONTWAIT)
        b.recv(y, 10, flags | DONTWAIT)
        b.recvmsg(y, [2, 2], flags | DONTWAIT)
        b.recvmmsg(y, [1, 1], flags | DONTWAIT)
        b.recv(y, 100, DONTWAIT)
        b.recv(y, 10, flags | DONTWAIT)
    a.send(x, b"abcdef")
    a.shutdown(x, SHUT_WR)
    for flags in (PEEK | WAITALL, PEEK | TRUNC | WAITALL, TRUNC | WAITALL, PEEK | WAITALL):
        b.recv(y, 10, flags)


@behaviour("recvmmsg MSG_ERRQUEUE", "recvmmsg MSG_OOB without urgent data")
def recvmmsg_beside(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abc")
    for flags in (ERRQUEUE, ERRQUEUE | DONTWAIT, OOB, OOB | PEEK, OOB | DONTWAIT):
        b.recvmmsg(y, [2, 2], flags)
        b.recvmsg(y, [2], flags)
    b.recv(y, 10)


@behaviour("read of nothing", "readv of nothing", "recvmsg of nothing", "recvmmsg of nothing", "preadv2 of nothing",
           "sendmsg of nothing", "sendmmsg of nothing", "pwritev2 of nothing", "sendfile of nothing")
def nothing_at_all(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()

    def all_of_nothing() -> None:
        b.read(y, 0)
        b.sys("read", y, 0, 0)
        b.sys("read", y, NOWHERE, 0)
        b.sys("read", y, 1 << 63, 0)
        b.readv(y, [0])
        b.readv(y, [])
        b.readv(y, [0, 0])
        b.recv(y, 0, DONTWAIT)
        b.sys("recvfrom", y, NOWHERE, 0, DONTWAIT, 0, 0)
        b.sys("recvfrom", y, 1 << 63, 0, DONTWAIT, 0, 0)
        b.recv(y, 0, DONTWAIT | PEEK)
        b.recv(y, 0, DONTWAIT | TRUNC)
        b.recv(y, 0, DONTWAIT | WAITALL)
        b.recvmsg(y, [], DONTWAIT)
        b.recvmsg(y, [0, 0], DONTWAIT)
        b.recvmmsg(y, [], DONTWAIT)
        b.recvmmsg(y, [0, 0], DONTWAIT)
        for flags in (0, 8, 1 << 20, 0x30):
            b.readv(y, [0], offset=MINUS_ONE, flags=flags)
            b.readv(y, [], offset=MINUS_ONE, flags=flags)
            b.writev(y, [b""], offset=MINUS_ONE, flags=flags)
            b.writev(y, [], offset=MINUS_ONE, flags=flags)
        b.readv(y, [0], offset=0)
        b.write(y, b"")
        b.sys("write", y, 0, 0)
        b.sys("write", y, 1 << 63, 0)
        b.sys("sendto", y, 1 << 63, 0, NOSIGNAL, 0, 0)
        b.sendmsg(y, [b"", b""], NOSIGNAL)
        b.sendmsg(y, [], NOSIGNAL)
        b.sendmmsg(y, [[b""], []], NOSIGNAL)
        b.splice(y, y, 0)
        b.signals(signal.SIGPIPE)

    all_of_nothing()
    a.send(x, b"abc")
    all_of_nothing()
    b.recv(y, 10)
    a.shutdown(x, SHUT_WR)
    all_of_nothing()
    b.shutdown(y, SHUT_WR)
    all_of_nothing()


@behaviour("recv of more than memory there is", "send of more than memory there is",
           "read of more than memory there is")
def far_too_much(stage: Stage) -> None:
    """What the kernel takes a length for is less than 2 GiB, before it looks where that would end."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for size in (MINUS_ONE, (1 << 63) - 1, 1 << 63, 1 << 47, 1 << 40, 1 << 32, (1 << 31) + 5):
        a.send(x, b"abcdef")
        memory = b.link.memory()
        room = memory.room(8)
        b.sys("recvfrom", y, room, size, DONTWAIT, 0, 0, memory=memory, text=f"{size:#x}",
              shown=lambda _, data: repr(data[0]))
        b.recv(y, 100, DONTWAIT)
        a.send(x, b"abcdef")
        b.sys("recvfrom", y, 0, size, DONTWAIT | TRUNC, 0, 0)
        b.recv(y, 100, DONTWAIT)
        a.send(x, b"abcdef")
        memory = b.link.memory()
        b.sys("read", y, memory.room(8), size, memory=memory, text=f"{size:#x}", shown=lambda _, data: repr(data[0]))
        b.recv(y, 100, DONTWAIT)
        memory = a.link.memory()
        edge = at_edge(memory, b"12345678")
        a.sys("sendto", x, edge, size, DONTWAIT, 0, 0, memory=memory, text=f"{size:#x}")
        b.recv(y, 100, DONTWAIT)
        memory = a.link.memory()
        edge = at_edge(memory, b"12345678")
        a.sys("write", x, edge, size, memory=memory, text=f"{size:#x}")
        b.recv(y, 100, DONTWAIT)
    exchange(stage, a, x, y)


@behaviour("readv of vectors that are wrong in more than one way",
           "writev of vectors that are wrong in more than one way")
def wrong_vectors(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"abcdefghij")
    kinds = {"good": None, "kernel": (1 << 63, 4), "negative": (0, 1 << 63), "nowhere": (NOWHERE, 4), "empty": (0, 0),
             "empty in the kernel": (1 << 63, 0), "all": (EDGE - 4, (1 << 63) - 1)}
    for order in (("kernel", "negative"), ("negative", "kernel"), ("good", "kernel"), ("good", "negative"),
                  ("good", "nowhere"), ("empty", "nowhere"), ("empty in the kernel", "good"), ("good", "all"),
                  ("nowhere", "good"), ("empty", "good"), ("all", "negative")):
        for name in ("readv", "writev", "preadv2", "pwritev2", "sendmsg", "recvmsg"):
            memory = b.link.memory()
            parts = [kinds[kind] or (memory.both(b"good"), 4) for kind in order]
            iov = vector(memory, *parts)
            if name.endswith("msg"):
                arguments = [y, header(memory, iov, len(parts)), DONTWAIT]
            elif name.endswith("v2"):
                arguments = [y, iov, len(parts), MINUS_ONE, 0, 8]
            else:
                arguments = [y, iov, len(parts)]
            b.sys(name, *arguments, memory=memory, text=f"{name} {order}")
            a.recv(x, 100, DONTWAIT)
            b.ioctl(y, FIONREAD)
            b.recv(y, 100, DONTWAIT)
            a.send(x, b"abcdefghij")


@behaviour("readv of 1024 parts, and of 1025", "writev of 1024 parts, and of 1025",
           "recvmsg of 1024 parts, and of 1025",
           "sendmsg of 1024 parts, and of 1025")
def many_parts(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for count in (1023, 1024, 1025):
        for one, two in (("writev", "readv"), ("sendmsg", "recvmsg")):
            for side, fd, name in ((a, x, one), (b, y, two)):
                memory = side.link.memory()
                byte = memory.both(b"b")
                iov = vector(memory, *[(byte, 1)] * count)
                where = (iov, count) if name.endswith("v") else (header(memory, iov, count), DONTWAIT)
                call = side.sys(name, fd, *where, memory=memory, text=f"{name} {count}")
                side.sent += max(call.value, 0) if side is a else 0
                settle()
            b.recv(y, 3000, DONTWAIT)
    a.send(x, b"for one of the next")
    b.nonblock(y)
    for count in (MINUS_ONE, 1 << 32, (1 << 32) + 1, 1 << 31):
        for name in ("readv", "writev"):
            memory = b.link.memory()
            b.sys(name, y, vector(memory, (memory.room(4), 4)), count, memory=memory, text=f"{name} {count:#x}")
        for name in ("recvmsg", "sendmsg"):
            memory = b.link.memory()
            message = header(memory, vector(memory, (memory.room(4), 4)), count)
            b.sys(name, y, message, DONTWAIT, memory=memory, text=f"{name} {count:#x}")
    a.recv(x, 100, DONTWAIT)
    b.recv(y, 100, DONTWAIT)
    b.nonblock(y, False)
    exchange(stage, a, x, y)


@behaviour("sendmsg name", "recvmsg name")
def message_names(stage: Stage) -> None:
    """TCP looks at no name, but the kernel has read it by then."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for room in ("NULL", "good", "nowhere", "kernel"):
        for length in (0, 16, 128, 200, 1 << 31, 0xFFFFFFFF):
            memory = a.link.memory()
            iov = vector(memory, (memory.put(b"good"), 4))
            name = {"NULL": 0, "good": memory.put(bytes(200)), "nowhere": NOWHERE, "kernel": 1 << 63}[room]
            message = struct.pack("=QIIQQQQQ", name, length, 0, iov, 1, 0, 0, 0)
            call = a.sys("sendmsg", x, memory.put(message), DONTWAIT, memory=memory, text=f"{room} {length:#x}")
            a.sent += max(call.value, 0)
            memory = a.link.memory()
            iov = vector(memory, (memory.put(b"more"), 4))
            name = {"NULL": 0, "good": memory.put(bytes(200)), "nowhere": NOWHERE, "kernel": 1 << 63}[room]
            message = struct.pack("=QIIQQQQQ", name, length, 0, iov, 1, 0, 0, 0) + bytes(8)
            call = a.sys("sendmmsg", x, memory.put(message), 1, DONTWAIT, memory=memory, text=f"{room} {length:#x}")
            a.sent += 4 * max(call.value, 0)
            settle()
            memory = b.link.memory()
            iov = vector(memory, (memory.room(3), 3))
            name = {"NULL": 0, "good": memory.both(b"." * 200), "nowhere": NOWHERE, "kernel": 1 << 63}[room]
            where = memory.both(struct.pack("=QIIQQQQQ", name, length, 0, iov, 1, 0, 77, 77))
            b.sys("recvmsg", y, where, DONTWAIT, memory=memory, text=f"{room} {length:#x}",
                  shown=lambda _, data: str(struct.unpack("=QIIQQQQQ", data[-1])[1:2]) + data[-1][40:].hex())
            b.recv(y, 100, DONTWAIT)
    exchange(stage, a, x, y)


@behaviour("recvmsg control room that is too small, or nowhere")
def control_rooms(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for control, length in ((0, 0), (0, 64), (NOWHERE, 64), (1 << 63, 64), (64, MINUS_ONE), (NOWHERE, 1 << 31)):
        a.send(x, b"abc")
        memory = b.link.memory()
        iov = vector(memory, (memory.room(8), 8))
        message = memory.both(struct.pack("=QIIQQQQQ", 0, 0, 0, iov, 1, control, length, 77))
        b.sys("recvmsg", y, message, DONTWAIT, memory=memory, text=f"{control:#x} {length:#x}",
              shown=lambda _, data: data[-1][40:].hex())
        b.recv(y, 10, DONTWAIT)
    exchange(stage, a, x, y)


@behaviour("recvmmsg of messages that are wrong", "sendmmsg of messages that are wrong", "sendmmsg of 1025 messages")
def wrong_messages(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    memory = a.link.memory()
    one = many(vector(memory, (memory.put(b"1"), 1)))
    call = a.sys("sendmmsg", x, memory.put(one * 1025), 1025, DONTWAIT, memory=memory, text="1025")
    a.sent += max(call.value, 0)
    b.recv_all(y, 1024)
    b.recv(y, 10, DONTWAIT)
    for count in (0, MINUS_ONE, 1 << 32):
        memory = a.link.memory()
        edge = at_edge(memory, many(vector(memory, (memory.put(b"1"), 1))))
        call = a.sys("sendmmsg", x, edge, count, DONTWAIT, memory=memory, text=f"{count:#x}")
        a.sent += max(call.value, 0)
        settle()
        memory = b.link.memory()
        edge = at_edge(memory, many(vector(memory, (memory.room(1), 1))))
        b.sys("recvmmsg", y, edge, count, DONTWAIT, 0, memory=memory, text=f"{count:#x}")
        b.recv(y, 10, DONTWAIT)
    for seconds, nanoseconds in ((-1, 0), (0, -1), (0, 10**9), (1 << 62, 0), (0, 999_999_999)):
        a.send(x, b"ab")
        memory = b.link.memory()
        until = memory.put(struct.pack("=qq", seconds, nanoseconds))
        messages = memory.both(many(vector(memory, (memory.room(1), 1))) * 2)
        b.sys("recvmmsg", y, messages, 2, DONTWAIT, until, memory=memory, text=f"{seconds} {nanoseconds}")
        b.recv(y, 10, DONTWAIT)
    exchange(stage, a, x, y)
