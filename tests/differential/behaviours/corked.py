# SPDX-License-Identifier: Apache-2.0
"""TCP_CORK: bytes that are held, for how long, and what sends them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from tests.differential.linux import DONTWAIT, IN, SIOCOUTQNSD, TCP_CORK, TCP_NODELAY
from tests.differential.side import Call, Side, settle
from tests.differential.worlds import Stage, behaviour

T = TypeVar("T")
_HELD_S: Final = 0.15
"""TCP_CORK holds bytes for 200 ms: what takes as long as this is made again."""


def promptly(stage: Stage, calls: Callable[[], T], undo: Callable[[T], None]) -> T:
    """Calls that mean something else when the machine is too busy for them; `undo` makes as if they had not been."""
    while True:
        lines, begin = len(stage.a.log), time.monotonic()
        result = calls()
        if time.monotonic() - begin < _HELD_S:
            return result
        undo(result)
        del stage.a.log[lines:]


@behaviour("setsockopt TCP_CORK", "ioctl SIOCOUTQNSD")
def cork(stage: Stage) -> None:
    a, b = stage.a, stage.b

    x, y = stage.connection(nodelay=False)
    ep = b.epoll()
    b.ctl(ep, "add", y, IN)

    def look() -> None:
        a.setsockopt(x, 6, TCP_CORK, 1)
        a.send(x, b"abc")
        a.send(x, b"def")
        settle()
        b.recv(y, 10, DONTWAIT)
        b.poll([(y, IN)])
        b.select([y])
        b.wait(ep)
        a.option(x, 6, TCP_CORK)
        a.ioctl(x, SIOCOUTQNSD)
        a.setsockopt(x, 6, TCP_CORK, 0)

    promptly(stage, look, lambda _: empty(b, y))
    a.option(x, 6, TCP_CORK)
    b.recv_all(y, 6)
    a.ioctl(x, SIOCOUTQNSD)
    a.send(x, b"ghijkl")
    b.recv_all(y, 6)
    later = b.start
    ways: tuple[Callable[[], Call], ...] = (
        lambda: later.recv(y, 100), lambda: later.poll([(y, IN)], 5000),
        lambda: later.wait(ep, timeout=5000), lambda: later.select([y], seconds=5))  # fmt: skip

    def wake(way: Callable[[], Call]) -> Call:
        a.setsockopt(x, 6, TCP_CORK, 1)
        waits = way().asleep()
        a.send(x, b"a line")
        a.write(x, b" and another")
        waits.asleep()
        a.setsockopt(x, 6, TCP_CORK, 0)
        return waits

    def start_over(waits: Call) -> None:
        waits.end()
        empty(b, y)

    for way in ways:
        promptly(stage, partial(wake, way), start_over).end()
        b.recv(y, 100, DONTWAIT)


def empty(side: Side, fd: int) -> None:
    """Read what is there, and what is on its way."""
    while side.poll([(fd, IN)], 50).value:
        side.recv(fd, 1000)


@behaviour("setsockopt TCP_CORK for longer than 200 ms")
def cork_long(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection(nodelay=False)
    a.setsockopt(x, 6, TCP_CORK, 1)
    for waiting in (True, False):
        waits = b.start.recv(y, 100).asleep() if waiting else None
        a.send(x, b"held for a while")
        waits = waits or b.start.recv(y, 100)
        waits.end()
        b.recv(y, 10, DONTWAIT)
    ep = b.epoll()
    b.ctl(ep, "add", y, IN)
    waits = b.start.wait(ep, timeout=5000).asleep()
    a.send(x, b"and this")
    waits.end()
    b.recv(y, 10)
    a.send(x, b"and that")
    b.poll([(y, IN)], 5000)
    b.recv(y, 10)


@behaviour("setsockopt TCP_CORK, then sendfile", "setsockopt TCP_CORK, then TCP_NODELAY",
           "setsockopt TCP_CORK, then shutdown", "setsockopt TCP_CORK and full segments", carried=False)
def cork_pushed(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection(nodelay=False)
    file = a.file(bytes(range(200)))
    a.setsockopt(x, 6, TCP_CORK, 1)
    a.send(x, b"header")
    a.sendfile(x, file, 100)
    settle()
    b.recv(y, 10, DONTWAIT)
    a.setsockopt(x, 6, TCP_NODELAY, 1)
    b.recv_all(y, 106)
    a.setsockopt(x, 6, TCP_NODELAY, 0)
    data = bytes(range(256)) * 400
    sends = a.start.send(x, data)
    b.recv_all(y, 60_000)  # the rest may be no full segment
    sends.end()
    a.setsockopt(x, 6, TCP_CORK, 0)
    b.recv_all(y, len(data) - 60_000)
    child = a.fork("c")
    child.setsockopt(x, 6, TCP_CORK, 1)
    child.send(x, b"of the child,")
    a.send(x, b" of the parent")
    settle()
    b.recv(y, 10, DONTWAIT)
    a.setsockopt(x, 6, TCP_CORK, 0)
    b.recv_all(y, 27)
    a.setsockopt(x, 6, TCP_CORK, 1)
    a.send(x, b"last words")
    a.shutdown(x, 1)
    b.recv_all(y, 10)
    b.recv(y, 10)


@behaviour("close while TCP_CORK holds bytes", carried=False)
def cork_closed(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for how in ("close", "kill"):
        x, y = stage.connection(nodelay=False)
        a.setsockopt(x, 6, TCP_CORK, 1)
        waits = b.start.recv(y, 100).asleep()
        a.send(x, b"last words")
        if how == "close":
            a.close(x)
        else:
            a.sys("kill", a.link.pid, signal.SIGKILL, text="self, SIGKILL")
        waits.end()
        b.recv(y, 100)
