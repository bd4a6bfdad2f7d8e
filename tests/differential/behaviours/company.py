# SPDX-License-Identifier: Apache-2.0
"""Several processes and threads sleep on one connection, or one sleeps while another one looks."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.differential.behaviours.transmit import fill
from tests.differential.linux import (
    DONTWAIT,
    ET,
    IN,
    OUT,
    PEEK,
    SO_RCVTIMEO,
    SO_SNDBUF,
    SOL_SOCKET,
    TCP_NOTSENT_LOWAT,
    WAITALL,
)
from tests.differential.side import Call, Side, settle
from tests.differential.worlds import Stage, behaviour


def sleepers(side: Side, x: int) -> tuple[Callable[[], Call], ...]:
    """Ways to sleep on a connection until it can be read."""
    level, edge = side.epoll(), side.epoll()
    side.ctl(level, "add", x, IN)
    side.ctl(edge, "add", x, IN | ET)
    later = side.start
    return (lambda: later.poll([(x, IN)], 8000), lambda: later.select([x], seconds=8),
            lambda: later.wait(level, timeout=8000), lambda: later.wait(edge, timeout=8000),
            lambda: later.recv(x, 1, PEEK))


@behaviour("poll, select, epoll and recv in one process while another one looks and reads nothing", carried=False)
def asleep_together(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    others = (a.fork("c"), a.thread("t"))
    for other in others:
        for way in sleepers(other, x):
            for text in (b"first", b"again"):
                waits = way().asleep()
                b.send(y, text)
                for _ in range(3):
                    a.poll([(x, IN)])
                    a.recv(x, 2, PEEK)
                waits.end()
                a.recv(x, 100)
                a.recv(x, 100, DONTWAIT)
    child, thread = others
    waiting = [side.start.poll([(x, IN)], 8000).asleep() for side in (child, thread)]
    b.send(y, b"for both")
    a.poll([(x, IN)])
    for each in waiting:
        each.end()
    a.recv(x, 100)


@behaviour("epoll EPOLLET in one process while another one leaves bytes unread", carried=False)
def edge_in_company(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    child = a.fork("c")
    edge = child.epoll()
    child.ctl(edge, "add", x, IN | ET)
    for count in range(1, 6):
        waits = child.start.wait(edge, timeout=8000).asleep()
        b.send(y, b"unread")
        waits.end()
        a.poll([(x, IN)])
        a.recv(x, 100, PEEK | DONTWAIT)
        child.wait(edge)
        a.say(f"{count} times")
    for events in (OUT, OUT | ET):  # there is room: of that, too, there has to be a doorbell of its own
        room = child.epoll()
        child.ctl(room, "add", x, events)
        child.wait(room)
        total = fill(stage, x)
        waits = child.start.wait(room, timeout=8000).asleep()
        b.send(y, b"unread")
        settle()
        b.recv_all_quietly(y, total)
        waits.end()


@behaviour("recv MSG_PEEK of more than there is with SO_RCVTIMEO, of a connection that two processes use",
           carried=False)
def peek_in_time(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y = stage.connection()
    a.fork("c")
    a.setsockopt(x, SOL_SOCKET, SO_RCVTIMEO, struct.pack("=qq", 0, 200_000))
    for text in (b"some", b"more"):
        waits = a.start.recv(x, 100, PEEK | WAITALL).asleep()
        b.send(y, text)
        waits.end()
    a.recv(x, 100)
    a.recv(x, 100)


@behaviour("recv MSG_PEEK and MSG_WAITALL of bytes that another thread or process takes meanwhile", carried=False)
def peek_of_what_is_taken(stage: Stage) -> None:
    a, b = stage.a, stage.b
    for company, name in ((a.thread, "t"), (a.fork, "c")):
        x, y = stage.connection()
        other = company(name)
        for size, sent, taken, then in (
            (2, b"a", 1, b"x"), (4, b"ab", 2, b"xy"), (3, b"ab", 1, b"x"), (9, b"abcd", 3, b"vwxyz"),
        ):  # fmt: skip
            b.send(y, sent)
            settle()
            waits = other.start.recv(x, size, PEEK | WAITALL).asleep()
            a.recv(x, taken)
            settle()
            b.send(y, then)
            waits.end()
            a.recv(x, 100)


MORE: Final = b"m" * 20_000


def waits_for_room(side: Side, x: int) -> tuple[Callable[[], Call], ...]:
    """Ways to sleep until a connection that is full has room."""
    level, edge = side.epoll(), side.epoll()
    for ep, events in ((level, OUT), (edge, OUT | ET)):
        side.ctl(ep, "add", x, events)
    side.wait(edge)
    later = side.start
    return (lambda: later.send(x, MORE), lambda: later.writev(x, [MORE[:9_000], MORE[9_000:]]),
            lambda: later.poll([(x, OUT)], 8000), lambda: later.select(write=[x], seconds=8),
            lambda: later.wait(level, timeout=8000), lambda: later.wait(edge, timeout=8000))


@behaviour("setsockopt SO_SNDBUF while another thread sleeps for room",
           "setsockopt TCP_NOTSENT_LOWAT while another thread sleeps for room",
           only=("before", "after"))
def more_room(stage: Stage) -> None:
    """In "tight" worlds no more fits into the ring."""
    a, b = stage.a, stage.b
    thread = a.thread("t")
    options = ((SOL_SOCKET, SO_SNDBUF, 4096, 300_000), (6, TCP_NOTSENT_LOWAT, 8192, 200_000))
    for option in options:
        for number in range(6):
            x, y = stage.connection()
            a.setsockopt(x, *option[:3])
            a.sent += (total := fill(stage, x))
            waits = waits_for_room(thread, x)[number]().asleep()
            a.setsockopt(x, *option[:2], option[3])
            waits.end()
            taken = waits.value if number < 2 else 0
            a.poll([(x, OUT)])
            a.sent += taken
            b.recv_all_quietly(y, total + taken)
            for side, fd in ((a, x), (b, y)):
                side.close(fd)


@behaviour("epoll_ctl of a descriptor that 300 others lie before in the set")
def many_descriptors_of_one(stage: Stage) -> None:
    """All of them are one connection's."""
    a, b = stage.a, stage.b
    x, y = stage.connection()
    ep = a.epoll()
    fds = [x, *(a.sys("dup", x).value for _ in range(300))]
    for fd in fds:
        a.ctl(ep, "add", fd, IN | ET)
    a.ctl(ep, "add", x, IN)
    a.ctl(ep, "del", x)
    a.ctl(ep, "mod", fds[1], OUT | ET)
    b.send(y, b"one")
    a.wait(ep, 400)
    a.ctl(ep, "mod", fds[2], IN)
    a.ctl(ep, "add", x, IN)
    a.wait(ep, 400, timeout=8000)
    a.recv(x, 10)
    a.wait(ep, 400)
    b.send(y, b"two")
    settle()
    a.wait(ep, 400)


@behaviour("poll of idle connections that several processes use: nobody wakes up", carried=False)
def idle_together(stage: Stage) -> None:
    a = stage.a
    x, y = stage.connection()
    child = a.fork("c")
    for side, other in ((child, a), (a, child)):
        for way in sleepers(side, x)[:4]:
            waits = way().asleep()
            before = switches(side)
            other.poll([], 300)
            woken = switches(side) - before
            a.say("slept on" if woken < 30 else f"woke up {woken} times")
            stage.b.send(y, b"go on")
            waits.end()
            other.recv(x, 100)


def switches(side: Side) -> int:
    """How often the task has gone to sleep."""
    text = Path(f"/proc/{side.link.pid}/task/{side.link.tid}/status").read_text()
    return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
