# SPDX-License-Identifier: Apache-2.0
"""splice and sendfile where something is in the way: full pipes, wrong ends, odd files, flags, ends of streams."""

from __future__ import annotations

import signal
import struct
from typing import Final

from tests.differential.behaviours.descriptors import exchange
from tests.differential.behaviours.transmit import fill
from tests.differential.linux import DONTWAIT, NOSIGNAL, O_NONBLOCK, SHUT_RDWR, SHUT_WR
from tests.differential.side import MINUS_ONE, Side, settle
from tests.differential.worlds import Stage, behaviour

NONBLOCK, MORE, GIFT, SET_SIZE = 2, 4, 8, 1031


def full_pipe(side: Side, flags: int = 0) -> tuple[int, int]:
    """A page, and it is full."""
    out, into = side.pipe(flags)
    side.fcntl(into, SET_SIZE, 4096)
    side.write(into, b"f" * 4096)
    side.sent -= 4096
    return out, into


@behaviour("splice unknown flags (EINVAL)", "splice SPLICE_F_MOVE and SPLICE_F_GIFT")
def splice_flags(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = a.pipe()
    for flags in (1, GIFT, NONBLOCK, 0x10, 0x80000000, 1 << 32):
        a.write(into, b"abc")
        a.sent -= 3
        a.splice(out, x, 3, flags)
        settle()
        b.recv(y, 10, DONTWAIT)
        b.send(y, b"def")
        a.splice(x, into, 3, flags)
        a.recv(x, 10, DONTWAIT)
        a.nonblock(out)
        a.read(out, 100)
        a.nonblock(out, False)
        a.splice(out, x, 0, flags)
        a.splice(x, into, 0, flags)
    exchange(stage, a, x, y)


@behaviour("splice to the wrong end of a pipe (EBADF)")
def splice_wrong_ends(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = a.pipe()
    for flags in (NONBLOCK, 0):
        a.splice(x, out, 10, flags)
        a.splice(into, x, 10, flags)
    b.send(y, b"abc")
    a.splice(x, out, 10)
    a.write(into, b"def")
    a.splice(into, x, 10)
    a.splice(x, 99, 10)
    a.splice(99, x, 10)
    file = a.file(b"file")
    a.splice(file, x, 4)
    a.splice(x, file, 4)
    a.recv(x, 10, DONTWAIT)
    exchange(stage, a, x, y)


@behaviour("splice with a pipe that is O_NONBLOCK")
def splice_nonblocking_pipe(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = a.pipe(O_NONBLOCK)
    a.splice(out, x, 10)
    a.write(into, b"abc")
    a.splice(out, x, 10)
    b.recv(y, 10)
    a.splice(out, x, 10)
    a.nonblock(x)
    a.splice(x, into, 10)
    b.send(y, b"def")
    settle()
    a.splice(x, into, 10)
    a.splice(x, into, 10, NONBLOCK)
    a.read(out, 10)
    a.nonblock(x, False)
    waits = a.start.splice(x, into, 10).asleep()
    b.send(y, b"late")
    waits.end()
    a.read(out, 10)
    a.close(into)
    a.splice(out, x, 10)


@behaviour("splice into a full pipe")
def splice_full_pipe(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = full_pipe(a)
    a.splice(x, into, 10, NONBLOCK)
    b.send(y, b"abcdef")
    settle()
    a.splice(x, into, 10, NONBLOCK)
    thread = a.thread("t")
    waits = thread.start.splice(x, into, 10).asleep()
    a.read(out, 4096)
    waits.end()
    a.read(out, 100)
    out, into = full_pipe(a, O_NONBLOCK)
    a.splice(x, into, 10)
    b.send(y, b"ghijkl")
    settle()
    a.splice(x, into, 10)
    a.read(out, 4096)
    a.splice(x, into, 10)
    a.read(out, 100)
    exchange(stage, a, x, y)


@behaviour("splice into a pipe that nobody reads (EPIPE)")
def splice_no_reader(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = a.pipe()
    a.close(out)
    a.splice(x, into, 10, NONBLOCK)
    a.signals(signal.SIGPIPE)
    b.send(y, b"abc")
    settle()
    a.splice(x, into, 10)
    a.signals(signal.SIGPIPE)
    a.recv(x, 10, DONTWAIT)
    exchange(stage, a, x, y)


@behaviour("splice from an empty pipe")
def splice_empty_pipe(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = a.pipe()
    a.splice(out, x, 10, NONBLOCK)
    thread = a.thread("t")
    waits = thread.start.splice(out, x, 10).asleep()
    a.write(into, b"abc")
    waits.end()
    b.recv(y, 10)
    waits = thread.start.splice(out, x, 10).asleep()
    a.close(into)
    waits.end()
    a.splice(out, x, 10)
    exchange(stage, a, x, y)


@behaviour("splice to a full stream", only=("before", "tight", "after", "accepting"))
def splice_full_stream(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = a.pipe()
    a.write(into, b"abcdef")
    total = fill(stage, x)
    a.nonblock(x)
    for flags in (0, NONBLOCK):
        a.splice(out, x, 3, flags)
    file = a.file(b"file")
    a.sendfile(x, file, 4)
    a.sys("lseek", file, 0, 1)
    a.nonblock(x, False)
    waits = a.start.splice(out, x, 3, NONBLOCK)
    waits.asleep()
    b.recv_all_quietly(y, total)
    waits.end()
    b.recv(y, 100)
    a.sent += total + 3
    exchange(stage, a, x, y)


@behaviour("splice after the end of the stream", "splice after shutdown (SIGPIPE)", "sendfile after shutdown (SIGPIPE)",
           carried=False)
def splice_ends(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = a.pipe()
    file = a.file(b"file")
    a.shutdown(x, SHUT_WR)
    a.write(into, b"abc")
    for flags in (0, NONBLOCK, MORE):
        a.splice(out, x, 3, flags)
        a.signals(signal.SIGPIPE)
    a.sendfile(x, file, 4)
    a.signals(signal.SIGPIPE)
    a.sys("lseek", file, 0, 1)
    a.nonblock(out)
    a.read(out, 10)
    b.send(y, b"last")
    b.shutdown(y, SHUT_WR)
    a.splice(x, into, 3)
    a.splice(x, into, 10)
    a.splice(x, into, 10)
    a.splice(x, into, 10, NONBLOCK)
    a.sys("sendfile", into, x, 0, 10)
    a.read(out, 10)
    a.shutdown(x, SHUT_RDWR)
    a.splice(x, into, 10)
    a.send(x, b"x", NOSIGNAL)


@behaviour("splice after RST", "sendfile after RST", carried=False)
def splice_reset(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for how in ("out", "in", "file", "sendfile"):
        x, y = stage.connection()
        out, into = a.pipe(O_NONBLOCK)
        a.write(into, b"abc")
        file = a.file(b"file")
        b.setsockopt(y, 1, 13, struct.pack("=ii", 1, 0))
        b.close(y)
        settle()
        for _ in range(3):
            if how == "out":
                a.splice(out, x, 3)
            elif how == "in":
                a.splice(x, into, 3)
            elif how == "file":
                a.sendfile(x, file, 4)
            else:
                a.sys("sendfile", into, x, 0, 4)
            a.signals(signal.SIGPIPE)
        a.recv(x, 10, DONTWAIT)
        a.close(x)


@behaviour("sendfile after the peer's SHUT_RDWR", "splice after the peer's SHUT_RDWR", carried=False)
def splice_after_the_end(stage: Stage) -> None:
    """The end was read before: TCP takes one more send, and refuses the next."""
    a, b = stage.a, stage.b
    for how in ("send", "file", "pipe"):
        x, y = stage.connection()
        out, into = a.pipe(O_NONBLOCK)
        a.write(into, b"abcdef")
        file = a.file(b"abcdef")
        b.shutdown(y, SHUT_RDWR)
        a.recv(x, 10)
        for _ in range(3):
            if how == "file":
                a.sendfile(x, file, 2)
            elif how == "pipe":
                a.splice(out, x, 2)
            else:
                a.send(x, b"ab")
            settle()
            a.signals(signal.SIGPIPE)


FILES: Final = ("/dev/zero", "/dev/null", "/tmp", "/proc/self/stat", "/proc/self/status", "/etc/hostname",
                "/dev/urandom")


@behaviour("sendfile of devices and other files")
def odd_files(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    for path in FILES:
        memory = a.link.memory()
        file = a.sys("open", memory.put(path.encode() + b"\0"), 0, memory=memory, text=path).value
        for offset in (None, 0, 3):
            memory = a.link.memory()
            where = 0 if offset is None else memory.both(struct.pack("=q", offset))
            call = a.sys("sendfile", x, file, where, 5, memory=memory, text=f"{path} {offset}")
            a.sent += max(call.value, 0)
            settle()
            memory = b.link.memory()
            call = b.sys("recvfrom", y, memory.room(10), 10, DONTWAIT, 0, 0, memory=memory, text=path)
        a.sys("lseek", file, 0, 1)
        a.close(file)
    exchange(stage, a, x, y)


@behaviour("sendfile from what is no file", "sendfile from a file that is not open for reading (EBADF)")
def no_files(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    memory = a.link.memory()
    for name, *rest in (("eventfd2", 5, O_NONBLOCK), ("timerfd_create", 1, O_NONBLOCK), ("epoll_create1", 0),
                        ("inotify_init1", O_NONBLOCK)):
        fd = a.sys(name, *rest).value
        for offset in (None, 0):
            a.sendfile(x, fd, 8, offset)
            settle()
            b.recv(y, 100, DONTWAIT)
        a.splice(fd, x, 8, NONBLOCK)
        a.close(fd)
    memory = a.link.memory()
    path = memory.put(b"/dev/null\0")
    fd = a.sys("open", path, 1, memory=memory, text="/dev/null for writing").value
    a.sendfile(x, fd, 4)
    a.sendfile(x, fd, 0)
    file = a.file(b"0123456789")
    for offset in (-1, -(1 << 62), (1 << 63) - 1, 1 << 62, 10, 9):
        a.sendfile(x, file, 4, offset)
    for count in (MINUS_ONE, 1 << 63, 1 << 40):
        a.sys("lseek", file, 0, 0)
        memory = a.link.memory()
        call = a.sys("sendfile", x, file, 0, count, memory=memory, text=f"{count:#x}")
        a.sent += max(call.value, 0)
        settle()
        b.recv(y, 100, DONTWAIT)
    one, two = a.pair()
    a.send(two, b"unix")
    a.sent -= 4
    a.sendfile(x, one, 4)
    exchange(stage, a, x, y)


def vmsplice(side: Side, fd: int, parts: list[bytes], flags: int = 0) -> None:
    """Into a pipe, or out of it into these places."""
    memory = side.link.memory()
    where = [memory.both(part) for part in parts]
    vectors = memory.put(b"".join(struct.pack("=QQ", at, len(part)) for at, part in zip(where, parts, strict=True)))
    side.sys("vmsplice", fd, vectors, len(parts), flags, memory=memory, text=f"{fd}, {parts}, {flags:#x}",
             shown=lambda value, data: str(data) if value > 0 else "")


@behaviour("vmsplice into a pipe, and on into a connection", "vmsplice SPLICE_F_GIFT", "vmsplice SPLICE_F_NONBLOCK",
           "vmsplice out of a pipe that a connection was spliced into", "vmsplice of a connection (EBADF)")
def vmsplice_pipes(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = a.pipe()
    for flags in (0, MORE, GIFT, NONBLOCK):
        vmsplice(a, into, [b"first ", b"", b"second"], flags)
        a.splice(out, x, 4)
        a.splice(out, x, 100)
        b.recv_all(y, 12)
        b.send(y, b"abcdef")
        a.splice(x, into, 100)
        vmsplice(a, out, [b"....", b"......"], flags)
    vmsplice(a, x, [b"abc"])
    vmsplice(a, into, [b"abc"], 16)
    vmsplice(a, into, [])
    full, filled = full_pipe(a)
    vmsplice(a, filled, [b"abc"], NONBLOCK)
    a.splice(full, x, 4096)
    b.recv_all(y, 4096)
    exchange(stage, a, x, y)
