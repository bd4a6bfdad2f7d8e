# SPDX-License-Identifier: Apache-2.0
"""Calls that no connection understands, or only in part: the kernel answers, and the stream goes on."""

from __future__ import annotations

import struct

from tests.differential.behaviours.descriptors import exchange
from tests.differential.linux import (
    DONTWAIT,
    F_DUPFD,
    F_GETFD,
    F_GETFL,
    F_SETFL,
    FIONREAD,
    IN,
    O_CLOEXEC,
    O_NONBLOCK,
    OUT,
    SHUT_WR,
    SO_ERROR,
    SO_RCVLOWAT,
    SOL_SOCKET,
    SOL_TCP,
    TCP_NODELAY,
)
from tests.differential.side import MINUS_ONE, Side
from tests.differential.worlds import Stage, behaviour

ODD_IOCTLS = (0x5413, 0x541B + 0x100, 0x8905 + 0x20, 0x5401)
"""TIOCGWINSZ, two that nobody knows, TCGETS."""


def vector(side: Side, name: str, fd: int, data: bytes, *rest: int) -> None:
    """preadv and its kin, with one piece."""
    memory = side.link.memory()
    piece = memory.put(struct.pack("=QQ", memory.both(data), len(data)))
    side.sys(name, fd, piece, 1, *rest, memory=memory, text=f"{fd}, {rest}", shown=lambda _, read: repr(read[0]))


