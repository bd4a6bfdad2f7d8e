# SPDX-License-Identifier: Apache-2.0
"""splice and sendfile that wait, for a pipe or the connection, when a handler comes: with SA_RESTART they wait on."""

from __future__ import annotations

import signal
import struct
from collections.abc import Callable

from tests.differential.behaviours.descriptors import exchange
from tests.differential.behaviours.piped import full_pipe
from tests.differential.behaviours.transmit import fill
from tests.differential.caller import Call
from tests.differential.linux import SA_RESTART, SO_RCVTIMEO, SO_SNDTIMEO, SOL_SOCKET
from tests.differential.side import Side, settle
from tests.differential.worlds import Stage, behaviour

PAGE = 4096


def ready(stage: Stage) -> tuple[int, int, Side]:
    """A connection, and a thread of a, where USR1 ends calls and USR2 lets them go on."""
    x, y = stage.connection()
    thread = stage.a.thread("t")
    stage.a.handle(signal.SIGUSR1)
    stage.a.handle(signal.SIGUSR2, flags=SA_RESTART)
    return x, y, thread


def kill(by: Side, thread: Side, number: signal.Signals) -> None:
    """To this thread alone."""
    by.sys("tgkill", thread.link.pid, thread.link.tid, number, text=number.name)


def interrupted(by: Side, thread: Side, begin: Callable[[], Call], end: Callable[[], object]) -> None:
    """A call of a thread that waits, ended by the one handler, and by what it waits for behind the other."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        waits = begin().asleep()
        kill(by, thread, number)
        settle()
        if number == signal.SIGUSR2:
            waits.asleep()
            end()
        waits.end()
    by.signals(signal.SIGUSR1)
    by.signals(signal.SIGUSR2)


@behaviour("splice into a full pipe EINTR", "splice into a full pipe SA_RESTART",
           "sendfile into a full pipe EINTR", "sendfile into a full pipe SA_RESTART")
def splice_full_pipe_interrupted(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y, thread = ready(stage)
    out, into = full_pipe(a)
    b.send(y, b"abc")
    interrupted(a, thread, lambda: thread.start.splice(x, into, 10), lambda: a.read(out, PAGE))
    a.read(out, 100)
    interrupted(a, thread, lambda: thread.start.splice(x, into, 10), lambda: b.send(y, b"def"))
    a.read(out, 100)
    out, into = full_pipe(a)
    b.send(y, b"ghi")
    interrupted(a, thread, lambda: thread.start.sys("sendfile", into, x, 0, 10), lambda: a.read(out, PAGE))
    a.read(out, 100)
    exchange(stage, a, x, y)


@behaviour("splice into a full pipe SA_RESTART, whose reader goes")
def splice_full_pipe_restarted_broken(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y, thread = ready(stage)
    out, into = full_pipe(a)
    b.send(y, b"abc")
    interrupted(a, thread, lambda: thread.start.splice(x, into, 10), lambda: a.close(out))
    a.signals(signal.SIGPIPE)
    exchange(stage, a, x, y)


@behaviour("splice from an empty pipe EINTR", "splice from an empty pipe SA_RESTART")
def splice_empty_pipe_interrupted(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y, thread = ready(stage)
    out, into = a.pipe()
    interrupted(a, thread, lambda: thread.start.splice(out, x, 10), lambda: a.write(into, b"abc"))
    b.recv(y, 10)
    interrupted(a, thread, lambda: thread.start.splice(out, x, 10), lambda: a.close(into))
    exchange(stage, a, x, y)


@behaviour("splice to a full stream EINTR", "splice to a full stream SA_RESTART", "sendfile to a full stream EINTR",
           "sendfile to a full stream SA_RESTART", only=("before", "tight", "after", "accepting"))
def splice_full_stream_interrupted(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y, thread = ready(stage)
    out, into = a.pipe()
    file = a.file(b"z" * 100)
    a.write(into, b"abc")
    a.sent -= 3
    sent = fill(stage, x)
    interrupted(a, thread, lambda: thread.start.splice(out, x, 10), lambda: b.recv_all_quietly(y, sent))
    b.recv(y, 3)
    sent = fill(stage, x)
    interrupted(a, thread, lambda: thread.start.sys("sendfile", x, file, 0, 100), lambda: b.recv_all_quietly(y, sent))
    b.recv_all(y, 100)


def ended_by_both(by: Side, thread: Side, begin: Callable[[], Call]) -> None:
    """With a time-out of the socket SA_RESTART makes no difference."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        waits = begin().asleep()
        kill(by, thread, number)
        waits.end()


@behaviour("splice SO_RCVTIMEO EINTR", "splice SO_SNDTIMEO EINTR", only=("before", "tight", "after", "accepting"))
def splice_timed_interrupted(stage: Stage) -> None:
    a, b = stage.a, stage.b
    x, y, thread = ready(stage)
    out, into = a.pipe()
    for option in (SO_RCVTIMEO, SO_SNDTIMEO):
        a.setsockopt(x, SOL_SOCKET, option, struct.pack("=qq", 5, 0))
    ended_by_both(a, thread, lambda: thread.start.splice(x, into, 10))
    a.write(into, b"abc")
    a.sent -= 3
    sent = fill(stage, x)
    ended_by_both(a, thread, lambda: thread.start.splice(out, x, 10))
    b.recv_all_quietly(y, sent)
    a.splice(out, x, 10)
    b.recv(y, 10)
