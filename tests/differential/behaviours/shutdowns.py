# SPDX-License-Identifier: Apache-2.0
"""shutdown: half-closes in all orders, what goes on in the other direction, what comes after the end."""

from __future__ import annotations

import signal
import time

from tests.differential.behaviours.ends import drain, look, use
from tests.differential.behaviours.transmit import fill
from tests.differential.linux import (
    DONTWAIT,
    EVERYTHING,
    FIONREAD,
    IN,
    NOSIGNAL,
    OUT,
    RDHUP,
    SHUT_RD,
    SHUT_RDWR,
    SHUT_WR,
    SO_ERROR,
    SOL_SOCKET,
)
from tests.differential.side import settle
from tests.differential.worlds import Stage, behaviour


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