@behaviour("preadv (ESPIPE)", "pwritev (ESPIPE)", "preadv2 offset (ESPIPE)", "preadv2 unknown flags (EOPNOTSUPP)")
def positioned(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.send(y, b"unread")
    for offset in (0, 5, MINUS_ONE):
        vector(a, "preadv", x, b"....", offset, 0)
        vector(a, "pwritev", x, b"data", offset, 0)
    for offset, flags in ((0, 0), (7, 8), (MINUS_ONE, 1 << 30), (MINUS_ONE, 0x30)):
        vector(a, "preadv2", x, b"....", offset, 0, flags)
        vector(a, "pwritev2", x, b"data", offset, 0, flags)
    a.recv(x, 100)
    exchange(stage, a, x, y)


@behaviour("sendfile from a connection into a pipe", "sendfile from a connection into a file (EINVAL)",
           "copy_file_range (EINVAL)", "fsync (EINVAL)", "ftruncate (EINVAL)", "ioctl unknown (ENOTTY)",
           "lseek (ESPIPE)", "splice offset (ESPIPE)")
def no_file(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.send(y, b"unread")
    file = a.file(b"0123456789")
    out, into = a.pipe()
    a.sys("sendfile", file, x, 0, 4)
    a.sys("sendfile", into, x, 0, 4)
    a.read(out, 10)
    memory = a.link.memory()
    a.sys("sendfile", into, x, memory.put(bytes(8)), 4, memory=memory, text="an offset")
    a.sys("sendfile", x, out, 0, 4)
    a.sys("copy_file_range", x, 0, file, 0, 4, 0)
    a.sys("copy_file_range", file, 0, x, 0, 4, 0)
    for name, *rest in (("fsync",), ("fdatasync",), ("ftruncate", 3), ("lseek", 0, 0), ("fallocate", 0, 0, 9)):
        a.sys(name, x, *rest)
    for request in ODD_IOCTLS:
        memory = a.link.memory()
        a.sys("ioctl", x, request, memory.room(64), memory=memory, text=f"{request:#x}")
    memory = a.link.memory()
    offset = memory.put(struct.pack("=q", 0))
    a.sys("splice", x, offset, into, 0, 4, 0, memory=memory, text="an offset of the connection")
    memory = a.link.memory()
    a.sys("getdents64", x, memory.room(64), 64, memory=memory, text="")
    a.recv(x, 100)
    exchange(stage, a, x, y)


@behaviour("mmap", "getsockopt TCP_ZEROCOPY_RECEIVE")
def zerocopy_receive(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    where = 0x200000000000
    a.sys("mmap", where, 65536, 1, 1 | 0x100000, x, 0, text="read, shared, fixed")
    a.sys("mmap", 0, 65536, 2, 1, x, 0)

    def ask(length: int, address: int = where, size: int = 24) -> None:
        memory = a.link.memory()
        asked = memory.both(struct.pack("=QIIIi", address, length, 7, 7, 7))
        a.sys("getsockopt", x, 6, 35, asked, memory.put(struct.pack("=I", size)), memory=memory,
              text=f"ZEROCOPY_RECEIVE {length} {size}",
              shown=lambda _, data: str(struct.unpack("=QIIIi", data[0])[1:3]))

    ask(65536)
    b.send(y, b"too little for a page")
    ask(65536)
    ask(4096)
    ask(65536, where + 1)
    a.recv(x, 4)
    ask(65536)
    a.recv(x, 100)
    ask(65536)
    exchange(stage, a, x, y)


DIRT = 0x5A5A << 32
"""An int is 32 bits of a register; a C compiler leaves in the others what was there."""


@behaviour("read and write, upper half of the descriptor", "sendto and recvfrom, upper half of flags",
           "ioctl, upper half of the request", "setsockopt and getsockopt, upper half of level and name")
def upper_half(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ours, theirs = x | DIRT, y | DIRT
    exchange(stage, a, ours, theirs)
    for size in (1, 8, 100, 5000):
        b.write(theirs, bytes(size))
        a.ioctl(ours, FIONREAD | DIRT)
        a.read(ours, size)
        b.writev(theirs, (b"one", b"two"))
        a.readv(ours, (2, 20))
        b.sendmsg(theirs, (b"parts", b"of it"), DIRT)
        a.recvmsg(ours, (3, 30), DONTWAIT | DIRT)
        b.sendmmsg(theirs, ((b"many",),), DIRT)
        a.recvmmsg(ours, (10,), DONTWAIT | DIRT)
        b.send(theirs, b"flags", DIRT)
        a.recv(ours, 100, DONTWAIT | DIRT)
    for level, name, value in ((SOL_TCP, TCP_NODELAY, 0), (SOL_TCP, TCP_NODELAY, 1), (SOL_SOCKET, SO_RCVLOWAT, 3)):
        a.setsockopt(ours, level | DIRT, name | DIRT, value)
        a.option(ours, level | DIRT, name | DIRT)
        a.option(x, level, name)
    b.send(theirs, b"ab")
    a.poll([(x, IN)])
    b.send(y, b"c")
    a.poll([(x, IN)])
    a.recv(x, 100)
    a.option(ours, SOL_SOCKET | DIRT, SO_ERROR | DIRT)


@behaviour("epoll_ctl and epoll_wait, upper half of descriptor, operation and number",
           "dup2 and fcntl, upper half of descriptor and command", "shutdown, upper half of the direction",
           carried=False)
def upper_half_of_descriptors(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    memory = a.link.memory()
    where = memory.put(struct.pack("=IQ", IN | OUT, 7))
    a.sys("epoll_ctl", ep | DIRT, 1 | DIRT, x | DIRT, where, memory=memory, text="add")
    b.send(y, b"news")
    memory = a.link.memory()
    a.sys("epoll_wait", ep | DIRT, memory.room(24), 2 | DIRT, DIRT, memory=memory, text="2",
          shown=lambda _, data: repr(data[0][:12]))
    again = a.fcntl(x | DIRT, F_DUPFD | DIRT, 60).value
    exchange(stage, a, again | DIRT, y)
    other = a.sys("dup2", x | DIRT, 61 | DIRT).value
    a.sys("dup2", x | DIRT, x)
    a.sys("dup3", x | DIRT, x, 0)
    exchange(stage, a, other, y)
    a.fcntl(x | DIRT, F_SETFL | DIRT, O_NONBLOCK)
    a.fcntl(other, F_GETFL)
    a.recv(other, 10)
    a.close(x | DIRT)
    a.recv(x, 10)
    exchange(stage, a, again, y)
    a.sys("close_range", again | DIRT, again | DIRT, DIRT)
    a.recv(again, 10)
    exchange(stage, a, other | DIRT, y | DIRT)
    a.shutdown(other | DIRT, SHUT_WR | DIRT)
    a.send(other, b"no", 0x4000)
    b.recv(y | DIRT, 100)
    b.send(y, b"yes")
    a.recv(other, 100)
    b.close(y | DIRT)
    a.recv(other, 100)


@behaviour("socket, connect, accept4, upper half of all that are int")
def born_dirty(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    theirs = b.socket(2 | DIRT, 1 | DIRT, DIRT)
    b.connect(theirs | DIRT, port)
    ours = a.accept(listener | DIRT, O_CLOEXEC | DIRT).value
    stage.talk(ours, theirs)
    a.fcntl(ours | DIRT, F_GETFD | DIRT)
    exchange(stage, a, ours, theirs)
