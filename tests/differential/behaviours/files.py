# SPDX-License-Identifier: Apache-2.0
"""Files and pipes into and out of a connection."""

from __future__ import annotations

from tests.differential.linux import DONTWAIT, SHUT_WR
from tests.differential.worlds import Stage, behaviour


@behaviour("sendfile", "sendfile offset")
def sendfile(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    data = bytes(range(256)) * 150
    file = a.file(data)
    a.sendfile(x, file, 100)
    b.recv_all(y, 100)
    a.sys("lseek", file, 0, 1)
    a.sendfile(x, file, 20_000)
    b.recv_all(y, 20_000)
    a.sendfile(x, file, 10_000, offset=5)
    b.recv_all(y, 10_000)
    a.sys("lseek", file, 0, 1)
    a.sendfile(x, file, 1 << 20)
    b.recv_all(y, len(data) - 20_100)
    a.sendfile(x, file, 10)
    a.sendfile(x, file, 10, offset=len(data))
    a.sendfile(x, file, 10, offset=-1)
    a.sendfile(x, file, 0)
    a.sendfile(x, 99, 10)
    a.sendfile(x, x, 10)
    b.recv(y, 10, DONTWAIT)
    a.nonblock(x)
    a.sendfile(x, file, 30_000, offset=0)
    b.recv_all(y, 30_000)


@behaviour("splice pipe to socket", "splice socket to pipe", "splice SPLICE_F_NONBLOCK", "tee")
def splice(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    out, into = a.pipe()
    a.write(into, b"through the pipe")
    a.splice(out, x, 7)
    b.recv(y, 100)
    a.splice(out, x, 100)
    b.recv(y, 100)
    a.splice(out, x, 100, 2)
    waits = a.start.splice(x, into, 100, 2).asleep()
    b.send(y, b"wakes")
    waits.end()
    a.read(out, 100)
    b.send(y, b"from the socket")
    a.splice(x, into, 4)
    a.read(out, 100)
    a.splice(x, into, 100)
    a.read(out, 100)
    b.send(y, b"s" * 30_000)
    a.splice(x, into, 30_000)
    a.sys("fcntl", out, 1032)  # F_GETPIPE_SZ
    a.recv_all(out, 30_000)
    waits = a.start.splice(x, into, 10).asleep()
    b.send(y, b"late")
    waits.end()
    a.read(out, 10)
    a.sys("tee", x, into, 10, 0)
    a.sys("tee", out, x, 10, 0)
    memory = a.link.memory()
    a.sys("splice", out, memory.put(bytes(8)), x, 0, 10, 0, memory=memory, text="offset of a pipe")
    a.sys("splice", out, 0, x, memory.put(bytes(8)), 10, 0, memory=memory, text="offset of a socket")
    a.splice(x, x, 10)
    b.shutdown(y, SHUT_WR)
    a.splice(x, into, 10)


@behaviour("vmsplice and splice of a file")
def splice_file(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    file = a.file(b"file data " * 1000)
    out, into = a.pipe()
    a.splice(file, into, 10_000)
    a.splice(out, x, 10_000)
    b.recv_all(y, 10_000)
