# SPDX-License-Identifier: Apache-2.0
"""How connections end: close, exit and death, FIN against RST, who is told what and how often."""

from __future__ import annotations

import signal
import struct

from tests.differential.linux import (
    DONTWAIT,
    ERR,
    EVERYTHING,
    HUP,
    IN,
    NOSIGNAL,
    OUT,
    PEEK,
    RDHUP,
    SHUT_RDWR,
    SHUT_WR,
    SO_ERROR,
    SO_LINGER,
    SO_RCVTIMEO,
    SOL_SOCKET,
    WAITALL,
)
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour

ALL = EVERYTHING | ERR | HUP


def look(side: Side, fd: int) -> None:
    """Everything that can be asked without sending or waiting."""
    side.poll([(fd, ALL)])
    side.poll([(fd, IN)])
    side.poll([(fd, OUT)])
    side.poll([(fd, RDHUP)])
    side.select([fd], [fd], [fd])
    side.recv(fd, 10, PEEK | DONTWAIT)


def drain(side: Side, fd: int) -> None:
    """All that comes, and the end twice."""
    for _ in range(4):
        side.recv(fd, 10, DONTWAIT)
    look(side, fd)


def use(side: Side, fd: int) -> None:
    """What a program meets that goes on after the end."""
    side.recv(fd, 10, DONTWAIT)
    side.send(fd, b"more", NOSIGNAL)
    side.recv(fd, 10, DONTWAIT)
    side.send(fd, b"more", NOSIGNAL)
    side.send(fd, b"more")
    side.signals(signal.SIGPIPE)
    side.option(fd, SOL_SOCKET, SO_ERROR)
    look(side, fd)
    side.shutdown(fd, SHUT_WR)
    side.shutdown(fd, SHUT_RDWR)
    side.sys("getpeername", fd, 0, 0)


@behaviour("close with nothing unread (FIN)", carried=False)
def close_fin(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"last")
    a.close(x)
    look(b, y)
    drain(b, y)
    use(b, y)


@behaviour("send to a peer that has closed (RST after FIN)", carried=False)
def reset_after_fin(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"unread")
    a.close(x)
    b.send(y, b"x", NOSIGNAL)
    settle()
    look(b, y)
    b.option(y, SOL_SOCKET, SO_ERROR)
    look(b, y)
    use(b, y)


