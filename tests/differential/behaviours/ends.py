# SPDX-License-Identifier: Apache-2.0
"""How connections end: half-closes in all orders, FIN against RST, who is told what and how often."""

from __future__ import annotations

import signal
import struct
import time

from tests.differential.behaviours.transmit import fill
from tests.differential.linux import (
    DONTWAIT,
    ERR,
    EVERYTHING,
    FIONREAD,
    HUP,
    IN,
    NOSIGNAL,
    OUT,
    PEEK,
    RDHUP,
    SHUT_RD,
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


@behaviour("shutdown SHUT_WR", carried=False)
def half_close(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    look(a, x)
    a.send(x, b"last")
    a.shutdown(x, SHUT_WR)
    look(b, y)
    drain(b, y)
    for _ in range(3):
        b.send(y, b"still here")
        a.recv(x, 20)
    look(a, x)
    b.shutdown(y, SHUT_WR)
    drain(a, x)
    drain(b, y)
    use(a, x)
    use(b, y)


@behaviour("shutdown SHUT_WR, the other direction goes on")
def half_close_goes_on(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.send(y, b"request")
    b.shutdown(y, SHUT_WR)
    a.recv(x, 20)
    a.recv(x, 20)
    for _ in range(3):
        waits = b.start.recv(y, 20).asleep()
        a.send(x, b"still here")
        waits.end()
    data = bytes(range(256)) * 6000
    sends = a.start.send(x, data)
    b.recv_all(y, len(data))
    sends.end()
    file = a.file(data)
    sends = a.start.sendfile(x, file, len(data))
    b.recv_all(y, len(data))
    sends.end()
    a.close(x)
    b.recv(y, 10)


@behaviour("close after an answer that nobody has read yet, half-closed", carried=False)
def answered_and_gone(stage: Stage) -> None:
    """Nobody receives on x before both directions are over: a closed connection has to tell where the answer is."""
    a, b = stage.a, stage.b
    for _ in range(4):
        x, y = stage.connection()
        a.send(x, b"question")
        a.shutdown(x, SHUT_WR)
        b.recv(y, 20)
        b.recv(y, 20)
        b.send(y, b"answer")
        b.close(y)
        a.poll([(x, RDHUP)], 5000)
        settle()
        look(a, x)
        a.ioctl(x, FIONREAD)
        a.recv(x, 3)
        drain(a, x)
        a.close(x)


@behaviour("poll OUT of a full stream whose other direction is over",
           "epoll OUT of a full stream whose other direction is over",
           only=("before", "tight", "after", "accepting"))
def half_close_writable(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for how in ("poll", "epoll"):
        x, y = stage.connection()
        b.shutdown(y, SHUT_WR)
        a.recv(x, 20)
        ep = a.epoll()
        a.ctl(ep, "add", x, OUT)
        full = fill(stage, x)
        a.poll([(x, IN | OUT | RDHUP)])
        a.wait(ep)
        waits = (a.start.poll([(x, OUT)], 5000) if how == "poll" else a.start.wait(ep, timeout=5000)).asleep()
        b.recv_all_quietly(y, full)
        waits.end()
        look(a, x)
        a.wait(ep)


def killed_half_closed(stage: Stage, heard: bool) -> None:
    """`heard`: the process has read the doorbell that came with the last bytes, if one did."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.shutdown(x, SHUT_WR)
    drain(b, y)
    a.poll([(x, IN)], 50)
    b.send(y, b"is read")
    a.recv(x, 20)
    settle()
    if heard:
        a.recv(x, 20, DONTWAIT)
    a.sys("kill", a.link.pid, signal.SIGKILL, text="self, SIGKILL")
    time.sleep(0.03)  # as long as a sender on the ring believes that its peer is there
    b.send(y, b"x", NOSIGNAL)
    settle()
    use(b, y)


@behaviour("shutdown SHUT_WR of a process that is killed then", carried=False)
def half_close_killed(stage: Stage) -> None:
    killed_half_closed(stage, heard=True)


@behaviour("shutdown SHUT_WR of a process that is killed with a doorbell unread", carried=False)
def half_close_killed_unheard(stage: Stage) -> None:
    killed_half_closed(stage, heard=False)


@behaviour("shutdown SHUT_WR at both ends at once", carried=False)
def half_close_both(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"from a")
    b.send(y, b"from b")
    one, two = a.start.shutdown(x, SHUT_WR), b.start.shutdown(y, SHUT_WR)
    one.end()
    two.end()
    settle()
    look(a, x)
    look(b, y)
    drain(a, x)
    drain(b, y)


@behaviour("shutdown SHUT_RD", carried=False)
def shut_rd(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    b.send(y, b"early")
    a.shutdown(x, SHUT_RD)
    look(a, x)
    drain(a, x)
    b.send(y, b"late")
    settle()
    look(a, x)
    drain(a, x)
    a.send(x, b"other way")
    b.recv(y, 20)
    look(b, y)
    b.send(y, b"later")
    settle()
    look(a, x)


@behaviour("shutdown SHUT_RDWR", carried=False)
def shut_rdwr(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.send(x, b"last")
    a.shutdown(x, SHUT_RDWR)
    look(a, x)
    look(b, y)
    drain(b, y)
    use(a, x)
    use(b, y)


@behaviour("send to a peer that has shut both directions (RST)", carried=False)
def send_to_shut(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.shutdown(x, SHUT_RDWR)
    b.send(y, b"x", NOSIGNAL)
    a.option(x, SOL_SOCKET, SO_ERROR)
    look(a, x)
    look(b, y)
    use(b, y)


@behaviour("recv after an own shutdown and what the peer has sent since (RST)", carried=False)
def recv_after_own_shutdown(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for call in ("recv", "poll"):
        x, y = stage.connection()
        a.shutdown(x, SHUT_RDWR)
        b.send(y, b"x", NOSIGNAL)
        settle()
        if call == "recv":
            a.recv(x, 1)
        else:
            look(a, x)
        a.recv(x, 1)
        a.option(x, SOL_SOCKET, SO_ERROR)


@behaviour("shutdown wakes a sleeping recv", carried=False)
def shutdown_wakes(stage: Stage) -> None:
    a = stage.a
    x, _ = stage.connection()
    other = a.thread("t")
    waits = other.start.recv(x, 10).asleep()
    a.shutdown(x, SHUT_RD)
    waits.end()
    a.shutdown(x, SHUT_RDWR)
    other.poll([(x, RDHUP)], 5000)


@behaviour("shutdown bad argument (EINVAL)")
def shutdown_einval(stage: Stage) -> None:
    a = stage.a
    x, _ = stage.connection()
    a.shutdown(x, 3)
    a.shutdown(x, -1)
    a.shutdown(99, SHUT_WR)
    fd = a.socket()
    for how in (SHUT_RD, SHUT_WR, SHUT_RDWR):
        a.shutdown(fd, how)
    look(a, x)


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


@behaviour("send after an own shutdown and what the peer has sent since (RST)", carried=False)
def send_after_own_shutdown(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for call in ("send", "sendfile"):
        x, y = stage.connection()
        a.shutdown(x, SHUT_RDWR)
        a.send(x, b"x", NOSIGNAL)
        b.send(y, b"y", NOSIGNAL)
        settle()
        if call == "send":
            a.send(x, b"x", NOSIGNAL)
        else:
            file = a.file(b"z")
            a.sendfile(x, file, 1)
        a.send(x, b"x", NOSIGNAL)
        a.recv(x, 10, DONTWAIT)
        use(b, y)


@behaviour("shutdown SHUT_RD and SHUT_WR one after the other, and what the peer sends then (RST)", carried=False)
def shutdown_in_two(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for one, two in ((SHUT_RD, SHUT_WR), (SHUT_WR, SHUT_RD)):
        x, y = stage.connection()
        a.shutdown(x, one)
        a.shutdown(x, two)
        settle()
        b.recv(y, 10)
        b.send(y, b"y", NOSIGNAL)
        settle()
        b.send(y, b"y", NOSIGNAL)
        b.poll([(y, EVERYTHING)])
        b.recv(y, 10, DONTWAIT)
        a.poll([(x, EVERYTHING)])
        a.recv(x, 10, DONTWAIT)
        a.close(x)


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