@behaviour("recvmmsg that finds a reset behind its first bytes", carried=False)
def recvmmsg_into_reset(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for then in ("recvmmsg", "recv", "error"):
        x, y = stage.connection()
        b.send(y, b"never read")
        a.send(x, b"bytes")
        settle()
        waits = b.start.recvmmsg(y, [5, 5, 5]).asleep()
        a.close(x)
        waits.end()
        if then == "recvmmsg":
            b.recvmmsg(y, [5, 5], DONTWAIT)
        elif then == "recv":
            b.recv(y, 10, DONTWAIT)
        else:
            b.option(y, SOL_SOCKET, SO_ERROR)
        b.recv(y, 10, DONTWAIT)
        b.recvmmsg(y, [5, 5], DONTWAIT)
        b.close(y)


@behaviour("recv MSG_WAITALL with SO_RCVTIMEO that has slept twice when a reset comes", carried=False)
def waitall_into_reset(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.setsockopt(y, SOL_SOCKET, SO_RCVTIMEO, struct.pack("=qq", 5, 0))
    b.send(y, b"never read")
    waits = b.start.recv(y, 20, WAITALL).asleep()
    a.send(x, b"bytes")
    waits.asleep()
    a.close(x)
    waits.end()
    for _ in range(2):
        b.recv(y, 10, DONTWAIT)


@behaviour("getsockopt SO_ERROR takes the error of a reset", carried=False)
def so_error_takes_it(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"never read")
    b.close(y)
    settle()
    a.option(x, SOL_SOCKET, SO_ERROR)
    a.send(x, b"x", NOSIGNAL)
    use(a, x)


@behaviour("recvmmsg after RST: the error comes before the bytes", carried=False)
def recvmmsg_after_reset(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"unread")
    a.shutdown(x, 2)
    b.send(y, b"x", NOSIGNAL)
    settle()
    b.recvmmsg(y, [1], DONTWAIT)
    b.recvmmsg(y, [3, 9], DONTWAIT)
    b.recvmmsg(y, [3], DONTWAIT)
    use(b, y)


@behaviour("close without a word (FIN)", carried=False)
def close_quietly(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    waits = b.start.recv(y, 10).asleep()
    a.close(x)
    waits.end()
    look(b, y)
    use(b, y)


@behaviour("close with bytes unread (RST)", carried=False)
def close_unread(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.send(y, b"never read")
    a.close(x)
    settle()
    look(b, y)
    use(b, y)


@behaviour("close with bytes unread in both directions (RST)", carried=False)
def close_unread_both(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"lost")
    b.send(y, b"never read")
    a.close(x)
    settle()
    b.poll([(y, ALL)])
    b.recv(y, 10, DONTWAIT)
    b.recv(y, 10, DONTWAIT)
    use(b, y)


@behaviour("setsockopt SO_LINGER 0 and close (RST)", carried=False)
def close_linger(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.setsockopt(x, SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 0))
    a.getsockopt(x, SOL_SOCKET, SO_LINGER, 8)
    waits = b.start.recv(y, 10).asleep()
    a.close(x)
    waits.end()
    look(b, y)
    use(b, y)


@behaviour("setsockopt SO_LINGER seconds and close", carried=False)
def close_linger_wait(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.setsockopt(x, SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 2))
    a.send(x, b"last")
    waits = a.start.close(x)
    b.recv(y, 10)
    b.recv(y, 10)
    b.close(y)
    waits.end()


@behaviour("getsockopt SO_ERROR after RST", carried=False)
def so_error(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.option(y, SOL_SOCKET, SO_ERROR)
    a.setsockopt(x, SOL_SOCKET, SO_LINGER, struct.pack("=ii", 1, 0))
    a.close(x)
    settle()
    b.poll([(y, ALL)])
    b.option(y, SOL_SOCKET, SO_ERROR)
    b.option(y, SOL_SOCKET, SO_ERROR)
    b.poll([(y, ALL)])
    b.recv(y, 10, DONTWAIT)
    b.send(y, b"x", NOSIGNAL)


@behaviour("close at both ends at once", carried=False)
def close_both(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    one, two = a.start.close(x), b.start.close(y)
    one.end()
    two.end()
    x, y = stage.connection()
    a.send(x, b"from a")
    b.send(y, b"from b")
    one, two = a.start.shutdown(x, SHUT_RDWR), b.start.shutdown(y, SHUT_RDWR)
    one.end()
    two.end()
    settle()
    a.recv(x, 10, DONTWAIT)
    b.recv(y, 10, DONTWAIT)


@behaviour("exit with a connection open (FIN)", carried=False)
def exit_fin(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"last")
    a.sys("exit_group", 0)
    settle()
    look(b, y)
    drain(b, y)


@behaviour("kill with bytes unread (RST)", carried=False)
def killed(stage: Stage) -> None:
    a, b = stage.a, stage.b
    _, y = stage.connection()
    b.send(y, b"never read")
    a.sys("kill", a.link.pid, signal.SIGKILL, text="self, SIGKILL")
    settle()
    b.poll([(y, ALL)], 1000)
    use(b, y)


@behaviour("bytes sent before close are all read")
def much_then_close(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    data = bytes(range(256)) * 150
    for _ in range(1):
        a.send(x, data)
    a.close(x)
    b.recv_all(y, len(data) + 1)
    b.recv(y, 1)


@behaviour("connect again on a used socket (EISCONN)")
def connect_again(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    fd = b.socket()
    b.connect(fd, port)
    x = a.accept(listener).value
    stage.talk(x, fd)
    b.connect(fd, port)
    b.listen(fd)
    b.bind(fd)
    b.send(fd, b"works")
    a.recv(x, 10)


@behaviour("connect AF_UNSPEC (disconnect)", carried=False)
def disconnect(stage: Stage) -> None:
    a, b = stage.a, stage.b
    listener, port = stage.listener()
    fd = b.socket()
    b.connect(fd, port)
    x = a.accept(listener).value
    stage.talk(x, fd)
    b.send(fd, b"last")
    a.recv(x, 10)
    memory = b.link.memory()
    b.sys("connect", fd, memory.put(bytes(16)), 16, memory=memory, text=f"{fd}, AF_UNSPEC")
    settle()
    a.recv(x, 10, DONTWAIT)
    b.recv(fd, 10, DONTWAIT)
    b.send(fd, b"x", NOSIGNAL)
    b.connect(fd, port)
    z = a.accept(listener).value
    stage.talk(z, fd)
    b.send(fd, b"again")
    a.recv(z, 10)
    a.send(z, b"and back")
    b.recv(fd, 10)
